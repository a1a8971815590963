"""A recorder and a page of a pool: an event whose worker goes has one row, and one clip."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
from forked_command import run_command
from nats_server import needs_nats
from pool_of_workers import PATIENCE_S, PoolOfWorkers
from ports import free_ports

from ast_stream.history.database import FILE, History
from ast_stream.history.records import EventQuery, EventRecord
from ast_stream.units import SAMPLE_RATE

pytestmark = needs_nats
LONG = "mic-001"  # one of its barks lasts from 10 s to 20 s, its siren all the time
KILLED_AT = 14 * SAMPLE_RATE
PRE_S, POST_S = 1.0, 0.5


@pytest.fixture
def pool(checkpoint: Path) -> Iterator[PoolOfWorkers]:
    folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))  # ipc paths are short
    running = PoolOfWorkers(
        folder,
        checkpoint,
        n_streams=2,
        duration_s=36.0,
        n_captures=1,
        hop_s=1.0,
        has_keys=True,
        dead_s=3.0,
    )
    bounds = {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 3.0}
    running.common["detection"] = {"defaults": bounds}
    try:
        running.nats.start()
        yield running
    finally:
        running.remove()


@contextmanager
def reading(pool: PoolOfWorkers) -> Iterator[History | None]:
    path = pool.folder / "recorder" / "state" / "history" / FILE
    if not path.exists():
        yield None
        return
    history = History.open_read_only(path)
    try:
        yield history
    finally:
        history.close()


def events(pool: PoolOfWorkers) -> list[EventRecord]:
    with reading(pool) as history:
        return [] if history is None else list(history.all_events(EventQuery()))


def is_in_its_middle(pool: PoolOfWorkers) -> bool:
    """Whether the recorder knows of a bark that began some seconds ago and lasts."""
    return any(
        event.stream == LONG and event.label == "Bark" and (event.at_sample or 0) >= KILLED_AT
        for event in events(pool)
    )


def is_complete(pool: PoolOfWorkers) -> bool:
    with reading(pool) as history:
        if history is None:
            return False
        clipped = {clip.event_id for clip, _ in history.all_clips()}
    found = events(pool)
    return bool(found) and all(not one.is_open and one.id in clipped for one in found)


def status(pool: PoolOfWorkers) -> dict[str, object]:
    listed = run_command("status", "--json", "-c", pool.folder / "recorder" / "config.yaml")
    found: dict[str, object] = json.loads(listed.stdout)
    return found


def page_at(address: str) -> str:
    """Return the page Now, which knows the streams by the feeds of their workers alone."""
    try:
        with urlopen(f"http://{address}/") as answer:
            text: bytes = answer.read()
    except OSError:  # it has not begun yet
        return ""
    return text.decode()


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("goes", ["killed", "in order"])
def test_an_event_whose_worker_goes_has_one_row_and_one_whole_clip(
    pool: PoolOfWorkers, goes: str
) -> None:
    for name in ("one", "two"):
        pool.add(name)
    pool.wait(lambda: all(one.is_ready for one in pool.members.values()), "the workers")
    page = f"127.0.0.1:{free_ports()}"
    clips = {"clips": [{"pre_s": PRE_S, "post_s": POST_S}], "max_clip_s": 60.0}
    pool.start_recorder(clips, page)
    log = pool.folder / "recorder" / "record.log"
    pool.wait(lambda: "ready:" in log.read_text(), "the recorder")
    pool.start_captures()
    pool.wait(lambda: LONG in pool.placed(), "a worker for the stream")
    pool.wait(lambda: is_in_its_middle(pool), "the middle of an event")
    first = pool.placed()[LONG]
    if goes == "killed":
        pool.members[first].kill()
    else:
        assert pool.members[first].stop() == 0
    pool.watch(lambda: pool.placed()[LONG] != first)
    pool.wait(lambda: status(pool)["problems"] == [], "the worker to be known as gone")
    shown = [f'id="stream-{name}"' for name in pool.streams]
    pool.wait(lambda: all(text in page_at(page) for text in shown), "the page")
    pool.wait_for_captures()
    pool.wait(lambda: is_complete(pool), "the clips")
    recorder = pool.readers["record"]
    recorder.terminate()
    assert recorder.wait(PATIENCE_S) == 0
    (other,) = (one for one in pool.members.values() if one.is_running)
    other.stop()
    assert pool.overloaded == []
    assert "\n".join(pool.compare()[:20]) == ""
    logged = [body for bodies in pool.published().values() for body in bodies]
    ids = {body["id"] for body in logged if body["topic"].startswith("event/")}
    assert sorted(one.id for one in events(pool)) == sorted(ids)
    check_clips(pool)
    assert "no clip" not in log.read_text()


def check_clips(pool: PoolOfWorkers) -> None:
    """Check that each event has one clip, with the very samples, and the long bark all of it."""
    with reading(pool) as history:
        assert history is not None
        clips = [(clip, event) for clip, event in history.all_clips() if event is not None]
    assert len({event.id for _, event in clips}) == len(clips) == len(events(pool))
    whole = []
    for clip, event in clips:
        pcm = pool.pcm(pool.streams.index(clip.stream))
        onset, offset = event.onset_sample or 0, event.offset_sample or 0
        assert clip.start_sample == max(0, onset - round(PRE_S * SAMPLE_RATE))
        assert clip.stop_sample == min(len(pcm), offset + round(POST_S * SAMPLE_RATE))
        sound, _ = soundfile.read(pool.folder / "recorder/state/clips" / clip.path, dtype="int16")
        np.testing.assert_array_equal(sound, pcm[clip.start_sample : clip.stop_sample])
        if not clip.note and clip.stream == LONG and onset < KILLED_AT < offset:
            whole.append(event.label)
    assert "Bark" in whole
