"""`absent`: no such sound for a time, although the stream was listened to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from ast_stream.alerts.rules.fields import PositiveDuration, RuleSection
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.transitions import seconds_to_ns
from ast_stream.alerts.triggers.base import Finding, MatchedEvent, WaitingTrigger, WaitState

if TYPE_CHECKING:
    from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
    from ast_stream.alerts.rules.rule import Rule
    from ast_stream.alerts.rules.schema import RuleSettings
    from ast_stream.settings.explain import Path as KeyPath


class Absent(RuleSection):
    """No such sound for a time, although the stream was listened to."""

    match: EventMatch = Field(description="which sound")
    for_: PositiveDuration = Field(alias="for", description="how long it must be absent")


@dataclass
class AbsentState(WaitState):
    """State of `absent`; `since` is None also while nobody listens.

    Attributes:
        last_off: when it was last heard to end.
        hold_until: `since` while counting is paused.
    """

    last_off: int | None = None
    hold_until: int | None = None


class AbsentFor(WaitingTrigger):
    """Fires when no matching event was open for a time, and holds until one begins.

    Time in which the stream was missing proves nothing: counting starts at the stream's return.
    """

    key = "absent"
    State = AbsentState
    match_place = "absent"
    is_about_pauses = True
    needs_listener = True

    def __init__(self, rule: Rule, timing: DetectionTiming) -> None:
        super().__init__(rule, timing)
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
        pause_s = min(facts.pause_s(one) for one in slugs)
        if cls.given(rule.settings).for_ < seconds_to_ns(pause_s):
            text = (
                f"fires at every pause that is heard at all: with windows of {facts.window_s:g} s "
                f"those are longer than {pause_s:g} s"
            )
            yield ("absent", "for"), "W203", text

    def start(self, state: AbsentState, now: int) -> None:
        """Count from now at the earliest."""
        if not state.open:
            state.since = now if state.since is None else max(state.since, now)
            state.is_spent = False
        state.hold_until = None

    def pause(self, state: AbsentState) -> None:
        """Stop counting: as far as is known, nobody listens."""
        if state.since is not None:
            state.hold_until = state.since
        state.since = None

    def resume(self, state: AbsentState, now: int) -> None:
        """Continue counting as if there had been no pause: somebody listened all the time."""
        if not state.open:
            state.since = now if state.hold_until is None else state.hold_until
        state.hold_until = None

    def on_gap(self, state: AbsentState, end_ns: int) -> None:
        """Count from the end of a gap at the earliest, also while counting is paused."""
        if state.since is not None:
            self.start(state, end_ns)
        elif state.hold_until is not None:
            state.hold_until = max(state.hold_until, end_ns)

    def on_begin(self, state: AbsentState, event: MatchedEvent, now: int) -> bool:
        """End the absence."""
        state.open[event.id] = event.onset_ns
        state.since, state.hold_until, state.is_spent = None, None, False
        return False

    def on_end(self, state: AbsentState, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Count from the offset of the last."""
        state.open.pop(event_id, None)
        state.last_off = max(state.last_off or offset, offset)
        if not state.open:
            state.since, state.is_spent = state.last_off, False
        return self.on_timer(state, now)

    def holds(self, state: AbsentState, now: int) -> bool:
        """Hold until the sound is heard again."""
        return not state.open
