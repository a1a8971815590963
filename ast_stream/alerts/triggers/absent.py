"""`absent`: no such sound for a time, although the stream was listened to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from ast_stream.alerts.rules.field_types import PositiveDuration, RuleSection
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.triggers.base import Finding, MatchedEvent, WaitingTrigger
from ast_stream.units import seconds_to_ns

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule
    from ast_stream.alerts.rules.schema import RuleSettings
    from ast_stream.settings.explain import Path as KeyPath


class Absent(RuleSection):
    """No such sound for a time, although the stream was listened to."""

    match: EventMatch = Field(description="which sound")
    for_: PositiveDuration = Field(alias="for", description="how long it must be absent")


@dataclass(eq=False)
class AbsentFor(WaitingTrigger):
    """Fires when no matching event was open for a time, and holds until one begins.

    Time in which the stream was missing proves nothing: counting starts at the stream's return, and
    `since` is None also while nobody listens.

    Attributes:
        last_off: when it was last heard to end.
        hold_until: `since` while counting is paused.
    """

    key = "absent"
    match_place = "absent"
    is_about_pauses = True
    needs_listener = True

    last_off: int | None = None
    hold_until: int | None = None

    def use(self, rule: Rule, timing: DetectionTiming) -> None:
        """Go by a rule from now on."""
        super().use(rule, timing)
        absent: Absent = self.given(rule.settings)
        self._needed_ns = absent.for_ + timing.latency_ns

    @classmethod
    def matches(cls, settings: RuleSettings) -> list[tuple[KeyPath, EventMatch]]:
        """Return what must not be absent."""
        return [(("absent", "match"), cls.given(settings).match)]

    @classmethod
    def lint(cls, rule: Rule, facts: DetectorFacts | None) -> Iterator[Finding]:
        """Yield absences that every pause would be."""
        yield from super().lint(rule, facts)
        slugs = [] if facts is None else facts.known(rule.matchers[0].slugs)
        if facts is None or not slugs:
            return
        pause_s = min(facts.pause_s(slug) for slug in slugs)
        if cls.given(rule.settings).for_ < seconds_to_ns(pause_s):
            text = (
                f"fires at every pause that is heard at all: with windows of {facts.window_s:g} s "
                f"those are longer than {pause_s:g} s"
            )
            yield ("absent", "for"), "W203", text

    def start(self, now: int) -> None:
        """Count from now at the earliest."""
        if not self.open:
            self.since = now if self.since is None else max(self.since, now)
            self.is_spent = False
        self.hold_until = None

    def pause(self) -> None:
        """Stop counting: the stream is not known to be listened to."""
        if self.since is not None:
            self.hold_until = self.since
        self.since = None

    def resume(self, now: int) -> None:
        """Continue counting as if there had been no pause."""
        if not self.open:
            self.since = now if self.hold_until is None else self.hold_until
        self.hold_until = None

    def on_gap(self, end_ns: int) -> None:
        """Count from the end of a gap at the earliest, also while counting is paused."""
        if self.since is not None:
            self.start(end_ns)
        elif self.hold_until is not None:
            self.hold_until = max(self.hold_until, end_ns)

    def on_begin(self, event: MatchedEvent, now: int) -> bool:
        """End the absence."""
        self.open[event.id] = event.onset_ns
        self.since, self.hold_until, self.is_spent = None, None, False
        return False

    def on_end(self, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Count from the offset of the last."""
        self.open.pop(event_id, None)
        self.last_off = max(self.last_off or offset, offset)
        if not self.open:
            self.since, self.is_spent = self.last_off, False
        return self.on_timer(now)

    def holds(self, now: int) -> bool:
        """Hold until the sound is heard again."""
        return not self.open
