"""`ast-stream fleet pool`: the workers of a pool, and which of them has which stream."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.options import config_option, json_option
from ast_stream.cli.output import aligned, json_line, say
from ast_stream.errors import StartupError, UsageError
from ast_stream.messages.pool import PoolMember, StreamHistory
from ast_stream.pool.bucket import PoolBucket
from ast_stream.pool.directory import RENEW_EVERY_S
from ast_stream.pool.membership import most_common_model
from ast_stream.runtime.lifecycle import EXIT_CRASH
from ast_stream.settings.load import load_settings

CONNECT_S = 10.0
_MODEL_CHARACTERS = 36


def pool(
    config: Annotated[Path, config_option("The configuration of a worker or capture box.")],
    streams: Annotated[
        bool, typer.Option("--streams", help="Show each stream with its worker, too.")
    ] = False,
    as_json: Annotated[bool, json_option("One JSON object.")] = False,
) -> None:
    """Show the workers of a pool: exit 0 only if all live and have the same model, else 1.

    A worker lives that renews its entry while this command watches, for a bit over two seconds.
    With --streams, who had a stream last is shown, as the workers have written it.

    Example: ast-stream fleet pool -c /etc/ast-stream/config.yaml --streams
    """
    settings = load_settings(config)
    if settings.pool is None:
        raise UsageError(f"{config}: expected a section pool, got none")
    if settings.pool.nats is None:
        raise UsageError(
            f"{config}: pool: expected nats, where workers report their state, got a list of "
            "members; `ast-stream status` on a capture box shows which one has each of its streams"
        )
    bucket = PoolBucket(settings.pool, "fleet pool", is_quiet=True)
    bucket.start()
    try:
        if not bucket.connection.wait(CONNECT_S):
            raise StartupError(bucket.connection.error or "the NATS server does not answer")
        members = bucket.members()
        before = {name: bucket.renewal(name) for name in members}
        time.sleep(1.25 * RENEW_EVERY_S)
        counts = {name: bucket.streams_of(name) or 0 for name in members}
        living = {name for name in members if bucket.renewal(name) != before[name]}
        histories = {name: bucket.history(name) for name in bucket.streams()} if streams else {}
    finally:
        bucket.close()
    model = most_common_model({name: members[name] for name in living})
    is_well = bool(living) and living == set(members)
    is_well = is_well and all(members[name].model == model for name in living)
    if as_json:
        shown = {
            name: member.to_json() | {"alive": name in living, "streams": counts[name]}
            for name, member in members.items()
        }
        placed = {name: _worker(history) for name, history in histories.items()}
        content = {"healthy": is_well, "model": model, "workers": shown}
        print(json_line(content | ({"streams": placed} if streams else {})), flush=True)
    else:
        _show(members, counts, living, model)
        for name, history in histories.items():
            say(f"{name}: {_worker(history) or 'nobody'}")
    raise typer.Exit(0 if is_well else EXIT_CRASH)


def _worker(history: StreamHistory) -> str | None:
    return history.claims[-1].worker if history.claims else None


def _show(
    members: dict[str, PoolMember], counts: dict[str, int], living: set[str], model: str | None
) -> None:
    if not members:
        say("no worker is in the pool")
        return
    rows = [("worker", "state", "streams", "audio", "model", "version")]
    for name, member in sorted(members.items()):
        state = member.state if name in living else "dead"
        other = "" if model in (None, member.model) else ", not the pool's: it gets no streams"
        rows.append(
            (
                name,
                state,
                f"{counts[name]} of {member.capacity}",
                member.audio,
                member.model[:_MODEL_CHARACTERS] + other,
                member.version,
            )
        )
    for line in aligned(rows):
        say(line)
