"""The buckets of a fleet on a real server, and what the permissions of the how-to allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleet_centre import put
from nats_server import NatsServer, nats_server, needs_nats
from sample_messages import box_report

from ast_stream.fleet.buckets import ALL, FleetStore
from ast_stream.messages.rollout import PIECE_BYTES, WantedModel
from ast_stream.runtime.nats import NatsConnection, NatsError, NatsLogin

pytestmark = needs_nats
CONTENT = f"sha256:{64 * 'a'}"
WANTED = WantedModel(content=CONTENT, order="1")
HOW_TO = Path(__file__).parents[3] / "docs/how-to/fleet.md"


@contextmanager
def store_of(server: NatsServer, user: str | None = None) -> Iterator[FleetStore]:
    options = {} if user is None else {"user": user, "password": "p"}
    login = NatsLogin((server.url,), False, options)
    connection = NatsConnection(lambda: login, "test", "the centre")
    connection.start()
    assert connection.wait(30.0), connection.error
    try:
        yield FleetStore(connection)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as running:
        yield running


def test_what_is_wanted_of_a_box_comes_before_what_is_of_all(server: NatsServer) -> None:
    with store_of(server) as store:
        store.create()
        store.create()  # they are there
        assert store.wanted("farm.barn") is None
        store.put(ALL, WANTED.encode())
        assert store.wanted("farm.barn") == WANTED
        own = WantedModel(content=None, order="2")
        store.put("farm.barn", own.encode())
        assert store.wanted("farm.barn") == own
        assert store.wanted("farm.mill") == WANTED
        assert {entry.key for entry in store.all_wanted()} == {ALL, "farm.barn"}
        store.delete("farm.barn")
        store.delete(ALL)
        assert store.wanted("farm.barn") is None
        assert store.all_wanted() == []


def test_a_value_is_replaced_only_at_its_revision(server: NatsServer) -> None:
    with store_of(server) as store:
        store.create()
        first = store.put("plan", b"1", 0)
        with pytest.raises(NatsError, match="plan in ast_stream_rollout was changed by somebody"):
            store.put("plan", b"2", 0)
        second = store.put("plan", b"2", first)
        with pytest.raises(NatsError, match="changed by somebody else"):
            store.put("plan", b"3", first)
        entry = store.get("plan")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"2", second)
        store.delete("plan")


def test_what_is_no_message_of_ours_is_named(server: NatsServer) -> None:
    with store_of(server) as store:
        store.create()
        store.put("farm.odd", b"{}")
        with pytest.raises(NatsError, match=r"farm\.odd in ast_stream_rollout: wanted model"):
            store.wanted("farm.odd")
        store.delete("farm.odd")


def test_objects_are_kept_whole(server: NatsServer) -> None:
    piece = bytes(range(256)) * (PIECE_BYTES // 256)
    with store_of(server) as store:
        store.create()
        assert not store.has_object("b" * 64)
        store.put_object("b" * 64, piece)
        assert store.has_object("b" * 64)
        assert store.piece("b" * 64) == piece
        store.put_object("c" * 64, piece + b"!")
        with pytest.raises(NatsError, match=f"expected at most {PIECE_BYTES} bytes"):
            store.piece("c" * 64)
        with pytest.raises(NatsError, match="there is no object sha256:"):
            store.manifest(CONTENT)


def test_reports_have_the_age_that_the_server_knows(server: NatsServer) -> None:
    put(server.url, "farm.barn", box_report().encode())
    with store_of(server) as store:
        [entry] = store.reports()
    assert entry.key == "farm.barn"
    assert entry.age_s is not None
    assert -1 < entry.age_s < 60


def test_a_centre_without_buckets_says_which_is_missing(tmp_path: Path) -> None:
    with nats_server(tmp_path) as empty, store_of(empty) as store:
        with pytest.raises(NatsError, match="ast_stream_rollout: no roll-out was begun"):
            store.wanted("farm.barn")
        with pytest.raises(NatsError, match="ast_stream_boxes: no box has reported"):
            store.reports()


def permissions() -> str:
    """Return what the how-to gives a box, as the server's configuration."""
    text = HOW_TO.read_text()
    return next(part for part in text.split("```") if part.lstrip().startswith("publish:"))


def test_a_box_may_read_what_it_needs_and_write_nothing_of_it(tmp_path: Path) -> None:
    users = f"""authorization {{ users: [
      {{ user: operator, password: p }},
      {{ user: box, password: p, permissions: {{ {permissions()} }} }} ] }}"""
    with nats_server(tmp_path, users) as guarded:
        with store_of(guarded, "operator") as operator:
            operator.create()
            operator.put(ALL, WANTED.encode())
            operator.put_object(CONTENT, b"manifest")
            operator.put_object("d" * 64, b"piece")
        with store_of(guarded, "box") as box:
            assert box.wanted("farm.barn") == WANTED
            assert box.manifest(CONTENT) == b"manifest"
            assert box.piece("d" * 64) == b"piece"
            for write in (
                lambda: box.put(ALL, WantedModel(content=None, order="x").encode()),
                lambda: box.put("farm.barn", WANTED.encode()),
                lambda: box.delete(ALL),
                lambda: box.put_object(CONTENT, b"other"),
            ):
                with pytest.raises(NatsError):
                    write()
        with store_of(guarded, "operator") as operator:
            assert operator.wanted("farm.barn") == WANTED
            assert operator.manifest(CONTENT) == b"manifest"
