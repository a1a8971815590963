"""Steady time: the clock of durations, deadlines and expiries, which nobody can set.

It begins as wall time, and goes on with the monotonic clock. Only where no monotonic clock tells
what has passed, across a boot or from one machine to another, it goes on with wall time. Wall time
is for people, for calendars, and for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ast_stream.machine_clock import CLOCK_ID, SET_NS, Moment, read_clocks
from ast_stream.messages.codec import FeedBody

MAX_CLOCKS = 64  # monotonic clocks that are known; each boot has another


class SteadyTime:
    """Steady time, from the stamps of messages and the clocks of this machine.

    Other threads may ask for the time while one follows the messages.

    Args:
        state: what `export` returned; None: begin as wall time.
        read: reads the clocks of this machine.

    Attributes:
        set_by_ns: by how much wall clocks were set since steady time began: wall minus steady.
    """

    def __init__(
        self, state: Mapping[str, Any] | None = None, *, read: Callable[[], Moment] = read_clocks
    ) -> None:
        self._read = read
        self.set_by_ns: int = 0 if state is None else state["set_by_ns"]
        # steady minus monotonic time, by the name of the monotonic clock
        self._offsets_ns: dict[str, int] = {} if state is None else dict(state["offsets_ns"])
        # the latest times seen, of messages and of this machine, which may be far ahead of them
        self._published_ns: int | None = None if state is None else state["published_ns"]
        self._here_ns: int | None = None if state is None else state["here_ns"]

    def observe(self, body: FeedBody) -> None:
        """Follow the clocks of a message's publisher; without a stamp there is nothing to follow.

        The times in the body are then `steady_ns` of what it says.
        """
        if body.published is not None and body.clock is not None:
            self._published_ns = self._follow(body.clock, body.published, self._published_ns)

    def follow_machine(self) -> None:
        """Follow the clocks of this machine."""
        self._here_ns = self._follow(CLOCK_ID, self._read(), self._here_ns)

    def now_ns(self) -> int:
        """Return the present time."""
        if CLOCK_ID not in self._offsets_ns:
            self.follow_machine()
        return self._read().monotonic_ns + self._offsets_ns[CLOCK_ID]

    def steady_ns(self, wall_ns: int) -> int:
        """Return a wall time of the last message as steady time."""
        return wall_ns - self.set_by_ns

    def wall_ns(self, steady_ns: int) -> int:
        """Return a steady time as wall time, by a clock as it is set now."""
        return steady_ns + self.set_by_ns

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "set_by_ns": self.set_by_ns,
            "offsets_ns": dict(self._offsets_ns),
            "published_ns": self._published_ns,
            "here_ns": self._here_ns,
        }

    def _follow(self, clock: str, moment: Moment, latest_ns: int | None) -> int:
        """Follow one clock, on which `latest_ns` was the latest time; return that of now."""
        if clock not in self._offsets_ns:
            steady_ns = self.steady_ns(moment.wall_ns)
            if latest_ns is not None:  # a clock that was set back while nobody looked
                steady_ns = max(steady_ns, latest_ns)
            while len(self._offsets_ns) >= MAX_CLOCKS:
                del self._offsets_ns[next(iter(self._offsets_ns))]
            self._offsets_ns[clock] = steady_ns - moment.monotonic_ns
        steady_ns = moment.monotonic_ns + self._offsets_ns[clock]
        set_by_ns = moment.wall_ns - steady_ns
        if abs(set_by_ns - self.set_by_ns) > SET_NS:
            self.set_by_ns = set_by_ns
        return steady_ns if latest_ns is None else max(latest_ns, steady_ns)
