"""The clocks of streams: whether their wall time stepped, and where it stands to the engine's.

Wall time steps: a box without a battery for its clock learns the time minutes after it has
started. The samples of one sound go on evenly, so that a jump of `captured` against `at_sample`
within one sound is a step of the clock. Between sounds it may as well be a pause of the source;
there, only `published` running backwards tells of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from ast_stream.alerts.told import Told, is_step
from ast_stream.units import NS_PER_SECOND, samples_to_ns

FRESH_NS = 60 * NS_PER_SECOND  # by then every capture process has noticed a step


@dataclass
class _Line:
    """Where the samples of one epoch lie.

    Attributes:
        zero_ns: wall time of sample 0.
        shift_ns: engine time minus wall time; not 0 while the engine knows of a step before
            the stream does.
    """

    epoch: str
    zero_ns: int
    shift_ns: int


class Lines:
    """The lines of all streams."""

    def __init__(self) -> None:
        self._by_stream: dict[str, _Line] = {}
        self._published_ns: int | None = None  # of the last message
        self._last_step = (0, 0)  # by how much, and engine time after it

    def follow(self, told: Told, now: int, *, is_open: bool) -> int:
        """Take a message; return by how much the engine's time must step, 0 if not at all.

        Args:
            is_open: the event was heard of and has not ended.
        """
        back_ns = self._published_back(told, now)
        step_ns = self._step_of_stream(told)
        if step_ns and is_open:
            back_ns = step_ns
        if back_ns:
            self.step(back_ns, now, followed=told.stream if step_ns else None)
        self._begin_line(told, now + back_ns)
        return back_ns

    def step(self, step_ns: int, now: int, *, followed: str | None = None) -> None:
        """Take that the engine's time steps; `followed` is the stream that did so before it."""
        for name, line in self._by_stream.items():
            if name != followed:
                line.shift_ns += step_ns
        self._last_step = (step_ns, now + step_ns)

    def moved(self, told: Told) -> Told:
        """Return a message with its times as the engine's."""
        line = self._by_stream.get(told.stream)
        if line is None or not line.shift_ns:
            return told
        return replace(
            told,
            onset_ns=told.onset_ns + line.shift_ns,
            offset_ns=None if told.offset_ns is None else told.offset_ns + line.shift_ns,
            at_ns=told.at_ns + line.shift_ns,
        )

    def export(self) -> dict[str, Any]:
        """Return the lines as JSON values."""
        return {
            "streams": {name: list(astuple(one)) for name, one in self._by_stream.items()},
            "published_ns": self._published_ns,
            "last_step": list(self._last_step),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `export` gave."""
        self._by_stream = {name: _Line(*fields) for name, fields in state["streams"].items()}
        self._published_ns = state["published_ns"]
        step_ns, after_ns = state["last_step"]
        self._last_step = step_ns, after_ns

    def _published_back(self, told: Told, now: int) -> int:
        """Return by how much the publisher's clock was put back and the engine's was not."""
        if told.published_ns is None:
            return 0
        last_ns, self._published_ns = self._published_ns, told.published_ns
        step_ns = 0 if last_ns is None else min(0, told.published_ns - last_ns)
        if self._is_fresh(now) and abs(step_ns - self._last_step[0]) < abs(step_ns) // 2:
            return 0
        return step_ns if is_step(step_ns) else 0

    def _step_of_stream(self, told: Told) -> int:
        """Return the step of a stream that the engine has not made yet."""
        line = self._by_stream.get(told.stream)
        if told.at_sample is None or line is None or line.epoch != told.epoch:
            return 0
        zero_ns = told.at_ns - samples_to_ns(told.at_sample)
        step_ns = zero_ns - line.zero_ns
        if not is_step(step_ns):
            return 0
        line.zero_ns = zero_ns
        if abs(line.shift_ns - step_ns) < abs(step_ns) // 2:
            line.shift_ns = 0  # now it has made the step that the engine has made before
            return 0
        return step_ns

    def _begin_line(self, told: Told, now: int) -> None:
        """Begin the line of an epoch; just after a step its stream may have still to make it."""
        line = self._by_stream.get(told.stream)
        if told.at_sample is None or (line is not None and line.epoch == told.epoch):
            return
        zero_ns = told.at_ns - samples_to_ns(told.at_sample)
        step_ns = self._last_step[0] if self._is_fresh(now) else 0
        is_behind = abs(told.at_ns + step_ns - now) < abs(told.at_ns - now)
        self._by_stream[told.stream] = _Line(told.epoch, zero_ns, step_ns if is_behind else 0)

    def _is_fresh(self, now: int) -> bool:
        return now - self._last_step[1] < FRESH_NS
