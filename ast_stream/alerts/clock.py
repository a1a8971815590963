"""Steps of wall clocks: the alerts process's own, and those of the streams' capture processes.

Wall time steps: a box without a battery for its clock learns the time minutes after it has
started. The samples of one sound advance evenly, so that a jump of `captured` against `at_sample`
within one sound is a step of the clock. Between sounds it may as well be a pause of the source;
there, only `published` running backwards reveals a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from ast_stream.messages.event import EventMessage
from ast_stream.units import NS_PER_SECOND, samples_to_ns

STEP_NS = 2 * NS_PER_SECOND  # less is jitter, and changes no alert that anybody would miss
BACK_NS = 12 * NS_PER_SECOND  # the last windows of a recording reach this far beyond its end
FRESH_NS = 60 * NS_PER_SECOND  # by then every capture process has noticed a step


def is_step(step_ns: int) -> bool:
    """Return whether wall time and samples are so far apart that the clock was set."""
    return step_ns > STEP_NS or step_ns < -BACK_NS


class WallClock:
    """The wall clock of this box, watched for steps against a monotonic clock.

    Args:
        now_ns: wall clock, nanoseconds since 1970.
        now_s: monotonic clock, seconds.
    """

    def __init__(self, now_ns: Callable[[], int], now_s: Callable[[], float]) -> None:
        self._now_ns = now_ns
        self._now_s = now_s
        self._seen_ns = self._followed_ns = self._difference_ns()

    def now_ns(self) -> int:
        """Return the wall time as it would be without the steps that were not followed yet."""
        return round(self._now_s() * NS_PER_SECOND) + self._followed_ns

    def follow(self) -> None:
        """Let `now_ns` follow the steps that `step_ns` has returned."""
        self._followed_ns = self._seen_ns

    def step_ns(self) -> int:
        """Return by how much the clock was set since the last call; 0 for less than `STEP_NS`."""
        difference_ns = self._difference_ns()
        step_ns = difference_ns - self._seen_ns
        if abs(step_ns) <= STEP_NS:
            return 0
        self._seen_ns = difference_ns
        return step_ns

    def _difference_ns(self) -> int:
        return self._now_ns() - round(self._now_s() * NS_PER_SECOND)


@dataclass
class _StreamClock:
    """Where the samples of one epoch lie in time.

    Attributes:
        zero_ns: wall time of sample 0.
        shift_ns: engine time minus wall time; not 0 while the engine knows of a step before
            the stream does.
    """

    epoch: str | None
    zero_ns: int
    shift_ns: int


class StreamClocks:
    """The clocks of all streams, against the time of the engine."""

    def __init__(self) -> None:
        self._by_stream: dict[str, _StreamClock] = {}
        self._published_ns: int | None = None  # of the last message
        self._last_step = (0, 0)  # by how much, and engine time after it

    def observe(self, event: EventMessage, now: int, *, is_open: bool) -> int:
        """Process a message; return by how much the engine's time must step, 0 if not at all.

        Args:
            is_open: the event has begun, as far as is known, and has not ended.
        """
        step_ns = self._published_back(event, now)
        stream_step_ns = self._step_of_stream(event)
        if stream_step_ns and is_open:
            step_ns = stream_step_ns
        if step_ns:
            self.step(step_ns, now, ahead=event.stream if stream_step_ns else None)
        self._add(event, now + step_ns)
        return step_ns

    def step(self, step_ns: int, now: int, *, ahead: str | None = None) -> None:
        """Process that the engine's time steps; the stream `ahead` has already done so."""
        for name, clock in self._by_stream.items():
            if name != ahead:
                clock.shift_ns += step_ns
        self._last_step = (step_ns, now + step_ns)

    def in_engine_time(self, event: EventMessage) -> EventMessage:
        """Return a message with its times on the clock of the engine."""
        clock = self._by_stream.get(event.stream)
        if clock is None or not clock.shift_ns:
            return event
        shift_ns, offset_ns = clock.shift_ns, event.offset_ns
        return event.model_copy(
            update={
                "onset_ns": event.onset_ns + shift_ns,
                "offset_ns": None if offset_ns is None else offset_ns + shift_ns,
                "captured_ns": event.captured_ns + shift_ns,
            }
        )

    def export(self) -> dict[str, Any]:
        """Return the clocks as JSON values."""
        return {
            "streams": {name: list(astuple(clock)) for name, clock in self._by_stream.items()},
            "published_ns": self._published_ns,
            "last_step": list(self._last_step),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `export` returned."""
        self._by_stream = {name: _StreamClock(*data) for name, data in state["streams"].items()}
        self._published_ns = state["published_ns"]
        step_ns, after_ns = state["last_step"]
        self._last_step = step_ns, after_ns

    def _published_back(self, event: EventMessage, now: int) -> int:
        """Return by how much the publisher's clock was set back and the engine's was not."""
        if event.published_ns is None:
            return 0
        last_ns, self._published_ns = self._published_ns, event.published_ns
        step_ns = 0 if last_ns is None else min(0, event.published_ns - last_ns)
        if self._is_fresh(now) and abs(step_ns - self._last_step[0]) < abs(step_ns) // 2:
            return 0
        return step_ns if is_step(step_ns) else 0

    def _step_of_stream(self, event: EventMessage) -> int:
        """Return the step of a stream's clock that the engine has not made yet."""
        clock = self._by_stream.get(event.stream)
        if event.at_sample is None or clock is None or clock.epoch != event.epoch:
            return 0
        zero_ns = event.captured_ns - samples_to_ns(event.at_sample)
        step_ns = zero_ns - clock.zero_ns
        if not is_step(step_ns):
            return 0
        clock.zero_ns = zero_ns
        if abs(clock.shift_ns - step_ns) < abs(step_ns) // 2:
            clock.shift_ns = 0  # now it has made the step that the engine made before it
            return 0
        return step_ns

    def _add(self, event: EventMessage, now: int) -> None:
        """Add the clock of a new epoch; just after a step its stream may still have to make it."""
        clock = self._by_stream.get(event.stream)
        if event.at_sample is None or (clock is not None and clock.epoch == event.epoch):
            return
        zero_ns = event.captured_ns - samples_to_ns(event.at_sample)
        step_ns = self._last_step[0] if self._is_fresh(now) else 0
        is_behind = abs(event.captured_ns + step_ns - now) < abs(event.captured_ns - now)
        shift_ns = step_ns if is_behind else 0
        self._by_stream[event.stream] = _StreamClock(event.epoch, zero_ns, shift_ns)

    def _is_fresh(self, now: int) -> bool:
        return now - self._last_step[1] < FRESH_NS
