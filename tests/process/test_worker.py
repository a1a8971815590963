"""The worker among peers that are absent, killed, broken, slow or hostile."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import make_strange
from pipeline import Pipeline, events_of, pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.feed import FeedMessage, Subscriber
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.codec import encode_json
from ast_stream.transport.sockets import Socket, Sockets

FAST = {"type": "file", "pace": "fast"}
REALTIME = {"type": "file"}


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(60.0)


def ready(run: Pipeline) -> bool:
    return "ready:" in run.log("worker")


def wait_for_message(feed: Subscriber, what: str, **wanted: Any) -> dict[str, Any]:
    """Return the first body that has these values."""
    found: dict[str, Any] = {}

    def arrived() -> bool:
        message = feed.receive(0.1)
        if isinstance(message, FeedMessage):
            found.update(message.body)
            return all(message.body.get(key) == value for key, value in wanted.items())
        return False

    wait_for(arrived, what)
    return found


def ask(socket: Socket, frame: bytes) -> list[bytes]:
    """Send one query and return its answer."""
    assert socket.send([frame])
    answer = socket.receive(60_000)
    assert answer is not None
    return answer


def test_garbage_on_every_socket_is_counted_and_changes_nothing(
    checkpoint: Path, pcm: Pcm16
) -> None:
    with pipeline(checkpoint, {"a": dict(FAST)}) as calm:
        calm.write_audio(pcm)
        calm.start_worker()
        calm.start_capture("a")
        assert calm.wait("capture-a") == 0
        calm.stop("worker")
        expected = events_of(calm.published(), "a")

    good = {"v": 1, "epoch": "ab" * 8, "start": 0, "rate": 16000, "samples": 2}
    good |= {"time": "2026-11-20T10:00:30Z", "monotonic_ns": 5}
    bad_headers: list[bytes] = [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"v":1,"start":NaN}',
        b"[" * 9_000,
        b'{"v":1}' + b" " * 70_000,
        *(
            encode_json(good | change)
            for change in (
                {"v": 2},
                {"start": -1},
                {"start": 1e300},
                {"start": 10**30},
                {"samples": 10**9},
                {"rate": 8000},
                {"epoch": "../../etc"},
                {"time": "yesterday"},
                {"monotonic_ns": -1},
                {"time": "9999-12-31T23:59:59.999999-23:59"},
                {"ring": "tcp://10.0.0.1:99"},
                {"ring": "ipc:///etc/passwd"},
            )
        ),
    ]
    with pipeline(checkpoint, {"a": dict(FAST)}) as run:
        run.write_audio(pcm)
        run.start_worker()
        wait_for(lambda: ready(run), "worker")
        sockets = Sockets()
        push = sockets.connect("push", f"ipc://{run.folder}/run/audio.sock", 1000)
        query = sockets.connect("dealer", f"ipc://{run.folder}/run/query.sock", 1000)
        wait_for(lambda: push.send([b"a"]), "connection")
        sent = 1
        for stream in (b"a", b"new-one", b"Bad Name", b"\xff", b""):
            for header in bad_headers:
                sent += push.send([stream, header, b"\0" * 4])
            sent += push.send([stream] * 7)
        refused = 0
        for frame in bad_headers:
            refused += "error" in json.loads(ask(query, frame)[0])
        assert refused == len(bad_headers)
        run.start_capture("a")
        assert run.wait("capture-a") == 0
        status = json.loads(ask(query, b'{"op":"snapshot"}')[0])["status"]
        assert status["counters"]["blocks_refused"] >= sent - 5  # the rest fell on a full queue
        assert status["streams"] == ["a"]
        sockets.close()
        assert run.stop("worker") == 0
        assert events_of(run.published(), "a") == expected
        assert run.log("worker").count("audio block refused") < 10


def test_capture_killed_and_restarted_costs_a_gap_and_no_event_stays_open(
    checkpoint: Path, pcm: Pcm16
) -> None:
    with pipeline(checkpoint, {"a": dict(REALTIME)}) as run:
        run.write_audio(pcm)
        feed = Subscriber(run.feed, topics=("event/", "gap/", "health/"), after="oldest")
        run.start_worker()
        missing = wait_for_message(feed, "health before any capture", state="missing")
        assert "no capture process answers at ipc://" in missing["detail"]
        run.start_capture("a")
        wait_for_message(feed, "audio", state="listening")
        wait_for_message(feed, "an event", type="begin")
        run.kill("capture-a")
        lost = wait_for_message(feed, "health without capture", state="missing")
        assert lost["epoch"]
        run.start_capture("a")
        gap = wait_for_message(feed, "the gap", reason="capture_restart")
        assert gap["epoch"] == lost["epoch"]
        assert gap["samples"] > 0
        assert wait_for_message(feed, "new epoch", state="listening")["epoch"] != lost["epoch"]
        feed.close()
        assert run.stop("worker") == 0
        bodies = [body for topic, body in run.published() if topic.startswith("event/")]
    begun = [body["id"] for body in bodies if body["type"] == "begin"]
    ended = [body["id"] for body in bodies if body["type"] == "end"]
    assert sorted(begun) == sorted(ended)
    assert len(set(begun)) == len(begun)
    assert {"shutdown", "quiet", "gap", "stream_lost"} >= {b["reason"] for b in bodies} - {None}


def test_audio_asked_for_is_what_was_captured_and_slow_readers_cost_nothing(
    checkpoint: Path, pcm: Pcm16
) -> None:
    with pipeline(checkpoint, {"a": dict(FAST)}) as run:
        run.write_audio(pcm)
        run.start_worker()
        wait_for(lambda: ready(run), "worker")
        sockets = Sockets()
        sleepers = [sockets.connect("sub", run.feed, 1) for _ in range(3)]
        for sleeper in sleepers:
            sleeper.subscribe("")  # and never receives
        query = sockets.connect("dealer", f"ipc://{run.folder}/run/query.sock", 1000)
        run.start_capture("a")
        assert run.wait("capture-a") == 0  # all is decided and logged
        answer = ask(query, b'{"op":"audio","stream":"a","from":800000,"to":816000}')
        header = json.loads(answer[0])
        assert (header["start"], header["samples"]) == (800_000, 16_000)
        assert np.array_equal(np.frombuffer(answer[1], "<i2"), pcm[800_000:816_000])
        pong = json.loads(ask(query, b'{"op":"ping"}')[0])
        page = json.loads(ask(query, b'{"op":"replay","after":null}')[0])
        assert page["messages"][-1]["body"]["seq"] == pong["durable_seq"]
        sockets.close()
        assert run.stop("worker") == 0


def test_second_worker_is_refused_with_one_sentence(checkpoint: Path, pcm: Pcm16) -> None:
    with pipeline(checkpoint, {"a": dict(FAST)}) as run:
        run.start_worker()
        wait_for(lambda: ready(run), "worker")
        second = subprocess.run(
            [sys.executable, "-m", "ast_stream.cli", "worker", "--config", str(run.config)],
            capture_output=True,
            text=True,
        )
        assert second.returncode == 3
        assert "audio.sock is in use by another process" in second.stderr
        assert "Traceback" not in second.stderr
        assert run.stop("worker") == 0


def test_classes_the_model_does_not_have_are_a_configuration_mistake(checkpoint: Path) -> None:
    detection = {"classes": {"Brak": {"onset_threshold": 0.5}}}
    with pipeline(checkpoint, {"a": dict(FAST)}, detection=detection) as run:
        run.start_worker()
        assert run.wait("worker") == 78
        assert "unknown class 'Brak'; did you mean 'Bark'?" in run.log("worker")


def test_folder_that_cannot_be_written_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pipeline(checkpoint, {"a": dict(FAST)}, state_dir=str(tmp_path / "file" / "x")) as run:
        run.start_worker()
        assert run.wait("worker") == 3
        assert "state_dir: cannot create" in run.log("worker")
        assert "Traceback" not in run.log("worker")


@pytest.mark.parametrize("kind", ["FIFO", "full folder", "sparse file", "device"])
def test_worker_starts_and_works_whatever_lies_in_the_place_of_its_state(
    checkpoint: Path, pcm: Pcm16, kind: str
) -> None:
    with pipeline(checkpoint, {"a": dict(FAST)}) as run:
        run.write_audio(pcm[: 10 * 16_000])
        (run.folder / "run").mkdir(mode=0o750)
        (run.folder / "state" / "events").mkdir(parents=True)
        for name in (
            "run/worker-journal.jsonl",
            "run/.worker-journal.jsonl.unfinished",
            "run/audio.sock.lock",
            "state/events/events-000000000001.jsonl",
            "state/events/events-000000000007.jsonl",
            "state/events/lock",
        ):
            make_strange(run.folder / name, kind)
        run.start_worker()
        run.start_capture("a")
        assert run.wait("capture-a") == 0, run.log("capture-a")
        assert run.stop("worker") == 0
        assert events_of(run.published(), "a")
        assert "Traceback" not in run.log("worker")
        assert "kept as worker-journal.jsonl.damaged-1" in run.log("worker")


def test_worker_goes_on_with_what_a_mutated_journal_is_certain_of(
    checkpoint: Path, pcm: Pcm16
) -> None:
    with pipeline(checkpoint, {"a": dict(REALTIME), "b": dict(REALTIME)}) as run:
        run.write_audio(pcm)
        run.start_worker()
        run.start_capture("a")
        run.start_capture("b")
        journal = run.folder / "run" / "worker-journal.jsonl"
        wait_for(lambda: journal.exists() and journal.read_bytes().count(b"position") == 2, "both")
        run.kill("worker")
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(lines[0] + lines[1].replace(b"position", b"positiom") + lines[2])
        run.start_worker()
        wait_for(lambda: "stream a: resumed at sample" in run.log("worker"), "the intact stream")
        wait_for(lambda: "stream b: epoch" in run.log("worker"), "the other")
        assert "1 of its lines are damaged): kept as worker-journal.jsonl.damaged-1" in (
            run.log("worker")
        )
        assert run.stop("worker") == 0
