"""The clocks of this machine: wall time, which can be set, and monotonic time.

The monotonic clock stands still while the machine is suspended: nothing was listened to then.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SET_NS = 100_000_000  # a wall clock that moves by less was not set: two clocks are read in turn
_CLOSE_NS = 1_000_000
_READINGS = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Moment:
    """One moment on both clocks of one machine.

    Attributes:
        wall_ns: nanoseconds since 1970.
        monotonic_ns: nanoseconds on a clock that is never set, and begins anew with each boot.
    """

    wall_ns: int
    monotonic_ns: int

    @property
    def offset_ns(self) -> int:
        """Wall time minus monotonic time: changes only when the wall clock is set."""
        return self.wall_ns - self.monotonic_ns

    def after(self, duration_ns: int) -> Moment:
        """Return the moment a duration later, if the wall clock is not set in between."""
        return Moment(self.wall_ns + duration_ns, self.monotonic_ns + duration_ns)

    def seen_from(self, later: Moment) -> int:
        """Return the wall time of this moment by the wall clock as it is set at another."""
        set_by_ns = later.offset_ns - self.offset_ns
        return self.wall_ns + (set_by_ns if abs(set_by_ns) > SET_NS else 0)


def read_clocks(
    wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
) -> Moment:
    """Return the present moment.

    A process that does not run between the two readings would take the pause for a clock that was
    set; so the wall clock is read between two readings that are close together, if that can be.
    """
    before_ns = monotonic_ns()
    found: list[tuple[int, Moment]] = []
    for _ in range(_READINGS):
        wall = wall_ns()
        after_ns = monotonic_ns()
        found.append((after_ns - before_ns, Moment(wall, after_ns)))
        if after_ns - before_ns < _CLOSE_NS:
            break
        before_ns = after_ns
    return min(found, key=lambda reading: reading[0])[1]


def _monotonic_clock_id() -> str:
    """Return an id of machine and boot: monotonic times with other ids cannot be compared."""
    boot = ""
    with suppress(OSError):
        boot = _BOOT_ID.read_text("ascii").strip()
    # hashed: the kernel asks not to give its own id away
    return hashlib.blake2b((boot or secrets.token_hex()).encode(), digest_size=8).hexdigest()


CLOCK_ID = _monotonic_clock_id()
"""Names the monotonic clock of this machine since its last boot."""
