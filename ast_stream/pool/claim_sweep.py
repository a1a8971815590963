"""Removes old claims from the bucket of a pool: those on streams that no worker has any more.

A claim determines who ends the events of a stream, even for a worker that comes back after weeks.
So it is kept for `KEPT_S` after the last worker had the stream. The worker that has a stream
rewrites its claims each day. Ages are computed from the NATS server's times alone.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from ast_stream.messages.pool import PoolMember
from ast_stream.pool.bucket import StoredHistory
from ast_stream.runtime.logging import LimitedLog
from ast_stream.runtime.nats import NatsError

DAY_S = 86_400.0
KEPT_S = 90 * DAY_S
FIRST_S = 1800.0  # after a start, by which time capture processes have found their workers
AT_ONCE = 16  # claims per turn, so that the worker's entry is still renewed in time

logger = logging.getLogger(__name__)


class Bucket(Protocol):
    """The part of a pool's bucket that is needed here; all methods raise `NatsError`."""

    def members(self) -> Mapping[str, PoolMember]:
        """Return all members in the bucket."""

    def streams(self) -> list[str]:
        """Return the names of all streams with claims."""

    def renewed_s(self, name: str) -> float | None:
        """Return the time of a worker's last renewal, by the server's clock."""

    def stored(self, stream: str) -> StoredHistory | None:
        """Return the claims on a stream as they are stored."""

    def write_again(self, stream: str, stored: StoredHistory) -> None:
        """Rewrite claims unchanged, unless they have changed meanwhile."""

    def remove(self, stream: str, stored: StoredHistory) -> None:
        """Remove claims, unless they have changed meanwhile."""


class ClaimSweep:
    """Checks all claims once a day, a few in each turn.

    Args:
        name: of the worker.
        now_s: monotonic clock.

    Attributes:
        removed: number of streams whose claims were removed.
    """

    def __init__(
        self, bucket: Bucket, name: str, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.removed = 0
        self._bucket = bucket
        self._name = name
        self._now_s = now_s
        self._next_s = now_s() + random.uniform(1, 2) * FIRST_S
        self._waiting: list[str] = []
        self._members: Mapping[str, PoolMember] = {}
        self._server_s: float | None = None
        self._log = LimitedLog(logger)

    def turn(self, held: Collection[str]) -> None:
        """Check the next claims, if they are due.

        Args:
            held: names of the streams that this worker has.
        """
        try:
            if self._now_s() >= self._next_s:
                self._next_s = self._now_s() + random.uniform(0.9, 1.1) * DAY_S
                self._members = self._bucket.members()
                self._waiting = self._bucket.streams()
            if self._waiting:
                self._server_s = self._bucket.renewed_s(self._name)
            for stream in self._waiting[:AT_ONCE]:
                self._look_at(stream, is_held=stream in held)
            del self._waiting[:AT_ONCE]
        except NatsError as error:  # try again tomorrow, not for each claim
            self._waiting = []
            self._log.warning("claims of streams that nobody has are kept: %s", error)

    def _look_at(self, stream: str, *, is_held: bool) -> None:
        stored = self._bucket.stored(stream)
        if stored is None or stored.written_s is None or self._server_s is None:
            return
        claims, age_s = stored.history.claims, self._server_s - stored.written_s
        holder = claims[-1].worker if claims else None
        if holder == self._name and is_held:
            if age_s >= DAY_S:
                self._bucket.write_again(stream, stored)
        elif age_s >= KEPT_S and (holder == self._name or holder not in self._members):
            self._bucket.remove(stream, stored)
            self.removed += 1
            logger.info("stream %s: nobody has had it for %.0f days", stream, age_s / DAY_S)
