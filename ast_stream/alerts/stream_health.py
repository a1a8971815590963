"""Which streams are being listened to, and their levels: for rules about absence and levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ast_stream.alerts.instances import Instance, InstanceTable, Transition
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.status import Health
from ast_stream.units import seconds_to_ns


@dataclass
class _StreamState:
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


class StreamHealth:
    """The streams seen so far, for rules about levels, coverage and absent sounds.

    Args:
        has_health: there are health messages; else no stream is expected to report.
    """

    def __init__(self, instances: InstanceTable, *, has_health: bool = True) -> None:
        self._instances = instances
        self._has_health = has_health
        self._streams: dict[str, _StreamState] = {}
        self._removed: set[str] = set()  # from the configuration, and not seen since

    def see(self, stream: str, labels: dict[str, str], now: int) -> list[Transition]:
        """Note a stream; counting its silence begins when it is first seen."""
        known = self._streams.get(stream)
        if known is not None and known.labels == labels:
            return []
        self._removed.discard(stream)
        if known is None:
            self._streams[stream] = _StreamState(dict(labels))
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
            instance = self._instances.obtain(rule, rule.group_of(stream, labels))
            if instance is not None:
                level = health.level_dbfs
                instance.facts = {"stream.name": stream, "labels": labels, "level_dbfs": level}
                fires = instance.trigger.on_health(health, now)
                transitions += self._instances.settle(instance, fires, now)
        return transitions

    def on_levels(self, levels: LevelsMessage, now: int) -> list[Transition]:
        """Process the sound levels of a stream that has been seen."""
        stream, labels = levels.stream, levels.labels
        transitions: list[Transition] = []
        for rule in self._instances.level_rules:
            if not rule.covers_stream(stream, labels):
                continue
            instance = self._instances.obtain(rule, rule.group_of(stream, labels))
            if instance is not None:
                fires = instance.trigger.on_levels(levels, now)
                transitions += self._instances.settle(instance, fires, now)
        return transitions

    def forget(self, stream: str, labels: dict[str, str], now: int) -> list[Transition]:
        """Process that a stream was removed: nothing is expected of it any more."""
        self._streams.pop(stream, None)
        self._removed.add(stream)
        transitions: list[Transition] = []
        for rule in (*self._instances.listening_rules, *self._instances.health_rules):
            if not rule.covers_stream(stream, labels):
                continue
            group = rule.group_of(stream, labels)
            instance = self._instances.find(rule, group)
            if instance is None:
                continue
            if not self._streams_of(instance):
                transitions += self._instances.end(instance, now, "stream_removed")
            elif rule in self._instances.listening_rules and not self.has_listener(instance):
                instance.trigger.pause()
                transitions += self._instances.settle(instance, False, now)
        return transitions

    def on_gap(self, stream: str, end_ns: int, now: int) -> list[Transition]:
        """Process that a stream was not heard until `end_ns`."""
        known = self._streams.get(stream)
        transitions: list[Transition] = []
        for instance in self._listening_instances(stream, {} if known is None else known.labels):
            instance.trigger.on_gap(end_ns)
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
        """Process that this process was not running: unobserved time does not count as absence."""
        for instance in self._instances.all():
            instance.trigger.on_downtime(away_ns)
            self._instances.schedule(instance, now)
        return self.lose_feed(now)

    def has_listener(self, instance: Instance) -> bool:
        """Return whether, as far as is known, a stream that an instance is about is listened to."""
        unheard = [stream.missing or stream.is_unseen for stream in self._streams_of(instance)]
        return not unheard or not all(unheard)

    def expect_named(self, now: int) -> None:
        """Wait for streams that rules name, before anything is heard of them."""
        health_rules = self._instances.health_rules if self._has_health else ()
        for rule in (*self._instances.listening_rules, *health_rules):
            if set(rule.group_by) - {"stream"}:
                continue
            for stream in sorted(rule.matchers[0].named_streams or ()):
                group = rule.group_of(stream, {})
                if stream in self._removed or self._instances.find(rule, group) is not None:
                    continue
                instance = self._instances.obtain(rule, group)
                if instance is not None:
                    instance.facts = {"stream.name": stream, "labels": {}}
                    instance.trigger.start(now)
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
        self._streams = {name: _StreamState(**data) for name, data in streams.items()}

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
            if instance.trigger.began_ns is None and self.has_listener(instance):
                if is_same_epoch:
                    instance.trigger.resume(now)
                else:
                    instance.trigger.start(began_ns)
                transitions += self._instances.settle(instance, False, now)
        return transitions

    def _streams_of(self, instance: Instance) -> list[_StreamState]:
        """Return the streams that an instance is about."""
        rule = instance.rule
        return [
            stream
            for name, stream in self._streams.items()
            if rule.covers_stream(name, stream.labels)
            and rule.group_of(name, stream.labels) == instance.group
        ]

    def _listening_instances(self, stream: str, labels: Mapping[str, str]) -> Iterator[Instance]:
        for rule in self._instances.listening_rules:
            if rule.covers_stream(stream, labels):
                instance = self._instances.obtain(rule, rule.group_of(stream, labels))
                if instance is not None:
                    yield instance

    def _start_or_pause(self, stream: str, labels: Mapping[str, str], now: int) -> list[Transition]:
        """Start or stop counting the absence of sounds, depending on whether somebody listens."""
        transitions: list[Transition] = []
        for instance in self._listening_instances(stream, labels):
            if not self.has_listener(instance):
                instance.trigger.pause()
            elif instance.trigger.began_ns is None:
                instance.trigger.start(now)
            else:
                continue
            transitions += self._instances.settle(instance, False, now)
        return transitions


def _epoch_began_ns(health: Health, now: int) -> int:
    """Return when the source of a health message began, not later than now."""
    if health.audio_s is None:
        return now
    return now - max(0, seconds_to_ns(health.audio_s + (health.lag_s or 0.0)))
