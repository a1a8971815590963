"""`ast-stream bench capture`: what a stream costs in a process that captures many.

The process is a real one. This side plays the worker: it takes the blocks, reads each ring once and
acknowledges twice a second, as a worker does.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ast_stream.benchmarks.report import TableColumn
from ast_stream.errors import StartupError
from ast_stream.messages.audio import AckRequest, AudioBlock, ReadRequest
from ast_stream.runtime.lifecycle import start_command
from ast_stream.runtime.temporary import temporary_folder
from ast_stream.soundscape.scene import generate_scene
from ast_stream.transport.sockets import AUDIO_HWM_BLOCKS, QUERY_HWM_MESSAGES, Socket, Sockets
from ast_stream.units import SAMPLE_RATE

_SCENE_S = 30.0
_MP3_RATE = 44_100
_ACK_S = 0.5
_START_S = 60.0
_MIB = 1024 * 1024


class Kind(StrEnum):
    """What the streams are."""

    FILE = "file"  # 16 kHz WAV in real time, looped
    HTTP = "http"  # a station of this machine: MP3, 44.1 kHz, two channels
    ABSENT = "absent"  # a recording that is not there yet


COLUMNS = (
    TableColumn("source", "{kind}", is_figure=False),
    TableColumn("streams", "{streams}"),
    TableColumn("RSS MiB", "{rss_mib:.1f}"),
    TableColumn("anonymous", "{anonymous_mib:.1f}"),
    TableColumn("PSS", "{pss_mib:.1f}"),
    TableColumn("MiB each", "{mib_each:.2f}"),
    TableColumn("CPU %", "{cpu_percent:.2f}"),
    TableColumn("CPU % each", "{cpu_percent_each:.3f}"),
    TableColumn("threads", "{threads}"),
    TableColumn("descriptors", "{descriptors}"),
    TableColumn("blocks", "{blocks}"),
    TableColumn("left in the ring", "{left_out}"),
)


@dataclass(frozen=True)
class Cost:
    """What one process has taken.

    Attributes:
        rss_mib, anonymous_mib, pss_mib, threads, descriptors: at the end.
        cpu_percent: of one core, over the last half of the time.
        mib_each, cpu_percent_each: of each stream beyond the first measurement's, memory by the
            share of the process (PSS); of the first measurement: of each of its streams.
        blocks, left_out: that came, and places where one did not, which a worker asks the ring for.
    """

    kind: str
    streams: int
    rss_mib: float
    anonymous_mib: float
    pss_mib: float
    mib_each: float
    cpu_percent: float
    cpu_percent_each: float
    threads: int
    descriptors: int
    blocks: int
    left_out: int


def measure(kind: Kind, n_streams: int, seconds: float, ring_s: float, first: Cost | None) -> Cost:
    """Run one process for a while.

    Raises:
        StartupError: it does not run.
    """
    names = [f"s{number}" for number in range(n_streams)]
    with (
        temporary_folder("capture", Path("/tmp")) as folder,
        _sources(kind, folder) as source,
    ):
        config = folder / "config.yaml"
        settings = {
            "runtime_dir": str(folder),
            "state_dir": str(folder),
            "streams": [{"name": name, "source": source, "ring_s": ring_s} for name in names],
            "model": {"max_streams": max(64, n_streams)},
        }
        config.write_text(json.dumps(settings))  # JSON is YAML
        with (folder / "log").open("wb") as log:
            process = start_command(["capture", "-c", str(config)], stdout=log, stderr=log)
        worker = _Worker(folder, names)
        try:
            worker.run_until(lambda: (folder / f"ring.{names[-1]}.sock").exists(), _START_S)
            worker.run_for(seconds / 2)
            cpu_s, began_s = _cpu_s(process.pid), time.monotonic()
            worker.run_for(seconds / 2)
            took_s = time.monotonic() - began_s
            cpu = 100 * (_cpu_s(process.pid) - cpu_s) / took_s
            memory = _memory_mib(process.pid)
            pss = memory["Pss"]
            before, cpu_before = (0.0, 0.0) if first is None else (first.pss_mib, first.cpu_percent)
            n_more = max(1, n_streams - (0 if first is None else first.streams))
            return Cost(
                kind=str(kind),
                streams=n_streams,
                rss_mib=memory["Rss"],
                anonymous_mib=memory["Anonymous"],
                pss_mib=pss,
                mib_each=(pss - before) / n_more,
                cpu_percent=cpu,
                cpu_percent_each=(cpu - cpu_before) / n_more,
                threads=len(os.listdir(f"/proc/{process.pid}/task")),
                descriptors=len(os.listdir(f"/proc/{process.pid}/fd")),
                blocks=worker.n_blocks,
                left_out=worker.n_left_out,
            )
        except OSError as error:
            text = (folder / "log").read_text(errors="replace")[-1000:]
            raise StartupError(f"the capture process has ended: {text}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            worker.close()


class _Worker:
    """The worker's side of the sockets."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.n_blocks = self.n_left_out = 0
        self._folder = folder
        self._sockets = Sockets()
        self._pull = self._sockets.bind("pull", f"ipc://{folder}/audio.sock", 1000, 4096)
        self._rings: dict[str, Socket] = {}
        self._names = names
        self._ends: dict[str, tuple[str, int]] = {}  # epoch and last sample, by stream
        self._next_ack_s = time.monotonic()

    def run_until(self, is_so: Callable[[], bool], limit_s: float) -> None:
        """Work until something is so."""
        end_s = time.monotonic() + limit_s
        while not is_so():
            if time.monotonic() > end_s:
                raise FileNotFoundError
            self._turn()

    def run_for(self, seconds: float) -> None:
        """Work for a while."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._turn()

    def close(self) -> None:
        """Release the sockets."""
        self._sockets.close()

    def _turn(self) -> None:
        frames = self._pull.receive(50)
        while frames is not None:
            block = AudioBlock.decode(frames)
            epoch, end = self._ends.get(block.stream, (block.epoch, block.start_sample))
            self.n_blocks += 1
            self.n_left_out += epoch == block.epoch and end != block.start_sample
            self._ends[block.stream] = block.epoch, block.end_sample
            frames = self._pull.receive()
        if time.monotonic() >= self._next_ack_s:
            self._next_ack_s = time.monotonic() + _ACK_S
            for name, (epoch, end) in self._ends.items():
                self._ring(name).send(AckRequest(v=1, op="ack", epoch=epoch, stop=end).encode())
                while self._ring(name).receive() is not None:
                    pass

    def _ring(self, name: str) -> Socket:
        if name not in self._rings:
            endpoint = f"ipc://{self._folder}/ring.{name}.sock"
            ring = self._sockets.connect("dealer", endpoint, QUERY_HWM_MESSAGES + AUDIO_HWM_BLOCKS)
            ring.send(ReadRequest(v=1, op="read", stream=name, start=0, stop=0).encode())
            self._rings[name] = ring
        return self._rings[name]


@contextmanager
def _sources(kind: Kind, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the settings of a source that lasts."""
    path = folder / "scene.wav"
    if kind is Kind.ABSENT:
        yield {"type": "file", "path": str(path)}
        return
    pcm = generate_scene(1, _SCENE_S).pcm
    if kind is Kind.FILE:
        soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16")
        yield {"type": "file", "path": str(path), "loop": True}
        return
    with _station(pcm, folder / "scene.mp3") as url:
        yield {"type": "url", "url": url}


@contextmanager
def _station(pcm: np.ndarray[Any, np.dtype[np.int16]], path: Path) -> Iterator[str]:
    """Serve sound over HTTP in real time, to any number of listeners."""
    times = np.arange(round(len(pcm) / SAMPLE_RATE * _MP3_RATE)) * SAMPLE_RATE // _MP3_RATE
    stereo = np.stack([pcm[times]] * 2, axis=1)
    soundfile.write(path, stereo, _MP3_RATE, format="MP3")
    data = path.read_bytes()
    rate = len(data) / _SCENE_S
    is_over = threading.Event()

    class Station(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "audio/mpeg")
            self.end_headers()
            began_s, n_sent = time.monotonic() - 2.0, 0  # a burst of two seconds
            while not is_over.wait(0.25):
                due = round((time.monotonic() - began_s) * rate)
                start = n_sent % len(data)
                piece = (data + data)[start : start + due - n_sent]
                try:
                    self.wfile.write(piece)
                except OSError:
                    return
                n_sent += len(piece)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Station)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/scene.mp3"
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 / _MIB for words in found}
