"""The bucket of a pool in a real NATS server: members, who lives, who had a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats_server import NatsServer, nats_server, needs_nats

from ast_stream.messages.pool import PoolMember, StreamClaim
from ast_stream.pool.bucket import PoolBucket
from ast_stream.pool.directory import PoolDirectory
from ast_stream.pool.membership import Membership
from ast_stream.settings.forward import NatsAccess
from ast_stream.settings.pool import PoolSettings

pytestmark = needs_nats
PATIENCE_S = 60.0
EPOCH = "a" * 32
DEAD_S = 5.0  # on a busy machine a worker that lives may be late for a second or two


def member(name: str, **others: object) -> PoolMember:
    known = {"boot": "1", "model": "m/1", "capacity": 8, "weight": 8.0}
    endpoints = {"audio": "tcp://127.0.0.1:5555", "rings": "tcp://127.0.0.1:5559"}
    return PoolMember.model_validate({"name": name} | known | endpoints | others)


def wait_for(condition: Callable[[], object], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
def settings(server: NatsServer, request: pytest.FixtureRequest) -> PoolSettings:
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    return PoolSettings(name=name, nats=NatsAccess(servers=[server.url]), dead_s=DEAD_S)


@pytest.fixture
def bucket(settings: PoolSettings) -> Iterator[PoolBucket]:
    opened = PoolBucket(settings, "test")
    opened.start()
    assert opened.connection.wait(PATIENCE_S)
    yield opened
    opened.close()


def test_claims_of_several_workers_at_a_time_are_all_kept(bucket: PoolBucket) -> None:
    def claim(worker: str) -> None:
        for term in range(5):
            one = StreamClaim(epoch=EPOCH, term=term, worker=worker, is_continued=True)
            bucket.claim("porch", one)

    threads = [threading.Thread(target=claim, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claims = bucket.history("porch").claims
    assert len(claims) == 10
    assert [one.term for one in claims] == sorted(one.term for one in claims)
    assert bucket.streams() == ["porch"]


def test_claims_are_removed_unless_somebody_has_written_them_meanwhile(
    bucket: PoolBucket,
) -> None:
    def claim(term: int) -> StreamClaim:
        return StreamClaim(epoch=EPOCH, term=term, worker="one", is_continued=True)

    bucket.renew("one", "boot", 1)
    for stream in ("porch", "attic"):
        bucket.claim(stream, claim(0))
    porch, attic = bucket.stored("porch"), bucket.stored("attic")
    now_s = bucket.renewed_s("one")
    assert porch is not None
    assert attic is not None
    assert porch.written_s is not None
    assert now_s is not None
    assert abs(now_s - porch.written_s) < PATIENCE_S
    bucket.write_again("porch", porch)
    again = bucket.stored("porch")
    assert again is not None
    assert again.history == porch.history
    bucket.claim("porch", claim(1))
    bucket.write_again("porch", again)  # too late, both
    bucket.remove("porch", again)
    bucket.remove("attic", attic)
    assert bucket.streams() == ["porch"]
    assert [one.term for one in bucket.history("porch").claims] == [0, 1]
    assert bucket.stored("attic") is None
    bucket.claim("attic", claim(2))
    assert [one.term for one in bucket.history("attic").claims] == [2]


@pytest.fixture
def membership(settings: PoolSettings, tmp_path: Path) -> Iterator[Membership]:
    followed = follow(settings, tmp_path)
    yield followed
    followed.close()


def follow(settings: PoolSettings, folder: Path) -> Membership:
    followed = Membership(
        lambda note: PoolBucket(settings, "capture", note),
        folder / "pool.json",
        settings.dead_s,
        lambda one: one.key != "stranger",
    )
    followed.start()
    return followed


def test_a_worker_that_renews_nothing_is_dead_and_lives_again(
    membership: Membership, settings: PoolSettings
) -> None:
    directory = PoolDirectory(PoolBucket(settings, "one"), member("one"))
    directory.start()
    try:
        wait_for(lambda: membership.best("porch"), "a worker")
        end_s = time.monotonic() + 1.2 * settings.dead_s
        while time.monotonic() < end_s:
            assert not membership.is_lost("one")
            time.sleep(0.1)
    finally:
        directory.close(is_leaving=False)
    wait_for(lambda: membership.is_lost("one"), "its death")
    assert membership.best("porch") is None
    again = PoolDirectory(PoolBucket(settings, "one"), member("one", boot="2"))
    again.start()
    try:
        wait_for(lambda: membership.best("porch"), "its return")
    finally:
        again.close(is_leaving=True)
    wait_for(lambda: not membership.members, "its farewell")


def test_streams_go_to_the_most_common_model_and_to_nobody_who_is_not_allowed(
    membership: Membership, bucket: PoolBucket
) -> None:
    for one in (
        member("one"),
        member("two"),
        member("other", model="m/2", weight=9.0),
        member("stranger", key="stranger", weight=1e6),
        member("full", state="full", weight=1e6),
    ):
        bucket.put_member(one)
    wait_for(lambda: len(membership.members) == 4, "the members")
    found = [membership.best(f"stream-{n}") for n in range(40)]
    assert {one.name for one in found if one is not None} == {"one", "two"}
    kept = membership.best("porch", current="full")
    assert kept is not None
    assert kept.name == "full"


def test_without_nats_nobody_dies_and_the_last_members_are_known(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    settings = PoolSettings(name="lost", nats=NatsAccess(servers=[server.url]), dead_s=2.0)
    try:
        bucket = PoolBucket(settings, "test")
        bucket.start()
        assert bucket.connection.wait(PATIENCE_S)
        bucket.put_member(member("one"))
        bucket.close()
        before = follow(settings, tmp_path)
        wait_for(lambda: before.best("porch"), "a worker")
    finally:
        server.kill()
    end_s = time.monotonic() + 2 * settings.dead_s
    while time.monotonic() < end_s:
        assert not before.is_lost("one")
        time.sleep(0.1)
    before.close()
    after = follow(settings, tmp_path)  # the process begins again, and nobody answers
    found = after.best("porch")
    after.close()
    assert found is not None
    assert found.name == "one"


def test_what_no_worker_writes_among_the_members_hides_none_of_them(
    membership: Membership, bucket: PoolBucket, settings: PoolSettings, tmp_path: Path
) -> None:
    bucket.put_member(member("one"))
    wait_for(lambda: "one" in membership.members, "a worker")
    names = ("a!b", "\u00e4\x1b[31m", "x.y", "garbage")

    async def write(client: Any) -> None:
        for name in names:
            subject = f"$KV.{settings.bucket}.member.{name}"
            await client.jetstream().publish(subject, b"\xff" * 20_000)

    bucket.connection.call(write, PATIENCE_S)
    assert list(bucket.members()) == ["one"]
    other = follow(settings, tmp_path / "other")
    try:
        wait_for(lambda: list(other.members) == ["one"], "a worker beside them")
    finally:
        other.close()
    assert list(membership.members) == ["one"]


def test_a_member_with_all_the_weight_that_nobody_reaches_keeps_no_stream(
    membership: Membership, bucket: PoolBucket
) -> None:
    bucket.put_member(member("good"))
    bucket.put_member(member("bad", model="none", weight=1e9))
    wait_for(lambda: len(membership.members) == 2, "both")
    first = membership.best("porch")
    assert first is not None
    assert first.name == "bad"
    second = membership.best("porch", {"bad"})
    assert second is not None
    assert second.name == "good"
