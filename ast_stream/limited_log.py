"""Warnings about what comes from outside, at most one a minute, with how many were kept back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

EVERY_S = 60.0
QUIET_S = 5.0


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


class Outage:
    """Something that fails for a while: told when it begins, once a minute, and when it is over.

    It is over when nothing has failed for `QUIET_S`: a full disk lets a small write through now
    and then. Several threads may share one.

    Args:
        over: what is logged then, e.g. "the event log is written again".
        now_s: a clock that only goes forward, in seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        over: str,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._over = over
        self._now_s = now_s
        self._lock = threading.Lock()
        self._log = LimitedLog(logger, now_s)
        self._text: str | None = None
        self._began_s = self._failed_s = 0.0
        self._n_failed = 0

    @property
    def text(self) -> str | None:
        """What fails, in words; None while nothing does."""
        return self._text

    def failed(self, message: str, *args: object) -> None:
        """Take note of a failure; `message` with its `%s` arguments says what it is."""
        with self._lock:
            self._failed_s = self._now_s()
            if self._text is None:
                self._began_s, self._n_failed = self._failed_s, 0
                self._log = LimitedLog(self._logger, self._now_s)
            self._n_failed += 1
            self._text = message % args
            self._log.warning(message, *args)

    def worked(self) -> None:
        """Take note of a success."""
        if self._text is None:
            return
        with self._lock:
            now_s = self._now_s()
            if self._text is None or now_s - self._failed_s < QUIET_S:
                return
            self._text = None
            lasted_s, n_failed = self._failed_s - self._began_s, self._n_failed
        self._logger.warning("%s after %.0f s and %d failures", self._over, lasted_s, n_failed)
