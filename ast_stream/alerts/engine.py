"""The rule engine: bodies of the feed in, transitions of alerts out; no clock, sockets or files.

It is driven by events and by stream-time timers alone. Time is what the messages say: when the
sound was captured. Timers due before a message run before it, so that a replay after a pause
gives what would have been given live.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ast_stream.alerts.instance import Instance
from ast_stream.alerts.memory import Heard
from ast_stream.alerts.model import Alert, DetectionTiming, EngineCounters, Transition
from ast_stream.alerts.rules import Rule, RuleSet
from ast_stream.alerts.schema import Selector
from ast_stream.alerts.told import Told, labels_of, read_event
from ast_stream.alerts.trigger_kinds import make_trigger
from ast_stream.alerts.trigger_levels import AbsentFor, LevelFor
from ast_stream.alerts.triggers import Trigger
from ast_stream.messages import parse_time
from ast_stream.units import NS_PER_SECOND

STATE_VERSION = 1
LOST_END_NS = 700 * NS_PER_SECOND  # no message about an open event for so long: its end was lost
MAX_INSTANCES = 1000  # of one rule
MAX_ENDED = 256  # ids of events that are over, against repeats
MAX_CACHED = 20_000

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass
class _OpenEvent:
    """An event between its begin and its end.

    Attributes:
        entered: rules that took it, with the steps it fits and the group.
    """

    onset_ns: int
    stream: str
    heard_ns: int
    entered: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Candidate:
    """A rule that may want an event of some class on some stream."""

    rule: Rule
    steps: tuple[tuple[int, float], ...]  # bit of the matcher, least score
    group: dict[str, str]


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
        self._rules = rules
        self._triggers: dict[str, Trigger] = {}
        self._by_name: dict[str, Rule] = {}
        self._now = now_ns
        self._instances: dict[Key, Instance] = {}
        self._active: dict[str, dict[Key, Instance]] = {}
        self._n_instances: dict[str, int] = {}
        self._timers: list[tuple[int, Key]] = []  # at one instant in the order of the keys
        self._scheduled: dict[Key, int] = {}
        self._open: OrderedDict[str, _OpenEvent] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._streams: dict[str, dict[str, Any]] = {}
        self._candidates: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[_Candidate]] = {}
        self._owed: list[Transition] = []
        self._install(rules)
        if state is not None:
            self._restore(state, now_ns)
        self._expect_named_streams()

    @property
    def now_ns(self) -> int:
        """Stream time: everything up to here has been evaluated."""
        return self._now

    @property
    def next_deadline_ns(self) -> int | None:
        """Stream time of the next timer, None if there is none."""
        while self._timers and not self._is_current(self._timers[0]):
            heapq.heappop(self._timers)
        times = [self._timers[0][0]] if self._timers else []
        if self._open:
            times.append(next(iter(self._open.values())).heard_ns + LOST_END_NS)
        return min(times, default=None)

    def active_alerts(self) -> list[Alert]:
        """Return the alerts that are firing or recovering."""
        return [
            one.alert(one.state, self._now, None)
            for instances in self._active.values()
            for one in instances.values()
        ]

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
        # what is told of an instant comes before the timers of that instant: bounds are inclusive
        transitions = self._run_to(told.at_ns - 1)
        self._now = max(self._now, told.at_ns)
        transitions += self._see(told.stream, told.labels)
        if told.id in self._ended:
            return transitions
        known = self._open.get(told.id)
        if known is None:
            # also for an update or end: its begin was missed, and a short sound is one all the same
            known = _OpenEvent(told.onset_ns, told.stream, told.at_ns)
            self._open[told.id] = known
        known.heard_ns = max(known.heard_ns, told.at_ns)
        self._open.move_to_end(told.id)
        transitions += self._enter(told, known)
        if told.type == "end":
            offset = told.at_ns if told.offset_ns is None else told.offset_ns
            transitions += self._leave(told.id, known, offset)
        return transitions

    def on_health(self, body: dict[str, Any]) -> list[Transition]:
        """Take a health body; it tells of levels and of who listens, not of the time of sounds."""
        try:
            stream, labels = str(body["stream"]), labels_of(body)
            at_ns = max(self._now, parse_time(body["published"]))
        except (KeyError, TypeError, ValueError):
            self.counters.malformed += 1
            return []
        transitions = self._see(stream, labels)
        is_missing = body.get("state") == "missing"
        self._streams[stream]["missing"] = is_missing
        facts = {"stream.name": stream, "labels": labels, "level_dbfs": body.get("level_dbfs")}
        for rule in self._rules.rules:
            trigger = self._triggers[rule.name]
            if not isinstance(trigger, LevelFor | AbsentFor):
                continue
            if not rule.matchers[0].covers_stream(stream, labels):
                continue
            instance = self._instance(rule, _group(rule, stream, "", labels))
            if instance is None:
                continue
            if isinstance(trigger, LevelFor):
                instance.facts = facts
                transitions += self._settle(
                    instance, trigger.sample(instance.memory, body, at_ns), at_ns
                )
            else:
                transitions += self._listen(instance, trigger, at_ns)
        return transitions

    def on_gap(self, body: dict[str, Any]) -> list[Transition]:
        """Take a gap body: silence in it is no absence."""
        try:
            stream = str(body["stream"])
            end_ns = parse_time(body["time"]) + round(body["duration_s"] * NS_PER_SECOND)
        except (KeyError, TypeError, ValueError):
            self.counters.malformed += 1
            return []
        labels = self._streams.get(stream, {}).get("labels", {})
        transitions: list[Transition] = []
        for instance, trigger in self._absences(stream, labels):
            if instance.memory.since is not None:
                trigger.start(instance.memory, end_ns)
                transitions += self._settle(instance, False, self._now)
        return transitions

    def advance(self, to_ns: int) -> list[Transition]:
        """Run the timers up to `to_ns`, up to which all messages must have been given.

        Live, that is a little before the wall clock: by as much as messages may be late.
        """
        return self._run_to(to_ns)

    def replace_rules(
        self, rules: RuleSet, timing: DetectionTiming | None = None
    ) -> list[Transition]:
        """Use other rules from now on; alerts of rules that are unchanged go on untouched.

        Texts, labels, severity and actions may change meanwhile. Alerts of rules that are gone or
        decide otherwise now are resolved with reason `rule_changed`.

        Args:
            timing: how late the detector tells of sounds from now on; None: as before.
        """
        before = self._by_name
        self._timing = timing or self._timing
        self._install(rules)
        transitions: list[Transition] = []
        for key, instance in list(self._instances.items()):
            rule = self._by_name.get(key[0])
            if rule is None or rule.digest != instance.rule.digest:
                transitions += instance.end(self._now, "rule_changed")
                self._forget(key)
            else:
                instance.rule, instance.trigger = rule, self._triggers[rule.name]
                self._schedule(key, instance)
        changed = {
            name
            for name, rule in before.items()
            if name not in self._by_name or self._by_name[name].digest != rule.digest
        }
        for event in self._open.values():
            event.entered = [one for one in event.entered if one[0] not in changed]
        self._expect_named_streams()
        for stream, state in self._streams.items():
            transitions += self._see(stream, state["labels"], is_forced=True)
        return transitions

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        instances = []
        for instance in self._instances.values():
            data = instance.export() | {"digest": instance.rule.digest}
            if instance.is_active:  # enough to resolve it should its rule be gone by then
                alert = instance.alert(instance.state, self._now, None)
                data["told"] = vars(alert) | {"actions": instance.rule.settings.actions}
            instances.append(data)
        return {
            "v": STATE_VERSION,
            "now_ns": self._now,
            "instances": instances,
            "open": {
                name: [one.onset_ns, one.stream, one.heard_ns, list(one.entered)]
                for name, one in self._open.items()
            },
            "ended": list(self._ended),
            "streams": {name: dict(one) for name, one in self._streams.items()},
        }

    def _install(self, rules: RuleSet) -> None:
        self._rules = rules
        self._by_name = {rule.name: rule for rule in rules.rules}
        self._triggers = {rule.name: make_trigger(rule, self._timing) for rule in rules.rules}
        self._candidates = {}

    def _restore(self, state: Mapping[str, Any], now_ns: int) -> None:
        self._now = max(state["now_ns"], 0)
        is_too_late = now_ns - self._now > self._rules.resume_ns
        self._streams = {name: dict(one) for name, one in state["streams"].items()}
        self._ended = OrderedDict.fromkeys(state["ended"])
        for name, (onset, stream, heard, entered) in state["open"].items():
            taken = [(rule, steps, dict(group)) for rule, steps, group in entered]
            self._open[name] = _OpenEvent(onset, stream, heard, taken)
        for data in state["instances"]:
            self._restore_instance(data)
        if is_too_late:
            self._now = now_ns
            for key, instance in list(self._instances.items()):
                self._owed += instance.end(now_ns, "restart")
                self._forget(key)
            for name in self._open:
                self._remember_ended(name)
            self._open.clear()

    def _restore_instance(self, data: Mapping[str, Any]) -> None:
        rule = self._by_name.get(data["rule"])
        if rule is None or rule.digest != data["digest"]:
            if "told" in data:
                self._owed.append(_resolved_without_rule(data["told"], self._now))
            return
        fields = {name: one for name, one in data.items() if name not in ("digest", "told")}
        instance = Instance.restore(rule, self._triggers[rule.name], fields)
        key = _key(rule, instance.group)
        self._add(key, instance)
        if instance.is_active:
            self._active.setdefault(rule.name, {})[key] = instance
        self._schedule(key, instance)

    def _run_to(self, to_ns: int) -> list[Transition]:
        transitions: list[Transition] = []
        while (due := self.next_deadline_ns) is not None and due <= to_ns:
            self._now = max(self._now, due)
            if self._timers and self._timers[0][0] == due:
                key = heapq.heappop(self._timers)[1]
                del self._scheduled[key]
                instance = self._instances[key]
                is_edge = instance.trigger.timer(instance.memory, self._now)
                transitions += self._settle(instance, is_edge, self._now)
            else:
                name, event = next(iter(self._open.items()))
                self.counters.lost_ends += 1
                transitions += self._leave(name, event, event.heard_ns)
        self._now = max(self._now, to_ns)
        return transitions

    def _enter(self, told: Told, event: _OpenEvent) -> list[Transition]:
        """Let the rules have the event that want it and have not taken it yet."""
        transitions: list[Transition] = []
        taken = {(name, _flat(group)): steps for name, steps, group in event.entered}
        for candidate in self._wanted(told):
            steps = sum(1 << bit for bit, least in candidate.steps if told.peak >= least)
            rule = candidate.rule
            place = (rule.name, _flat(candidate.group))
            if steps == 0 or taken.get(place, 0) == steps:
                continue
            instance = self._instance(rule, candidate.group)
            if instance is None:
                continue
            if place in taken:
                event.entered.remove((rule.name, taken[place], candidate.group))
            event.entered.append((rule.name, steps, candidate.group))
            instance.facts = {
                "stream.name": told.stream,
                "labels": told.labels,
                "class": told.slug,
                "label": told.label,
                "score": round(told.peak, 4),
                "onset": told.onset,
            }
            heard = Heard(told.onset_ns, told.id, told.stream, told.slug, steps)
            is_edge = instance.trigger.begin(instance.memory, heard, self._now)
            transitions += self._settle(instance, is_edge, self._now, told.id)
        return transitions

    def _leave(self, event_id: str, event: _OpenEvent, offset_ns: int) -> list[Transition]:
        """End an event for every rule that took it."""
        del self._open[event_id]
        self._remember_ended(event_id)
        transitions: list[Transition] = []
        for name, _, group in event.entered:
            rule = self._by_name.get(name)
            instance = None if rule is None else self._instances.get(_key(rule, group))
            if instance is None:
                continue
            trigger = instance.trigger
            is_edge = trigger.end(instance.memory, event_id, event.onset_ns, offset_ns, self._now)
            if isinstance(trigger, AbsentFor) and not self._is_heard(instance):
                trigger.pause(instance.memory)
                is_edge = False
            transitions += self._settle(instance, is_edge, self._now, event_id)
        return transitions

    def _wanted(self, told: Told) -> list[_Candidate]:
        cached = (told.slug, told.stream, tuple(sorted(told.labels.items())))
        found = self._candidates.get(cached)
        if found is None:
            found = list(self._find_candidates(told))
            if len(self._candidates) >= MAX_CACHED:
                self._candidates.clear()
            self._candidates[cached] = found
        return found

    def _find_candidates(self, told: Told) -> Iterator[_Candidate]:
        for rule in self._rules.rules:
            if rule.trigger == "level":
                continue
            steps = tuple(
                (bit, matcher.min_score)
                for bit, matcher in enumerate(rule.matchers)
                if matcher.covers(told.slug, told.stream, told.labels)
            )
            if steps:
                yield _Candidate(rule, steps, _group(rule, told.stream, told.slug, told.labels))

    def _see(
        self, stream: str, labels: dict[str, str], *, is_forced: bool = False
    ) -> list[Transition]:
        """Note a stream; what waits for its silence begins to wait when it is first seen."""
        known = self._streams.get(stream)
        if known is not None and known["labels"] == labels and not is_forced:
            return []
        is_missing = known is not None and known["missing"]
        self._streams[stream] = {"labels": dict(labels), "missing": is_missing}
        transitions: list[Transition] = []
        for instance, trigger in self._absences(stream, labels):
            transitions += self._listen(instance, trigger, self._now)
        return transitions

    def _absences(
        self, stream: str, labels: Mapping[str, str]
    ) -> Iterator[tuple[Instance, AbsentFor]]:
        for rule in self._rules.rules:
            trigger = self._triggers[rule.name]
            is_meant = rule.matchers[0].covers_stream(stream, labels)
            if isinstance(trigger, AbsentFor) and is_meant:
                instance = self._instance(rule, _group(rule, stream, "", labels))
                if instance is not None:
                    yield instance, trigger

    def _listen(self, instance: Instance, trigger: AbsentFor, now: int) -> list[Transition]:
        """Start or stop counting the absence of a sound, as there is somebody who listens."""
        if not self._is_heard(instance):
            trigger.pause(instance.memory)
        elif instance.memory.since is None:
            trigger.start(instance.memory, now)
        else:
            return []
        return self._settle(instance, False, now)

    def _is_heard(self, instance: Instance) -> bool:
        rule = instance.rule
        meant = [
            state["missing"]
            for stream, state in self._streams.items()
            if rule.matchers[0].covers_stream(stream, state["labels"])
            and _group(rule, stream, "", state["labels"]) == instance.group
        ]
        return not meant or not all(meant)

    def _expect_named_streams(self) -> None:
        """Wait for streams that rules name, before they were ever heard of."""
        for rule in self._rules.rules:
            trigger = self._triggers[rule.name]
            if not isinstance(trigger, AbsentFor | LevelFor) or set(rule.group_by) - {"stream"}:
                continue
            for stream in sorted(rule.matchers[0].named_streams or ()):
                key = _key(rule, _group(rule, stream, "", {}))
                if key not in self._instances:
                    instance = self._instance(rule, dict(key[1]))
                    if instance is not None:
                        instance.facts = {"stream.name": stream, "labels": {}}
                        trigger.start(instance.memory, self._now)
                        self._schedule(key, instance)

    def _instance(self, rule: Rule, group: dict[str, str]) -> Instance | None:
        """Return the rule's instance for a group, None if it has too many."""
        key = _key(rule, group)
        instance = self._instances.get(key)
        if instance is None:
            if self._n_instances.get(rule.name, 0) >= MAX_INSTANCES:
                self._count_suppressed("instances")
                return None
            instance = Instance(rule, self._triggers[rule.name], group)
            self._add(key, instance)
        return instance

    def _add(self, key: Key, instance: Instance) -> None:
        self._instances[key] = instance
        self._n_instances[key[0]] = self._n_instances.get(key[0], 0) + 1

    def _forget(self, key: Key) -> None:
        if self._instances.pop(key, None) is not None:
            self._n_instances[key[0]] -= 1
        self._active.get(key[0], {}).pop(key, None)
        self._scheduled.pop(key, None)

    def _settle(
        self, instance: Instance, is_edge: bool, now: int, event_id: str | None = None
    ) -> list[Transition]:
        transitions = instance.settle(is_edge, now, event_id, lambda one: self._refusal(one, now))
        key = _key(instance.rule, instance.group)
        if transitions:
            self._count(transitions)
            active = self._active.setdefault(key[0], {})
            if instance.is_active:
                active[key] = instance
            else:
                active.pop(key, None)
        if instance.state == "inactive" and instance.is_idle(now):
            self._forget(key)
        else:
            self._schedule(key, instance)
        return transitions

    def _schedule(self, key: Key, instance: Instance) -> None:
        deadline = instance.deadline(self._now)
        if deadline is None:
            self._scheduled.pop(key, None)
        elif self._scheduled.get(key) != deadline:
            self._scheduled[key] = deadline
            heapq.heappush(self._timers, (deadline, key))
            if len(self._timers) > 64 + 4 * len(self._scheduled):
                self._timers = [one for one in self._timers if self._is_current(one)]
                heapq.heapify(self._timers)

    def _is_current(self, timer: tuple[int, Key]) -> bool:
        return self._scheduled.get(timer[1]) == timer[0]

    def _refusal(self, instance: Instance, now: int) -> str:
        """Say why an alert may not fire now, or nothing; what is held back is counted."""
        rule = instance.rule
        reason = ""
        if instance.quiet_until is not None and now < instance.quiet_until:
            reason = "cooldown"
        elif not rule.may_fire_at(now):
            reason = "window"
        elif self._is_inhibited(instance):
            reason = "inhibited"
        elif len(self._active.get(rule.name, ())) >= rule.settings.limit:
            reason = "limit"
        if reason:
            instance.held_back += 1
            self._count_suppressed(reason)
        return reason

    def _is_inhibited(self, instance: Instance) -> bool:
        for one in self._rules.inhibitions:
            if not _selects(one.target, instance.rule):
                continue
            labels = instance.labels
            for sources in self._active.values():
                for source in sources.values():
                    if (
                        source.rule.name != instance.rule.name
                        and _selects(one.source, source.rule)
                        and all(source.labels.get(n) == labels.get(n) for n in one.equal)
                    ):
                        return True
        return False

    def _remember_ended(self, event_id: str) -> None:
        self._ended[event_id] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _count(self, transitions: list[Transition]) -> None:
        fired = self.counters.fired
        for one in transitions:
            if one.to_state == "firing" and one.from_state == "recovering":
                self.counters.flaps += 1
            elif one.to_state == "firing":
                fired[one.alert.rule] = fired.get(one.alert.rule, 0) + 1

    def _count_suppressed(self, reason: str) -> None:
        suppressed = self.counters.suppressed
        suppressed[reason] = suppressed.get(reason, 0) + 1


def _flat(group: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(group.items())


def _key(rule: Rule, group: Mapping[str, str]) -> Key:
    return rule.name, _flat(group)


def _group(rule: Rule, stream: str, slug: str, labels: Mapping[str, str]) -> dict[str, str]:
    own = {"stream": stream, "class": slug}
    return {name: own[name] if name in own else labels.get(name, "") for name in rule.group_by}


def _selects(selector: Selector, rule: Rule) -> bool:
    is_named = selector.alert is None or rule.name in selector.alert
    return is_named and (selector.severity is None or rule.severity in selector.severity)


def _resolved_without_rule(told: Mapping[str, Any], now: int) -> Transition:
    """Return the end of an alert whose rule is no longer there."""
    fields = {name: one for name, one in told.items() if name != "actions"}
    state = fields.pop("state")
    ended = {"state": "resolved", "resolved_ns": now, "reason": "rule_changed"}
    alert = Alert(**(fields | ended | {"events": tuple(fields["events"])}))
    return Transition(alert, state, "resolved", now, tuple(told["actions"]))
