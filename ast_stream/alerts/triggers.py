"""When a rule fires: one class for each kind of trigger, all over the same `Memory`.

A trigger tells three things of a memory at a stream time: whether something now makes the rule
fire (an edge), whether the condition holds (an alert stays), and when to ask again. It reasons
about sounds: an event's begin is late by up to `latency_ns`, and an open event is only sure to
have sounded until `smear_ns` ago (`model.DetectionTiming`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from typing import Any, Protocol

from ast_stream.alerts.matching import Matcher
from ast_stream.alerts.memory import Heard, Memory
from ast_stream.alerts.model import MAX_CAUSES, DetectionTiming
from ast_stream.units import NS_PER_SECOND, SILENCE_DBFS

MAX_SPANS = 256  # of activity that overlaps with an open event
MAX_SEQUENCE_EVENTS = 512
COLLAPSE_NS = NS_PER_SECOND  # classes of one branch that begin so close are one sound
LEVEL_STALE_NS = 10 * NS_PER_SECOND  # health comes each second; without it nothing is known


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

    def pause(self, memory: Memory) -> None:
        """Stop counting: nobody listens."""
        memory.since = None

    def begin(self, memory: Memory, heard: Heard, now: int) -> bool:
        """There it is."""
        memory.open[heard.id] = heard.onset_ns
        memory.since, memory.is_spent = None, False
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
        memory.sampled_ns = now
        if self._is_missing:
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
