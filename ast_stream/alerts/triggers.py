"""When a rule fires: one class for each kind of trigger, all over the same `Memory`.

A trigger tells three things of a memory at a stream time: whether something now makes the rule
fire (an edge), whether the condition holds (an alert stays), and when to ask again. It reasons
about sounds: an event's begin is late by up to `latency_ns`, and an open event is only sure to
have sounded until `smear_ns` ago (`model.DetectionTiming`). Patterns of several events are in
`trigger_patterns`, what is not heard and how loud it is in `trigger_levels`.
"""

from __future__ import annotations

from bisect import insort
from typing import Protocol

from ast_stream.alerts.memory import Heard, Memory
from ast_stream.alerts.model import MAX_CAUSES, DetectionTiming

MAX_SPANS = 256  # of activity that overlaps with an open event


class Trigger(Protocol):
    """What the engine asks of every kind; `now` is stream time in nanoseconds."""

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Take an event that matched; tell whether the rule fires."""

    def end(self, memory: Memory, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Take the end of a matched event; tell whether the rule fires."""

    def timer(self, memory: Memory, now: int) -> bool:
        """Take that time has passed; tell whether the rule fires."""

    def holds(self, memory: Memory, now: int) -> bool:
        """Tell whether an alert stays."""

    def is_pending(self, memory: Memory, now: int) -> bool:
        """Tell whether the rule fires by itself unless something happens."""

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when to ask again, None: at the next event."""

    def tidy(self, memory: Memory, now: int) -> None:
        """Forget what can no longer matter; asked only while there is no alert."""

    def active_ns(self, memory: Memory, now: int) -> int | None:
        """Return how long the sound has lasted, None if this kind does not know."""


class Plain:
    """Fires when a matching event begins, and holds while one is open."""

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Fire."""
        memory.open[heard.id] = heard.onset_ns
        memory.run_events, memory.started_ns = [heard.id], heard.onset_ns
        return True

    def end(self, memory: Memory, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Forget the event."""
        memory.open.pop(event_id, None)
        return False

    def timer(self, memory: Memory, now: int) -> bool:
        """Time alone fires nothing."""
        return False

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold while a sound lasts."""
        return bool(memory.open)

    def is_pending(self, memory: Memory, now: int) -> bool:
        """It fires at once or not at all."""
        return False

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Nothing to wait for."""
        return None

    def tidy(self, memory: Memory, now: int) -> None:
        """Keep nothing longer than the sound."""
        if not memory.open:
            memory.clear()

    def active_ns(self, memory: Memory, now: int) -> int | None:
        """Durations are not counted."""
        return None


class For(Plain):
    """Fires when sound has lasted for a time; pauses up to `tolerate` do not end the run.

    What counts is the sound itself: the union of the matched events from onset to offset, without
    the pauses, and for open events without the window's smear.
    """

    def __init__(self, needed_ns: int, tolerate_ns: int, timing: DetectionTiming) -> None:
        self._needed_ns = needed_ns
        self._tolerate_ns = tolerate_ns
        self._timing = timing

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """Go on with the run, or start another."""
        last_off = memory.last_off
        is_apart = last_off is not None and heard.onset_ns - last_off > self._tolerate_ns
        if is_apart and not memory.open:
            memory.clear()
        if memory.started_ns is None:
            memory.started_ns = heard.onset_ns
        memory.open[heard.id] = heard.onset_ns
        if heard.id not in memory.run_events and len(memory.run_events) < MAX_CAUSES:
            memory.run_events.append(heard.id)
        return self._crosses(memory, now)

    def end(self, memory: Memory, event_id: str, onset: int, offset: int, now: int) -> bool:
        """Count what is now known to have sounded."""
        memory.open.pop(event_id, None)
        insort(memory.spans, (onset, offset))
        is_edge = self._crosses(memory, now)
        if not memory.open or len(memory.spans) > MAX_SPANS:
            memory.active_ns, memory.run_start, memory.last_off = self._activity(
                memory, now, with_open=False
            )
            memory.spans = []
        return is_edge

    def timer(self, memory: Memory, now: int) -> bool:
        """Fire once it has lasted long enough; end a run that is over."""
        if not self._is_over(memory, now):
            has_run = bool(memory.open) or memory.last_off is not None
            return has_run and self._crosses(memory, now)
        active_ns = memory.active_ns
        memory.clear()
        memory.active_ns = active_ns  # for the text of the resolution
        return False

    def holds(self, memory: Memory, now: int) -> bool:
        """Hold while the run that fired goes on."""
        return memory.is_spent and not self._is_over(memory, now)

    def is_pending(self, memory: Memory, now: int) -> bool:
        """There is a run that is too short as yet."""
        has_run = bool(memory.open) or memory.last_off is not None
        return has_run and not memory.is_spent and not self._is_over(memory, now)

    def deadline(self, memory: Memory, now: int) -> int | None:
        """Return when the run may be long enough, or is over."""
        if memory.open:
            if memory.is_spent:
                return None
            # a bound: activity grows no faster than time; at the bound it is asked again
            missing = self._needed_ns - self._activity(memory, now)[0]
            return now + max(0, missing)
        return self._over_at(memory)

    def tidy(self, memory: Memory, now: int) -> None:
        """Forget a run that is over."""
        if not memory.open and memory.last_off is None:
            memory.clear()

    def active_ns(self, memory: Memory, now: int) -> int | None:
        """Return the activity of the run."""
        return self._activity(memory, now)[0]

    def _over_at(self, memory: Memory) -> int | None:
        if memory.open or memory.last_off is None:
            return None
        # the next onset may lie within the pause although its begin is not here yet
        late = self._timing.latency_ns if self._tolerate_ns else 0
        return memory.last_off + self._tolerate_ns + late

    def _is_over(self, memory: Memory, now: int) -> bool:
        over_at = self._over_at(memory)
        return over_at is not None and now >= over_at

    def _crosses(self, memory: Memory, now: int) -> bool:
        is_edge = not memory.is_spent and self._activity(memory, now)[0] >= self._needed_ns
        memory.is_spent = memory.is_spent or is_edge
        return is_edge

    def _activity(
        self, memory: Memory, now: int, *, with_open: bool = True
    ) -> tuple[int, int | None, int | None]:
        """Return how long the run has sounded, when it began and up to when it surely sounded."""
        spans = list(memory.spans)
        if with_open:
            sure = now - self._timing.smear_ns
            spans += [(onset, max(onset, sure)) for onset in memory.open.values()]
            spans.sort()
        active, start, last = memory.active_ns, memory.run_start, memory.last_off
        for onset, offset in spans:
            if last is None or onset - last > self._tolerate_ns:
                active, start, last = 0, onset, onset
            active += max(0, offset - max(onset, last))
            last = max(last, offset)
        return active, start, last
