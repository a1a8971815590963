"""A worker and its capture processes in one process, on real sockets, with time passed in.

Ring, ring server, sockets, detector, event log and journal are the real ones; only the clock and
the audio are the test's. `kill_worker` drops the worker as SIGKILL would: nothing is ended or
saved.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from sample_messages import FACTS
from torch import Tensor

from ast_stream.capture.ring import Ring, RingServer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.detect import Detector
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Scores
from ast_stream.messages.feed import FeedMessage
from ast_stream.messages.query import ReplayPage
from ast_stream.model.tagger import Tagger
from ast_stream.runtime.metrics import Metrics
from ast_stream.settings.schema import DetectionDefaults, DetectionSettings
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.listener import Listener
from ast_stream.transport.sockets import Poller, Socket, Sockets
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, seconds_to_samples
from ast_stream.worker.journal import Journal, JournalFile
from ast_stream.worker.loop import Worker, WorkerSockets
from ast_stream.worker.metrics import WorkerMetrics
from ast_stream.worker.stream import StreamConfig

Body = dict[str, Any]
BLOCK = 1600
HOP_S = 0.25
MAX_STREAMS = 64
DETECTION = DetectionSettings(
    defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.25, hold_s=0.25)
)
REPLY_TIMEOUT_S = 0.25  # for messages between threads, on a busy machine


class CountedSocket:
    """The worker's socket to a ring; counts the requests, to wait only for replies that come."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.n_sent = 0
        self.n_answered = 0

    @property
    def waitable(self) -> Any:
        return self.socket.waitable

    def send(self, frames: list[bytes]) -> bool:
        is_sent = self.socket.send(frames)
        self.n_sent += is_sent
        return is_sent

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        return self.socket.receive(timeout_ms)


class WatchedSockets(Sockets):
    """The worker's sockets; `to_rings` has those to the rings, by endpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.to_rings: dict[str, CountedSocket] = {}

    def connect(self, kind: Any, endpoint: str, hwm: int) -> Any:
        socket = super().connect(kind, endpoint, hwm)
        if kind != "dealer":
            return socket
        counted = self.to_rings[endpoint] = CountedSocket(socket)
        return counted

    def forget(self, socket: Any) -> None:
        super().forget(socket.socket if isinstance(socket, CountedSocket) else socket)


class Capture:
    """What a capture process has: a ring, its server and its socket."""

    def __init__(
        self,
        sockets: Sockets,
        name: str,
        endpoint: str,
        ring_s: float,
        now_s: float,
        *,
        is_paced: bool,
    ) -> None:
        self.ring = Ring(seconds_to_samples(ring_s))
        self.began_ns = round(now_s * NS_PER_SECOND)
        self.status = SourceStatus("listening")
        self.is_answering = True
        self.endpoint = endpoint
        self.router = sockets.bind("router", endpoint, 64)
        self.server = RingServer(
            name,
            secrets.token_hex(16),
            endpoint,
            self.ring,
            lambda: self.status,
            is_paced=is_paced,
            is_trusted=self.router.is_trusted,
        )

    def write(self, pcm: Pcm16) -> None:
        """Capture a block."""
        time_ns = self.began_ns + self.ring.next * NS_PER_SECOND // SAMPLE_RATE
        self.ring.write(pcm, time_ns // 1000 * 1000)

    def answer(self) -> tuple[int, int]:
        """Answer what the worker has asked; return how many requests and answers there were."""
        n_requests = n_answers = 0
        while self.is_answering and (request := self.router.receive()) is not None:
            identity, *frames = request
            reply = self.server.answer(frames, identity)
            n_requests += 1
            if reply is not None:
                self.router.send([identity, *reply])
                n_answers += 1
        return n_requests, n_answers

    def answer_all(self, client: CountedSocket | None) -> None:
        """Answer all requests of `client`, and wait until an answer has arrived there."""
        end_s = time.monotonic() + REPLY_TIMEOUT_S
        n_all_answers = 0
        while True:
            n_requests, n_answers = self.answer()
            n_all_answers += n_answers
            if client is None or not self.is_answering:
                return
            client.n_answered += n_requests
            if client.n_answered >= client.n_sent or time.monotonic() > end_s:
                break
            time.sleep(0.0005)
        client.n_answered = client.n_sent
        if n_all_answers:
            Poller([client]).wait(round(REPLY_TIMEOUT_S * 1000))


class WatchedFeed:
    """The worker's socket of the feed; `published` has the event messages that live readers get."""

    def __init__(self, socket: Listener, published: list[Body]) -> None:
        self._socket = socket
        self._published = published

    def send(self, frames: list[bytes]) -> bool:
        message = FeedMessage.decode(frames)
        if message.kind == "event":
            self._published.append(message.body)
        return self._socket.send(frames)


class SlowTagger:
    """A tagger whose windows take time on the test's clock, and whose scores may be coarse."""

    def __init__(self, tagger: Tagger, box: Site) -> None:
        self._tagger = tagger
        self._box = box

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tagger, name)

    def window_scores(self, windows: Tensor) -> npt.NDArray[np.float32]:
        """Score, and advance the clock by the time that it takes."""
        self._box.now_s += len(windows) * self._box.window_cost_s
        scores = self._tagger.window_scores(windows)
        if step := self._box.score_step:
            scores = np.round(scores / step).astype(np.float32) * np.float32(step)
        return scores


class Site:
    """One box: a folder, capture processes by stream, a worker or none, and a clock in seconds.

    Attributes:
        window_cost_s: seconds that the model needs for a window.
        score_step: scores are multiples of it, so that they are equal on all processors; 0: exact.
        published: event messages of all runs of the worker, as live readers get them.
    """

    def __init__(self, tagger: Tagger, score_step: float = 0.0) -> None:
        self.window_cost_s = 0.0
        self.score_step = score_step
        self.published: list[Body] = []
        self.folder = Path(tempfile.mkdtemp(prefix="ast-", dir="/tmp"))
        self.now_s = 1_700_000_000.0
        self.journal_path = self.folder / "journal.json"
        self._tagger = tagger
        self._capture_sockets = Sockets()
        self._captures: dict[str, Capture] = {}
        self._worker_sockets: WatchedSockets | None = None
        self._push: Socket | None = None
        self._log: EventLog | None = None

    def start_capture(
        self, name: str = "mic", ring_s: float = 90.0, *, is_paced: bool = True
    ) -> None:
        """Start a capture process, or start it again: another epoch, an empty ring."""
        if name in self._captures:
            self._capture_sockets.forget(self._captures[name].router)
        endpoint = f"ipc://{self.folder}/ring.{name}.sock"
        self._captures[name] = Capture(
            self._capture_sockets, name, endpoint, ring_s, self.now_s, is_paced=is_paced
        )

    def start_worker(self, *configured: str, settings: str = "same") -> Worker:
        """Start a worker; `settings` names model and detection settings in its journal."""
        sockets = self._worker_sockets = WatchedSockets()
        audio = sockets.bind("pull", f"ipc://{self.folder}/audio.sock", 8)
        query = sockets.bind("router", f"ipc://{self.folder}/query.sock", 8)
        feed = sockets.bind("pub", f"ipc://{self.folder}/feed.sock", 100)
        self._log = EventLog(self.folder / "events", spare=self.folder / "unlogged.jsonl")
        self.worker = Worker(
            [self._config(name) for name in configured],
            self._make_detector,
            self._log,
            Journal(
                JournalFile(self.journal_path, settings, len(self._tagger.labels)),
                MAX_STREAMS,
                self.now_s,
            ),
            WorkerSockets(sockets, audio, WatchedFeed(feed, self.published), query),
            metrics=WorkerMetrics(Metrics("worker", None)),
            facts=FACTS,
            ring_folder=f"ipc://{self.folder}/",
            now_s=lambda: self.now_s,
            now_ns=self._now_ns,
        )
        self._push = self._capture_sockets.connect("push", f"ipc://{self.folder}/audio.sock", 8)
        return self.worker

    def _make_detector(self, on_scores: Callable[[Scores], None]) -> Detector:
        tagger = cast(Tagger, SlowTagger(self._tagger, self))
        return Detector(tagger, DETECTION, hop_s=HOP_S, on_scores=on_scores)

    def _config(self, name: str) -> StreamConfig:
        return StreamConfig(name, {}, f"ipc://{self.folder}/ring.{name}.sock")

    def kill_worker(self) -> None:
        """Lose the worker with everything it had in memory."""
        assert self._worker_sockets is not None
        assert self._log is not None
        assert self._push is not None
        self._worker_sockets.close()
        self._worker_sockets = None
        self._log.close()
        self._capture_sockets.forget(self._push)

    def play(self, pcm: Pcm16, name: str = "mic", block_samples: int = BLOCK) -> None:
        """Capture audio in real time, and push it to the worker if there is one."""
        for first in range(0, len(pcm), block_samples):
            block = pcm[first : first + block_samples]
            capture = self._captures[name]
            start = capture.ring.next
            capture.write(block)
            self.now_s += len(block) / SAMPLE_RATE
            if self._worker_sockets is not None and self._push is not None:
                self._push.send(capture.server.block(start, block_samples).encode())
                self.tick()

    def capture(self, name: str = "mic") -> Capture:
        """Return a capture process."""
        return self._captures[name]

    def n_captured(self, name: str = "mic") -> int:
        """Return how many samples a capture process has written so far."""
        return self._captures[name].ring.next

    def capture_only(self, pcm: Pcm16, name: str = "mic") -> None:
        """Capture audio in real time while the worker is stopped, or dead."""
        self._captures[name].write(pcm)
        self.now_s += len(pcm) / SAMPLE_RATE

    def play_unpaced(self, pcm: Pcm16, ahead_s: float) -> None:
        """Capture a source as fast as the worker acknowledges it, not in real time."""
        ring = self._captures["mic"].ring
        while (start := ring.next) < len(pcm):
            if ring.next - ring.acked < seconds_to_samples(ahead_s):
                self._captures["mic"].write(pcm[start : start + BLOCK])
            else:
                self.tick(seconds=0.01)

    def play_live(self, sounds: dict[str, Pcm16], until_s: float) -> None:
        """Capture several streams in real time, however long the worker's ticks take.

        Args:
            sounds: audio of each stream from its first sample on.
            until_s: on the clock of the site.
        """
        assert self._push is not None
        while self.now_s < until_s:
            self.now_s += BLOCK / SAMPLE_RATE
            for name, pcm in sounds.items():
                capture = self._captures[name]
                n_samples = round((self.now_s - capture.began_ns / NS_PER_SECOND) * SAMPLE_RATE)
                while (start := capture.ring.next) + BLOCK <= min(n_samples, len(pcm)):
                    capture.write(pcm[start : start + BLOCK])
                    self._push.send(capture.server.block(start, BLOCK).encode())
            self.tick()

    def tick(self, n_ticks: int = 1, seconds: float = 0.0) -> None:
        """Run the worker's loop `n_ticks` times, each time after `seconds`."""
        for _ in range(n_ticks):
            self.now_s += seconds
            self.worker.tick()
            time.sleep(0.002)  # messages take a moment between threads of ZeroMQ
            sockets = self._worker_sockets
            clients = {} if sockets is None else sockets.to_rings
            for capture in self._captures.values():
                capture.answer_all(clients.get(capture.endpoint))

    def messages(self, kind: str = "event") -> list[Body]:
        """Return the bodies of all durable messages of a kind, of all runs of the worker."""
        assert self._log is not None
        page = self._log.replay(None)
        assert isinstance(page, ReplayPage)
        return [message.body for message in page.messages if message.kind == kind]

    def close(self) -> None:
        """End everything."""
        if self._worker_sockets is not None:
            self.kill_worker()
        self._capture_sockets.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _now_ns(self) -> int:
        return round(self.now_s * NS_PER_SECOND)


@contextmanager
def site(tagger: Tagger, score_step: float = 0.0) -> Iterator[Site]:
    """Yield a box, and remove it afterwards."""
    box = Site(tagger, score_step)
    try:
        yield box
    finally:
        box.close()
