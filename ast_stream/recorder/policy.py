"""Decides which events get a clip: the first matching policy counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ast_stream.labels import slug
from ast_stream.settings.recorder import ALL, ClipPolicy

Decision = Literal["keep", "wait", "drop"]
"""The decision on an event's clips; `wait`: an alert, or a higher score, may still decide."""


@dataclass(frozen=True)
class Subject:
    """The properties of an event on which a policy decides.

    Attributes:
        class_: slug of the label.
        peak: highest score so far, in [0, 1].
        is_over: it has ended, so that the peak is final.
        is_alerted: an alert names the event.
        is_best: an alert names it, and no better event.
    """

    class_: str
    stream: str
    peak: float
    is_over: bool
    is_alerted: bool
    is_best: bool = False


class Policies:
    """The policies of a configuration, in their order."""

    def __init__(self, policies: Sequence[ClipPolicy]) -> None:
        self._policies = [
            (policy, None if policy.classes == ALL else frozenset(map(slug, policy.classes)))
            for policy in policies
        ]

    def chosen(self, subject: Subject) -> ClipPolicy | None:
        """Return the policy by which an event gets, or may get, a clip; None: it gets none.

        While the event's peak is too low for any policy, it is the first that a higher peak may
        reach.
        """
        fitting = self._fitting(subject)
        now = next((policy for policy in fitting if policy.min_score <= subject.peak), None)
        if now is not None and now.when != "never":
            return now
        later = () if subject.is_over else fitting[: None if now is None else fitting.index(now)]
        return next((policy for policy in later if policy.when != "never"), None)

    def decide(self, subject: Subject) -> Decision:
        """Return the decision on an event's clips, as far as known."""
        if self.chosen(subject) is None:
            return "drop"
        fitting = self._fitting(subject)
        now = next((policy for policy in fitting if policy.min_score <= subject.peak), None)
        if now is None or now.when == "never":
            return "wait"
        is_final = subject.is_over or fitting.index(now) == 0
        is_named = subject.is_best if now.when == "best" else subject.is_alerted
        is_kept = now.when == "event" or is_named
        return "keep" if is_final and is_kept else "wait"

    def _fitting(self, subject: Subject) -> list[ClipPolicy]:
        """Return the policies that match an event, whatever its score."""
        return [
            policy
            for policy, slugs in self._policies
            if (slugs is None or subject.class_ in slugs)
            and (policy.streams == ALL or subject.stream in policy.streams)
        ]
