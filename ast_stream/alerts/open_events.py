"""Events from their begin to their end, and the rules that matched them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ast_stream.alerts.instances import Instance, InstanceTable, Transition
from ast_stream.alerts.rules.match import Matcher
from ast_stream.alerts.rules.rule import Rule
from ast_stream.alerts.stream_health import StreamHealth
from ast_stream.alerts.triggers.base import Facts, MatchedEvent
from ast_stream.messages.event import EventMessage
from ast_stream.units import NS_PER_SECOND

LOST_END_NS = 700 * NS_PER_SECOND  # an open event without a message for so long has lost its end
MAX_ENDED = 256  # ids of events that are over, against repeats
MAX_CACHED = 20_000

Labels = tuple[tuple[str, str], ...]


@dataclass
class _OpenEvent:
    """An event between its begin and its end.

    Attributes:
        entered: the steps it fits of each rule that matched it, by the rule's name and the group.
        watcher_peak: highest score so far of the small model of a cascade; None: it gave none.
        verifier_score: of the verifier of its class, given when it began; None: it has none.
    """

    onset_ns: int
    stream: str
    heard_ns: int
    entered: dict[tuple[str, Labels], int] = field(default_factory=dict)
    watcher_peak: float | None = None
    verifier_score: float | None = None


@dataclass(frozen=True)
class _Candidate:
    """A rule that may match an event of some class on some stream."""

    rule: Rule
    steps: tuple[tuple[int, Matcher], ...]  # by index
    group: dict[str, str]


class OpenEvents:
    """Events that have begun and not ended, oldest message first, and the rules they matched."""

    def __init__(self, instances: InstanceTable, streams: StreamHealth) -> None:
        self._instances = instances
        self._streams = streams
        self._events: OrderedDict[str, _OpenEvent] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._candidates = lru_cache(MAX_CACHED)(self._find_candidates)

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
        if event.watcher_score is not None:
            known.watcher_peak = max(known.watcher_peak or 0.0, event.watcher_score)
        if event.verifier_score is not None:
            known.verifier_score = event.verifier_score
        self._events.move_to_end(event.id)
        transitions = self._enter(event, known, onset, now)
        for entry in known.entered if event.type != "begin" else ():
            instance = self._find(*entry)
            if instance is not None and instance.trigger.reads_facts:
                instance.trigger.on_facts(event.id, _facts(event, onset))
        if event.type == "end":
            offset_ns = event.captured_ns if event.offset_ns is None else event.offset_ns
            transitions += self._leave(event.id, known, offset_ns, now)
        return transitions

    def end_oldest(self, now: int) -> list[Transition]:
        """End the event that had no message for the longest time."""
        event_id, event = next(iter(self._events.items()))
        return self._leave(event_id, event, event.heard_ns, now)

    def lose(self, now: int, stream: str | None = None) -> list[Transition]:
        """Count the duration of open events only up to their last message, until the next one.

        Args:
            stream: whose events; None: of all streams.
        """
        transitions: list[Transition] = []
        for event_id, event in self._events.items():
            if stream not in (None, event.stream):
                continue
            for entry in list(event.entered):
                instance = self._find(*entry)
                if instance is None or not instance.trigger.counts_open_time:
                    continue
                del event.entered[entry]  # the next message enters it again
                fires = instance.trigger.on_end(event_id, event.onset_ns, event.heard_ns, now)
                transitions += self._instances.settle(instance, fires, now, event_id)
        return transitions

    def end_all(self) -> None:
        """Forget the open events, and ignore further messages about them."""
        for event_id in self._events:
            self._remember_ended(event_id)
        self._events.clear()

    def forget_rules(self, changed: Collection[str]) -> None:
        """Look for candidates anew; rules that have changed have not matched any event."""
        self._candidates.cache_clear()
        for event in self._events.values():
            event.entered = {
                entry: steps for entry, steps in event.entered.items() if entry[0] not in changed
            }

    def export(self) -> dict[str, Any]:
        """Return the open events, and the ids of the last that ended, as JSON values."""
        return {
            "open": {
                event_id: [
                    event.onset_ns,
                    event.stream,
                    event.heard_ns,
                    [[rule, steps, dict(group)] for (rule, group), steps in event.entered.items()],
                ]
                for event_id, event in self._events.items()
            },
            "ended": list(self._ended),
            "watcher_peaks": {
                event_id: event.watcher_peak
                for event_id, event in self._events.items()
                if event.watcher_peak is not None
            },
            "verifier_scores": {
                event_id: event.verifier_score
                for event_id, event in self._events.items()
                if event.verifier_score is not None
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        self._ended = OrderedDict.fromkeys(state["ended"])
        for event_id, (onset_ns, stream, heard_ns, entries) in state["open"].items():
            entered = {(rule, _flat(group)): steps for rule, steps, group in entries}
            peak = state.get("watcher_peaks", {}).get(event_id)
            verified = state.get("verifier_scores", {}).get(event_id)
            event = _OpenEvent(onset_ns, stream, heard_ns, entered, peak, verified)
            self._events[event_id] = event

    def _enter(
        self, event: EventMessage, known: _OpenEvent, onset: str, now: int
    ) -> list[Transition]:
        """Give the event to the rules that match it and do not have it yet."""
        transitions: list[Transition] = []
        labels = tuple(sorted(event.labels.items()))
        for candidate in self._candidates(event.class_, event.label, event.stream, labels):
            steps = sum(
                1 << bit
                for bit, matcher in candidate.steps
                if matcher.is_reached_by(event.peak, known.watcher_peak, known.verifier_score)
            )
            rule, group = candidate.rule, candidate.group
            place = (rule.name, _flat(group))
            if steps == 0 or known.entered.get(place, 0) == steps:
                continue
            instance = self._instances.obtain(rule, group)
            if instance is None:
                continue
            known.entered.pop(place, None)  # it comes last from now on
            known.entered[place] = steps
            transitions += self._begin(instance, event, steps, onset, now)
        return transitions

    def _begin(
        self, instance: Instance, event: EventMessage, steps: int, onset: str, now: int
    ) -> list[Transition]:
        instance.facts = _facts(event, onset)
        instance.trigger.on_facts(event.id, instance.facts)
        matched = MatchedEvent(event.onset_ns, event.id, event.stream, event.class_, steps)
        fires = instance.trigger.on_begin(matched, now)
        return self._instances.settle(instance, fires, now, event.id)

    def _leave(
        self, event_id: str, event: _OpenEvent, offset_ns: int, now: int
    ) -> list[Transition]:
        """End an event for every rule that matched it."""
        del self._events[event_id]
        self._remember_ended(event_id)
        transitions: list[Transition] = []
        for entry in event.entered:
            instance = self._find(*entry)
            if instance is not None:
                trigger = instance.trigger
                fires = trigger.on_end(event_id, event.onset_ns, offset_ns, now)
                if trigger.needs_listener and not self._streams.has_listener(instance):
                    trigger.pause()
                    fires = False
                transitions += self._instances.settle(instance, fires, now, event_id)
        return transitions

    def _find(self, name: str, group: Labels) -> Instance | None:
        rule = self._instances.rule_named(name)
        return None if rule is None else self._instances.find(rule, dict(group))

    def _find_candidates(
        self, class_slug: str, label: str, stream: str, labels: Labels
    ) -> tuple[_Candidate, ...]:
        found = []
        for rule in self._instances.rules.rules:
            steps = tuple(
                (bit, matcher)
                for bit, matcher in enumerate(rule.matchers)
                if rule.trigger.takes_events and matcher.covers(class_slug, stream, dict(labels))
            )
            if steps:
                group = rule.group_of(stream, dict(labels), class_slug, label)
                found.append(_Candidate(rule, steps, group))
        return tuple(found)

    def _remember_ended(self, event_id: str) -> None:
        self._ended[event_id] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _facts(event: EventMessage, onset: str) -> Facts:
    return {
        "stream.name": event.stream,
        "labels": event.labels,
        "class": event.class_,
        "label": event.label,
        "score": round(event.score, 4),
        "peak": round(event.peak, 4),
        "watcher_score": _rounded(event.watcher_score),
        "verifier_score": _rounded(event.verifier_score),
        "onset": onset,
    }


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _flat(group: Mapping[str, str]) -> Labels:
    return tuple(group.items())
