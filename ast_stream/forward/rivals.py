"""Detects another box with this box's name, from what happens at a broker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ast_stream.settings.fleet import BoxIdentity

N_SIGNS = 2  # a single sign may be left over from this box before it was killed
REMEMBERED_S = 600.0


class Rivals:
    """Signs that two boxes share a name: each undoes at the broker what the other has done."""

    def __init__(self, identity: BoxIdentity, now_s: Callable[[], float] = time.monotonic) -> None:
        self._name = f"{identity.site}/{identity.box}"
        self._now_s = now_s
        self._seen: deque[float] = deque(maxlen=N_SIGNS)

    def note(self) -> None:
        """Record a sign."""
        self._seen.append(self._now_s())

    @property
    def problem(self) -> str | None:
        """What to do about it, as a sentence; None: there are no recent signs."""
        if len(self._seen) < N_SIGNS or self._seen[0] < self._now_s() - REMEMBERED_S:
            return None
        return (
            f"another box reports as {self._name}, too: give each a name of its own, "
            "fleet.site and fleet.box"
        )
