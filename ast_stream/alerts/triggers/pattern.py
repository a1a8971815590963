"""Triggers over several events: so many within a time, or one after another."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

from ast_stream.alerts.memory import Heard, Memory
from ast_stream.alerts.model import MAX_CAUSES
from ast_stream.alerts.rules.match import Matcher
from ast_stream.alerts.triggers.base import Plain
from ast_stream.units import NS_PER_SECOND

MAX_SEQUENCE_EVENTS = 512
COLLAPSE_NS = NS_PER_SECOND  # classes of one branch that begin so close are one sound


class CountWithin(Plain):
    """Fires when enough onsets lie within a sliding window, and holds until it has slid on."""

    def __init__(
        self, needed: int, within_ns: int, by_stream: bool, matcher: Matcher, latency_ns: int
    ) -> None:
        self._needed = needed
        self._within_ns = within_ns
        self._by_stream = by_stream
        self._relatives: Mapping[str, frozenset[str]] = matcher.relatives
        self._latency_ns = latency_ns

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Fire if this onset completes a window."""
        if any(self._is_same_sound(heard, other) for other in memory.heard):
            return False
        insort(memory.heard, heard)
        horizon = memory.heard[-1].onset_ns - self._within_ns - self._latency_ns
        memory.heard = [one for one in memory.heard if one.onset_ns >= horizon]
        del memory.heard[: -4 * self._needed]
        window = self._full_window(memory, heard)
        if window is None:
            return False
        memory.run_events = [one.id for one in window][:MAX_CAUSES]
        memory.started_ns = window[0].onset_ns
        slid_on = window[0].onset_ns + self._within_ns + self._latency_ns
        memory.hold_until = max(memory.hold_until or slid_on, slid_on)
        return True

    def timer(self, memory: Memory, now: int) -> bool:
        """Time fires nothing, but empties the window."""
        if memory.hold_until is not None and now >= memory.hold_until:
            memory.hold_until = None
        empty_at = self._empty_at(memory)
        if empty_at is not None and now >= empty_at:
            memory.heard = []
        return False

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold while the window that fired has not slid on."""
        return memory.hold_until is not None and now < memory.hold_until

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when the window has slid on, or is empty."""
        times = [memory.hold_until, self._empty_at(memory)]
        return min((time for time in times if time is not None), default=None)

    def tidy(self, memory: Memory, now: int) -> None:
        """Forget what led to an alert that is over."""
        if not memory.heard:
            memory.clear()

    def _empty_at(self, memory: Memory) -> int | None:
        late = self._within_ns + self._latency_ns
        return memory.heard[-1].onset_ns + late if memory.heard else None

    def _full_window(self, memory: Memory, new: Heard) -> list[Heard] | None:
        """Return the latest window with `new` in it that holds enough, None if there is none."""
        for last in range(len(memory.heard) - 1, -1, -1):
            end = memory.heard[last].onset_ns
            if end < new.onset_ns:
                return None
            inside = [
                one for one in memory.heard[: last + 1] if end - one.onset_ns <= self._within_ns
            ]
            if new not in inside:
                continue
            if self._by_stream:
                newest = {one.stream: one for one in inside}
                inside = sorted(newest.values())
            if len(inside) >= self._needed:
                return inside[-self._needed :]
        return None

    def _is_same_sound(self, heard: Heard, other: Heard) -> bool:
        """Tell whether two classes of one branch tell of one sound: a bark is also a dog."""
        return (
            other.stream == heard.stream
            and other.slug in self._relatives.get(heard.slug, ())
            and abs(other.onset_ns - heard.onset_ns) <= COLLAPSE_NS
        )


class SequenceWithin(Plain):
    """Fires when events fit the steps in the order of their onsets, whenever they arrive.

    Events are kept a latency longer than `within`, so that the begin of an earlier step may come
    after that of a later one. After a match everything up to its last event is used up.
    """

    def __init__(self, n_steps: int, within_ns: int, latency_ns: int) -> None:
        self._n_steps = n_steps
        self._within_ns = within_ns
        self._latency_ns = latency_ns

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Fire if this event completes the steps."""
        if memory.floor_ns is not None and heard.onset_ns <= memory.floor_ns:
            return False
        memory.open[heard.id] = heard.onset_ns
        memory.heard = [one for one in memory.heard if one.id != heard.id]
        insort(memory.heard, heard)
        horizon = memory.heard[-1].onset_ns - self._within_ns - self._latency_ns
        memory.heard = [one for one in memory.heard if one.onset_ns >= horizon]
        del memory.heard[:-MAX_SEQUENCE_EVENTS]
        found = self._match(memory.heard)
        if found is None:
            return False
        memory.run_events, memory.started_ns = [one.id for one in found], found[0].onset_ns
        memory.floor_ns = found[-1].onset_ns
        memory.heard = [one for one in memory.heard if one.onset_ns > found[-1].onset_ns]
        return True

    def timer(self, memory: Memory, now: int) -> bool:
        """Time fires nothing, but empties the memory."""
        empty_at = self.deadline(memory, now)
        if empty_at is not None and now >= empty_at:
            memory.heard, memory.floor_ns = [], None
        return False

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold while one of the matched sounds lasts."""
        return any(one in memory.open for one in memory.run_events)

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when what was heard can no longer begin a sequence."""
        newest = [one.onset_ns for one in memory.heard[-1:]]
        newest += [] if memory.floor_ns is None else [memory.floor_ns]
        return max(newest) + self._within_ns + self._latency_ns if newest else None

    def tidy(self, memory: Memory, now: int) -> None:
        """Forget what led to an alert that is over."""
        if not memory.heard and memory.floor_ns is None and not memory.open:
            memory.clear()

    def _match(self, heard: list[Heard]) -> list[Heard] | None:
        """Return events that fit the steps, None if there are none; the latest start wins."""
        chains: list[list[Heard] | None] = [None] * self._n_steps
        for one in heard:
            for step in range(self._n_steps - 1, 0, -1):  # downwards: no event takes two steps
                before = chains[step - 1]
                if one.steps >> step & 1 and before is not None:
                    chains[step] = [*before, one]
            if one.steps & 1:
                chains[0] = [one]
            found = chains[-1]
            if found is not None and found[-1].onset_ns - found[0].onset_ns <= self._within_ns:
                return found
        return None
