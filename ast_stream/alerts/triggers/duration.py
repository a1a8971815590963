"""The trigger over how long sounds last: the sound itself, without its pauses."""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

from ast_stream.alerts.memory import Heard, Memory
from ast_stream.alerts.model import MAX_CAUSES, DetectionTiming
from ast_stream.alerts.triggers.base import Plain

MAX_SPANS = 256  # of sound that is over, kept apart


class _Run(NamedTuple):
    """Sounds with no pause longer than tolerated.

    Attributes:
        active_ns: how long it has surely sounded.
        start: its first onset; None: there is none.
        reach: until when it may have sounded; for open events that is now.
    """

    active_ns: int
    start: int | None
    reach: int | None


class For(Plain):
    """Fires when sound has lasted for a time; pauses up to `tolerate` do not end the run.

    What counts is the sound itself: the union of the matched events from onset to offset, without
    the pauses, and for open events without the window's smear. That two events were apart may
    turn out late, when the first has ended: the run then begins with the second.
    """

    def __init__(self, needed_ns: int, tolerate_ns: int, timing: DetectionTiming) -> None:
        self._needed_ns = needed_ns
        self._tolerate_ns = tolerate_ns
        self._timing = timing

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Go on with the run, or start another."""
        memory.open[heard.id] = heard.onset_ns
        if heard.id not in memory.run_events and len(memory.run_events) < MAX_CAUSES:
            memory.run_events.append(heard.id)
            insort(memory.heard, heard)
        return self._crosses(memory, now)

    def end(self, memory: Memory, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Count what is now known to have sounded."""
        memory.open.pop(event_id, None)
        memory.spans = _joined(memory.spans, onset, max(onset, offset))
        is_edge = self._crosses(memory, now)
        self._drop_spans(memory, now)
        return is_edge

    def timer(self, memory: Memory, now: int) -> bool:
        """Fire once it has lasted long enough; end a run that is over."""
        if not _has_run(memory):
            return False
        if not self._is_over(memory, now):
            return self._crosses(memory, now)
        active_ns = self._run(memory, now).active_ns
        memory.clear()
        memory.active_ns = active_ns  # for the text of the resolution
        return False

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold while the run that fired goes on."""
        return memory.is_spent and _has_run(memory) and not self._is_over(memory, now)

    def is_pending(self, memory: Memory, now: int) -> bool:
        """There is a run that is too short as yet."""
        return not memory.is_spent and _has_run(memory) and not self._is_over(memory, now)

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when the run may be long enough, or is over."""
        if not memory.open:
            return self._over_at(memory, now)
        if memory.is_spent:
            return None
        # a bound: activity grows no faster than time; at the bound it is asked again
        return now + max(0, self._needed_ns - self._run(memory, now).active_ns)

    def tidy(self, memory: Memory, now: int) -> None:
        """Forget a run that is over."""
        if not _has_run(memory):
            memory.clear()

    def active_ns(self, memory: Memory, now: int) -> int | None:
        """Return the activity of the run."""
        return self._run(memory, now).active_ns

    def _over_at(self, memory: Memory, now: int) -> int | None:
        reach = None if memory.open else self._run(memory, now).reach
        if reach is None:
            return None
        # the next onset may lie within the pause although its begin is not here yet
        return reach + self._tolerate_ns + self._timing.latency_ns

    def _is_over(self, memory: Memory, now: int) -> bool:
        over_at = self._over_at(memory, now)
        return over_at is not None and now >= over_at

    def _crosses(self, memory: Memory, now: int) -> bool:
        run = self._run(memory, now)
        if run.start is not None and run.start != memory.started_ns:
            if memory.started_ns is not None and run.start > memory.started_ns:
                memory.is_spent = False
                memory.heard = [one for one in memory.heard if one.onset_ns >= run.start]
                memory.run_events = [one.id for one in memory.heard]
            memory.started_ns = run.start
        is_edge = not memory.is_spent and run.active_ns >= self._needed_ns
        memory.is_spent = memory.is_spent or is_edge
        return is_edge

    def _run(self, memory: Memory, now: int) -> _Run:
        """Return the latest run; folded activity comes first in it."""
        spans = [(onset, offset, offset) for onset, offset in memory.spans]
        if memory.open:  # all of them may reach until now, so the first stands for all
            onset = min(memory.open.values())
            insort(spans, (onset, max(onset, now - self._timing.smear_ns), max(onset, now)))
        active, start, counted = memory.active_ns, memory.run_start, memory.last_off
        reach = counted
        for onset, surely, maybe in spans:
            if counted is None or reach is None or onset - reach > self._tolerate_ns:
                active, start, counted, reach = 0, onset, onset, onset
            active += max(0, surely - max(onset, counted))
            counted, reach = max(counted, surely), max(reach, maybe)
        return _Run(active, start, reach)

    def _drop_spans(self, memory: Memory, now: int) -> None:
        """Forget spans that can change nothing any more, and fold those that nothing can change."""
        start = self._run(memory, now).start
        assert start is not None  # there is at least the span that has just been added
        told = now - self._timing.latency_ns  # every sound that began before is known
        sure = now - self._timing.smear_ns
        since = min(memory.open.values(), default=now)
        memory.spans = [
            (onset, offset)
            for onset, offset in memory.spans
            if offset >= min(start, told - self._tolerate_ns)
            and not since <= onset <= offset <= sure  # an open event covers it
        ]
        while memory.spans and (
            memory.spans[0][1] <= min(told, since) or len(memory.spans) > MAX_SPANS
        ):
            onset, offset = memory.spans.pop(0)
            if onset >= start:
                _fold(memory, start, onset, offset)


def _joined(spans: list[tuple[int, int]], onset: int, offset: int) -> list[tuple[int, int]]:
    """Return spans, which lie apart and in order, and one more."""
    before = [one for one in spans if one[1] < onset]
    after = [one for one in spans if one[0] > offset]
    among = spans[len(before) : len(spans) - len(after)]
    first = min([onset, *(one[0] for one in among)])
    last = max([offset, *(one[1] for one in among)])
    return [*before, (first, last), *after]


def _fold(memory: Memory, start: int, onset: int, offset: int) -> None:
    """Add a span to the folded activity of the run that began at `start`."""
    counted = memory.last_off
    if counted is None or counted < start:  # what was folded is of a run before this one
        memory.active_ns, counted = 0, onset
    memory.active_ns += max(0, offset - max(onset, counted))
    memory.run_start, memory.last_off = start, max(counted, offset)


def _has_run(memory: Memory) -> bool:
    return bool(memory.open or memory.spans) or memory.last_off is not None
