"""The instances of rules, one for each group of labels: states, timers, and what may fire.

    inactive -> pending -> firing -> recovering -> resolved
                  |           ^----------'
                  '-> inactive

Time windows, inhibition, cooldown and the limit of alerts are checked at the moment of firing. A
firing that is suppressed does not wait for a better moment: the occasion is over, and counted.

Times are stream times in nanoseconds: when the sound was captured, not when a message about it was
read, as steady time (`steady_time`). Only those in an `Alert` are wall times.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rules.rule import Rule, RuleSet
from ast_stream.alerts.rules.schema import Selector
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.triggers.base import MAX_CAUSES, Trigger
from ast_stream.labels import stable_id
from ast_stream.messages.alert import ACTIVE_STATES, Alert, AlertState
from ast_stream.units import NS_PER_SECOND, format_time

MAX_INSTANCES = 10_000  # of one rule: more than streams of a box, as many as may fire at a time
_TIMER_SLACK = 64  # outdated timers that are no reason yet to clean up

_NOT_STORED = ("trigger", "time")
_NOT_FIELDS = ("rule", "digest", "alert", "actions", "trigger_state")  # in an exported instance

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A rule's name and a group of labels."""


@dataclass(frozen=True)
class Transition:
    """An alert that passed from one state to another.

    Attributes:
        alert: as of after the transition.
        at_ns: stream time of the transition.
        actions: names of the actions to deliver it by; empty except for a new firing (from inactive
            or pending) and for resolved. Each action's `on` chooses among these.
        event_id: the event that made the difference; None for timers and health.
    """

    alert: Alert
    from_state: AlertState
    to_state: AlertState
    at_ns: int
    actions: tuple[str, ...] = ()
    event_id: str | None = None

    @property
    def is_announced(self) -> bool:
        """Whether it is news: a new firing or a resolution, not a recovery that relapsed."""
        is_new = self.to_state == "firing" and self.from_state != "recovering"
        return is_new or self.to_state == "resolved"


@dataclass
class EngineCounters:
    """What an engine did, for metrics; reset with the process."""

    events: int = 0
    fired: dict[str, int] = field(default_factory=dict)
    suppressed: dict[str, int] = field(default_factory=dict)  # by reason
    suppressed_by_rule: dict[str, dict[str, int]] = field(default_factory=dict)  # and reason
    flaps: int = 0
    lost_ends: int = 0  # events that never ended on the feed
    malformed: int = 0  # bodies that are not what they should be


@dataclass
class Instance:
    """A rule for one group of labels.

    Attributes:
        group: values of the rule's `group_by`.
        facts: about the newest event or health message, for templates.
        keep_until_ns: when a recovering alert is resolved.
        cooldown_until_ns: when the cooldown ends.
        suppressed: firings suppressed since the last alert.
    """

    rule: Rule
    trigger: Trigger
    time: SteadyTime
    group: dict[str, str]
    state: AlertState
    facts: dict[str, Any]
    alert_id: str = ""
    started_ns: int = 0
    fired_ns: int | None = None
    events: tuple[str, ...] = ()
    keep_until_ns: int | None = None
    cooldown_until_ns: int | None = None
    suppressed: int = 0

    @classmethod
    def new(cls, rule: Rule, trigger: Trigger, time: SteadyTime, group: dict[str, str]) -> Instance:
        """Return an inactive instance."""
        return cls(rule, trigger, time, group, "inactive", {})

    @property
    def key(self) -> Key:
        """What it is known by."""
        return _key(self.rule.name, self.group)

    @property
    def is_active(self) -> bool:
        """Whether its alert was announced and its end was not."""
        return self.state in ACTIVE_STATES

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the alert: the file's, the rule's, the group's, and the severity."""
        known = {name: value for name, value in self.group.items() if value}
        return dict(self.rule.labels) | known | {"severity": self.rule.severity}

    def is_cooling_down(self, now: int) -> bool:
        """Return whether the cooldown after the last alert still runs."""
        return self.cooldown_until_ns is not None and now < self.cooldown_until_ns

    def is_idle(self, now: int) -> bool:
        """Return whether nothing would be lost by forgetting it."""
        is_forgotten = self.trigger.is_empty and not self.suppressed
        return self.state == "inactive" and is_forgotten and not self.is_cooling_down(now)

    def deadline(self, now: int) -> int | None:
        """Return the stream time at which it must be asked again."""
        times = [self.trigger.deadline(now), self.keep_until_ns]
        if self.state == "inactive" and self.is_cooling_down(now):
            times.append(self.cooldown_until_ns)
        return min((time for time in times if time is not None), default=None)

    def settle(
        self, fires: bool, now: int, event_id: str | None, refusal: Callable[[Instance], str]
    ) -> list[Transition]:
        """Go to the state that fits, and return the transitions on the way.

        Args:
            fires: whether the trigger fires now.
            refusal: returns why it may not fire; empty if it may.
        """
        transitions = []
        if fires and not self.is_active and refusal(self):
            fires = False
        while (change := self._next(fires, now)) is not None:
            from_state, to_state, reason = change
            is_notified = to_state == "resolved" or (
                to_state == "firing" and from_state != "recovering"
            )
            transitions.append(
                Transition(
                    alert=self.alert(to_state, now, reason),
                    from_state=from_state,
                    to_state=to_state,
                    at_ns=now,
                    actions=self.rule.actions or () if is_notified else (),
                    event_id=event_id,
                )
            )
            if to_state == "firing":
                fires = False
                self.suppressed = 0
            if to_state == "resolved":
                self._become_inactive()
        if self.state == "inactive":
            self.trigger.prune(now)
        elif self.is_active and self.trigger.merges_streams:
            self.events = tuple(dict.fromkeys((*self.events, *self.trigger.cause_ids)))[:MAX_CAUSES]
        return transitions

    def end(self, now: int, reason: str) -> list[Transition]:
        """Resolve an alert that cannot continue, and forget the trigger's state."""
        transitions = []
        if self.is_active:
            from_state = self.state
            self.state = "resolved"
            alert = self.alert("resolved", now, reason)
            actions = self.rule.actions or ()
            transitions.append(Transition(alert, from_state, "resolved", now, actions))
            self.cooldown_until_ns = now + self.rule.cooldown_ns
        elif self.state == "pending":
            alert = self.alert("inactive", now, reason)
            transitions.append(Transition(alert, "pending", "inactive", now))
        self._become_inactive()
        self.trigger.clear()
        return transitions

    def alert(self, state: AlertState, now: int, reason: str | None) -> Alert:
        """Return the alert as of now, its times as wall time."""
        rule = self.rule
        values = self._values(state, now) if rule.annotations else {}
        annotations = {name: template.render(values) for name, template in rule.annotations.items()}
        merged = self.trigger.merged
        return Alert(
            id=self.alert_id,
            fingerprint=stable_id(rule.name, *_flat(self.group)),
            rule=rule.name,
            state=state,
            severity=rule.severity,
            group=dict(self.group),
            labels=self.labels,
            annotations=annotations,
            started_ns=self.time.wall_ns(self.started_ns),
            fired_ns=None if self.fired_ns is None else self.time.wall_ns(self.fired_ns),
            resolved_ns=self.time.wall_ns(now) if state == "resolved" else None,
            events=self.events,
            suppressed=self.suppressed,
            reason=reason,
            best=None if merged is None else merged.best,
            streams=() if merged is None else merged.streams,
        )

    def export(self, now: int) -> dict[str, Any]:
        """Return the state as JSON values; the rule is named."""
        data = {name: value for name, value in vars(self).items() if name not in _NOT_STORED}
        data |= {"rule": self.rule.name, "digest": self.rule.digest, "events": list(self.events)}
        data["trigger_state"] = self.trigger.export()
        if self.is_active:  # enough to resolve it should its rule be gone by then
            data["alert"] = self.alert(self.state, now, None).to_json()
            data["actions"] = list(self.rule.actions or ())
        return data

    @classmethod
    def restore(
        cls, rule: Rule, trigger: Trigger, time: SteadyTime, data: Mapping[str, Any]
    ) -> Instance:
        """Return the instance that `export` was called on."""
        trigger.restore(data["trigger_state"])
        fields = {name: data[name] for name in data if name not in _NOT_FIELDS}
        fields["events"] = tuple(fields["events"])
        return cls(rule=rule, trigger=trigger, time=time, **fields)

    def _next(self, fires: bool, now: int) -> tuple[AlertState, AlertState, str | None] | None:
        """Go to the next state; return from which, to which and why, None if it fits already."""
        state = self.state
        if state in ("inactive", "pending") and fires:
            if state == "inactive":
                self._begin_alert(now)
            else:  # the pending sound may have turned out to be a different one
                self.started_ns = self._began(now)
            self.state, self.fired_ns, self.keep_until_ns = "firing", now, None
            self.events = tuple(self.trigger.cause_ids)
        elif state == "inactive":
            if not self.trigger.is_pending(now):
                return None
            self._begin_alert(now)
            self.state = "pending"
        elif state == "pending":
            if self.trigger.is_pending(now):
                return None
            self.state = "inactive"
        elif state == "firing":
            if fires or self.trigger.holds(now):
                return None
            self.state = "recovering" if self.rule.keep_ns else "resolved"
            self.keep_until_ns = now + self.rule.keep_ns if self.rule.keep_ns else None
        elif fires or self.trigger.holds(now):
            self.state, self.keep_until_ns = "firing", None
        elif self.keep_until_ns is not None and now >= self.keep_until_ns:
            self.state = "resolved"
        else:
            return None
        if self.state == "resolved":
            self.cooldown_until_ns = now + self.rule.cooldown_ns
        return state, self.state, "quiet" if self.state == "resolved" else None

    def _begin_alert(self, now: int) -> None:
        """Give the new alert its id, which depends on what began it."""
        self.started_ns = self._began(now)
        causes = self.trigger.cause_ids
        first = causes[0] if causes else f"@{self.started_ns}"
        self.alert_id = stable_id(self.rule.name, *_flat(self.group), first)
        self.fired_ns = None
        self.events = tuple(causes)

    def _began(self, now: int) -> int:
        began_ns = self.trigger.began_ns
        return now if began_ns is None else began_ns

    def _become_inactive(self) -> None:
        self.state, self.keep_until_ns = "inactive", None

    def _text(self, time_ns: int) -> str:
        return format_time(self.time.wall_ns(time_ns))

    def _values(self, state: AlertState, now: int) -> dict[str, str | int | float | None]:
        active_ns = self.trigger.sounded_ns(now)
        counted = now - self.started_ns if active_ns is None else active_ns
        values: dict[str, str | int | float | None] = {
            "alert": self.rule.name,
            "severity": self.rule.severity,
            "group": self.rule.group,
            "state": state,
            "started": self._text(self.started_ns),
            "fired": None if self.fired_ns is None else self._text(self.fired_ns),
            "active_s": round(counted / NS_PER_SECOND, 3),
            "count": len(self.events),
            "suppressed": self.suppressed,
        }
        merged = self.trigger.merged
        facts = self.facts if merged is None else merged.facts
        stream_labels = facts.get("labels", {})
        values |= {name: value for name, value in facts.items() if name != "labels"}
        values |= {f"stream.labels.{name}": value for name, value in stream_labels.items()}
        return values | {f"labels.{name}": value for name, value in self.labels.items()}


class Timers:
    """A heap of deadlines, one for each key; equal ones come in the order of their keys."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Key]] = []
        self._by_key: dict[Key, int] = {}

    @property
    def next_ns(self) -> int | None:
        """The earliest deadline, None if there is none."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def __contains__(self, key: object) -> bool:
        """Whether `key` has a deadline."""
        return key in self._by_key

    def pop(self) -> Key:
        """Remove the earliest deadline, which must exist, and return its key."""
        while True:
            entry = heapq.heappop(self._heap)
            if self._is_current(entry):
                del self._by_key[entry[1]]
                return entry[1]

    def set(self, key: Key, deadline_ns: int | None) -> None:
        """Replace the deadline of `key`; None removes it."""
        if deadline_ns is None:
            self._by_key.pop(key, None)
        elif self._by_key.get(key) != deadline_ns:
            self._by_key[key] = deadline_ns
            heapq.heappush(self._heap, (deadline_ns, key))
            if len(self._heap) > _TIMER_SLACK + 4 * len(self._by_key):
                self._heap = [entry for entry in self._heap if self._is_current(entry)]
                heapq.heapify(self._heap)

    def _is_current(self, entry: tuple[int, Key]) -> bool:
        return self._by_key.get(entry[1]) == entry[0]


class InstanceTable:
    """The instances of all rules in force, their timers, and which of them may fire.

    Attributes:
        rules: in force.
        listening_rules: those that count only while somebody listens.
        health_rules: those that read health messages.
        level_rules: those that go by sound levels.
    """

    def __init__(
        self, rules: RuleSet, timing: DetectionTiming, counters: EngineCounters, time: SteadyTime
    ) -> None:
        self._counters = counters
        self._time = time
        self._timers = Timers()
        self._instances: dict[Key, Instance] = {}
        self._active: dict[str, dict[Key, Instance]] = {}
        self._n_instances: dict[str, int] = {}
        self._use(rules, timing)

    @property
    def next_deadline_ns(self) -> int | None:
        """Stream time of the next timer, None if there is none."""
        return self._timers.next_ns

    def rule_named(self, name: str) -> Rule | None:
        """Return the rule of that name."""
        return self._by_name.get(name)

    def all(self) -> list[Instance]:
        """Return every instance."""
        return list(self._instances.values())

    def active(self) -> Iterator[Instance]:
        """Yield the instances that are firing or recovering."""
        for instances in self._active.values():
            yield from instances.values()

    def find(self, rule: Rule, group: Mapping[str, str]) -> Instance | None:
        """Return the rule's instance for a group, None if it has none."""
        return self._instances.get(_key(rule.name, group))

    def obtain(self, rule: Rule, group: dict[str, str]) -> Instance | None:
        """Return the rule's instance for a group, a new one if need be; None: it has too many."""
        instance = self._instances.get(_key(rule.name, group))
        if instance is None:
            is_full = self._n_instances.get(rule.name, 0) >= MAX_INSTANCES
            if is_full and not self._make_room(rule.name):
                self._count_suppressed(rule.name, "instances")
                return None
            instance = Instance.new(rule, self._trigger_of(rule), self._time, group)
            self._add(instance)
        return instance

    def settle(
        self, instance: Instance, fires: bool, now: int, event_id: str | None = None
    ) -> list[Transition]:
        """Move an instance to the state that follows, and set its timer.

        Args:
            fires: whether its trigger fires now.
            event_id: the event that made the difference, if one did.
        """
        transitions = instance.settle(fires, now, event_id, lambda it: self._refusal(it, now))
        key = instance.key
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
            self._timers.set(key, instance.deadline(now))
        return transitions

    def schedule(self, instance: Instance, now: int) -> None:
        """Set an instance's timer."""
        self._timers.set(instance.key, instance.deadline(now))

    def run_timer(self, now: int) -> list[Transition]:
        """Run the next timer."""
        instance = self._instances[self._timers.pop()]
        fires = instance.trigger.on_timer(now)
        return self.settle(instance, fires, now)

    def replace(
        self, rules: RuleSet, timing: DetectionTiming, now: int
    ) -> tuple[list[Transition], set[str]]:
        """Put other rules in force; return what that ends, and the names of rules that changed.

        Alerts of rules that decide as before continue.
        """
        before = self._by_name
        self._use(rules, timing)
        same = {name for name, rule in before.items() if self._is_same(name, rule.digest)}
        transitions: list[Transition] = []
        for key, instance in list(self._instances.items()):
            if key[0] in same:
                instance.rule = rule = self._by_name[key[0]]
                instance.trigger.use(rule, self._timings[rule.name])
                self._timers.set(key, instance.deadline(now))
            else:
                transitions += instance.end(now, "rule_changed")
                self._forget(key)
        return transitions, set(before) - same

    def end(self, instance: Instance, now: int, reason: str) -> list[Transition]:
        """End the alert of an instance, and forget the instance."""
        transitions = instance.end(now, reason)
        self._forget(instance.key)
        return transitions

    def end_all(self, now: int, reason: str) -> list[Transition]:
        """End every alert, and forget everything."""
        transitions: list[Transition] = []
        for instance in self.all():
            transitions += self.end(instance, now, reason)
        return transitions

    def export(self, now: int) -> list[dict[str, Any]]:
        """Return the instances as JSON values."""
        return [instance.export(now) for instance in self._instances.values()]

    def restore(self, data: Mapping[str, Any], now: int) -> list[Transition]:
        """Take over one exported instance; an alert whose rule has changed ends."""
        if not self._is_same(data["rule"], data["digest"]):
            wall_ns = self._time.wall_ns(now)
            return [_resolved_without_rule(data, now, wall_ns)] if "alert" in data else []
        rule = self._by_name[data["rule"]]
        instance = Instance.restore(rule, self._trigger_of(rule), self._time, data)
        self._add(instance)
        if instance.is_active:
            self._active.setdefault(rule.name, {})[instance.key] = instance
        self.schedule(instance, now)
        return []

    def _use(self, rules: RuleSet, timing: DetectionTiming) -> None:
        self.rules = rules
        self._by_name = {rule.name: rule for rule in rules.rules}
        self._timings = {rule.name: timing.of_classes(rule.slugs) for rule in rules.rules}
        self.listening_rules = [rule for rule in rules.rules if rule.trigger.needs_listener]
        self.health_rules = [rule for rule in rules.rules if rule.trigger.reads_health]
        self.level_rules = rules.by_levels

    def _trigger_of(self, rule: Rule) -> Trigger:
        trigger = rule.trigger()
        trigger.use(rule, self._timings[rule.name])
        return trigger

    def _is_same(self, name: str, digest: str) -> bool:
        rule = self._by_name.get(name)
        return rule is not None and rule.digest == digest

    def _add(self, instance: Instance) -> None:
        name = instance.rule.name
        self._instances[instance.key] = instance
        self._n_instances[name] = self._n_instances.get(name, 0) + 1

    def _make_room(self, name: str) -> bool:
        """Forget the oldest instance of a rule that is kept for its suppressed firings alone.

        These are never idle: without this a rule would be deaf for new groups in the end.
        """
        for key, instance in self._instances.items():
            is_over = instance.state == "inactive" and instance.trigger.is_empty
            if key[0] == name and is_over and key not in self._timers:
                self._forget(key)
                return True
        return False

    def _forget(self, key: Key) -> None:
        if self._instances.pop(key, None) is not None:
            self._n_instances[key[0]] -= 1
        self._active.get(key[0], {}).pop(key, None)
        self._timers.set(key, None)

    def _refusal(self, instance: Instance, now: int) -> str:
        """Return why an alert may not fire now, empty if it may; suppressed firings are counted."""
        rule = instance.rule
        reason = ""
        if instance.is_cooling_down(now):
            reason = "cooldown"
        elif not rule.may_fire_at(self._time.wall_ns(now)):
            reason = "window"
        elif self._is_inhibited(instance):
            reason = "inhibited"
        elif len(self._active.get(rule.name, ())) >= rule.settings.limit:
            reason = "limit"
        if reason:
            instance.suppressed += 1
            self._count_suppressed(rule.name, reason)
        return reason

    def _is_inhibited(self, instance: Instance) -> bool:
        for inhibition in self.rules.inhibitions:
            if not _selects(inhibition.target, instance.rule):
                continue
            labels = instance.labels
            for source in self.active():
                if (
                    source.rule.name != instance.rule.name
                    and _selects(inhibition.source, source.rule)
                    and all(source.labels.get(n) == labels.get(n) for n in inhibition.equal)
                ):
                    return True
        return False

    def _count(self, transitions: list[Transition]) -> None:
        fired = self._counters.fired
        for transition in transitions:
            if transition.to_state == "firing" and transition.from_state == "recovering":
                self._counters.flaps += 1
            elif transition.to_state == "firing":
                fired[transition.alert.rule] = fired.get(transition.alert.rule, 0) + 1

    def _count_suppressed(self, name: str, reason: str) -> None:
        by_reason = self._counters.suppressed_by_rule.setdefault(name, {})
        for counts in (self._counters.suppressed, by_reason):
            counts[reason] = counts.get(reason, 0) + 1


def _flat(group: Mapping[str, str]) -> Iterable[str]:
    return [f"{name}={value}" for name, value in sorted(group.items())]


def _key(name: str, group: Mapping[str, str]) -> Key:
    return name, tuple(group.items())


def _selects(selector: Selector, rule: Rule) -> bool:
    is_named = selector.alert is None or rule.name in selector.alert
    return is_named and (selector.severity is None or rule.severity in selector.severity)


def _resolved_without_rule(data: Mapping[str, Any], now: int, wall_ns: int) -> Transition:
    """Return the end of an exported instance's alert whose rule no longer exists."""
    alert = Alert.from_json(data["alert"], "alert")
    ended = {"state": "resolved", "resolved_ns": wall_ns, "reason": "rule_changed"}
    resolved = alert.model_copy(update=ended)
    return Transition(resolved, alert.state, "resolved", now, tuple(data["actions"]))
