"""The rule engine: messages of the feed in, transitions of alerts out; no clock, sockets or files.

It is driven by messages and by timers in stream time. Stream time is what the messages say: when
the sound was captured. Timers that are due before a message run before it, so that a replay after
a pause gives what would have been given live. It is steady: wall clocks may be set
(`steady_time`).

Whoever uses it stores `export()` and the deliveries of the transitions in one transaction,
together with the position on the feed; `Engine(rules, state, ...)` continues from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ast_stream.alerts.instances import EngineCounters, InstanceTable, Transition
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.open_events import OpenEvents
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.stream_health import StreamHealth
from ast_stream.errors import WireError
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import Content, EventMessage, FeedMessage, GapMessage
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.status import STREAM_REMOVED, Health
from ast_stream.units import MAX_TIME_NS, NS_PER_SECOND, format_time, seconds_to_ns

STATE_VERSION = 3
_MAX_STORED_NS = 8 * MAX_TIME_NS  # of times that come of those in messages; still a date
SILENT_S = 5.0  # of a stream that is missing: then its open events are not known to last
DOWNTIME_NS = 10 * NS_PER_SECOND  # being off for less changes nothing


class Engine:
    """All rules over all streams.

    Args:
        state: what `export` returned; None: begin anew.
        now_ns: stream time at which it starts.
        timing: how late the detector reports sounds.
        time: the one by which the times in `state` are; None: restore it from there.
        has_health: there are health messages; else no stream is expected to report.

    Raises:
        ValueError: a state of another version.
    """

    def __init__(
        self,
        rules: RuleSet,
        state: Mapping[str, Any] | None = None,
        *,
        now_ns: int,
        timing: DetectionTiming | None = None,
        time: SteadyTime | None = None,
        has_health: bool = True,
    ) -> None:
        self.time = time or SteadyTime(None if state is None else state.get("time"))
        self.counters = EngineCounters()
        self._timing = timing or DetectionTiming()
        self._now = now_ns
        self._restored: list[Transition] = []
        self._instances = InstanceTable(rules, self._timing, self.counters, self.time)
        self._streams = StreamHealth(self._instances, has_health=has_health)
        self._open_events = OpenEvents(self._instances, self._streams)
        if state is not None:
            self._restore(state, now_ns)
        self._streams.expect_named(self._now)

    @property
    def rules(self) -> RuleSet:
        """The rules in force."""
        return self._instances.rules

    @property
    def now_ns(self) -> int:
        """Stream time: everything up to here has been evaluated."""
        return self._now

    @property
    def next_deadline_ns(self) -> int | None:
        """Stream time of the next timer, when `advance` must be called; None: there is none."""
        times = (self._instances.next_deadline_ns, self._open_events.next_lost_ns)
        return min((time for time in times if time is not None), default=None)

    def active_alerts(self) -> list[Alert]:
        """Return the alerts that are firing or recovering."""
        active = self._instances.active()
        return [instance.alert(instance.state, self._now, None) for instance in active]

    def alert_ids(self) -> set[str]:
        """Return the ids of the alerts that are pending, firing or recovering."""
        instances = self._instances.all()
        return {instance.alert_id for instance in instances if instance.state != "inactive"}

    def resume(self) -> list[Transition]:
        """Return what restoring the state changed, such as alerts that could not continue; once."""
        restored, self._restored = self._restored, []
        return restored

    def on_message(self, topic: str, body: dict[str, Any]) -> list[Transition]:
        """Process any message of the feed; a malformed one is counted and changes nothing."""
        message = FeedMessage(topic, body)
        if message.kind not in ("event", "health", "gap", "levels"):
            return []
        try:
            return self.process(message.content())
        except WireError:
            self.counters.malformed += 1
            return []

    def process(self, content: Content) -> list[Transition]:
        """Process what a message says; only events, health, levels and gaps matter."""
        self.time.observe(content)
        match content:
            case EventMessage():
                return self._process_event(content)
            case Health(published_ns=int()):
                return self._process_health(content)
            case LevelsMessage(published_ns=int()):
                return self._process_levels(content)
            case GapMessage(time_ns=int()):
                return self._process_gap(content)
        return []

    def _process_event(self, event: EventMessage) -> list[Transition]:
        """Process an event; timers that are due before it run first."""
        self.counters.events += 1
        onset = format_time(event.onset_ns)
        event = event.moved(-self.time.set_by_ns)
        # a message about an instant comes before the timers of that instant: bounds are inclusive
        transitions = self.advance(event.captured_ns - 1)
        self._now = max(self._now, event.captured_ns)
        transitions += self._streams.see(event.stream, event.labels, self._now)
        return transitions + self._open_events.process(event, onset, self._now)

    def _process_health(self, health: Health) -> list[Transition]:
        """Process health: levels, and which streams are listened to; not the time of sounds."""
        assert health.published_ns is not None
        at_ns = max(self._now, self.time.steady_ns(health.published_ns))
        if health.detail == STREAM_REMOVED:
            return self._streams.forget(health.stream, health.labels, at_ns)
        transitions = self._streams.see(health.stream, health.labels, self._now)
        transitions += self._streams.on_health(health, at_ns)
        if health.state == "missing" and health.silence_s > SILENT_S:
            transitions += self._open_events.lose(at_ns, health.stream)
        return transitions

    def _process_levels(self, levels: LevelsMessage) -> list[Transition]:
        """Process the sound levels of a second."""
        assert levels.published_ns is not None
        at_ns = max(self._now, self.time.steady_ns(levels.published_ns))
        transitions = self._streams.see(levels.stream, levels.labels, self._now)
        return transitions + self._streams.on_levels(levels, at_ns)

    def _process_gap(self, gap: GapMessage) -> list[Transition]:
        """Process a gap: silence in it does not prove absence."""
        assert gap.time_ns is not None
        end_ns = self.time.steady_ns(gap.time_ns) + seconds_to_ns(gap.duration_s)
        return self._streams.on_gap(gap.stream, end_ns, self._now)

    def advance(self, to_ns: int) -> list[Transition]:
        """Run the timers up to `to_ns`, up to which all messages must have been processed.

        Live, that is a little before now: by as much as messages may be late.
        """
        transitions: list[Transition] = []
        while (due := self.next_deadline_ns) is not None and due <= to_ns:
            self._now = max(self._now, due)
            if self._instances.next_deadline_ns == due:
                transitions += self._instances.run_timer(self._now)
            else:
                self.counters.lost_ends += 1
                transitions += self._open_events.end_oldest(self._now)
        self._now = max(self._now, to_ns)
        return transitions

    def lose_feed(self) -> list[Transition]:
        """Process that the publisher is silent: no sound is known to last, or to be absent."""
        return self._open_events.lose(self._now) + self._streams.lose_feed(self._now)

    def replace_rules(
        self, rules: RuleSet, timing: DetectionTiming | None = None
    ) -> list[Transition]:
        """Put other rules in force; alerts of unchanged rules continue untouched.

        Texts, labels, severity and actions may have changed. Alerts of rules that are gone or now
        decide differently are resolved with reason `rule_changed`.

        Args:
            timing: how late the detector reports sounds from now on; None: as before.
        """
        self._timing = timing or self._timing
        transitions, changed = self._instances.replace(rules, self._timing, self._now)
        self._open_events.forget_rules(changed)
        return transitions + self._streams.replace_rules(self._now)

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "v": STATE_VERSION,
            "now_ns": self._now,
            "instances": self._instances.export(self._now),
            "streams": self._streams.export(),
            "time": self.time.export(),
        } | self._open_events.export()

    def _restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        if state["v"] != STATE_VERSION:
            raise ValueError(f"expected version {STATE_VERSION}, got {state['v']!r}")
        _expect_possible(state)
        self._now = max(state["now_ns"], 0)
        self._streams.restore(state["streams"])
        self._open_events.restore(state)
        for data in state["instances"]:
            self._restored += self._instances.restore(data, self._now)
        if now_ns - self._now > DOWNTIME_NS:
            self._restored += self._streams.on_downtime(now_ns - self._now, self._now)
        if now_ns - self._now > self._instances.rules.resume_ns:
            self._now = now_ns
            self._restored += self._instances.end_all(now_ns, "restart")
            self._open_events.end_all()


def _expect_possible(value: Any) -> None:
    """Refuse numbers that are no times of ours, nor anything else: dates could not be made of them.

    Raises:
        ValueError: there is one among what has been stored.
    """
    match value:
        case int() if abs(value) > _MAX_STORED_NS:
            raise ValueError(f"expected times up to {format_time(_MAX_STORED_NS)}, got another")
        case dict():
            for inner in value.values():
                _expect_possible(inner)
        case list():
            for inner in value:
                _expect_possible(inner)
