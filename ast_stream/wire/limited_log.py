"""Warnings about what comes from outside, at most one a minute, with how many were kept back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

EVERY_S = 60.0


class LimitedLog:
    """Writes the first warning at once and then at most one every `every_s` seconds.

    Args:
        now_s: a clock that only goes forward, in seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        now_s: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:
        self._logger = logger
        self._now_s = now_s
        self._every_s = every_s
        self._last_s: float | None = None
        self._kept_back = 0

    def warning(self, message: str, *args: object) -> None:
        """Log `message` with its `%s` arguments, or only count it."""
        now_s = self._now_s()
        if self._last_s is not None and now_s - self._last_s < self._every_s:
            self._kept_back += 1
            return
        self._last_s = now_s
        if self._kept_back:
            message += " (and %s more like it since the last such line)"
            args = (*args, self._kept_back)
        self._kept_back = 0
        self._logger.warning(message, *args)
