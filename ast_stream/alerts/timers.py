"""Deadlines in stream time, one for each key."""

from __future__ import annotations

import heapq

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A rule's name and a group of its labels."""

_SLACK = 64  # entries that are out of date and no reason to tidy yet


class Timers:
    """A heap of deadlines; at one instant they come in the order of their keys."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Key]] = []
        self._by_key: dict[Key, int] = {}

    @property
    def next_ns(self) -> int | None:
        """The earliest deadline, None if there is none."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> Key:
        """Return whose deadline is the earliest, and take it away; there must be one."""
        while True:
            entry = heapq.heappop(self._heap)
            if self._is_current(entry):
                del self._by_key[entry[1]]
                return entry[1]

    def step(self, step_ns: int) -> None:
        """Move every deadline along with a clock that was set."""
        self._heap = [(deadline_ns + step_ns, key) for deadline_ns, key in self._heap]
        self._by_key = {key: deadline_ns + step_ns for key, deadline_ns in self._by_key.items()}

    def set(self, key: Key, deadline_ns: int | None) -> None:
        """Replace the deadline of `key`; None: it has none."""
        if deadline_ns is None:
            self._by_key.pop(key, None)
        elif self._by_key.get(key) != deadline_ns:
            self._by_key[key] = deadline_ns
            heapq.heappush(self._heap, (deadline_ns, key))
            if len(self._heap) > _SLACK + 4 * len(self._by_key):
                self._heap = [entry for entry in self._heap if self._is_current(entry)]
                heapq.heapify(self._heap)

    def _is_current(self, entry: tuple[int, Key]) -> bool:
        return self._by_key.get(entry[1]) == entry[0]
