from __future__ import annotations

import json
from pathlib import Path

import pytest
from sample_messages import health, worker_status

from ast_stream.errors import StartupError
from ast_stream.forward.health_source import MINUTE_NS, HealthMinutes, HealthSource
from ast_stream.forward.health_spool import HealthSpool
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.messages.status import Health, WorkerStatus
from ast_stream.settings.fleet import BoxIdentity

ATTIC = BoxIdentity("home", "attic")


def published(content: Health | WorkerStatus) -> FeedMessage:
    return FeedMessage.of(content, Stamp("b1", 1, Moment(1, 1)))


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1000 * MINUTE_NS

    def __call__(self) -> int:
        return self.now_ns


def spooled(folder: Path, n_summaries: int) -> HealthSpool:
    spool = HealthSpool(folder)
    for n in range(n_summaries):
        spool.append(f"key{n}", n, {"n": n})
    return spool


def numbers(source: HealthSource, limit: int = 100) -> list[int | str]:
    found: list[int | str] = []
    for item in source.read(limit, 0):
        assert item.outgoing is not None
        body = json.loads(item.outgoing.body)
        found.append(body["data"]["n"] if item.outgoing.kind == "health" else "lost")
    return found


def test_a_minute_of_health_becomes_one_summary(tmp_path: Path) -> None:
    clock = Clock()
    spool = HealthSpool(tmp_path)
    minutes = HealthMinutes(spool, clock)
    for level, lag_s in ((-40.0, 0.1), (-20.0, 3.0)):
        message = published(health(level_dbfs=level, lag_s=lag_s, gaps=2))
        minutes.add(message, None)
    minutes.add(published(health(state="missing", detail="the device is gone")), None)
    minutes.add(published(worker_status(windows_per_s=2.0)), None)
    minutes.tick()
    assert spool.last == 0
    clock.now_ns += MINUTE_NS
    minutes.tick()
    minutes.tick()
    (item,) = HealthSource(spool, None, ATTIC).read(10, 0)
    assert item.outgoing is not None
    body = json.loads(item.outgoing.body)
    assert body["type"] == "org.ast-stream.health"
    assert body["data"]["streams"]["porch"] == {
        "states": {"listening": 2, "missing": 1},
        "level_dbfs": {"mean": -30.0, "max": -20.0},
        "max_lag_s": 3.0,
        "detail": "the device is gone",
    }
    assert body["data"]["workers"][""]["windows_per_s"] == 2.0
    spool.close()


def test_summaries_survive_a_restart_with_their_ids(tmp_path: Path) -> None:
    spool = spooled(tmp_path, 3)
    before = [item.outgoing for item in HealthSource(spool, None, ATTIC).read(9, 0)]
    spool.close()
    spool = HealthSpool(tmp_path)
    assert [item.outgoing for item in HealthSource(spool, None, ATTIC).read(9, 0)] == before
    spool.append("key3", 3, {"n": 3})
    assert numbers(HealthSource(spool, 2, ATTIC)) == [2, 3]
    assert HealthSource(spool, 2, ATTIC).count(2) == 2
    spool.close()


def test_a_torn_last_line_costs_itself_alone(tmp_path: Path) -> None:
    spooled(tmp_path, 3).close()
    (path,) = tmp_path.glob("health-*")
    with path.open("ab") as file:
        file.write(b'{"crc":"0000')
    spool = HealthSpool(tmp_path)
    spool.append("key3", 3, {"n": 3})
    assert numbers(HealthSource(spool, None, ATTIC)) == [0, 1, 2, 3]
    spool.close()


def test_a_spool_that_is_full_drops_the_oldest_and_that_is_said(tmp_path: Path) -> None:
    spool = HealthSpool(tmp_path, max_bytes=4000, segment_bytes=1000)
    for n in range(100):
        spool.append(f"key{n}", n, {"n": n})
    source = HealthSource(spool, 10, ATTIC)
    found = numbers(source)
    assert found[0] == "lost"
    assert found[1] == spool.first - 1
    assert found[-1] == 99
    assert numbers(HealthSource(spool, None, ATTIC))[0] == spool.first - 1
    spool.close()


def test_a_spool_that_was_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    spool = spooled(tmp_path, 2)
    assert numbers(HealthSource(spool, 500, ATTIC)) == [0, 1]
    spool.close()


def test_a_disk_that_refuses_is_tried_again(tmp_path: Path) -> None:
    spool = spooled(tmp_path / "spool", 1)
    folder = tmp_path / "spool"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_text("a file in its place")
    spool.append("key1", 1, {"n": 1})
    assert spool.outage.text is not None
    assert spool.last == 1
    folder.unlink()
    spool.retry()
    assert spool.last == 2
    assert numbers(HealthSource(spool, 1, ATTIC)) == [1]
    spool.close()


def test_two_forwarders_do_not_share_a_spool(tmp_path: Path) -> None:
    spool = HealthSpool(tmp_path)
    with pytest.raises(StartupError, match="in use by another process"):
        HealthSpool(tmp_path)
    spool.close()


def test_a_spool_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    before = HealthSource(spooled(tmp_path / "before", 3), None, ATTIC)
    cursor = before.read(100, 0)[-1].cursor
    anew = HealthSpool(tmp_path / "anew")
    for n in range(5):
        anew.append(f"other{n}", n, {"n": n})
    assert numbers(HealthSource(anew, cursor, ATTIC)) == [0, 1, 2, 3, 4]
    again = HealthSource(anew, cursor, ATTIC).read(2, 0)[-1].cursor
    assert numbers(HealthSource(anew, again, ATTIC)) == [2, 3, 4]
    assert numbers(HealthSource(anew, 3, ATTIC)) == [3, 4]  # of an earlier version
