"""`sequence`: sounds whose onsets follow each other within a time."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from ast_stream.alerts.rules.field_types import PositiveDuration, RuleSection
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.triggers.base import EventListTrigger, Finding, MatchedEvent
from ast_stream.units import seconds_to_ns

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule
    from ast_stream.alerts.rules.schema import RuleSettings
    from ast_stream.settings.explain import Path as KeyPath

MAX_SEQUENCE_EVENTS = 512


class Step(RuleSection):
    """One sound of a sequence."""

    match: EventMatch = Field(description="which sound")


class Sequence(RuleSection):
    """Sounds whose onsets follow each other, first to last within a time."""

    within: PositiveDuration = Field(description="from the first onset to the last")
    steps: list[Step] = Field(min_length=2, max_length=16, description="the sounds, in order")


@dataclass(eq=False)
class SequenceWithin(EventListTrigger):
    """Fires when events fit the steps in the order of their onsets, whenever they arrive.

    Events are kept a latency longer than `within`, because the begin of an earlier step may arrive
    after that of a later one. After a match, everything up to its last event is used up.

    Attributes:
        floor_ns: onsets up to here were used in a match.
    """

    key = "sequence"
    match_place = "steps"
    is_pattern = True

    floor_ns: int | None = None

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Go by a rule from now on."""
        super().use(rule, timing)
        sequence: Sequence = self.given(rule.settings)
        self._n_steps = len(sequence.steps)
        self._within_ns = sequence.within

    @classmethod
    def matches(cls, settings: RuleSettings) -> list[tuple[KeyPath, EventMatch]]:
        """Return the match of each step."""
        steps: list[Step] = cls.given(settings).steps
        return [(("sequence", "steps", n, "match"), step.match) for n, step in enumerate(steps)]

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield sequences that nothing can match."""
        sequence: Sequence = cls.given(rule.settings)
        classes = [matcher.slugs for matcher in rule.matchers if matcher.slugs is not None]
        by_class = not {"class", "label"}.isdisjoint(rule.group_by)
        if by_class and classes and not frozenset.intersection(*classes):
            yield ("group_by",), "W204", "grouped by class, but no class fits every step"
        streams = [matcher.named_streams for matcher in rule.matchers if matcher.named_streams]
        if "stream" in rule.group_by and streams and not frozenset.intersection(*streams):
            text = "grouped by stream, but no stream fits every step; write group_by: []"
            yield ("sequence",), "W204", text
        if facts is None:
            return
        if sequence.within < seconds_to_ns(facts.hop_s):
            text = f"which came first is not known so exactly: onsets are {facts.hop_s:g} s apart"
            yield ("sequence", "within"), "W203", text
        lone = [
            next(iter(matcher.slugs))
            for matcher in rule.matchers
            if matcher.slugs and len(matcher.slugs) == 1
        ]
        for name in dict.fromkeys(lone):
            apart_s = facts.apart_s.get(name, 0.0)
            if (lone.count(name) - 1) * seconds_to_ns(apart_s) > sequence.within:
                text = (
                    f"{name} {lone.count(name)} times within it: sounds less than {apart_s:g} s "
                    "apart are one event"
                )
                yield ("sequence", "within"), "W204", text

    def on_begin(self, event: MatchedEvent, now: int) -> bool:
        """Fire if this event completes the steps."""
        if self.floor_ns is not None and event.onset_ns <= self.floor_ns:
            return False
        self.open[event.id] = event.onset_ns
        self.events = [other for other in self.events if other.id != event.id]
        insort(self.events, event)
        horizon = self.events[-1].onset_ns - self._within_ns - self._timing.latency_ns
        self.events = [other for other in self.events if other.onset_ns >= horizon]
        del self.events[:-MAX_SEQUENCE_EVENTS]
        found = self._match(self.events)
        if found is None:
            return False
        self.cause_ids, self.started_ns = [used.id for used in found], found[0].onset_ns
        self.floor_ns = found[-1].onset_ns
        self.events = [other for other in self.events if other.onset_ns > found[-1].onset_ns]
        return True

    def on_timer(self, now: int) -> bool:
        """Forget what is too old; that fires nothing."""
        empty_at = self.deadline(now)
        if empty_at is not None and now >= empty_at:
            self.events, self.floor_ns = [], None
        return False

    def holds(self, now: int) -> bool:
        """Hold while one of the matched sounds lasts."""
        return any(event_id in self.open for event_id in self.cause_ids)

    def deadline(self, now: int) -> int | None:
        """Return when the events can no longer begin a sequence."""
        newest = [event.onset_ns for event in self.events[-1:]]
        newest += [] if self.floor_ns is None else [self.floor_ns]
        return max(newest) + self._within_ns + self._timing.latency_ns if newest else None

    def prune(self, now: int) -> None:
        """Forget what led to an alert that is over."""
        if not self.events and self.floor_ns is None and not self.open:
            self.clear()

    def _match(self, events: list[MatchedEvent]) -> list[MatchedEvent] | None:
        """Return events that fit the steps, None if there are none; the latest start wins."""
        chains: list[list[MatchedEvent] | None] = [None] * self._n_steps
        for event in events:
            for step in range(self._n_steps - 1, 0, -1):  # downwards: no event takes two steps
                before = chains[step - 1]
                if event.steps >> step & 1 and before is not None:
                    chains[step] = [*before, event]
            if event.steps & 1:
                chains[0] = [event]
            found = chains[-1]
            if found is not None and found[-1].onset_ns - found[0].onset_ns <= self._within_ns:
                return found
        return None
