"""What is known of the streams themselves: their level, and whether anybody listens to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ast_stream.alerts.instance import Instance
from ast_stream.alerts.model import Transition
from ast_stream.alerts.rules.rule import Rule
from ast_stream.alerts.states import RuleStates
from ast_stream.alerts.triggers.level import AbsentFor, LevelFor
from ast_stream.units import NS_PER_SECOND


class Listening:
    """Streams that were heard of, for rules about levels and about sounds that are absent."""

    def __init__(self, states: RuleStates) -> None:
        self._states = states
        # labels, whether it is missing, epoch of its last health, and whether that is long ago
        self._streams: dict[str, dict[str, Any]] = {}
        self._find_rules()

    def see(self, stream: str, labels: dict[str, str], now: int) -> list[Transition]:
        """Note a stream; what waits for its silence begins to wait when it is first seen."""
        known = self._streams.get(stream)
        if known is not None and known["labels"] == labels:
            return []
        self._streams[stream] = (known or {"missing": False}) | {"labels": dict(labels)}
        return self._listen_for_absences(stream, labels, now)

    def hear_health(
        self, stream: str, labels: dict[str, str], body: Mapping[str, Any], now: int
    ) -> list[Transition]:
        """Take what a health body says."""
        before = self._streams[stream]
        epoch = body.get("epoch")
        self._streams[stream] = before | {
            "missing": body.get("state") == "missing",
            "epoch": epoch,
            "is_unseen": False,
        }
        transitions: list[Transition] = []
        if before.get("is_unseen"):
            is_same = epoch is not None and epoch == before.get("epoch")
            transitions += self._see_again(stream, labels, now, is_same, _began_ns(body, now))
        transitions += self._listen_for_absences(stream, labels, now)
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
            trigger.skip(instance.memory, end_ns)
            transitions += self._states.settle(instance, False, now)
        return transitions

    def lose_sight(self, now: int) -> list[Transition]:
        """Take that nobody says for now whether streams are listened to: silence proves nothing."""
        transitions: list[Transition] = []
        for stream, state in self._streams.items():
            # bodies that are written by hand say nothing of an epoch, and may be the only ones
            if state.get("epoch") is not None and not state["is_unseen"]:
                state["is_unseen"] = True
                transitions += self._listen_for_absences(stream, state["labels"], now)
        return transitions

    def leave_out(self, away_ns: int, now: int) -> list[Transition]:
        """Take that this process was off for a time: what was not looked for is not missed."""
        for instance in self._states.all():
            if isinstance(instance.trigger, LevelFor):
                instance.trigger.leave_out(instance.memory, away_ns)
                self._states.schedule(instance, now)
        return self.lose_sight(now)

    def _see_again(
        self, stream: str, labels: Mapping[str, str], now: int, is_same: bool, began_ns: int
    ) -> list[Transition]:
        """Go on counting absences.

        Args:
            is_same: the source went on meanwhile, and gaps in what was heard of it were told.
            began_ns: else it began then.
        """
        transitions: list[Transition] = []
        for instance, trigger in self._absences(stream, labels):
            if instance.memory.since is None and self.is_listened_to(instance):
                if is_same:
                    trigger.resume(instance.memory, now)
                else:
                    trigger.start(instance.memory, began_ns)
                transitions += self._states.settle(instance, False, now)
        return transitions

    def is_listened_to(self, instance: Instance) -> bool:
        """Tell whether, as far as is known, a stream that an instance is about is heard."""
        rule = instance.rule
        missing = [
            state["missing"] or state.get("is_unseen", False)
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


def _began_ns(body: Mapping[str, Any], now: int) -> int:
    """Return when the source of a health body began, not later than now."""
    try:
        heard_s = float(body["audio_s"]) + float(body.get("lag_s") or 0.0)
        return now - max(0, round(heard_s * NS_PER_SECOND))
    except (KeyError, TypeError, ValueError, OverflowError):
        return now
