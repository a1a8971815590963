"""`count`: enough onsets within a sliding window."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ast_stream.alerts.rules.field_types import PositiveDuration, RuleSection
from ast_stream.alerts.triggers.base import MAX_CAUSES, EventListTrigger, Finding, MatchedEvent
from ast_stream.units import NS_PER_SECOND, seconds_to_ns

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule

MAX_COUNT = 1000
COLLAPSE_NS = NS_PER_SECOND  # classes of one branch that begin this close together are one sound


class Count(RuleSection):
    """So many onsets within a sliding window."""

    min: int = Field(ge=2, le=MAX_COUNT, description="how many onsets")
    within: PositiveDuration = Field(description="length of the sliding window")
    distinct: Literal["stream"] | None = Field(
        default=None, description="count streams instead of events"
    )


@dataclass(eq=False)
class CountWithin(EventListTrigger):
    """Fires when enough onsets lie within a sliding window, and holds until it has slid on.

    Attributes:
        hold_until: when the window that fired will have slid on.
    """

    key = "count"
    is_pattern = True

    hold_until: int | None = None

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Go by a rule from now on."""
        super().use(rule, timing)
        self._count: Count = self.given(rule.settings)
        self._relatives = rule.matchers[0].relatives

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield counts that cannot be reached because close sounds become one event."""
        count: Count = cls.given(rule.settings)
        slugs = [] if facts is None else facts.known(rule.matchers[0].slugs)
        # several streams add up where they are not kept apart
        if facts is None or not slugs or count.distinct or "stream" not in rule.group_by:
            return
        fitting = sum(count.within // seconds_to_ns(facts.apart_s[slug]) + 1 for slug in slugs)
        if fitting < count.min:
            nearest_s = min(facts.apart_s[slug] for slug in slugs)
            text = (
                f"at most {fitting} events of these classes fit into it: with windows of "
                f"{facts.window_s:g} s, sounds less than {nearest_s:g} s apart are one event"
            )
            yield ("count", "within"), "W203", text

    def on_begin(self, event: MatchedEvent, now: int) -> bool:
        """Fire if this onset completes a window."""
        if any(self._is_same_sound(event, other) for other in self.events):
            return False
        insort(self.events, event)
        horizon = self.events[-1].onset_ns - self._span_ns
        self.events = [other for other in self.events if other.onset_ns >= horizon]
        del self.events[: -4 * self._count.min]
        window = self._full_window(event)
        if window is None:
            return False
        self.cause_ids = [inside.id for inside in window][:MAX_CAUSES]
        self.started_ns = window[0].onset_ns
        hold_until = window[0].onset_ns + self._span_ns
        self.hold_until = max(self.hold_until or hold_until, hold_until)
        return True

    def on_timer(self, now: int) -> bool:
        """Let the window slide on; that fires nothing."""
        if self.hold_until is not None and now >= self.hold_until:
            self.hold_until = None
        empty_at = self._empty_at()
        if empty_at is not None and now >= empty_at:
            self.events = []
        return False

    def holds(self, now: int) -> bool:
        """Hold while the window that fired has not slid on."""
        return self.hold_until is not None and now < self.hold_until

    def deadline(self, now: int) -> int | None:
        """Return when the window has slid on, or is empty."""
        times = [self.hold_until, self._empty_at()]
        return min((time for time in times if time is not None), default=None)

    def prune(self, now: int) -> None:
        """Forget what led to an alert that is over."""
        if not self.events:
            self.clear()

    @property
    def _span_ns(self) -> int:
        return self._count.within + self._timing.latency_ns

    def _empty_at(self) -> int | None:
        return self.events[-1].onset_ns + self._span_ns if self.events else None

    def _full_window(self, new: MatchedEvent) -> list[MatchedEvent] | None:
        """Return the latest window with `new` in it that holds enough, None if there is none."""
        for last in range(len(self.events) - 1, -1, -1):
            end = self.events[last].onset_ns
            if end < new.onset_ns:
                return None
            inside = [
                event
                for event in self.events[: last + 1]
                if end - event.onset_ns <= self._count.within
            ]
            if new not in inside:
                continue
            if self._count.distinct == "stream":
                newest = {event.stream: event for event in inside}
                inside = sorted(newest.values())
            if len(inside) >= self._count.min:
                return inside[-self._count.min :]
        return None

    def _is_same_sound(self, event: MatchedEvent, other: MatchedEvent) -> bool:
        """Return whether two classes of one branch are about one sound: a bark is also a dog."""
        return (
            other.stream == event.stream
            and other.slug in self._relatives.get(event.slug, ())
            and abs(other.onset_ns - event.onset_ns) <= COLLAPSE_NS
        )
