"""The rule engine: bodies of the feed in, transitions of alerts out; no clock, sockets or files.

It is driven by events and by stream-time timers alone. Time is what the messages say: when the
sound was captured. Timers due before a message run before it, so that a replay after a pause
gives what would have been given live. Where the wall clock is set, all that is remembered is moved
along, so that what lasted or passed stays as long as it was (`lines`). Events are in `hearing`,
levels and streams in `listening`, the states of rules in `states`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ast_stream.alerts.hearing import Hearing
from ast_stream.alerts.lines import Lines
from ast_stream.alerts.listening import Listening
from ast_stream.alerts.model import Alert, DetectionTiming, EngineCounters, Transition
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.states import RuleStates
from ast_stream.alerts.told import is_step, labels_of, read_event, text_of
from ast_stream.units import NS_PER_SECOND, parse_time

STATE_VERSION = 1
AWAY_NS = 10 * NS_PER_SECOND  # a shorter time off is as good as none


class Engine:
    """All rules over all streams; see `model.AlertEngine` for how it is to be used.

    Args:
        state: what `export` gave; None: nothing is known.
        now_ns: stream time at which it starts.
        timing: how late the detector tells of sounds.
    """

    def __init__(
        self,
        rules: RuleSet,
        state: Mapping[str, Any] | None = None,
        *,
        now_ns: int,
        timing: DetectionTiming | None = None,
    ) -> None:
        self.counters = EngineCounters()
        self._timing = timing or DetectionTiming()
        self._now = now_ns
        self._owed: list[Transition] = []
        self._lines = Lines()
        self._states = RuleStates(rules, self._timing, self.counters)
        self._listening = Listening(self._states)
        self._hearing = Hearing(self._states, self._listening.is_listened_to)
        if state is not None:
            self._restore(state, now_ns)
        self._listening.expect_named_streams(self._now)

    @property
    def now_ns(self) -> int:
        """Stream time: everything up to here has been evaluated."""
        return self._now

    @property
    def next_deadline_ns(self) -> int | None:
        """Stream time of the next timer, None if there is none."""
        times = (self._states.next_deadline_ns, self._hearing.next_lost_ns)
        return min((time for time in times if time is not None), default=None)

    def active_alerts(self) -> list[Alert]:
        """Return the alerts that are firing or recovering."""
        return [one.alert(one.state, self._now, None) for one in self._states.active()]

    def alert_ids(self) -> set[str]:
        """Return the ids of the alerts that are pending, firing or recovering."""
        return {one.alert_id for one in self._states.all() if one.state != "inactive"}

    def resume(self) -> list[Transition]:
        """Return what the construction changed: alerts that could not go on; once."""
        owed, self._owed = self._owed, []
        return owed

    def on_message(self, topic: str, body: dict[str, Any]) -> list[Transition]:
        """Take any message of the feed; other kinds than event, health and gap say nothing."""
        kind = topic.split("/", 1)[0]
        take = {"event": self.on_event, "health": self.on_health, "gap": self.on_gap}.get(kind)
        return [] if take is None else take(body)

    def on_event(self, body: dict[str, Any]) -> list[Transition]:
        """Take an event body; timers due before it are run first."""
        told = read_event(body)
        if told is None:
            self.counters.malformed += 1
            return []
        self.counters.events += 1
        step_ns = self._lines.follow(told, self._now, is_open=self._hearing.is_open(told.id))
        self._move(step_ns)
        told = self._lines.moved(told)
        # what is told of an instant comes before the timers of that instant: bounds are inclusive
        transitions = self._run_to(told.at_ns - 1)
        self._now = max(self._now, told.at_ns)
        transitions += self._listening.see(told.stream, told.labels, self._now)
        return transitions + self._hearing.hear(told, self._now)

    def on_health(self, body: dict[str, Any]) -> list[Transition]:
        """Take a health body; it tells of levels and of who listens, not of the time of sounds."""
        try:
            stream, labels = text_of(body["stream"]), labels_of(body)
            at_ns = max(self._now, parse_time(body["published"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self.counters.malformed += 1
            return []
        transitions = self._listening.see(stream, labels, self._now)
        return transitions + self._listening.hear_health(stream, labels, body, at_ns)

    def on_gap(self, body: dict[str, Any]) -> list[Transition]:
        """Take a gap body: silence in it is no absence."""
        try:
            stream = text_of(body["stream"])
            end_ns = parse_time(body["time"]) + round(body["duration_s"] * NS_PER_SECOND)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self.counters.malformed += 1
            return []
        return self._listening.hear_gap(stream, end_ns, self._now)

    def advance(self, to_ns: int) -> list[Transition]:
        """Run the timers up to `to_ns`, up to which all messages must have been given.

        Live, that is a little before the wall clock: by as much as messages may be late.
        """
        return self._run_to(to_ns)

    def lose_sight(self) -> list[Transition]:
        """Take that nobody tells of sounds for now: none is known to go on, or to be absent."""
        return self._hearing.lose_sight(self._now) + self._listening.lose_sight(self._now)

    def step_clock(self, step_ns: int) -> None:
        """Follow a wall clock that was set by `step_ns`, before the messages tell of it."""
        self._lines.step(step_ns, self._now)
        self._move(step_ns)

    def replace_rules(
        self, rules: RuleSet, timing: DetectionTiming | None = None
    ) -> list[Transition]:
        """Use other rules from now on; alerts of rules that are unchanged go on untouched.

        Texts, labels, severity and actions may change meanwhile. Alerts of rules that are gone or
        decide otherwise now are resolved with reason `rule_changed`.

        Args:
            timing: how late the detector tells of sounds from now on; None: as before.
        """
        self._timing = timing or self._timing
        transitions, changed = self._states.replace(rules, self._timing, self._now)
        self._hearing.use_other_rules(changed)
        return transitions + self._listening.use_other_rules(self._now)

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "v": STATE_VERSION,
            "now_ns": self._now,
            "instances": self._states.export(self._now),
            "streams": self._listening.export(),
            "lines": self._lines.export(),
        } | self._hearing.export()

    def _restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        self._now = max(state["now_ns"], 0)
        self._listening.restore(state["streams"])
        self._lines.restore(state["lines"])
        self._hearing.restore(state)
        for data in state["instances"]:
            self._owed += self._states.restore(data, self._now)
        if is_step(now_ns - self._now) and now_ns < self._now:  # the clock was put back meanwhile
            self.step_clock(now_ns - self._now)
        if now_ns - self._now > AWAY_NS:
            self._owed += self._listening.leave_out(now_ns - self._now, self._now)
        if now_ns - self._now > self._states.rules.resume_ns:
            self._now = now_ns
            self._owed += self._states.end_all(now_ns, "restart")
            self._hearing.end_all()

    def _move(self, step_ns: int) -> None:
        if step_ns:
            self._now += step_ns
            self._states.step(step_ns)
            self._hearing.step(step_ns)

    def _run_to(self, to_ns: int) -> list[Transition]:
        transitions: list[Transition] = []
        while (due := self.next_deadline_ns) is not None and due <= to_ns:
            self._now = max(self._now, due)
            if self._states.next_deadline_ns == due:
                transitions += self._states.run_timer(self._now)
            else:
                self.counters.lost_ends += 1
                transitions += self._hearing.lose_oldest(self._now)
        self._now = max(self._now, to_ns)
        return transitions
