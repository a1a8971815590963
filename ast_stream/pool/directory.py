"""A worker's entry in its pool, and what it knows about the claims on streams.

All waiting happens in a separate thread. While the owner of a stream is `unknown`, no event of it
is ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from ast_stream.messages.pool import PoolMember, State, StreamClaim
from ast_stream.pool.bucket import PoolBucket
from ast_stream.pool.claim_sweep import ClaimSweep
from ast_stream.runtime.logging import LimitedLog
from ast_stream.runtime.nats import NatsError

RENEW_EVERY_S = 2.0
ASK_EVERY_S = 2.0  # about a stream whose owner is being asked for
_FORGET_AFTER_S = 30.0  # answers that nobody has asked for again
_MAX_CLAIMS_WAITING = 100_000
_TURN_S = 0.1

Owner = Literal["this", "this at once", "another", "unknown"]
"""Who ends the events that a worker has begun in an epoch: this worker, unless the capture process
comes back; this worker, at once, since it cannot; or another one, which has continued them."""

logger = logging.getLogger(__name__)


@dataclass
class _Asked:
    """What is known about an epoch that a worker has asked about."""

    asked_s: float
    answer: Owner = "unknown"
    read_s: float = float("-inf")


def owner_of(claims: Sequence[StreamClaim], worker: str, epoch: str) -> Owner:
    """Return who ends the events that a worker has begun in an epoch of a stream.

    Args:
        claims: on all epochs of the stream, oldest first.
    """
    own = [claim for claim in claims if claim.epoch == epoch]
    places = [place for place, claim in enumerate(own) if claim.worker == worker]
    after = own[places[-1] + 1 :] if places else own
    if after:
        return "another" if after[0].is_continued else "this at once"
    is_over = bool(claims) and claims[-1].epoch != epoch
    return "this at once" if is_over else "this"


class PoolDirectory:
    """Renews a worker's entry, writes its claims, and reads the claims on its streams.

    Args:
        member: the worker's entry.
        now_s: monotonic clock.
    """

    is_shared = True

    def __init__(
        self,
        bucket: PoolBucket,
        member: PoolMember,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._member = member
        self._now_s = now_s
        self._lock = threading.Lock()
        self._claims: dict[tuple[str, StreamClaim], None] = {}  # to write, oldest first
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._is_changed = True
        self._streams: frozenset[str] = frozenset()
        self._sweep = ClaimSweep(bucket, member.name, now_s)
        self._renewed_s = float("-inf")
        self._stopping = threading.Event()
        self._log = LimitedLog(logger)
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)

    @property
    def name(self) -> str:
        """Name of the worker in the pool."""
        return self._member.name

    def start(self) -> None:
        """Connect, and announce the worker."""
        self._bucket.start()
        self._thread.start()

    def close(self, *, is_leaving: bool) -> None:
        """Stop; a worker that leaves in an orderly way deletes its entry."""
        self._stopping.set()
        self._thread.join(10.0)
        if is_leaving:
            try:
                self._bucket.withdraw(self.name)
            except NatsError as error:
                logger.warning("%s", error)
        self._bucket.close()

    def report(self, *, streams: Collection[str], state: State) -> None:
        """Update the worker's entry, if something has changed that concerns others.

        Args:
            streams: names of the worker's streams.
        """
        with self._lock:
            self._streams = frozenset(streams)
            if state != self._member.state:
                self._member = self._member.model_copy(update={"state": state})
                self._is_changed = True

    def claim(
        self,
        stream: str,
        epoch: str,
        term: int,
        *,
        is_continued: bool,
        start: int | None = None,
    ) -> None:
        """Claim an epoch of a stream for this worker, which accounts for it from `start` on."""
        claim = StreamClaim(
            epoch=epoch, term=term, worker=self.name, is_continued=is_continued, start=start
        )
        with self._lock:
            self._claims[stream, claim] = None
            while len(self._claims) > _MAX_CLAIMS_WAITING:
                del self._claims[next(iter(self._claims))]
            self._asked.pop((stream, epoch), None)

    def owner(self, stream: str, epoch: str) -> Owner:
        """Return who ends the events that this worker has begun in an epoch.

        After the first call it is read in the background, and again as long as it is called.
        """
        now_s = self._now_s()
        with self._lock:
            asked = self._asked.setdefault((stream, epoch), _Asked(now_s))
            asked.asked_s = now_s
            is_waiting = any(name == stream for name, _ in self._claims)
            return "unknown" if is_waiting else asked.answer

    def _run(self) -> None:
        while not self._stopping.wait(_TURN_S):
            try:
                self.turn()
            except NatsError as error:
                self._log.warning("%s", error)
                self._stopping.wait(0.5)

    def turn(self) -> None:
        """Write and read what is due; called repeatedly by the thread.

        Raises:
            NatsError: the bucket cannot be read or written.
        """
        if not self._bucket.is_connected:
            self._forget_answers()
            return
        now_s = self._now_s()
        with self._lock:
            member, is_changed, streams = self._member, self._is_changed, self._streams
            self._is_changed = False
        if now_s - self._renewed_s >= RENEW_EVERY_S:
            self._bucket.renew(member.name, member.boot, len(streams))
            self._renewed_s = now_s
        if is_changed:
            try:
                self._bucket.put_member(member)
            except NatsError:
                self._is_changed = True
                raise
        self._write_claims()
        self._read_owners(now_s)
        self._sweep.turn(streams)

    def _write_claims(self) -> None:
        with self._lock:
            waiting = list(self._claims)[:64]
        for stream, claim in waiting:
            self._bucket.claim(stream, claim)
            with self._lock:
                self._claims.pop((stream, claim), None)

    def _read_owners(self, now_s: float) -> None:
        with self._lock:
            self._asked = {
                about: asked
                for about, asked in self._asked.items()
                if now_s - asked.asked_s < _FORGET_AFTER_S
            }
            due = [
                about for about, asked in self._asked.items() if now_s - asked.read_s >= ASK_EVERY_S
            ][:64]
        for stream, epoch in due:
            claims = self._bucket.history(stream).claims
            with self._lock:
                asked = self._asked.get((stream, epoch))
                if asked is not None:
                    asked.answer = owner_of(claims, self.name, epoch)
                    asked.read_s = self._now_s()

    def _forget_answers(self) -> None:
        """Forget all answers while the bucket cannot be read, since others may change it."""
        with self._lock:
            for asked in self._asked.values():
                asked.answer, asked.read_s = "unknown", float("-inf")
            self._is_changed = True  # another server may not have the entry
