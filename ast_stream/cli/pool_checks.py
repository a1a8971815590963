"""Checks of the section `pool` of a configuration on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ast_stream.errors import StartupError
from ast_stream.pool.membership import key_files
from ast_stream.runtime.nats import read_login
from ast_stream.settings.pool import PoolSettings
from ast_stream.settings.schema import Settings
from ast_stream.settings.section import Misfit
from ast_stream.transport.keys import read_public


def pool_problems(settings: Settings) -> Iterator[Misfit]:
    """Yield what keeps a worker or a capture box of the pool from working."""
    pool = settings.pool
    if pool is None:
        return
    checks: list[tuple[tuple[str | int, ...], Callable[[], object]]] = []
    if (access := pool.nats) is not None:
        checks.append((("pool", "nats"), lambda: read_login("pool", access)))
    for index, member in enumerate(pool.members):
        if (key := member.key) is not None:
            checks.append((("pool", "members", index, "key"), partial(read_public, Path(key))))
    for index, name in enumerate(pool.keys):
        for file in key_files(Path(name)):
            checks.append((("pool", "keys", index), partial(read_public, file)))
    for path, check in checks:
        try:
            check()
        except StartupError as error:
            yield path, str(error)


def pool_warnings(settings: Settings) -> Iterator[Misfit]:
    """Yield what works, but hardly as it is meant."""
    pool, transport = settings.pool, settings.transport
    if pool is None:
        return
    is_worker = transport.audio is not None and transport.rings is not None
    if (transport.audio is None) != (transport.rings is None):
        missing = "audio" if transport.audio is None else "rings"
        yield ("transport", missing), "none: a worker of the pool needs both audio and rings"
    has_keys = transport.curve is not None
    if pool.nats is not None and has_keys and not pool.keys:
        if settings.streams:
            yield ("pool", "keys"), "none: no worker of the pool gets audio from here"
        elif settings.alerts.rules or settings.recorder is not None or settings.web.listen:
            yield ("pool", "keys"), "none: no worker of the pool is trusted, and heard"
    if settings.streams and not is_worker:
        smallest = min(settings.streams, key=lambda stream: stream.ring_s)
        needed_s = pool.record_s + pool.dead_s + 3 * settings.model.hop_s + 15.0
        if pool.nats is not None and smallest.ring_s < needed_s:
            text = f"{smallest.ring_s:g} s of {smallest.name} may be too short for a take-over, "
            yield ("streams",), f"{text}which needs about {needed_s:.0f} s"
    yield from _reader_warnings(
        settings, pool, is_beside_others=is_worker or bool(settings.streams)
    )


def _reader_warnings(
    settings: Settings, pool: PoolSettings, *, is_beside_others: bool
) -> Iterator[Misfit]:
    """Yield what those would do, or miss, that follow all workers of the pool."""
    has_rules, recorder = bool(settings.alerts.rules), settings.recorder
    if has_rules and is_beside_others:
        text = "they follow all workers of the pool: have them in one place alone, or each "
        yield ("alerts", "rules"), f"{text}place alerts"
    if recorder is not None and is_beside_others:
        text = "it follows all workers of the pool: have it in one place alone, or each place "
        yield ("recorder",), f"{text}keeps the events and clips of all streams"
    readers = " and ".join(
        name
        for name, is_there in (
            ("alerts", has_rules),
            ("recorder", recorder is not None),
            ("page", settings.web.listen is not None),
        )
        if is_there
    )
    silent = [member.name for member in pool.members if member.feed is None]
    if silent and readers:
        text = f"no feed of {', '.join(silent)}: {readers} cannot hear what it finds (feed, query)"
        yield ("pool", "members"), text
    mute = [
        member.name for member in pool.members if member.feed is not None and member.query is None
    ]
    if mute and recorder is not None and recorder.keeps_sound:
        text = f"no query of {', '.join(mute)}: there are no clips of what it finds"
        yield ("pool", "members"), text
