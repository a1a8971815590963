"""A known sound goes into a `privacy: sensor` pipeline, and is looked for in all that comes out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from audio_search import AudioSearch, planted_noise
from audit_lines import lines
from pipeline import Pipeline, pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.cli.privacy_checks import check_privacy
from ast_stream.feed import FeedMessage, Subscriber
from ast_stream.messages.audio import ReadRequest
from ast_stream.messages.query import AudioAnswer
from ast_stream.privacy.access import SENSOR_REFUSAL
from ast_stream.privacy.audit import Access
from ast_stream.privacy.sheet import sheet
from ast_stream.settings.load import load_settings
from ast_stream.settings.storage import kept, undeclared
from ast_stream.transport.sockets import Sockets

PLANTED = tones_and_noise(12.0) + planted_noise(12.0) // 32
RULES = """
version: 1
groups: [{name: g, rules: [{alert: heard, match: {any_of: [Bark]}, actions: [note]}]}]
"""
ALERTS = {"rules": ["rules.yaml"], "actions": {"note": {"type": "log"}}}
AS_ANOTHER_USER = """
import os, sys
from ast_stream.transport.sockets import Sockets
sockets = Sockets()
os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(65534, 65534, 65534)
dealer = sockets.connect("dealer", sys.argv[1], 8)
dealer.send([sys.argv[2].encode()])
os.write(1, b"|".join(dealer.receive(60_000) or []))
os._exit(0)
"""


@pytest.fixture(scope="module")
def sensor(checkpoint: Path) -> Iterator[Pipeline]:
    """A sensor of one stream with alerts, heard for some seconds, still running."""
    detection = {"defaults": {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 0.25}}
    streams = {"a": {"type": "file", "loop": True}}
    with pipeline(checkpoint, streams, privacy="sensor", alerts=ALERTS, detection=detection) as run:
        run.write_audio(PLANTED)
        # only what processes leave behind is searched: the recording stands for the room
        (run.folder / "rules.yaml").write_text(RULES)
        run.start("alerts", "alerts")
        run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "worker")
        run.start_capture("a")
        wait_for(lambda: heard_s(run) > 6, "some seconds of sound")
        yield run


@pytest.fixture(scope="module")
def search() -> AudioSearch:
    return AudioSearch(PLANTED)


def heard_s(run: Pipeline) -> float:
    (answer,) = ask(run, "query.sock", {"op": "snapshot"})[:1]
    streams = json.loads(answer)["streams"]
    return max((stream["audio_s"] or 0.0 for stream in streams), default=0.0)


def ask(run: Pipeline, socket: str, query: object) -> list[bytes]:
    sockets = Sockets()
    try:
        dealer = sockets.connect("dealer", f"ipc://{run.folder}/run/{socket}", 8)
        dealer.send([json.dumps(query).encode()])
        frames = dealer.receive(60_000)
        assert frames is not None
        return frames
    finally:
        sockets.close()


def audited(run: Pipeline, process: str) -> list[Access]:
    return lines(run.folder / "state" / "audit" / process)


@pytest.mark.parametrize(
    "span", [(0, 16_000), (0, 1), ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z")]
)
def test_no_query_gets_audio_from_a_sensor(sensor: Pipeline, span: tuple[object, object]) -> None:
    query = {"op": "audio", "stream": "a", "from": span[0], "to": span[1]}
    assert [json.loads(frame) for frame in ask(sensor, "query.sock", query)] == [
        {"v": 1, "error": SENSOR_REFUSAL}
    ]
    line = audited(sensor, "worker")[0]
    assert (line.outcome, line.reason) == ("refused", SENSOR_REFUSAL)
    assert line.who == f"process {os.getpid()} of user {os.geteuid()}"


def test_the_ring_of_a_sensor_is_for_the_worker_alone(sensor: Pipeline) -> None:
    read = ReadRequest(v=1, op="read", stream="a").to_json()
    assert json.loads(ask(sensor, "ring.a.sock", read)[0]) == {"v": 1, "error": "not_allowed"}
    empty = ask(sensor, "ring.a.sock", read | {"start": 0, "stop": 0})
    assert json.loads(empty[0])["next"] > 0  # how the stream is, which status asks
    assert empty[1] == b""
    wait_for(lambda: bool(audited(sensor, "capture.a")), "the record of it")
    assert audited(sensor, "capture.a")[0].outcome == "refused"


def test_a_worker_that_takes_the_place_of_the_first_goes_on_from_the_ring(
    checkpoint: Path,
) -> None:
    with pipeline(checkpoint, {"a": {"type": "file"}}, privacy="sensor") as run:
        run.write_audio(PLANTED[: 12 * 16_000])
        run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "worker")
        run.start_capture("a")
        wait_for(lambda: heard_s(run) > 3, "some sound")
        run.kill("worker")
        time.sleep(1.0)
        run.start_worker()
        assert run.wait("capture-a") == 0, run.log("capture-a")
        assert run.stop("worker") == 0
        assert "stream a: resumed at sample" in run.log("worker")
        assert not [topic for topic, _ in run.published() if topic.startswith("gap/")]
        assert not (run.folder / "state" / "audit").exists()  # nobody else asked for audio


def test_speech_is_withheld_from_an_answer_that_says_so(checkpoint: Path) -> None:
    sound = tones_and_noise(12.0)
    time_s = np.arange(2 * 16_000) / 16_000
    overtones = np.arange(1, 15)[:, None]
    buzz = np.sum(np.sin(2 * np.pi * 130 * overtones * time_s) / overtones, axis=0)
    sound[48_000:80_000] = (4000 * buzz).astype(np.int16)  # a voice, from second 3 to second 5
    with pipeline(checkpoint, {"a": {"type": "file"}}, privacy="speech") as run:
        run.write_audio(sound)
        run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "worker")
        run.start_capture("a")
        wait_for(lambda: heard_s(run) > 10, "the whole sound")
        query = {"op": "audio", "stream": "a", "from": 0, "to": 160_000}
        answer = AudioAnswer.decode(ask(run, "query.sock", query))
        read = ReadRequest(v=1, op="read", stream="a").to_json()
        assert json.loads(ask(run, "ring.a.sock", read)[0])["error"] == "not_allowed"
        assert answer.withheld is not None
        assert any(start <= 48_000 and stop >= 80_000 for start, stop in answer.withheld)
        for start, stop in answer.withheld:
            assert not answer.block.pcm[start:stop].any()
        free = answer.block.pcm != 0
        np.testing.assert_array_equal(answer.block.pcm[free], sound[: len(free)][free])
        assert free.any()
        (line,) = audited(run, "worker")
        assert line.withheld == sum(stop - start for start, stop in answer.withheld)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("socket", ["query.sock", "ring.a.sock"])
def test_another_user_gets_no_audio_from_a_sensor(
    sensor: Pipeline, search: AudioSearch, socket: str
) -> None:
    for folder in (sensor.folder, sensor.folder / "run"):
        folder.chmod(0o755)
    query: dict[str, object] = {"op": "audio", "stream": "a", "from": 0, "to": 16_000}
    if socket != "query.sock":
        query = {"v": 1, "op": "read", "stream": "a"}
    endpoint = f"ipc://{sensor.folder}/run/{socket}"
    command = [sys.executable, "-c", AS_ANOTHER_USER, endpoint, json.dumps(query)]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    expected = SENSOR_REFUSAL.encode() if socket == "query.sock" else b"not_allowed"
    assert expected in answer
    assert search.find(answer) is None


def test_the_feed_of_a_sensor_holds_no_sound(sensor: Pipeline, search: AudioSearch) -> None:
    said: list[bytes] = []
    sockets = Sockets()
    feeds = [
        sockets.connect("sub", f"ipc://{sensor.folder}/run/{name}", 10_000)
        for name in ("feed.sock", "alerts.sock")
    ]
    for feed in feeds:
        feed.subscribe("")

    def has_said_everything() -> bool:
        for feed in feeds:
            while (frames := feed.receive(20)) is not None:
                said.extend(frames)
        topics = {frame.split(b"/")[0] for frame in said}
        return topics >= {b"event", b"scores", b"health", b"status"}

    wait_for(has_said_everything, "an event, scores, health and status")
    sockets.close()
    for body in (b"".join(said), *said):
        assert search.find(body) is None


def test_no_other_answer_of_a_sensor_holds_sound(sensor: Pipeline, search: AudioSearch) -> None:
    for query in ({"op": "snapshot"}, {"op": "replay"}, {"op": "ping"}):
        assert search.find(b"".join(ask(sensor, "query.sock", query))) is None


def test_no_file_of_a_sensor_holds_sound(sensor: Pipeline, search: AudioSearch) -> None:
    wait_for(lambda: (sensor.folder / "state" / "alerts.sqlite").exists(), "the alerts")
    found = {}
    for path in sensor.folder.rglob("*"):
        if path.is_file() and path != sensor.folder / "audio.wav":
            with suppress(FileNotFoundError):  # a draft, which has its place by now
                found[path.name] = path.read_bytes()
                assert search.find(found[path.name]) is None, path
    assert found.keys() >= {"worker-journal.jsonl", "alerts.sqlite", "worker.log"}
    assert search.find((sensor.folder / "audio.wav").read_bytes()) is not None


def test_the_memory_of_a_sensor_is_never_dumped(sensor: Pipeline) -> None:
    for name in ("worker", "capture-a"):
        limits = Path(f"/proc/{sensor.processes[name].pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0", limits)


def test_a_sensor_keeps_no_descriptor_to_a_file_with_sound(sensor: Pipeline) -> None:
    for name in ("worker", "alerts"):
        opened = Path(f"/proc/{sensor.processes[name].pid}/fd")
        targets = set()
        for path in opened.iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                targets.add(os.readlink(path))
        regular = [Path(target) for target in targets if target.startswith(str(sensor.folder))]
        for path in regular:
            assert path.name != "audio.wav"


def test_the_sheet_lists_every_file_of_a_real_run(sensor: Pipeline) -> None:
    settings = load_settings(sensor.config)
    wait_for(lambda: (sensor.folder / "state" / "alerts.sqlite").exists(), "the alerts")
    folders = (sensor.folder / "state", sensor.folder / "run")
    files = [path for folder in folders for path in folder.rglob("*") if not path.is_dir()]
    assert list(undeclared(settings, iter(files))) == []
    declared = {row.what for row in sheet(settings).files}
    found = {kind.name for kind in kept(settings) if any(map(kind.is_one, files))}
    assert {"events", "coverage", "alerts", "journal", "sockets"} <= found <= declared
    for kind in kept(settings):
        if kind.max_bytes is not None and kind.name != "sockets":
            assert sum(map(size_of, filter(kind.is_one, files))) <= kind.max_bytes


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # a draft, which has its place by now
        return 0


def test_doctor_tries_to_get_audio_and_is_refused(sensor: Pipeline) -> None:
    settings = load_settings(sensor.config)
    checks = list(check_privacy(settings))
    assert [check.status for check in checks] == ["ok"] * len(checks), checks
    texts = "; ".join(check.text for check in checks)
    for said in (
        "tried to get audio of a, and was refused",
        "tried to read the ring of a, and was refused",
        "worker: no core dumps, and no memory is swapped out",
        "capture a: no core dumps",
        "none of them a recording",
    ):
        assert said in texts
    clip = sensor.folder / "state" / "clip.bin"
    clip.write_bytes((sensor.folder / "audio.wav").read_bytes())
    failed = [check.text for check in check_privacy(settings) if check.status == "failed"]
    clip.unlink()
    assert failed == [f"a recording: {clip}"]


def test_doctor_notices_processes_that_run_with_another_privacy(checkpoint: Path) -> None:
    with pipeline(checkpoint, {"a": {"type": "file", "loop": True}}) as run:
        run.write_audio(PLANTED)
        run.start_worker()
        wait_for(lambda: "ready:" in run.log("worker"), "worker")
        run.start_capture("a")
        wait_for(lambda: heard_s(run) > 2, "some sound")
        settings = load_settings(run.config)
        for mode, said in (("sensor", "the worker gave"), ("speech", "withholds no speech of a")):
            wanted = settings.model_copy(update={"privacy": mode})
            failed = [check.text for check in check_privacy(wanted) if check.status == "failed"]
            assert any(said in text for text in failed)
            assert any("the ring of a gave" in text for text in failed)
            assert any("may leave its memory in a core dump" in text for text in failed)
        for process in ("worker", "capture.a"):  # what was given is recorded with privacy: off, too
            wait_for(lambda: bool(audited(run, process)), "the record of it")  # noqa: B023
            line = audited(run, process)[0]
            assert (line.outcome, line.who) == (
                "granted",
                f"process {os.getpid()} of user {os.geteuid()}",
            )
            assert line.samples > 0


def test_events_still_come_from_a_sensor(sensor: Pipeline) -> None:
    with Subscriber(f"ipc://{sensor.folder}/run/feed.sock", after="oldest") as feed:
        wait_for(lambda: isinstance(feed.receive(0.2), FeedMessage), "an event")
