"""The state of every rule for every group of labels: made, settled, asked again, forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ast_stream.alerts.instance import Instance
from ast_stream.alerts.model import Alert, DetectionTiming, EngineCounters, Transition
from ast_stream.alerts.rules.rule import Rule, RuleSet
from ast_stream.alerts.rules.schema import Selector
from ast_stream.alerts.timers import Key, Timers
from ast_stream.alerts.triggers.base import Trigger
from ast_stream.alerts.triggers.kinds import make_trigger

MAX_INSTANCES = 1000  # of one rule


class RuleStates:
    """Instances of the rules in force, and who of them may fire.

    Attributes:
        rules: in force.
        triggers: of each rule, by its name.
    """

    def __init__(self, rules: RuleSet, timing: DetectionTiming, counters: EngineCounters) -> None:
        self._counters = counters
        self._timers = Timers()
        self._instances: dict[Key, Instance] = {}
        self._active: dict[str, dict[Key, Instance]] = {}
        self._n_instances: dict[str, int] = {}
        self._use(rules, timing)

    @property
    def next_deadline_ns(self) -> int | None:
        """Stream time of the next timer, None if there is none."""
        return self._timers.next_ns

    def named(self, name: str) -> Rule | None:
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
        """Return the rule's instance for a group, None if it has too many."""
        instance = self._instances.get(_key(rule.name, group))
        if instance is None:
            if self._n_instances.get(rule.name, 0) >= MAX_INSTANCES:
                self._count_suppressed(rule.name, "instances")
                return None
            instance = Instance(rule, self.triggers[rule.name], group)
            self._add(instance)
        return instance

    def settle(
        self, instance: Instance, is_edge: bool, now: int, event_id: str | None = None
    ) -> list[Transition]:
        """Bring an instance to the state that fits, and ask it again when it is due.

        Args:
            is_edge: its trigger fires now.
            event_id: the event that made the difference, if one did.
        """
        transitions = instance.settle(is_edge, now, event_id, lambda one: self._refusal(one, now))
        key = _key(instance.rule.name, instance.group)
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
        """Ask an instance again when it is due."""
        self._timers.set(_key(instance.rule.name, instance.group), instance.deadline(now))

    def run_timer(self, now: int) -> list[Transition]:
        """Ask the instance whose timer is the next."""
        instance = self._instances[self._timers.pop()]
        is_edge = instance.trigger.timer(instance.memory, now)
        return self.settle(instance, is_edge, now)

    def replace(
        self, rules: RuleSet, timing: DetectionTiming, now: int
    ) -> tuple[list[Transition], set[str]]:
        """Use other rules; return what ends by that, and the names of rules that are not as before.

        Alerts of rules that decide as before go on.
        """
        before = self._by_name
        self._use(rules, timing)
        same = {name for name, rule in before.items() if self._is_same(name, rule.digest)}
        transitions: list[Transition] = []
        for key, instance in list(self._instances.items()):
            if key[0] in same:
                instance.rule, instance.trigger = self._by_name[key[0]], self.triggers[key[0]]
                self._timers.set(key, instance.deadline(now))
            else:
                transitions += instance.end(now, "rule_changed")
                self._forget(key)
        return transitions, set(before) - same

    def step(self, step_ns: int) -> None:
        """Move every time along with a clock that was set."""
        self._timers.step(step_ns)
        for instance in self._instances.values():
            instance.step(step_ns)

    def end_all(self, now: int, reason: str) -> list[Transition]:
        """End every alert, and forget everything."""
        transitions: list[Transition] = []
        for key, instance in list(self._instances.items()):
            transitions += instance.end(now, reason)
            self._forget(key)
        return transitions

    def export(self, now: int) -> list[dict[str, Any]]:
        """Return the instances as JSON values."""
        found = []
        for instance in self._instances.values():
            data = instance.export() | {"digest": instance.rule.digest}
            if instance.is_active:  # enough to resolve it should its rule be gone by then
                alert = instance.alert(instance.state, now, None)
                data["told"] = vars(alert) | {"actions": list(instance.rule.actions or ())}
            found.append(data)
        return found

    def restore(self, data: Mapping[str, Any], now: int) -> list[Transition]:
        """Take back one instance; an alert whose rule is not as it was ends."""
        if not self._is_same(data["rule"], data["digest"]):
            return [_resolved_without_rule(data["told"], now)] if "told" in data else []
        rule = self._by_name[data["rule"]]
        fields = {name: one for name, one in data.items() if name not in ("digest", "told")}
        instance = Instance.restore(rule, self.triggers[rule.name], fields)
        self._add(instance)
        if instance.is_active:
            self._active.setdefault(rule.name, {})[_key(rule.name, instance.group)] = instance
        self.schedule(instance, now)
        return []

    def _use(self, rules: RuleSet, timing: DetectionTiming) -> None:
        self.rules = rules
        self._by_name = {rule.name: rule for rule in rules.rules}
        self.triggers: dict[str, Trigger] = {
            rule.name: make_trigger(rule, timing) for rule in rules.rules
        }

    def _is_same(self, name: str, digest: str) -> bool:
        rule = self._by_name.get(name)
        return rule is not None and rule.digest == digest

    def _add(self, instance: Instance) -> None:
        name = instance.rule.name
        self._instances[_key(name, instance.group)] = instance
        self._n_instances[name] = self._n_instances.get(name, 0) + 1

    def _forget(self, key: Key) -> None:
        if self._instances.pop(key, None) is not None:
            self._n_instances[key[0]] -= 1
        self._active.get(key[0], {}).pop(key, None)
        self._timers.set(key, None)

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
            self._count_suppressed(rule.name, reason)
        return reason

    def _is_inhibited(self, instance: Instance) -> bool:
        for one in self.rules.inhibitions:
            if not _selects(one.target, instance.rule):
                continue
            labels = instance.labels
            for source in self.active():
                if (
                    source.rule.name != instance.rule.name
                    and _selects(one.source, source.rule)
                    and all(source.labels.get(n) == labels.get(n) for n in one.equal)
                ):
                    return True
        return False

    def _count(self, transitions: list[Transition]) -> None:
        fired = self._counters.fired
        for one in transitions:
            if one.to_state == "firing" and one.from_state == "recovering":
                self._counters.flaps += 1
            elif one.to_state == "firing":
                fired[one.alert.rule] = fired.get(one.alert.rule, 0) + 1

    def _count_suppressed(self, name: str, reason: str) -> None:
        of_rule = self._counters.held_back.setdefault(name, {})
        for counts in (self._counters.suppressed, of_rule):
            counts[reason] = counts.get(reason, 0) + 1


def _key(name: str, group: Mapping[str, str]) -> Key:
    return name, tuple(group.items())


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
