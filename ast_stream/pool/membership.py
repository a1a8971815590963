"""The members of a pool as seen by capture processes and readers, and the placement of streams.

A worker is dead if its entry has not been renewed for some time by the clock of the observer, which
starts watching when it has lost the worker, so that the clocks of two machines are never compared.
While NATS cannot be reached, no worker counts as dead, and the last known members are used, even
after a restart.

Streams are placed by rendezvous hashing. Each pair of stream and worker has a score, and the worker
with the highest score has the stream. So a worker that joins only takes streams for which its score
is the highest, a worker that leaves only gives up its own, and all other streams stay. Weighted
after Schindelhauer and Schomaker (2005).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ast_stream.errors import WireError
from ast_stream.messages.codec import decode_json, encode_json, validate
from ast_stream.messages.pool import PoolMember
from ast_stream.pool.bucket import PoolBucket
from ast_stream.runtime.files import locked_folder, read_state, replace_file
from ast_stream.runtime.logging import LimitedLog
from ast_stream.runtime.nats import NatsError
from ast_stream.settings.fleet import box_identity
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import pool_members
from ast_stream.transport.keys import PUBLIC_SUFFIX, read_public
from ast_stream.urls import check_endpoint

MAX_FILE_BYTES = 16 * 1024 * 1024
SUSPECTED_FOR_S = 3.0  # a worker is watched for so long after the last call of `is_lost`
SETTLE_S = 1.0  # after a change, before streams are moved,
SPREAD_S = 4.0  # over which the moves are spread
_POLL_S = 0.5
_POLL_DEAD_S = 5.0  # whether a dead worker is back
_BITS = 53  # of a hash: as many as a float has
_WHAT = "members of the pool"

logger = logging.getLogger(__name__)


@dataclass
class _Watched:
    """A worker that a capture process or reader has lost."""

    asked_s: float
    renewal: int | None = None
    renewed_s: float = 0.0
    polled_s: float = float("-inf")
    is_dead: bool = False


class Membership:
    """Follows the members of a pool in a thread.

    Args:
        bucket: opens the bucket, given a function to be called with the members.
        file: stores the last known members.
        dead_s: time without a renewal after which a worker counts as dead.
        is_allowed: returns whether a worker is trusted, from its entry; others are ignored.
        now_s: monotonic clock.
    """

    def __init__(
        self,
        bucket: Callable[[Callable[[dict[str, PoolMember]], None]], PoolBucket],
        file: Path,
        dead_s: float,
        is_allowed: Callable[[PoolMember], bool],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed_s = now_s()
        self._file = file
        self._dead_s = dead_s
        self._is_allowed = is_allowed
        self._now_s = now_s
        self._lock = threading.Lock()
        self._members: dict[str, PoolMember] = {}
        self._watched: dict[str, _Watched] = {}
        self._opened_s: dict[str, float] = {}
        self._log = LimitedLog(logger)
        self._stopping = threading.Event()
        for member in _read(file):
            if is_allowed(member):
                self._members[member.name] = member
        self._bucket = bucket(self._use)
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)

    def start(self) -> None:
        """Connect and follow the members, in the background."""
        self._bucket.start()
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._bucket.close()

    def get(self, name: str) -> PoolMember | None:
        """Return a member by its name, whether alive or not."""
        with self._lock:
            return self._members.get(name)

    def best(
        self, stream: str, without: Collection[str] = (), current: str | None = None
    ) -> PoolMember | None:
        """Return the worker that should have a stream; None: there is none.

        Args:
            without: names of workers that have refused it.
            current: the worker that has it now, which may keep it even if it is full.
        """
        with self._lock:
            there = {
                name: member for name, member in self._members.items() if not self._is_dead(name)
            }
        model = most_common_model(there)
        if not any(member.model == model for name, member in there.items() if name not in without):
            # no worker with that model is available: a dead member may have all the weight
            model = most_common_model(
                {n: member for n, member in there.items() if n not in without}
            )
        weights = {
            name: member.weight
            for name, member in there.items()
            if member.model == model
            and name not in without
            and (member.state == "serving" or (member.state == "full" and name == current))
        }
        names = ranked(stream, weights)
        return there[names[0]] if names else None

    def is_lost(self, name: str) -> bool:
        """Return whether a worker is dead; must be called repeatedly while it is lost."""
        now_s = self._now_s()
        with self._lock:
            watched = self._watched.setdefault(name, _Watched(now_s))
            watched.asked_s = now_s
            return watched.is_dead

    def is_moving(self, stream: str, now_s: float) -> bool:
        """Return whether a stream should move now; moves are spread over time."""
        return now_s - self.changed_s >= SETTLE_S + SPREAD_S * unit_hash(stream, "move")

    def opened_s(self, name: str) -> float:
        """Return when a worker that was full or leaving last became available again."""
        with self._lock:
            return self._opened_s.get(name, float("-inf"))

    @property
    def members(self) -> dict[str, PoolMember]:
        """All members in the bucket, by name."""
        with self._lock:
            return dict(self._members)

    def _is_dead(self, name: str) -> bool:
        watched = self._watched.get(name)
        return watched is not None and watched.is_dead

    def _use(self, members: dict[str, PoolMember]) -> None:
        """Use the members that are in the bucket now."""
        allowed = {name: member for name, member in members.items() if self._is_allowed(member)}
        with self._lock:
            before = self._members
            if allowed == before:
                return
            for name, member in allowed.items():
                known = before.get(name)
                if known is not None and known.boot != member.boot:
                    self._watched.pop(name, None)  # it has restarted, so it is alive
                if known is not None and known.state != "serving" == member.state:
                    self._opened_s[name] = self._now_s()
            self._opened_s = {name: at for name, at in self._opened_s.items() if name in allowed}
            self._members = allowed
            if _placement(before) != _placement(allowed):
                self.changed_s = self._now_s()
        body = {"v": 1, "members": [member.to_json() for member in allowed.values()]}
        try:
            self._file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            with locked_folder(self._file.parent):  # other processes of the box also write it
                replace_file(self._file, encode_json(body))
        except OSError as error:
            self._log.warning("%s cannot be written: %s", self._file, error)

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_S / 5):
            self.turn()

    def turn(self) -> None:
        """Check the workers that have been lost; called repeatedly by the thread."""
        if not self._bucket.is_connected:
            with self._lock:  # earlier observations are void, since no worker could renew
                for watched in self._watched.values():
                    watched.renewal = None
            return
        try:
            self._poll(self._now_s())
        except NatsError as error:
            self._log.warning("%s", error)

    def _poll(self, now_s: float) -> None:
        with self._lock:
            self._watched = {
                name: watched
                for name, watched in self._watched.items()
                if watched.is_dead or now_s - watched.asked_s < SUSPECTED_FOR_S
            }
            due = [
                (name, watched)
                for name, watched in self._watched.items()
                if now_s - watched.polled_s >= (_POLL_DEAD_S if watched.is_dead else _POLL_S)
            ]
        for name, watched in due:
            renewal = self._bucket.renewal(name)
            now_s = self._now_s()
            watched.polled_s = now_s
            if renewal != watched.renewal:
                is_first = watched.renewal is None
                watched.renewal, watched.renewed_s = renewal, now_s
                if watched.is_dead and not is_first:
                    logger.info("worker %s is back", name)
                    watched.is_dead = False
                    self.changed_s = now_s
            elif not watched.is_dead and now_s - watched.renewed_s >= self._dead_s:
                logger.warning("worker %s has renewed nothing for %g s", name, self._dead_s)
                watched.is_dead = True
                self.changed_s = now_s


class Allowed:
    """Decides whether a member is trusted: write access to the bucket must not give audio."""

    def __init__(self, settings: Settings) -> None:
        assert settings.pool is not None
        self._has_keys = settings.transport.curve is not None
        self._keys = {
            read_public(file) for name in settings.pool.keys for file in key_files(Path(name))
        }
        self._log = LimitedLog(logger)

    def __call__(self, member: PoolMember) -> bool:
        """Return whether a member has a configured key, or is on this machine."""
        if self._has_keys:
            if member.key in self._keys:
                return True
            text = f"its key {member.key or 'none'} is not among pool.keys"
        else:
            try:
                check_endpoint(member.audio)
                check_endpoint(member.rings)
            except ValueError as error:
                text = str(error)
            else:
                return True
        self._log.warning("worker %s of the pool is left out: %s", member.name, text)
        return False


def key_files(path: Path) -> list[Path]:
    """Return the key files that an entry of `pool.keys` refers to."""
    return sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]


def pool_membership(
    settings: Settings, process: str, now_s: Callable[[], float] = time.monotonic
) -> Membership:
    """Return the membership of the configured pool in NATS.

    Raises:
        StartupError: a key of the pool cannot be read.
    """
    pool, who = settings.pool, box_identity(settings).key
    assert pool is not None
    return Membership(
        lambda note: PoolBucket(pool, f"{process} {who}", note),
        pool_members(settings).path,
        pool.dead_s,
        Allowed(settings),
        now_s,
    )


def most_common_model(members: Mapping[str, PoolMember]) -> str | None:
    """Return the model and settings with most weight, the only ones that streams go to."""
    weights: Counter[str] = Counter()
    for member in members.values():
        weights[member.model] += member.weight  # type: ignore[assignment]
    return max(weights, key=lambda model: (weights[model], model), default=None)


def ranked(stream: str, weights: Mapping[str, float]) -> list[str]:
    """Return the names of workers, beginning with the one that should have the stream.

    Args:
        weights: of the workers, above 0; each has a proportional share of all streams.
    """
    return sorted(weights, key=lambda name: (-score(stream, name, weights[name]), name))


def score(stream: str, worker: str, weight: float) -> float:
    """Return the score of a worker for a stream; the highest score wins.

    >>> score("porch", "a", 2.0) == 2 * score("porch", "a", 1.0)
    True
    """
    return weight / -math.log(unit_hash(stream, worker))


def unit_hash(*words: str) -> float:
    """Return a number in (0, 1) that depends on the words alone, on every machine."""
    digest = hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> (64 - _BITS)
    return (number + 0.5) / float(1 << _BITS)


def _placement(members: Mapping[str, PoolMember]) -> dict[str, tuple[object, ...]]:
    return {
        name: (member.boot, member.state, member.model, member.weight)
        for name, member in members.items()
    }


def last_known(settings: Settings) -> list[PoolMember]:
    """Return the members that a process of this box has seen last."""
    return _read(pool_members(settings).path)


def _read(file: Path) -> list[PoolMember]:
    """Return the last known members."""

    def decode(content: bytes) -> list[PoolMember]:
        try:
            entries = decode_json(content, _WHAT, MAX_FILE_BYTES)["members"]
            return [validate(PoolMember, entry, _WHAT) for entry in entries]
        except (WireError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(str(error)) from error

    return read_state(file, decode, MAX_FILE_BYTES, _WHAT) or []
