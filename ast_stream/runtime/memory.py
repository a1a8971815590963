"""Returning freed memory to the system.

Audio comes in pieces of any size from many threads, and what is freed between two pieces in use
stays with the process: a megabyte a stream after a start in which rings gave their last minutes.

Source: malloc_trim(3) of glibc; elsewhere nothing is done.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

EVERY_S = 60.0
FIRST_S = 20.0  # after the start, which leaves most


class FreeMemory:
    """Gives free memory back once a minute; call `turn` often, in any thread.

    Args:
        trim: gives back all that is free: 5 ms for 64 streams.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        trim: Callable[[], object] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trim = trim or malloc_trim()
        self._now_s = now_s
        self._next_s = now_s() + FIRST_S

    def turn(self) -> None:
        """Give free memory back if it is time to."""
        if (now_s := self._now_s()) >= self._next_s:
            self._next_s = now_s + EVERY_S
            self._trim()


def malloc_trim() -> Callable[[], object]:
    """Return glibc's function, or one that does nothing where the C library has none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return lambda: None if trim is None else trim(0)
