"""Which events get a clip: the first policy that fits an event counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ast_stream.labels import slug
from ast_stream.settings.recorder import ALL, ClipPolicy

Decision = Literal["keep", "wait", "drop"]
"""What becomes of the sound of an event; `wait`: an alert, or a higher score, may decide yet."""


@dataclass(frozen=True)
class Subject:
    """What a decision is about.

    Attributes:
        class_: slug of the label.
        peak: highest score so far, in [0, 1].
        is_over: it has ended, so that the peak is final.
        is_alerted: an alert names the event.
    """

    class_: str
    stream: str
    peak: float
    is_over: bool
    is_alerted: bool


class Policies:
    """The policies of a configuration, in their order."""

    def __init__(self, policies: Sequence[ClipPolicy]) -> None:
        self._policies = [
            (policy, None if policy.classes == ALL else frozenset(map(slug, policy.classes)))
            for policy in policies
        ]

    def chosen(self, subject: Subject) -> ClipPolicy | None:
        """Return the policy by which an event gets a clip, or may get one; None: it gets none.

        While the peak of an event is too low for any, it is the first that a higher one may lead
        to.
        """
        fitting = self._fitting(subject)
        now = next((one for one in fitting if one.min_score <= subject.peak), None)
        if now is not None and now.when != "never":
            return now
        later = () if subject.is_over else fitting[: None if now is None else fitting.index(now)]
        return next((one for one in later if one.when != "never"), None)

    def decide(self, subject: Subject) -> Decision:
        """Return what becomes of the sound of an event, as far as that is known."""
        if self.chosen(subject) is None:
            return "drop"
        fitting = self._fitting(subject)
        now = next((one for one in fitting if one.min_score <= subject.peak), None)
        if now is None or now.when == "never":
            return "wait"
        is_final = subject.is_over or fitting.index(now) == 0
        is_kept = now.when == "event" or subject.is_alerted
        return "keep" if is_final and is_kept else "wait"

    def longest_roll_s(self) -> float:
        """Return the seconds of pre-roll and post-roll of a clip, at most."""
        return max((one.pre_s + one.post_s for one, _ in self._policies), default=0.0)

    def _fitting(self, subject: Subject) -> list[ClipPolicy]:
        """Return the policies about such an event, whatever its score."""
        return [
            policy
            for policy, slugs in self._policies
            if (slugs is None or subject.class_ in slugs)
            and (policy.streams == ALL or subject.stream in policy.streams)
        ]
