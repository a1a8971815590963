"""The consumer of examples/centre keeps each message once, whatever is killed when."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.js.api
import psycopg
import pytest
from brokers import Nats
from centre import KINDS, SUBJECTS, Body, Consumer, cloud_event, encoded
from messages import REFUSED, read
from mqtt_broker import MOSQUITTO, Broker, mqtt_broker
from nats_server import NatsServer, nats_server, needs_nats
from postgres import Postgres, postgres
from stores import Parquet
from stores import Postgres as PostgresStore

PATIENCE_S = 60.0
N_MESSAGES = 600

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (apt)")
Publish = Callable[[list[Body]], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def database(server: Postgres) -> Iterator[Postgres]:
    yield server
    with server.connect() as db:
        db.execute("DROP TABLE IF EXISTS messages CASCADE")


@needs_nats
def test_consumer_of_nats_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, database: Postgres
) -> None:
    with nats_server(tmp_path / "nats") as broker:
        asyncio.run(_make_stream(broker.url))
        publish = _nats_publisher(broker)
        check_kills(tmp_path, database, ("--nats", broker.url), publish, broker)


@needs_nats
def test_stream_that_no_box_has_made_yet_is_said_in_words(tmp_path: Path) -> None:
    async def receive(url: str) -> None:
        await Nats(url, "AST_STREAM", "centre", ack_wait_s=30).receive(1, 1.0)

    unmade = pytest.raises(ConnectionError, match="no box has made the stream AST_STREAM yet")
    with nats_server(tmp_path) as broker, unmade:
        asyncio.run(receive(broker.url))


@needs_mosquitto
def test_consumer_of_mqtt_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, database: Postgres
) -> None:
    lines = ("persistence true", f"persistence_location {tmp_path}/", "max_queued_messages 0")
    with mqtt_broker(tmp_path, *lines) as broker:
        publish = _mqtt_publisher(broker)
        check_kills(tmp_path, database, ("--mqtt", f"127.0.0.1:{broker.port}"), publish, None)


def check_kills(
    folder: Path,
    database: Postgres,
    source: tuple[str, ...],
    publish: Publish,
    broker: NatsServer | None,
) -> None:
    """Kill the consumer, the database and the broker while messages come, some of them twice."""
    rng = random.Random(5)
    files = folder / "files"
    stores = ("--postgres", database.address, "--parquet", str(files))
    consumer = Consumer(folder, *source, *stores, "--every-s", "0.1", "--max-messages", "50")
    consumer.start()
    try:
        # an MQTT broker keeps nothing before somebody has subscribed
        wait_until(lambda: _is_there(publish, database), "the first message")
        events = [cloud_event(n, box=f"box-{n % 3}") for n in range(N_MESSAGES)]
        for start in range(0, N_MESSAGES, N_MESSAGES // 4):
            publish(events[start : start + N_MESSAGES // 4])
            publish(rng.sample(events[: start + 1], min(start + 1, 20)))
            time.sleep(rng.uniform(0, 0.6))
            consumer.kill()
            if start == N_MESSAGES // 4:
                database.kill()
                database.start()
            if start == N_MESSAGES // 2 and broker is not None:
                broker.kill()
                broker.start()
            consumer.start()
        publish([cloud_event(n) for n in range(N_MESSAGES, N_MESSAGES + 20)])
        expected = sorted((e["source"], e["id"]) for e in events) + [
            ("/home/attic/porch", f"{n}.gap") for n in range(N_MESSAGES, N_MESSAGES + 20)
        ]
        wait_until(lambda: len(_keys(database)) >= len(expected) + 1, consumer.log[-500:])
        wait_until(lambda: len(_file_keys(files)) >= len(expected) + 1, consumer.log[-500:])
        assert _keys(database) == sorted([*expected, ("/home/attic/porch", "0.gap")])
        assert _file_keys(files) == _keys(database)
        with database.connect() as db:
            found = db.execute("SELECT data FROM messages WHERE id = '7.gap'").fetchall()
        assert found == [(events[7]["data"],)]
    finally:
        consumer.close()


def test_rows_are_written_once_to_files_whatever_comes_again(tmp_path: Path) -> None:
    rows = [read("t", encoded(cloud_event(n))) for n in range(10)]
    lost = read("t", encoded({k: v for k, v in cloud_event(99).items() if k != "time"}))
    store = Parquet(tmp_path)
    assert store.write([*rows[:6], rows[0], lost]) == 7
    store.close()
    (tmp_path / "day=2026-11-20" / "000002.tmp").write_bytes(b"PAR1")  # killed while writing
    again = Parquet(tmp_path)
    assert again.write([*rows, lost]) == 4
    assert again.write(rows) == 0
    with pytest.raises(OSError, match="another consumer writes to"):
        Parquet(tmp_path)
    again.close()
    assert len(_file_keys(tmp_path)) == 11
    assert list(tmp_path.glob("*/*.tmp")) == []


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"{",
        b"[]",
        b"{}",
        b'{"source": 1}',
        encoded(cloud_event(1) | {"id": ""}),
        encoded(cloud_event(1) | {"time": "yesterday"}),
        encoded(cloud_event(1) | {"data": float("nan")}),
        encoded(cloud_event(1, text="\0")),
        encoded(cloud_event(1, text="\ud800")),
        encoded(cloud_event(1) | {"source": "\ud800"}),
        b'{"data":' + b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_a_row_that_says_so(body: bytes) -> None:
    row = read("ast_stream.home.attic.gap.porch", body)
    assert row.type == REFUSED
    assert base64.b64decode(json.loads(row.data)["body_base64"]) == body


def test_row_that_the_database_refuses_holds_up_no_other(database: Postgres) -> None:
    noise = random.Random(1).randbytes(9000).hex()  # longer than an index takes
    store = PostgresStore(database.address)
    rows = [read("t", encoded(cloud_event(n))) for n in range(3)]
    assert store.write([rows[0], read("t", encoded(cloud_event(1, id=noise))), *rows[1:]]) == 4
    store.close()
    with database.connect() as db:
        assert db.execute("SELECT count(*) FROM messages").fetchall() == [(4,)]
        refused = db.execute("SELECT topic, why FROM refused").fetchall()
    assert len(refused) == 1
    assert refused[0][0] == "/home/attic/porch"
    assert "index" in refused[0][1]


def test_views_have_one_row_for_each_event_gap_and_alert(database: Postgres) -> None:
    bark: Body = {"id": "e1", "class": "bark", "label": "Bark", "onset": "2026-11-20T10:00:00Z"}
    bark |= {"offset": None, "duration_s": None, "peak": 0.7, "score": 0.7}
    ended = bark | {"offset": "2026-11-20T10:00:02.5Z", "duration_s": 2.5, "peak": 0.9}
    alert: Body = {"id": "a1", "rule": "dog", "severity": "high", "state": "firing"}
    alert |= {"started": "2026-11-20T10:00:00Z", "fired": "2026-11-20T10:00:01Z"}
    over = alert | {"state": "resolved", "resolved": "2026-11-20T10:00:30Z"}
    gap: Body = {"time": "2026-11-20T09:00:00Z", "duration_s": 1.5, "samples": 24000}
    heard: Body = {"from": "2026-11-20T10:00:00Z", "to": "2026-11-20T10:05:00Z", "heard": 0.9}
    gone: Body = {"from": "feed", "count": None, "reason": "too old"}
    events = [
        cloud_event(1, kind="event.begin", **bark),
        cloud_event(2, kind="event.update", **bark),
        cloud_event(3, kind="event.end", **ended | {"reason": "quiet"}),
        cloud_event(4, kind="event.begin", **bark | {"id": "e2"}),
        cloud_event(5, kind="gap", **gap | {"reason": "overflow"}),
        cloud_event(6, kind="alert.firing", **alert),
        cloud_event(7, kind="alert.resolved", **over),
        cloud_event(8, kind="coverage", **heard),
        cloud_event(9, kind="lost", **gone),
    ]
    _keep(database, events)
    with database.connect() as db:
        rows = db.execute(
            "SELECT site, box, stream, class, event, e.offset - e.onset, peak, reason"
            " FROM events AS e ORDER BY event"
        ).fetchall()
        gaps = db.execute("SELECT stream, duration_s, samples, reason FROM gaps").fetchall()
        coverage = db.execute("SELECT stream, ended - began, heard FROM coverage").fetchall()
        lost = db.execute("SELECT kind, count, reason FROM lost").fetchall()
        alerts = db.execute("SELECT rule, state, resolved - started FROM alerts").fetchall()
    assert [row[:5] for row in rows] == [
        ("home", "attic", "porch", "bark", "e1"),
        ("home", "attic", "porch", "bark", "e2"),
    ]
    assert rows[0][5].total_seconds() == 2.5
    assert rows[0][6:] == (0.9, "quiet")
    assert rows[1][5:] == (None, 0.7, None)
    assert gaps == [("porch", 1.5, 24000, "overflow")]
    assert [(row[0], row[1].total_seconds(), row[2]) for row in coverage] == [("porch", 300, 0.9)]
    assert lost == [("feed", None, "too old")]
    assert [(rule, state, took.total_seconds()) for rule, state, took in alerts] == [
        ("dog", "resolved", 30.0)
    ]


def test_one_sound_at_several_microphones_is_one_row(database: Postgres) -> None:
    heard = [  # microphone, seconds, peak
        ("a", 0.0, 0.9), ("b", 0.3, 0.6), ("c", 0.5, 0.5),
        ("a", 1.5, 0.8), ("b", 1.8, 0.95),
        ("c", 10.0, 0.4), ("a", 13.0, 0.4),
    ]  # fmt: skip
    events = []
    for n, (microphone, at_s, peak) in enumerate(heard):
        onset = f"2026-11-20T10:00:{at_s:06.3f}Z"
        data: Body = {"id": f"e{n}", "class": "bark", "onset": onset, "peak": peak}
        event = cloud_event(n, kind="event.end", **data)
        events.append(event | {"source": f"/farm/{microphone}/yard"})
    events.append(events[0] | {"source": "/home/a/yard"})  # of another group
    _keep(database, events)
    query = Path(__file__).parents[2] / "examples/centre/one_sound.sql"
    values = {"class": "bark", "within": "1 second", "streams": "/farm/%"}
    options = [word for pair in values.items() for word in ("-v", "=".join(pair))]
    lines = database.psql(*options, "-f", str(query)).splitlines()
    found = [(line.split("|")[2], float(line.split("|")[4]), line.split("|")[5]) for line in lines]
    assert found == [
        ("/farm/a/yard", 0.9, "3"),
        ("/farm/b/yard", 0.95, "2"),
        ("/farm/c/yard", 0.4, "1"),
        ("/farm/a/yard", 0.4, "1"),
    ]


def _keep(database: Postgres, events: list[Body]) -> None:
    store = PostgresStore(database.address)
    store.write([read("t", encoded(event)) for event in events])
    store.close()


def _is_there(publish: Publish, database: Postgres) -> bool:
    publish([cloud_event(0)])
    try:
        return bool(_keys(database))
    except psycopg.errors.UndefinedTable:
        return False


def _keys(database: Postgres) -> list[tuple[Any, ...]]:
    with database.connect() as db:
        return sorted(db.execute("SELECT source, id FROM messages").fetchall())


def _file_keys(folder: Path) -> list[tuple[Any, ...]]:
    import pyarrow.dataset  # which imports pandas: each process collects all tests

    table = pyarrow.dataset.dataset(
        sorted(folder.glob("*/*.parquet")), format="parquet"
    ).to_table(columns=["source", "id"])  # fmt: skip
    return sorted(zip(*table.to_pydict().values(), strict=True))


async def _make_stream(url: str) -> None:
    client = await nats.connect(url)
    subjects = [SUBJECTS.format(kind) for kind in KINDS]
    await client.jetstream().add_stream(name="AST_STREAM", subjects=subjects)
    await client.close()


def _nats_publisher(broker: NatsServer) -> Publish:
    async def publish(events: list[Body]) -> None:
        client = await nats.connect(broker.url)
        for event in events:
            subject = f"ast_stream{event['source'].replace('/', '.')}"
            site_box, stream = subject.rsplit(".", 1)
            await client.jetstream().publish(f"{site_box}.gap.{stream}", encoded(event))
        await client.close()

    return lambda events: asyncio.run(publish(events))


def _mqtt_publisher(broker: Broker) -> Publish:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    def publish(events: list[Body]) -> None:
        client = Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        sent = []
        for event in events:
            site_box, stream = event["source"][1:].rsplit("/", 1)
            topic = f"ast_stream/{site_box}/gap/{stream}"
            sent.append(client.publish(topic, encoded(event), qos=1))
        for message in sent:
            message.wait_for_publish(PATIENCE_S)
        client.disconnect()
        client.loop_stop()

    return publish


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.1)
