"""What users and other programs see of the whole system, for `golden/behaviour/`.

Each function returns JSON that `golden/make_behaviour.py` stores and `test_golden_behaviour.py`
compares. As far as possible they look from outside: at commands, sockets and files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import soundfile
import zmq
from reactive_model import save_reactive, tones_and_noise
from worker_harness import Site, site

from ast_stream import load_tagger
from ast_stream.soundscape.scene import generate_scene

STORED = Path(__file__).parents[1] / "golden" / "behaviour"
SAMPLE_RATE = 16_000
SCENE_S = 12.0
RECORDING_S = 16
BLOCKS = (160, 1600, 5000)  # samples
COMMAND = (sys.executable, "-m", "ast_stream.cli")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
OF_A_RUN = ("boot", "seq", "previous", "scored", "published", "monotonic_ns", "clock")
PATIENCE_S = 60.0

Json = Any


def scan_command() -> tuple[list[Json], dict[str, npt.NDArray[Any]]]:
    """Return the lines of `scan --json` for a generated scene, and the arrays of `--scores`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pcm = generate_scene(1, SCENE_S).pcm
        soundfile.write(folder / "scene.wav", pcm, SAMPLE_RATE, subtype="PCM_16")
        model = {"device": "cpu", "precision": "fp32", "attention": "math", "hop_s": 0.25}
        stream = {"name": "unused", "source": {"type": "stdin"}}
        (folder / "config.yaml").write_text(json.dumps({"streams": [stream], "model": model}))
        done = subprocess.run(
            [*COMMAND, "scan", "scene.wav", "--json", "--scores", "s.npz", "-c", "config.yaml"],
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            check=True,
        )
        with np.load(folder / "s.npz") as arrays:
            return [json.loads(line) for line in done.stdout.splitlines()], dict(arrays)


def live_events(block_samples: int) -> list[Json]:
    """Return the event messages of a live stream whose blocks have this length."""
    with _reactive_site() as box:
        box.start_capture(ring_s=30)
        box.start_worker("mic")
        box.play(tones_and_noise(RECORDING_S), block_samples=block_samples)
        _finish(box)
        return _events(box)


def events_of_a_killed_worker() -> list[Json]:
    """Return the event messages of a worker that is killed three times and goes on each time."""
    pcm = tones_and_noise(RECORDING_S)
    with _reactive_site() as box:
        box.start_capture(ring_s=30)
        box.start_worker("mic")
        n_played = 0
        for killed_s in (4.3, 8.0, 12.1):
            away = round(killed_s * SAMPLE_RATE)
            box.play(pcm[n_played:away])
            box.kill_worker()
            n_played = away + SAMPLE_RATE // 2
            box.play(pcm[away:n_played])  # into the ring alone
            box.start_worker("mic")
        box.play(pcm[n_played:])
        _finish(box)
        return _events(box)


def worker_messages() -> dict[str, list[str]]:
    """Return frames on the sockets of a capture process and a worker, and lines of their files."""
    pcm = tones_and_noise(RECORDING_S)
    with _tapped_sockets() as tapped, _reactive_site() as box, zmq.Context() as context:
        box.start_capture(ring_s=4)
        box.read_topics += (b"spectrogram/", b"levels/")
        box.start_worker("mic")
        feed = _Reader(context, f"ipc://{box.folder}/feed.sock", box.send_on_feed)
        ask = _asker(context, f"ipc://{box.folder}/query.sock", box.tick)
        ask_ring = _asker(context, f"ipc://{box.folder}/ring.mic.sock", box.capture().answer)
        found = {"query ping": ask(b'{"op":"ping"}')}
        box.play(pcm[: 5 * SAMPLE_RATE])
        found["query snapshot"] = ask(b'{"op":"snapshot"}')
        assert box.messages()[-1]["type"] != "end", "the snapshot shows no open event"
        found["query audio"] = ask(b'{"op":"audio","stream":"mic","from":1600,"to":1604}')
        found["query audio refused"] = ask(b'{"op":"audio","stream":"x","from":1,"to":2}')
        found["query refused"] = ask(b'{"op":"sing"}')
        read = {"v": 1, "op": "read", "stream": "mic", "epoch": None, "start": 0, "stop": 4}
        found["ring refuses a stream"] = ask_ring(_json(read | {"stream": "x"}))
        found["ring refuses an epoch"] = ask_ring(_json(read | {"epoch": "ffffffff"}))
        found["ring refuses nonsense"] = ask_ring(b"{}")
        box.capture_only(pcm[5 * SAMPLE_RATE : 11 * SAMPLE_RATE])  # more than the ring keeps
        box.tick(50, seconds=0.1)
        box.play(pcm[11 * SAMPLE_RATE :])
        box.tick(5)
        box.tick(2, seconds=1.0)  # the journal is written once a second
        found["journal"] = box.journal_path.read_bytes().splitlines(keepends=True)
        _finish(box)
        found["query replay"] = ask(b'{"op":"replay","after":null}')
        found["query replay too old"] = ask(b'{"op":"replay","after":["none",1]}')
        for frames in feed.read():
            found.setdefault(_kind_of_feed(frames), frames)
        log = sorted(box.folder.glob("events/*.jsonl"))[0].read_bytes().splitlines(keepends=True)
        found["log, boot"], found["log, event"] = log[:1], log[1:2]
        feed.close()
        for socket_type, direction, frames in tapped:
            if socket_type == zmq.PUSH:
                found.setdefault("audio block", frames)
            elif socket_type == zmq.DEALER and b'"op":"read"' in frames[0]:
                found.setdefault("ring read", frames)
            elif socket_type == zmq.DEALER and b'"op":"ack"' in frames[0]:
                found.setdefault("ring ack", frames)
            elif direction == "received" and b'"oldest":' in frames[0] and frames[-1]:
                found.setdefault("ring reply", frames)
        return {kind: _readable(found[kind], box.folder) for kind in sorted(found)}


def process_messages() -> dict[str, list[str]]:
    """Return what real processes of one configuration publish: status and alerts."""
    rule = {"alert": "alarm", "match": {"class": "Alarm"}, "severity": "high"}
    rule["annotations"] = {"summary": "{{ label }} in the {{ stream.name }}"}
    found: dict[str, list[bytes]] = {}
    with tempfile.TemporaryDirectory(prefix="asg-", dir="/tmp") as name:  # ipc paths are short
        folder = Path(name)
        rules = {"version": 1, "groups": [{"name": "g", "actions": [], "rules": [rule]}]}
        (folder / "rules.yaml").write_text(json.dumps(rules))
        settings = {
            "runtime_dir": f"{folder}/run",
            "state_dir": f"{folder}/state",
            "streams": [{"name": "hall", "labels": {"room": "hall"}, "source": _scene(60.0)}],
            "model": {"device": "cpu", "precision": "fp32", "attention": "math", "hop_s": 0.25},
            "alerts": {"rules": ["rules.yaml"]},
        }
        (folder / "config.yaml").write_text(json.dumps(settings))
        with zmq.Context() as context:
            feeds = [context.socket(zmq.SUB) for _ in range(2)]
            for feed, endpoint in zip(feeds, ("feed", "alerts"), strict=True):
                feed.setsockopt(zmq.RECONNECT_IVL, 50)
                feed.subscribe(b"status/" if endpoint == "feed" else b"")
                feed.connect(f"ipc://{folder}/run/{endpoint}.sock")
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [*COMMAND, "run", "-c", folder / "config.yaml"],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env=ENVIRONMENT,
                )
            try:
                _collect(feeds, process, found)
            finally:
                process.terminate()
                process.wait(PATIENCE_S)
                for feed in feeds:
                    feed.close(0)
        readable = {kind: _readable(found[kind], folder) for kind in sorted(found)}
    masked = json.dumps(readable)
    for name, of_a_run in {"boot": "[0-9a-f]{16}", "id": "[a-z2-7]{24}"}.items():
        masked = re.sub(rf'(\\"{name}\\":\\"){of_a_run}', rf"\1{name.upper()}", masked)
    unmasked: dict[str, list[str]] = json.loads(
        re.sub(r'(\\"events\\":\[\\")[a-z2-7]{24}', r"\1ID", masked)
    )
    return unmasked


def demo_command() -> Json:
    """Return the report of `ast-stream demo --json`, without what depends on the clock."""
    done = subprocess.run(
        [*COMMAND, "demo", "--json"], env=ENVIRONMENT, capture_output=True, check=False
    )
    report = json.loads(done.stdout)
    assert set(report.pop("latency_s")) == {"onset_to_published", "decided", "scored", "published"}
    for alert in report["alerts"]:
        alert["fired"] = "TIME"
    return report | {"exit_code": done.returncode}


def _scene(duration_s: float) -> Json:
    return {"type": "scene", "seed": 1, "duration_s": duration_s}


@contextmanager
def _reactive_site() -> Iterator[Site]:
    """Yield a box whose ids, scores and times are the same each time, and on each processor."""
    numbers = count(0xA000_0000)
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(secrets, "token_hex", lambda n: f"{next(numbers):0{2 * n}x}"),
    ):
        checkpoint = str(save_reactive(Path(name)))
        tagger = load_tagger(checkpoint, device="cpu", precision="fp32", attention="math")
        with site(tagger, score_step=1 / 16) as box:
            yield box


def _finish(box: Site) -> None:
    box.tick(5)  # the last block may still be on its way
    box.worker.finish()


def _events(box: Site) -> list[Json]:
    bodies = (body for body in box.messages() if body["type"] != "update")
    return [{key: body[key] for key in body if key not in OF_A_RUN} for body in bodies]


@contextmanager
def _tapped_sockets() -> Iterator[list[tuple[int, str, list[bytes]]]]:
    """Yield type of socket, direction and frames of what pyzmq sends and receives."""
    tapped: list[tuple[int, str, list[bytes]]] = []
    send, receive = zmq.Socket.send_multipart, zmq.Socket.recv_multipart

    def tapped_send(socket: Any, frames: list[bytes], *args: Any, **options: Any) -> Any:
        tapped.append((socket.type, "sent", frames))
        return send(socket, frames, *args, **options)

    def tapped_receive(socket: Any, *args: Any, **options: Any) -> Any:
        frames = receive(socket, *args, **options)
        tapped.append((socket.type, "received", frames))
        return frames

    with (
        mock.patch.object(zmq.Socket, "send_multipart", tapped_send),
        mock.patch.object(zmq.Socket, "recv_multipart", tapped_receive),
    ):
        yield tapped


class _Reader:
    """A reader of a feed of this process that misses nothing: marks show where it stands.

    Args:
        send: publishes on the feed.
    """

    _MARK = b"mark/"

    def __init__(
        self, context: zmq.Context[Any], endpoint: str, send: Callable[[list[bytes]], None]
    ) -> None:
        self._send = send
        self._socket = context.socket(zmq.SUB)
        self._socket.set_hwm(0)
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        end_s = time.monotonic() + PATIENCE_S
        while not self._socket.poll(10):  # only what is sent after the subscription comes
            assert time.monotonic() < end_s, f"no connection to {endpoint}"
            send([self._MARK, b"begin"])

    def read(self) -> Iterator[list[bytes]]:
        """Yield the frames of what was published until now."""
        self._send([self._MARK, b"end"])
        while frames := self._receive():
            if frames == [self._MARK, b"end"]:
                return
            if frames[0] != self._MARK:
                yield frames

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(0)

    def _receive(self) -> list[bytes]:
        assert self._socket.poll(PATIENCE_S * 1000), "a message was sent, and did not arrive"
        frames: list[bytes] = self._socket.recv_multipart()
        return frames


def _asker(
    context: zmq.Context[Any], endpoint: str, serve: Callable[[], object]
) -> Callable[[bytes], list[bytes]]:
    """Return a function that asks at an endpoint of this process and returns the answer."""

    def ask(query: bytes) -> list[bytes]:
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(endpoint)
            socket.send(query)
            end_s = time.monotonic() + PATIENCE_S
            while not socket.poll(10):
                assert time.monotonic() < end_s, f"no answer to {query!r}"
                serve()
            frames: list[bytes] = socket.recv_multipart()
            return frames

    return ask


_OF_PROCESSES = {
    "feed alert firing",
    "feed alert resolved",
    "feed status alerts",
    "feed status worker",
}


def _collect(
    feeds: list[Any], process: subprocess.Popen[bytes], found: dict[str, list[bytes]]
) -> None:
    """Note one message of each kind, however long it takes until there is one."""
    poller = zmq.Poller()
    for feed in feeds:
        poller.register(feed)
    end_s = time.monotonic() + PATIENCE_S
    while set(found) != _OF_PROCESSES:
        assert process.poll() is None, "the processes ended before all was published"
        assert time.monotonic() < end_s, f"published until now: {sorted(found)}"
        for feed, _ in poller.poll(100):
            frames = feed.recv_multipart()
            body = json.loads(frames[1])
            # before the end of an event not all counts are there
            if frames[0] != b"status/worker/" or body["counters"].get("events_end"):
                found.setdefault(_kind_of_feed(frames), frames)


def _kind_of_feed(frames: list[bytes]) -> str:
    topic, body = frames[0].decode(), json.loads(frames[1])
    kind = body.get("type") or body.get("state") if not topic.startswith("status/") else None
    return f"feed {topic.split('/')[0]}" + (f" {kind}" if kind else f" {topic.split('/')[1]}")


def _json(body: Json) -> bytes:
    return json.dumps(body).encode()


def _readable(frames: list[bytes], folder: Path) -> list[str]:
    shown = [_readable_frame(frame, folder) for frame in frames]
    if frames[0].startswith(b"spectrogram/"):  # roundings differ from processor to processor
        shown[-1] = f"{len(frames[-1])} bytes"
    return shown


def _readable_frame(frame: bytes, folder: Path) -> str:
    """Return text with what differs from run to run masked, and other bytes as hex and a hash."""
    try:
        text = frame.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.removesuffix("\n").isprintable():
        digest = hashlib.sha256(frame).hexdigest()
        return f"{len(frame)} bytes {frame[:32].hex(' ', 2)} sha256 {digest}"
    if crc := re.match(r'\{"crc":"([0-9a-f]{8})",', text):
        assert zlib.crc32(frame[crc.end() :].rstrip(b"\n")) == int(crc[1], 16), text
    text = text.replace(str(folder), "FOLDER")
    if any(key in text for key in _STATUS_KEYS):  # of the moment
        text = re.sub(r'(?<=":)-?\d+(?=[,}])', "0", text)
        text = re.sub(r'(?<=":)-?\d+\.\d+(?=[,}])', "0.0", text)
        text = text.replace('"hears":true', '"hears":false')
    for pattern, masked in _MASKS:
        text = re.sub(pattern, masked, text)
    return text


_STATUS_KEYS = ('"laeq":', '"counters":', '"pending_by_action":', '"level_dbfs":')
_MASKS = (
    (r'"crc":"[0-9a-f]{8}"', '"crc":"00000000"'),
    (r'"(scored|published|started|fired|resolved)":"20[^"]*Z"', r'"\1":"TIME"'),
    (r'"(seq|previous|durable_seq)":\d+', r'"\1":0'),
    (r'("op":"ack".*"stop"):\d+', r"\1:0"),
    (r'"monotonic_ns":\d+', '"monotonic_ns":0'),
    (r'"clock":"[0-9a-f]{16}"', '"clock":"CLOCK"'),
    (r'"torch":"[^"]*"', '"torch":"VERSION"'),
)
