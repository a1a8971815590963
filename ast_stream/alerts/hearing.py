"""What rules hear: events from their begin to their end, given to the rules that want them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ast_stream.alerts.instance import Instance
from ast_stream.alerts.memory import Heard
from ast_stream.alerts.model import Transition
from ast_stream.alerts.rules.rule import Rule
from ast_stream.alerts.states import RuleStates
from ast_stream.alerts.told import Told
from ast_stream.alerts.triggers.duration import For
from ast_stream.alerts.triggers.level import AbsentFor
from ast_stream.units import NS_PER_SECOND

LOST_END_NS = 700 * NS_PER_SECOND  # no message about an open event for so long: its end was lost
MAX_ENDED = 256  # ids of events that are over, against repeats
MAX_CACHED = 20_000

Labels = tuple[tuple[str, str], ...]


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


class Hearing:
    """Events that have begun and not ended, oldest message first.

    Args:
        is_listened_to: whether anybody listens where an instance waits for silence.
    """

    def __init__(self, states: RuleStates, is_listened_to: Callable[[Instance], bool]) -> None:
        self._states = states
        self._is_listened_to = is_listened_to
        self._open: OrderedDict[str, _OpenEvent] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._candidates: dict[tuple[str, str, Labels], list[_Candidate]] = {}

    @property
    def next_lost_ns(self) -> int | None:
        """When the end of an open event must have been lost, None if none is open."""
        oldest = next(iter(self._open.values()), None)
        return None if oldest is None else oldest.heard_ns + LOST_END_NS

    def hear(self, told: Told, now: int) -> list[Transition]:
        """Take a message about an event."""
        if told.id in self._ended:
            return []
        known = self._open.get(told.id)
        if known is None:
            # also for an update or end: its begin was missed, and a short sound is one all the same
            known = _OpenEvent(told.onset_ns, told.stream, told.at_ns)
            self._open[told.id] = known
        known.heard_ns = max(known.heard_ns, told.at_ns)
        self._open.move_to_end(told.id)
        transitions = self._enter(told, known, now)
        if told.type == "end":
            offset = told.at_ns if told.offset_ns is None else told.offset_ns
            transitions += self._leave(told.id, known, offset, now)
        return transitions

    def lose_oldest(self, now: int) -> list[Transition]:
        """End the event of which nothing was heard for the longest time."""
        name, event = next(iter(self._open.items()))
        return self._leave(name, event, event.heard_ns, now)

    def is_open(self, event_id: str) -> bool:
        """Tell whether an event was heard of and has not ended."""
        return event_id in self._open

    def step(self, step_ns: int) -> None:
        """Move every time along with a clock that was set."""
        for event in self._open.values():
            event.onset_ns += step_ns
            event.heard_ns += step_ns

    def lose_sight(self, now: int) -> list[Transition]:
        """Count the duration of open events only up to their last message, until the next one."""
        transitions: list[Transition] = []
        for event_id, event in self._open.items():
            for entry in list(event.entered):
                rule = self._states.named(entry[0])
                instance = None if rule is None else self._states.find(rule, entry[2])
                if instance is None or not isinstance(instance.trigger, For):
                    continue
                event.entered.remove(entry)  # the next message enters it again
                onset, heard = event.onset_ns, event.heard_ns
                is_edge = instance.trigger.end(instance.memory, event_id, onset, heard, now)
                transitions += self._states.settle(instance, is_edge, now, event_id)
        return transitions

    def end_all(self) -> None:
        """Forget the open events; what is still told of them is no news."""
        for name in self._open:
            self._remember_ended(name)
        self._open.clear()

    def use_other_rules(self, changed: Collection[str]) -> None:
        """Look for candidates anew; rules that have changed have not taken any event."""
        self._candidates = {}
        for event in self._open.values():
            event.entered = [one for one in event.entered if one[0] not in changed]

    def export(self) -> dict[str, Any]:
        """Return the open events, and the ids of the last that ended, as JSON values."""
        return {
            "open": {
                name: [one.onset_ns, one.stream, one.heard_ns, list(one.entered)]
                for name, one in self._open.items()
            },
            "ended": list(self._ended),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `export` gave."""
        self._ended = OrderedDict.fromkeys(state["ended"])
        for name, (onset, stream, heard, entered) in state["open"].items():
            taken = [(rule, steps, dict(group)) for rule, steps, group in entered]
            self._open[name] = _OpenEvent(onset, stream, heard, taken)

    def _enter(self, told: Told, event: _OpenEvent, now: int) -> list[Transition]:
        """Let the rules have the event that want it and have not taken it yet."""
        transitions: list[Transition] = []
        taken = {(name, _flat(group)): steps for name, steps, group in event.entered}
        for candidate in self._wanted(told):
            steps = sum(1 << bit for bit, least in candidate.steps if told.peak >= least)
            rule = candidate.rule
            place = (rule.name, _flat(candidate.group))
            if steps == 0 or taken.get(place, 0) == steps:
                continue
            instance = self._states.obtain(rule, candidate.group)
            if instance is None:
                continue
            if place in taken:
                event.entered.remove((rule.name, taken[place], candidate.group))
            event.entered.append((rule.name, steps, candidate.group))
            transitions += self._begin(instance, told, steps, now)
        return transitions

    def _begin(self, instance: Instance, told: Told, steps: int, now: int) -> list[Transition]:
        instance.facts = {
            "stream.name": told.stream,
            "labels": told.labels,
            "class": told.slug,
            "label": told.label,
            "score": round(told.score, 4),
            "peak": round(told.peak, 4),
            "onset": told.onset,
        }
        heard = Heard(told.onset_ns, told.id, told.stream, told.slug, steps)
        is_edge = instance.trigger.begin(instance.memory, heard, now)
        return self._states.settle(instance, is_edge, now, told.id)

    def _leave(
        self, event_id: str, event: _OpenEvent, offset_ns: int, now: int
    ) -> list[Transition]:
        """End an event for every rule that took it."""
        del self._open[event_id]
        self._remember_ended(event_id)
        transitions: list[Transition] = []
        for name, _, group in event.entered:
            rule = self._states.named(name)
            instance = None if rule is None else self._states.find(rule, group)
            if instance is not None:
                trigger, memory = instance.trigger, instance.memory
                is_edge = trigger.end(memory, event_id, event.onset_ns, offset_ns, now)
                if isinstance(trigger, AbsentFor) and not self._is_listened_to(instance):
                    trigger.pause(memory)
                    is_edge = False
                transitions += self._states.settle(instance, is_edge, now, event_id)
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
        for rule in self._states.rules.rules:
            if rule.trigger == "level":
                continue
            steps = tuple(
                (bit, matcher.min_score)
                for bit, matcher in enumerate(rule.matchers)
                if matcher.covers(told.slug, told.stream, told.labels)
            )
            if steps:
                group = rule.group_of(told.stream, told.slug, told.labels)
                yield _Candidate(rule, steps, group)

    def _remember_ended(self, event_id: str) -> None:
        self._ended[event_id] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _flat(group: Mapping[str, str]) -> Labels:
    return tuple(group.items())
