"""Audio goes to no worker of a pool whose key the configuration does not name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from ast_stream.capture.link import StreamLink, WorkerAddress
from ast_stream.capture.ring import BlockSender
from ast_stream.errors import WireError
from ast_stream.messages.codec import validate
from ast_stream.messages.pool import PoolMember
from ast_stream.pool.membership import Allowed
from ast_stream.settings.load import load_settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.transport.curve import make_key
from ast_stream.transport.keys import read_public, write_pair
from ast_stream.transport.sockets import Sockets

STREAMS = [{"name": "porch", "source": {"type": "microphone"}}]


def member(key: str | None, host: str = "10.0.0.5") -> PoolMember:
    return PoolMember(
        name="gpu",
        boot="1",
        audio=f"tcp://{host}:5555",
        rings=f"tcp://{host}:5559",
        key=key,
        model="m/1",
        capacity=8,
        weight=8.0,
    )


def allowed(folder: Path, curve: dict[str, str] | None, keys: list[str]) -> Allowed:
    nats = {"servers": ["nats://127.0.0.1:4222"]}
    config = folder / "config.yaml"
    pool = {"name": "city", "nats": nats, "keys": keys}
    settings = {"streams": STREAMS, "pool": pool, "transport": {"curve": curve}}
    config.write_text(json.dumps(settings))
    return Allowed(load_settings(config))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    write_pair(tmp_path, "box", make_key())
    for name in ("gpu-1", "gpu-2"):
        write_pair(tmp_path / "workers", name, make_key())
    write_pair(tmp_path / "strangers", "stranger", make_key())
    return tmp_path


@pytest.mark.parametrize("named", ["workers", "workers/gpu-1.key"])
def test_a_worker_needs_a_key_that_the_configuration_names(keys: Path, named: str) -> None:
    curve = {"client_secret": str(keys / "box.key_secret")}
    may_have = allowed(keys, curve, [str(keys / named)])
    assert may_have(member(read_public(keys / "workers" / "gpu-1.key")))
    assert not may_have(member(read_public(keys / "strangers" / "stranger.key")))
    assert not may_have(member(None))


def test_without_keys_audio_stays_on_the_machine(tmp_path: Path) -> None:
    may_have = allowed(tmp_path, None, [])
    assert may_have(member(None, host="127.0.0.1"))
    assert not may_have(member(None))


@pytest.mark.parametrize(
    "endpoint", ["ipc:///tmp/strangers", "tcp://-x:1", "tcp://\u00e9:1", "tcp://*:1", "tcp://:1"]
)
def test_a_member_is_reached_by_tcp_at_a_name_that_can_be_one(endpoint: str) -> None:
    known = member(None).to_json()
    for place in ("audio", "rings"):
        with pytest.raises(WireError, match="expected an endpoint"):
            validate(PoolMember, {**known, place: endpoint}, "pool member")


class Choice:
    """Two workers, of which the first cannot be connected to."""

    takes_over = True

    def best(
        self, stream: str, without: Collection[str] = (), current: str | None = None
    ) -> WorkerAddress | None:
        endpoints = {"bad": "tcp://-x:1", "good": "tcp://127.0.0.1:1"}
        name = next(name for name in endpoints if name not in without)
        return WorkerAddress(name, endpoints[name], endpoints[name])

    def is_lost(self, name: str) -> bool:
        return False

    def is_moving(self, stream: str, now_s: float) -> bool:
        return True

    def opened_s(self, name: str) -> float:
        return float("-inf")

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_worker_that_cannot_be_connected_to_is_passed_over() -> None:
    sockets = Sockets(None)
    settings = StreamSettings.model_validate(STREAMS[0])
    link = StreamLink(settings, sockets, BlockSender(), Choice(), keeps_record=True)
    try:
        link.turn()
        link.turn()
        assert link.status() == "worker good is awaited"
    finally:
        link.close()
        sockets.close()
