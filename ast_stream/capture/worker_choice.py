"""How a capture process chooses the worker of a stream: a fixed one, or one of a pool."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from ast_stream.capture.link import FixedWorkers, WorkerAddress, WorkerChoice
from ast_stream.pool.membership import Membership, pool_membership, ranked
from ast_stream.settings.paths import audio_endpoint
from ast_stream.settings.schema import Settings
from ast_stream.transport.keys import (
    CLIENT_CREDENTIAL,
    ClientKeys,
    client_keys,
    read_pair,
    read_public,
)

logger = logging.getLogger(__name__)


class PoolWorkers:
    """The workers that are in the bucket of a pool."""

    takes_over = True

    def __init__(self, membership: Membership) -> None:
        self.membership = membership

    def start(self) -> None:
        """Follow the members."""
        self.membership.start()

    def close(self) -> None:
        """Stop."""
        self.membership.close()

    def best(
        self, stream: str, without: Collection[str] = (), current: str | None = None
    ) -> WorkerAddress | None:
        """Return the worker that is to have a stream, None if there is none at present."""
        member = self.membership.best(stream, without, current)
        if member is None:
            return None
        return WorkerAddress(member.name, member.audio, member.rings, member.key)

    def is_lost(self, name: str) -> bool:
        """Return whether a worker is dead, which the bucket knows."""
        return self.membership.is_lost(name)

    def is_moving(self, stream: str, now_s: float) -> bool:
        """Return whether it is time to move a stream."""
        return self.membership.is_moving(stream, now_s)

    def opened_s(self, name: str) -> float:
        """Return when a worker that was full had room again."""
        return self.membership.opened_s(name)


def worker_choice(
    settings: Settings, now_s: Callable[[], float] = time.monotonic
) -> WorkerChoice | None:
    """Return what chooses the worker of each stream; None: it meets the worker of this box.

    Raises:
        StartupError: a key of the pool cannot be read.
    """
    pool, rings = settings.pool, settings.transport.rings
    if pool is None:
        if rings is None:
            return None
        address = WorkerAddress("", audio_endpoint(settings), rings)
        return FixedWorkers(lambda stream: address)
    if pool.nats is None:
        addresses = {
            member.name: WorkerAddress(
                member.name,
                member.audio,
                member.rings,
                None if member.key is None else read_public(Path(member.key)),
            )
            for member in pool.members
        }
        weights = {member.name: member.weight for member in pool.members}
        return FixedWorkers(lambda stream: addresses[ranked(stream, weights)[0]])
    return PoolWorkers(pool_membership(settings, "capture", now_s))


def keys_to_workers(settings: Settings) -> ClientKeys | None:
    """Return what the connections to workers need; None if nothing goes over tcp with keys.

    Raises:
        ConfigError: the configuration names no key.
        StartupError: a key cannot be used.
    """
    curve = settings.transport.curve
    if settings.pool is None or curve is None or curve.client_secret is None:
        return client_keys(settings.transport)
    own = read_pair(Path(curve.client_secret), CLIENT_CREDENTIAL)
    return ClientKeys(own, own.public)  # each worker of the pool has a key of its own
