"""Triggers without an event: a sound that is absent, a level, a stream that is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ast_stream.alerts.memory import Heard, Memory
from ast_stream.alerts.triggers.base import Plain
from ast_stream.messages.event import SOURCE_ENDED
from ast_stream.units import NS_PER_SECOND, SILENCE_DBFS

LEVEL_STALE_NS = 10 * NS_PER_SECOND  # health comes each second; without it nothing is known


class AbsentFor(Plain):
    """Fires when no matching event was open for a time, and holds until one begins.

    Time in which the stream was missing says nothing: it counts from the stream's return.
    """

    def __init__(self, needed_ns: int, latency_ns: int) -> None:
        self._needed_ns = needed_ns
        self._latency_ns = latency_ns

    def start(self, memory: Memory, now: int) -> None:
        """Count from now at the earliest."""
        if not memory.open:
            memory.since = now if memory.since is None else max(memory.since, now)
            memory.is_spent = False
        memory.hold_until = None

    def pause(self, memory: Memory) -> None:
        """Stop counting: nobody listens, as far as is known."""
        if memory.since is not None:
            memory.hold_until = memory.since
        memory.since = None

    def resume(self, memory: Memory, now: int) -> None:
        """Go on counting as if there had been no pause: somebody has listened all the time."""
        if not memory.open:
            memory.since = now if memory.hold_until is None else memory.hold_until
        memory.hold_until = None

    def skip(self, memory: Memory, end_ns: int) -> None:
        """Count from the end of a gap at the earliest, also where counting is paused."""
        if memory.since is not None:
            self.start(memory, end_ns)
        elif memory.hold_until is not None:
            memory.hold_until = max(memory.hold_until, end_ns)

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """There it is."""
        memory.open[heard.id] = heard.onset_ns
        memory.since, memory.hold_until, memory.is_spent = None, None, False
        return False

    def end(self, memory: Memory, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Count from the offset of the last."""
        memory.open.pop(event_id, None)
        memory.last_off = max(memory.last_off or offset, offset)
        if not memory.open:
            memory.since, memory.is_spent = memory.last_off, False
        return self.timer(memory, now)

    def timer(self, memory: Memory, now: int) -> bool:
        """Fire once it was quiet long enough."""
        due = self._due(memory)
        is_edge = due is not None and now >= due and not memory.is_spent
        memory.is_spent = memory.is_spent or is_edge
        return is_edge

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold until it is heard again."""
        return not memory.open

    def is_pending(self, memory: Memory, now: int) -> bool:
        """It is quiet, but not for long enough."""
        return memory.since is not None and not memory.is_spent

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when it will have been quiet long enough."""
        return None if memory.is_spent else self._due(memory)

    def tidy(self, memory: Memory, now: int) -> None:
        """Keep on counting."""

    def _due(self, memory: Memory) -> int | None:
        late = self._needed_ns + self._latency_ns
        return None if memory.since is None else memory.since + late


class LevelFor(Plain):
    """Fires when a stream's health tells of a level, or of nothing, for a time."""

    def __init__(
        self,
        needed_ns: int,
        *,
        louder_than: float | None = None,
        quieter_than: float | None = None,
        is_missing: bool = False,
    ) -> None:
        self._needed_ns = needed_ns
        self._louder_than = louder_than
        self._quieter_than = SILENCE_DBFS if quieter_than is None else quieter_than
        self._is_missing = is_missing

    def sample(self, memory: Memory, body: Mapping[str, Any], now: int) -> bool:
        """Take a health message; tell whether the rule fires."""
        is_stale = now >= (memory.sampled_ns or now) + LEVEL_STALE_NS
        if is_stale and not self._is_missing:  # nobody knows how it was meanwhile
            memory.since, memory.is_spent = None, False
        memory.sampled_ns = now
        if self._is_missing and body.get("detail") == SOURCE_ENDED:
            memory.since, memory.is_spent = None, False  # nothing more is expected of it
        elif self._is_missing:
            is_true = body.get("state") == "missing"
            memory.since = memory.since if is_true and memory.since is not None else now
            memory.is_spent = memory.is_spent and is_true
        elif self._is_met(body):
            memory.since = now if memory.since is None else memory.since
        else:
            memory.since, memory.is_spent = None, False
        return self.timer(memory, now)

    def start(self, memory: Memory, now: int) -> None:
        """Expect health from now on."""
        if self._is_missing and memory.since is None:
            memory.since = now

    def leave_out(self, memory: Memory, away_ns: int) -> None:
        """Do not count a time in which this process was off: nobody looked whether it came."""
        if self._is_missing and memory.since is not None and not memory.is_spent:
            memory.since += away_ns

    def timer(self, memory: Memory, now: int) -> bool:
        """Fire once it lasted long enough; a level without news is not known."""
        if not self._is_missing and now >= (memory.sampled_ns or now) + LEVEL_STALE_NS:
            memory.since, memory.is_spent = None, False
        due = None if memory.since is None else memory.since + self._needed_ns
        is_edge = due is not None and now >= due and not memory.is_spent
        memory.is_spent = memory.is_spent or is_edge
        return is_edge

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold while it lasts."""
        return memory.since is not None and now >= memory.since + self._needed_ns

    def is_pending(self, memory: Memory, now: int) -> bool:
        """The level is wrong, but not for long enough; streams are expected at any time."""
        return not self._is_missing and memory.since is not None and not memory.is_spent

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when it will have lasted long enough, or is no longer known."""
        if memory.since is None:
            return None
        due = None if memory.is_spent else memory.since + self._needed_ns
        if self._is_missing or memory.sampled_ns is None:
            return due
        stale = memory.sampled_ns + LEVEL_STALE_NS
        return stale if due is None else min(due, stale)

    def tidy(self, memory: Memory, now: int) -> None:
        """Keep on listening."""

    def _is_met(self, body: Mapping[str, Any]) -> bool:
        level = body.get("level_dbfs")
        if not isinstance(level, int | float) or body.get("state") == "missing":
            return False
        if self._louder_than is not None:
            return level > self._louder_than
        return level < self._quieter_than or level <= SILENCE_DBFS
