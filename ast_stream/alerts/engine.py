"""The rule engine: messages of the feed in, transitions of alerts out; no clock, sockets or files.

It is driven by messages and by timers in stream time. Stream time is what the messages say: when
the sound was captured. Timers that are due before a message run before it, so that a replay after
a pause gives what would have been given live. When a wall clock is set, everything the engine
remembers is shifted along, so that durations stay what they were (`clock`).

Whoever uses it stores `export()` and the deliveries of the transitions in one transaction,
together with the position on the feed; `Engine(rules, state, ...)` continues from there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ast_stream.alerts.clock import StreamClocks, is_step
from ast_stream.alerts.detector import DetectionTiming
from ast_stream.alerts.instances import Instance, InstanceTable
from ast_stream.alerts.model import EngineCounters, Transition
from ast_stream.alerts.rules.rule import Rule, RuleSet
from ast_stream.alerts.triggers.base import MatchedEvent
from ast_stream.errors import WireError
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import EventMessage, GapMessage
from ast_stream.messages.feed import Content, FeedMessage
from ast_stream.messages.status import Health
from ast_stream.units import NS_PER_SECOND, format_time, samples_to_ns

STATE_VERSION = 2
DOWNTIME_NS = 10 * NS_PER_SECOND  # being off for less changes nothing
LOST_END_NS = 700 * NS_PER_SECOND  # an open event without a message for so long has lost its end
MAX_ENDED = 256  # ids of events that are over, against repeats
MAX_CACHED = 20_000

Labels = tuple[tuple[str, str], ...]


class Engine:
    """All rules over all streams.

    Args:
        state: what `export` returned; None: begin anew.
        now_ns: stream time at which it starts.
        timing: how late the detector reports sounds.
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
        self._restored: list[Transition] = []
        self._clocks = StreamClocks()
        self._instances = InstanceTable(rules, self._timing, self.counters)
        self._streams = _Streams(self._instances)
        self._open_events = _OpenEvents(self._instances, self._streams)
        if state is not None:
            self._restore(_upgraded(state), now_ns)
        self._streams.expect_named(self._now)

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
        if message.kind not in ("event", "health", "gap"):
            return []
        try:
            return self.process(message.content())
        except WireError:
            self.counters.malformed += 1
            return []

    def process(self, content: Content) -> list[Transition]:
        """Process what a message says; only events, health and gaps matter."""
        match content:
            case EventMessage():
                return self._process_event(content)
            case Health(published_ns=int()):
                return self._process_health(content)
            case GapMessage(time_ns=int()):
                return self._process_gap(content)
        return []

    def _process_event(self, event: EventMessage) -> list[Transition]:
        """Process an event; timers that are due before it run first."""
        self.counters.events += 1
        onset = format_time(event.onset_ns)
        event = _on_capture_clock(event)
        step_ns = self._clocks.observe(event, self._now, is_open=event.id in self._open_events)
        self._shift(step_ns)
        event = self._clocks.in_engine_time(event)
        # a message about an instant comes before the timers of that instant: bounds are inclusive
        transitions = self._run_timers(event.captured_ns - 1)
        self._now = max(self._now, event.captured_ns)
        transitions += self._streams.see(event.stream, event.labels, self._now)
        return transitions + self._open_events.process(event, onset, self._now)

    def _process_health(self, health: Health) -> list[Transition]:
        """Process health: levels, and which streams are listened to; not the time of sounds."""
        assert health.published_ns is not None
        at_ns = max(self._now, health.published_ns)
        transitions = self._streams.see(health.stream, health.labels, self._now)
        return transitions + self._streams.on_health(health, at_ns)

    def _process_gap(self, gap: GapMessage) -> list[Transition]:
        """Process a gap: silence in it does not prove absence."""
        assert gap.time_ns is not None
        end_ns = gap.time_ns + round(gap.duration_s * NS_PER_SECOND)
        return self._streams.on_gap(gap.stream, end_ns, self._now)

    def advance(self, to_ns: int) -> list[Transition]:
        """Run the timers up to `to_ns`, up to which all messages must have been processed.

        Live, that is a little before the wall clock: by as much as messages may be late.
        """
        return self._run_timers(to_ns)

    def lose_feed(self) -> list[Transition]:
        """Process that the publisher is silent: no sound is known to last, or to be absent."""
        return self._open_events.lose_feed(self._now) + self._streams.lose_feed(self._now)

    def step_clock(self, step_ns: int) -> None:
        """Follow a step of the wall clock before messages show it."""
        self._clocks.step(step_ns, self._now)
        self._shift(step_ns)

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
            "clocks": self._clocks.export(),
        } | self._open_events.export()

    def _restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        self._now = max(state["now_ns"], 0)
        self._streams.restore(state["streams"])
        self._clocks.restore(state["clocks"])
        self._open_events.restore(state)
        for data in state["instances"]:
            self._restored += self._instances.restore(data, self._now)
        if is_step(now_ns - self._now) and now_ns < self._now:  # the clock was set back meanwhile
            self.step_clock(now_ns - self._now)
        if now_ns - self._now > DOWNTIME_NS:
            self._restored += self._streams.on_downtime(now_ns - self._now, self._now)
        if now_ns - self._now > self._instances.rules.resume_ns:
            self._now = now_ns
            self._restored += self._instances.end_all(now_ns, "restart")
            self._open_events.end_all()

    def _shift(self, step_ns: int) -> None:
        if step_ns:
            self._now += step_ns
            self._instances.shift(step_ns)
            self._open_events.shift(step_ns)

    def _run_timers(self, to_ns: int) -> list[Transition]:
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


@dataclass
class _OpenEvent:
    """An event between its begin and its end.

    Attributes:
        entered: rules that matched it, with the steps it fits and the group.
    """

    onset_ns: int
    stream: str
    heard_ns: int
    entered: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Candidate:
    """A rule that may match an event of some class on some stream."""

    rule: Rule
    steps: tuple[tuple[int, float], ...]  # index of the matcher, minimum score
    group: dict[str, str]


class _OpenEvents:
    """Events that have begun and not ended, oldest message first, and the rules they matched."""

    def __init__(self, instances: InstanceTable, streams: _Streams) -> None:
        self._instances = instances
        self._streams = streams
        self._events: OrderedDict[str, _OpenEvent] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._candidates: dict[tuple[str, str, Labels], list[_Candidate]] = {}

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._events

    @property
    def next_lost_ns(self) -> int | None:
        """When the end of an open event must have been lost, None if none is open."""
        oldest = next(iter(self._events.values()), None)
        return None if oldest is None else oldest.heard_ns + LOST_END_NS

    def process(self, event: EventMessage, onset: str, now: int) -> list[Transition]:
        """Process a message about an event, whose onset reads `onset`."""
        if event.id in self._ended:
            return []
        known = self._events.get(event.id)
        if known is None:
            # also for an update or end: its begin was missed, but there was a sound all the same
            known = _OpenEvent(event.onset_ns, event.stream, event.captured_ns)
            self._events[event.id] = known
        known.heard_ns = max(known.heard_ns, event.captured_ns)
        self._events.move_to_end(event.id)
        transitions = self._enter(event, known, onset, now)
        if event.type == "end":
            offset_ns = event.captured_ns if event.offset_ns is None else event.offset_ns
            transitions += self._leave(event.id, known, offset_ns, now)
        return transitions

    def end_oldest(self, now: int) -> list[Transition]:
        """End the event that had no message for the longest time."""
        event_id, event = next(iter(self._events.items()))
        return self._leave(event_id, event, event.heard_ns, now)

    def shift(self, step_ns: int) -> None:
        """Move all times by a step of the clock."""
        for event in self._events.values():
            event.onset_ns += step_ns
            event.heard_ns += step_ns

    def lose_feed(self, now: int) -> list[Transition]:
        """Count the duration of open events only up to their last message, until the next one."""
        transitions: list[Transition] = []
        for event_id, event in self._events.items():
            for entry in list(event.entered):
                instance = self._find(entry[0], entry[2])
                if instance is None or not instance.trigger.counts_open_time:
                    continue
                event.entered.remove(entry)  # the next message enters it again
                fires = instance.trigger.on_end(
                    instance.trigger_state, event_id, event.onset_ns, event.heard_ns, now
                )
                transitions += self._instances.settle(instance, fires, now, event_id)
        return transitions

    def end_all(self) -> None:
        """Forget the open events, and ignore further messages about them."""
        for event_id in self._events:
            self._remember_ended(event_id)
        self._events.clear()

    def forget_rules(self, changed: Collection[str]) -> None:
        """Look for candidates anew; rules that have changed have not matched any event."""
        self._candidates = {}
        for event in self._events.values():
            event.entered = [entry for entry in event.entered if entry[0] not in changed]

    def export(self) -> dict[str, Any]:
        """Return the open events, and the ids of the last that ended, as JSON values."""
        return {
            "open": {
                event_id: [event.onset_ns, event.stream, event.heard_ns, list(event.entered)]
                for event_id, event in self._events.items()
            },
            "ended": list(self._ended),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        self._ended = OrderedDict.fromkeys(state["ended"])
        for event_id, (onset_ns, stream, heard_ns, entries) in state["open"].items():
            entered = [(rule, steps, dict(group)) for rule, steps, group in entries]
            self._events[event_id] = _OpenEvent(onset_ns, stream, heard_ns, entered)

    def _enter(
        self, event: EventMessage, known: _OpenEvent, onset: str, now: int
    ) -> list[Transition]:
        """Give the event to the rules that match it and do not have it yet."""
        transitions: list[Transition] = []
        entered = {(name, _flat(group)): steps for name, steps, group in known.entered}
        for candidate in self._matching(event):
            steps = sum(1 << bit for bit, min_score in candidate.steps if event.peak >= min_score)
            rule, group = candidate.rule, candidate.group
            place = (rule.name, _flat(group))
            if steps == 0 or entered.get(place, 0) == steps:
                continue
            instance = self._instances.obtain(rule, group)
            if instance is None:
                continue
            if place in entered:
                known.entered.remove((rule.name, entered[place], group))
            known.entered.append((rule.name, steps, group))
            transitions += self._begin(instance, event, steps, onset, now)
        return transitions

    def _begin(
        self, instance: Instance, event: EventMessage, steps: int, onset: str, now: int
    ) -> list[Transition]:
        instance.facts = {
            "stream.name": event.stream,
            "labels": event.labels,
            "class": event.class_,
            "label": event.label,
            "score": round(event.score, 4),
            "peak": round(event.peak, 4),
            "onset": onset,
        }
        matched = MatchedEvent(event.onset_ns, event.id, event.stream, event.class_, steps)
        fires = instance.trigger.on_begin(instance.trigger_state, matched, now)
        return self._instances.settle(instance, fires, now, event.id)

    def _leave(
        self, event_id: str, event: _OpenEvent, offset_ns: int, now: int
    ) -> list[Transition]:
        """End an event for every rule that matched it."""
        del self._events[event_id]
        self._remember_ended(event_id)
        transitions: list[Transition] = []
        for name, _, group in event.entered:
            instance = self._find(name, group)
            if instance is not None:
                trigger, state = instance.trigger, instance.trigger_state
                fires = trigger.on_end(state, event_id, event.onset_ns, offset_ns, now)
                if trigger.needs_listener and not self._streams.has_listener(instance):
                    trigger.pause(state)
                    fires = False
                transitions += self._instances.settle(instance, fires, now, event_id)
        return transitions

    def _find(self, name: str, group: Mapping[str, str]) -> Instance | None:
        rule = self._instances.rule_named(name)
        return None if rule is None else self._instances.find(rule, group)

    def _matching(self, event: EventMessage) -> list[_Candidate]:
        key = (event.class_, event.stream, tuple(sorted(event.labels.items())))
        found = self._candidates.get(key)
        if found is None:
            found = list(self._find_candidates(event))
            if len(self._candidates) >= MAX_CACHED:
                self._candidates.clear()
            self._candidates[key] = found
        return found

    def _find_candidates(self, event: EventMessage) -> Iterator[_Candidate]:
        for rule in self._instances.rules.rules:
            if not rule.trigger.takes_events:
                continue
            steps = tuple(
                (bit, matcher.min_score)
                for bit, matcher in enumerate(rule.matchers)
                if matcher.covers(event.class_, event.stream, event.labels)
            )
            if steps:
                group = rule.group_of(event.stream, event.class_, event.labels)
                yield _Candidate(rule, steps, group)

    def _remember_ended(self, event_id: str) -> None:
        self._ended[event_id] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


@dataclass
class _Stream:
    """What is known of a stream.

    Attributes:
        missing: whether its last health said so.
        epoch: of its last health.
        is_unseen: whether that was too long ago to go by.
    """

    labels: dict[str, str]
    missing: bool = False
    epoch: str | None = None
    is_unseen: bool = False


class _Streams:
    """The streams seen so far, for rules about levels and about absent sounds."""

    def __init__(self, instances: InstanceTable) -> None:
        self._instances = instances
        self._streams: dict[str, _Stream] = {}

    def see(self, stream: str, labels: dict[str, str], now: int) -> list[Transition]:
        """Note a stream; counting its silence begins when it is first seen."""
        known = self._streams.get(stream)
        if known is not None and known.labels == labels:
            return []
        if known is None:
            self._streams[stream] = _Stream(dict(labels))
        else:
            known.labels = dict(labels)
        return self._start_or_pause(stream, labels, now)

    def on_health(self, health: Health, now: int) -> list[Transition]:
        """Process a health message of a stream that has been seen."""
        stream, labels = health.stream, health.labels
        known = self._streams[stream]
        before, epoch = replace(known), health.epoch
        known.missing, known.epoch = health.state == "missing", epoch
        known.is_unseen = False
        transitions: list[Transition] = []
        if before.is_unseen:
            is_same_epoch = epoch is not None and epoch == before.epoch
            began_ns = _epoch_began_ns(health, now)
            transitions += self._resume(stream, labels, now, is_same_epoch, began_ns)
        transitions += self._start_or_pause(stream, labels, now)
        for rule in self._instances.health_rules:
            if not rule.covers_stream(stream, labels):
                continue
            instance = self._instances.obtain(rule, rule.group_of(stream, "", labels))
            if instance is not None:
                level = health.level_dbfs
                instance.facts = {"stream.name": stream, "labels": labels, "level_dbfs": level}
                fires = instance.trigger.on_health(instance.trigger_state, health, now)
                transitions += self._instances.settle(instance, fires, now)
        return transitions

    def on_gap(self, stream: str, end_ns: int, now: int) -> list[Transition]:
        """Process that a stream was not heard until `end_ns`."""
        known = self._streams.get(stream)
        transitions: list[Transition] = []
        for instance in self._listening_instances(stream, {} if known is None else known.labels):
            instance.trigger.on_gap(instance.trigger_state, end_ns)
            transitions += self._instances.settle(instance, False, now)
        return transitions

    def lose_feed(self, now: int) -> list[Transition]:
        """Process that nothing says for now whether streams are listened to."""
        transitions: list[Transition] = []
        for name, stream in self._streams.items():
            # bodies written by hand have no epoch, and may be the only ones
            if stream.epoch is not None and not stream.is_unseen:
                stream.is_unseen = True
                transitions += self._start_or_pause(name, stream.labels, now)
        return transitions

    def on_downtime(self, away_ns: int, now: int) -> list[Transition]:
        """Process that this process was not running: what nobody looked for is not missing."""
        for instance in self._instances.all():
            instance.trigger.on_downtime(instance.trigger_state, away_ns)
            self._instances.schedule(instance, now)
        return self.lose_feed(now)

    def has_listener(self, instance: Instance) -> bool:
        """Return whether, as far as is known, a stream that an instance is about is heard."""
        rule = instance.rule
        unheard = [
            stream.missing or stream.is_unseen
            for name, stream in self._streams.items()
            if rule.covers_stream(name, stream.labels)
            and rule.group_of(name, "", stream.labels) == instance.group
        ]
        return not unheard or not all(unheard)

    def expect_named(self, now: int) -> None:
        """Wait for streams that rules name, before anything is heard of them."""
        for rule in (*self._instances.listening_rules, *self._instances.health_rules):
            if set(rule.group_by) - {"stream"}:
                continue
            for stream in sorted(rule.matchers[0].named_streams or ()):
                group = rule.group_of(stream, "", {})
                if self._instances.find(rule, group) is not None:
                    continue
                instance = self._instances.obtain(rule, group)
                if instance is not None:
                    instance.facts = {"stream.name": stream, "labels": {}}
                    instance.trigger.start(instance.trigger_state, now)
                    self._instances.schedule(instance, now)

    def replace_rules(self, now: int) -> list[Transition]:
        """Let rules that have just come into force count the silence of known streams."""
        self.expect_named(now)
        transitions: list[Transition] = []
        for name, stream in self._streams.items():
            transitions += self._start_or_pause(name, stream.labels, now)
        return transitions

    def export(self) -> dict[str, Any]:
        """Return the streams as JSON values."""
        return {name: asdict(stream) for name, stream in self._streams.items()}

    def restore(self, streams: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `export` returned."""
        self._streams = {name: _Stream(**data) for name, data in streams.items()}

    def _resume(
        self,
        stream: str,
        labels: Mapping[str, str],
        now: int,
        is_same_epoch: bool,
        began_ns: int,
    ) -> list[Transition]:
        """Count absences again.

        Args:
            is_same_epoch: the source kept running, and gaps in it were published.
            began_ns: otherwise it began then.
        """
        transitions: list[Transition] = []
        for instance in self._listening_instances(stream, labels):
            state = instance.trigger_state
            if state.began_ns is None and self.has_listener(instance):
                if is_same_epoch:
                    instance.trigger.resume(state, now)
                else:
                    instance.trigger.start(state, began_ns)
                transitions += self._instances.settle(instance, False, now)
        return transitions

    def _listening_instances(self, stream: str, labels: Mapping[str, str]) -> Iterator[Instance]:
        for rule in self._instances.listening_rules:
            if rule.covers_stream(stream, labels):
                instance = self._instances.obtain(rule, rule.group_of(stream, "", labels))
                if instance is not None:
                    yield instance

    def _start_or_pause(self, stream: str, labels: Mapping[str, str], now: int) -> list[Transition]:
        """Start or stop counting the absence of sounds, depending on whether somebody listens."""
        transitions: list[Transition] = []
        for instance in self._listening_instances(stream, labels):
            if not self.has_listener(instance):
                instance.trigger.pause(instance.trigger_state)
            elif instance.trigger_state.began_ns is None:
                instance.trigger.start(instance.trigger_state, now)
            else:
                continue
            transitions += self._instances.settle(instance, False, now)
        return transitions


def _on_capture_clock(event: EventMessage) -> EventMessage:
    """Return an event with onset and offset on the clock of `captured`, if that stepped between."""
    if event.at_sample is None:
        return event

    def moved(time_ns: int | None, sample: int | None) -> int | None:
        if time_ns is None or sample is None or event.at_sample is None:
            return time_ns
        by_samples_ns = event.captured_ns - samples_to_ns(event.at_sample - sample)
        return by_samples_ns if is_step(by_samples_ns - time_ns) else time_ns

    onset_ns = moved(event.onset_ns, event.onset_sample)
    offset_ns = moved(event.offset_ns, event.offset_sample)
    assert onset_ns is not None
    return event.model_copy(update={"onset_ns": onset_ns, "offset_ns": offset_ns})


def _epoch_began_ns(health: Health, now: int) -> int:
    """Return when the source of a health message began, not later than now."""
    if health.audio_s is None:
        return now
    return now - max(0, round((health.audio_s + (health.lag_s or 0.0)) * NS_PER_SECOND))


def _flat(group: Mapping[str, str]) -> Labels:
    return tuple(group.items())


_RENAMED_IN_INSTANCES = {
    "memory": "trigger_state",
    "keep_until": "keep_until_ns",
    "quiet_until": "cooldown_until_ns",
    "held_back": "suppressed",
    "told": "alert",
}
_RENAMED_IN_TRIGGERS = {"heard": "events", "run_events": "cause_ids"}


def _upgraded(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state of version 1 as one of version 2."""
    if state["v"] != 1:
        return state
    instances = [_renamed(data, _RENAMED_IN_INSTANCES) for data in state["instances"]]
    for data in instances:
        data["trigger_state"] = _renamed(data["trigger_state"], _RENAMED_IN_TRIGGERS)
        if "alert" in data:
            fields = {name: data["alert"][name] for name in data["alert"] if name != "actions"}
            alert = Alert(**fields)
            data |= {"alert": alert.to_json(), "actions": data["alert"]["actions"]}
    return _renamed(state, {"lines": "clocks"}) | {"v": STATE_VERSION, "instances": instances}


def _renamed(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in data.items()}
