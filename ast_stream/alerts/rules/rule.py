"""Compiled rules: every name is resolved, and evaluating them cannot fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ast_stream.alerts.rules.match import Matcher, Vocabulary
from ast_stream.alerts.rules.schema import Inhibit, RuleFile, RuleSettings
from ast_stream.alerts.rules.templates import Template
from ast_stream.alerts.rules.windows import TimeWindow
from ast_stream.alerts.triggers.base import Trigger
from ast_stream.labels import stable_id
from ast_stream.messages.alert import Severity
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.yaml import Document

_UNDIGESTED_KEYS = {"annotations", "actions", "labels", "severity"}


@dataclass(frozen=True)
class Rule:
    """One rule as the engine uses it.

    Attributes:
        matchers: of the sound, or of each step of a sequence.
        settings: the rule as the file has it.
        actions: by which its alerts are delivered; None: the file names none, and the alerts are
            only published, as with an empty list.
        path: where it stands in its file.
    """

    name: str
    group: str
    settings: RuleSettings
    matchers: tuple[Matcher, ...]
    group_by: tuple[str, ...]
    when: tuple[TimeWindow, ...]
    unless: tuple[TimeWindow, ...]
    keep_ns: int
    cooldown_ns: int
    severity: Severity
    labels: Mapping[str, str]
    actions: tuple[str, ...] | None
    annotations: Mapping[str, Template]
    document: Document
    path: KeyPath

    @cached_property
    def digest(self) -> str:
        """A digest of all that decides when it fires; a state is kept while this stays the same.

        Only keys that are set count, at every depth: one that the program learns changes no rule.
        """
        content = self.settings.model_dump(
            mode="json", exclude=_UNDIGESTED_KEYS, exclude_defaults=True
        )
        resolved = [
            [
                sorted(matcher.slugs or ()),
                matcher.min_score,
                [sorted(exception.slugs or ()) for exception in matcher.exceptions],
            ]
            for matcher in self.matchers
        ]
        return stable_id(
            json.dumps(content, sort_keys=True), json.dumps(resolved), ",".join(self.group_by)
        )

    @property
    def trigger(self) -> type[Trigger]:
        """The trigger class of this rule."""
        return self.settings.trigger

    @property
    def slugs(self) -> frozenset[str] | None:
        """The classes of all its matchers; None means any class."""
        slugs: frozenset[str] = frozenset()
        for matcher in self.matchers:
            if matcher.slugs is None:
                return None
            slugs |= matcher.slugs
        return slugs

    def covers_stream(self, stream: str, labels: Mapping[str, str]) -> bool:
        """Return whether its first match includes a stream."""
        return self.matchers[0].covers_stream(stream, labels)

    def group_of(
        self, stream: str, labels: Mapping[str, str], slug: str = "", label: str = ""
    ) -> dict[str, str]:
        """Return the values of `group_by` for an event, or for a stream, which has no class.

        Args:
            labels: of the stream.
            slug: the class of the event, as in topics.
            label: the class of the event, as the checkpoint names it.
        """
        own = {"stream": stream, "class": slug, "label": label}
        return {name: own[name] if name in own else labels.get(name, "") for name in self.group_by}

    def may_fire_at(self, at_ns: int) -> bool:
        """Return whether the windows of time let it fire at this instant."""
        is_time = not self.when or any(window.holds(at_ns) for window in self.when)
        return is_time and not any(window.holds(at_ns) for window in self.unless)


@dataclass(frozen=True)
class RuleSet:
    """All rules in force.

    Attributes:
        resume_ns: alerts continue after a pause of at most this; the largest of all files.
        files: the parsed files and the classes they know, for lints and explanations.
    """

    rules: tuple[Rule, ...] = ()
    inhibitions: tuple[Inhibit, ...] = ()
    resume_ns: int = 3600 * 10**9
    files: tuple[tuple[Document, RuleFile, Vocabulary], ...] = ()

    @property
    def by_levels(self) -> list[Rule]:
        """The rules that use sound levels."""
        return [
            rule
            for rule in self.rules
            if rule.trigger.reads_levels and rule.trigger.wants_levels(rule.settings)
        ]
