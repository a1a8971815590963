"""What is known of the streams themselves: their level, and whether anybody listens to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ast_stream.alerts.instance import Instance
from ast_stream.alerts.model import Transition
from ast_stream.alerts.rules import Rule
from ast_stream.alerts.states import RuleStates
from ast_stream.alerts.trigger_levels import AbsentFor, LevelFor


class Listening:
    """Streams that were heard of, for rules about levels and about sounds that are absent."""

    def __init__(self, states: RuleStates) -> None:
        self._states = states
        self._streams: dict[str, dict[str, Any]] = {}  # labels, and whether it is missing
        self._find_rules()

    def see(self, stream: str, labels: dict[str, str], now: int) -> list[Transition]:
        """Note a stream; what waits for its silence begins to wait when it is first seen."""
        known = self._streams.get(stream)
        if known is not None and known["labels"] == labels:
            return []
        is_missing = known is not None and known["missing"]
        self._streams[stream] = {"labels": dict(labels), "missing": is_missing}
        return self._listen_for_absences(stream, labels, now)

    def hear_health(
        self, stream: str, labels: dict[str, str], body: Mapping[str, Any], now: int
    ) -> list[Transition]:
        """Take what a health body says."""
        self._streams[stream]["missing"] = body.get("state") == "missing"
        transitions = self._listen_for_absences(stream, labels, now)
        for rule, trigger in self._levels:
            if not rule.matchers[0].covers_stream(stream, labels):
                continue
            instance = self._states.obtain(rule, rule.group_of(stream, "", labels))
            if instance is not None:
                level = body.get("level_dbfs")
                instance.facts = {"stream.name": stream, "labels": labels, "level_dbfs": level}
                is_edge = trigger.sample(instance.memory, body, now)
                transitions += self._states.settle(instance, is_edge, now)
        return transitions

    def hear_gap(self, stream: str, end_ns: int, now: int) -> list[Transition]:
        """Take that nobody heard a stream until `end_ns`."""
        labels = self._streams.get(stream, {}).get("labels", {})
        transitions: list[Transition] = []
        for instance, trigger in self._absences(stream, labels):
            if instance.memory.since is not None:
                trigger.start(instance.memory, end_ns)
                transitions += self._states.settle(instance, False, now)
        return transitions

    def is_listened_to(self, instance: Instance) -> bool:
        """Tell whether, as far as is known, a stream that an instance is about is heard."""
        rule = instance.rule
        missing = [
            state["missing"]
            for stream, state in self._streams.items()
            if rule.matchers[0].covers_stream(stream, state["labels"])
            and rule.group_of(stream, "", state["labels"]) == instance.group
        ]
        return not missing or not all(missing)

    def expect_named_streams(self, now: int) -> None:
        """Wait for streams that rules name, before they were ever heard of."""
        rules: list[tuple[Rule, AbsentFor | LevelFor]] = [*self._absents, *self._levels]
        for rule, trigger in rules:
            if set(rule.group_by) - {"stream"}:
                continue
            for stream in sorted(rule.matchers[0].named_streams or ()):
                group = rule.group_of(stream, "", {})
                if self._states.find(rule, group) is not None:
                    continue
                instance = self._states.obtain(rule, group)
                if instance is not None:
                    instance.facts = {"stream.name": stream, "labels": {}}
                    trigger.start(instance.memory, now)
                    self._states.schedule(instance, now)

    def use_other_rules(self, now: int) -> list[Transition]:
        """Let rules that have just come into force wait for the silence of what is known."""
        self._find_rules()
        self.expect_named_streams(now)
        transitions: list[Transition] = []
        for stream, state in self._streams.items():
            transitions += self._listen_for_absences(stream, state["labels"], now)
        return transitions

    def export(self) -> dict[str, Any]:
        """Return the streams as JSON values."""
        return {name: dict(one) for name, one in self._streams.items()}

    def restore(self, streams: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what `export` gave."""
        self._streams = {name: dict(one) for name, one in streams.items()}

    def _find_rules(self) -> None:
        rules = [(rule, self._states.triggers[rule.name]) for rule in self._states.rules.rules]
        self._absents: list[tuple[Rule, AbsentFor]] = [
            (rule, trigger) for rule, trigger in rules if isinstance(trigger, AbsentFor)
        ]
        self._levels: list[tuple[Rule, LevelFor]] = [
            (rule, trigger) for rule, trigger in rules if isinstance(trigger, LevelFor)
        ]

    def _absences(
        self, stream: str, labels: Mapping[str, str]
    ) -> Iterator[tuple[Instance, AbsentFor]]:
        for rule, trigger in self._absents:
            if rule.matchers[0].covers_stream(stream, labels):
                instance = self._states.obtain(rule, rule.group_of(stream, "", labels))
                if instance is not None:
                    yield instance, trigger

    def _listen_for_absences(
        self, stream: str, labels: Mapping[str, str], now: int
    ) -> list[Transition]:
        """Start or stop counting the absence of sounds, as there is somebody who listens."""
        transitions: list[Transition] = []
        for instance, trigger in self._absences(stream, labels):
            if not self.is_listened_to(instance):
                trigger.pause(instance.memory)
            elif instance.memory.since is None:
                trigger.start(instance.memory, now)
            else:
                continue
            transitions += self._states.settle(instance, False, now)
        return transitions
