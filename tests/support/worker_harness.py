"""A worker and its capture processes in one process, on real sockets, with time passed in.

Ring, ring server, sockets, detector, event log and journal are the real ones; only the clock and
the audio are the test's. `kill_worker` drops the worker as SIGKILL would: nothing is ended or
saved.

What one side sends is there for the next tick of the other, neither sooner nor later: the site
waits for each message. So no speed of the machine changes what a worker finds.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zmq
from sample_messages import FACTS
from torch import Tensor

from ast_stream.capture.ring import Ring, RingServer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.coverage.ledger import CoverageLedger, read_spans
from ast_stream.coverage.spans import Span
from ast_stream.detect import Detector
from ast_stream.detect.scorer import HopRun
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import AudioBlock, Pcm16
from ast_stream.messages.event import FeedMessage, Scores
from ast_stream.messages.query import ReplayPage
from ast_stream.messages.status import STREAM_REMOVED
from ast_stream.model.tagger import Tagger
from ast_stream.privacy.audit import AuditLog
from ast_stream.runtime.metrics import Metrics
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.settings.schema import PrivacyMode
from ast_stream.transport.allow_list import ALL_RIGHTS
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.listener import Listener
from ast_stream.transport.requester import Requester
from ast_stream.transport.sockets import AUDIO_HWM_BLOCKS, FEED_HWM_MESSAGES, Socket, Sockets
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, seconds_to_samples
from ast_stream.worker.journal import Journal, JournalFile
from ast_stream.worker.loop import Worker, WorkerSockets
from ast_stream.worker.report import WorkerMetrics
from ast_stream.worker.stream import StreamConfig

Body = dict[str, Any]
BLOCK = 1600
HOP_S = 0.25
MAX_STREAMS = 64
DETECTION = DetectionSettings(
    defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.25, hold_s=0.25)
)
MACHINE_STARTED_NS = 1_690_000_000 * NS_PER_SECOND
PATIENCE_MS = 60_000  # until a message that must come is given up

VIEWER = Requester("process 7 of user 0", "user 0", 7, True, ALL_RIGHTS)


class CountedSocket:
    """The worker's socket to a ring; `n_on_way` requests have not been received there yet."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.n_on_way = 0
        self._arrived: deque[list[bytes]] = deque()

    @property
    def waitable(self) -> Any:
        return self.socket.waitable

    def send(self, frames: list[bytes]) -> bool:
        is_sent = self.socket.send(frames)
        self.n_on_way += is_sent
        return is_sent

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        return self._arrived.popleft() if self._arrived else None

    def wait(self) -> None:
        """Wait until one more message is there."""
        frames = self.socket.receive(PATIENCE_MS)
        assert frames is not None, "a reply was sent, and did not arrive"
        self._arrived.append(frames)


class LiveBlocks:
    """The worker's socket for live blocks; one can be received from the tick after it was sent."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._arrived: deque[list[bytes]] = deque()
        self._receivable: deque[list[bytes]] = deque()

    @property
    def waitable(self) -> int:
        return self._listener.waitable

    @property
    def has_room(self) -> bool:
        """Whether the queues of both sides take one more."""
        return len(self._arrived) < 2 * AUDIO_HWM_BLOCKS

    def wait(self) -> None:
        """Wait until one more block has arrived."""
        frames = self._listener.receive(PATIENCE_MS)
        assert frames is not None, "a block was sent, and did not arrive"
        self._arrived.append(frames)

    def end_tick(self) -> None:
        """Let the worker receive in its next tick what has arrived until now."""
        self._receivable += self._arrived
        self._arrived.clear()

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        return self._receivable.popleft() if self._receivable else None


class WatchedSockets(Sockets):
    """The worker's sockets; `to_rings` has those to the rings, by endpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.to_rings: dict[str, CountedSocket] = {}

    def connect(self, kind: Any, endpoint: str, hwm: int, server_key: str | None = None) -> Any:
        socket = super().connect(kind, endpoint, hwm, server_key)
        if kind != "dealer":
            return socket
        counted = self.to_rings[endpoint] = CountedSocket(socket)
        return counted

    def forget(self, socket: Any) -> None:
        if isinstance(socket, CountedSocket):
            self.to_rings = {at: ring for at, ring in self.to_rings.items() if ring is not socket}
            socket = socket.socket
        super().forget(socket)


class Capture:
    """What a capture process has: a ring, its server and its socket.

    Attributes:
        set_by_ns: by how much the wall clock was set, as far as this process has noticed.
        is_answering: whether requests are answered, or lost.
        is_stopped: requests wait until it goes on.
        garbage: frames to answer each request with; None: the ring's reply.
    """

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
        self.epoch = secrets.token_hex(16)
        self.began_ns = round(now_s * NS_PER_SECOND)
        self.set_by_ns = 0
        self.status = SourceStatus("listening")
        self.is_answering = True
        self.is_stopped = False
        self.garbage: list[bytes] | None = None
        self.endpoint = endpoint
        self.router = sockets.bind("router", endpoint, 64)
        self.server = RingServer(
            name,
            self.epoch,
            endpoint,
            self.ring,
            lambda: self.status,
            is_paced=is_paced,
            is_trusted=self.router.is_trusted,
        )

    def write(self, pcm: Pcm16) -> None:
        """Capture a block."""
        passed_ns = self.ring.next * NS_PER_SECOND // SAMPLE_RATE
        self.ring.write(pcm, _moment((self.began_ns + passed_ns) // 1000 * 1000, self.set_by_ns))

    def answer(self, timeout_ms: int = 0) -> bool | None:
        """Process a request; return whether a reply was sent, None if no request came."""
        request = self.router.receive(timeout_ms)
        if request is None:
            return None
        identity, *frames = request
        if not self.is_answering:
            return False
        reply = self.garbage or self.server.answer(frames, identity)
        return reply is not None and self.router.send([identity, *reply])

    def answer_all(self, client: CountedSocket) -> None:
        """Answer all requests of `client`, and wait until the answers have arrived there."""
        while client.n_on_way:
            sent = self.answer(PATIENCE_MS)
            assert sent is not None, "a request was sent, and did not arrive"
            client.n_on_way -= 1
            if sent:
                client.wait()


class WatchedFeed:
    """The worker's socket of the feed; `published` has the event messages that live readers get."""

    def __init__(self, socket: Listener, box: Site) -> None:
        self._socket = socket
        self._box = box

    def send(self, frames: list[bytes]) -> bool:
        message = FeedMessage.decode(frames)
        if message.kind == "event":
            self._box.published.append(message.body)
        self._box.on_sent(message)
        if message.body.get("detail") == STREAM_REMOVED:
            words = tuple(message.body[key] for key in ("stream", "state", "detail"))
            self._box.farewells.append(words)
        return self._socket.send(frames)

    def has_reader(self, topic: bytes) -> bool:
        return topic.startswith(self._box.read_topics)

    def readers(self, topic: bytes) -> list[Requester]:
        return [VIEWER] if self.has_reader(topic) else []


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
        set_by_ns: by how much the wall clock was set.
        score_step: scores are multiples of it, so that they are equal on all processors; 0: exact.
        hop_s, gate_dbfs, syncs_first: of the next worker.
        log_sizes, ledger_sizes: of the next worker's event log and coverage ledger, in bytes.
        read_topics: prefixes of the topics that somebody reads.
        privacy: of the next worker.
        calibration_db: of all streams, in the next configuration.
        on_sent: called with each message that the worker sends on the feed.
        published: event messages of all runs of the worker, as live readers get them.
        farewells: stream, state and detail of the last health of those that were removed.
    """

    def __init__(self, tagger: Tagger, score_step: float = 0.0, folder: Path | None = None) -> None:
        self.window_cost_s = 0.0
        self.privacy: PrivacyMode = "off"
        self.calibration_db: float | None = None
        self.read_topics: tuple[bytes, ...] = (
            b"event/", b"gap/", b"health/", b"status/", b"scores/",
        )  # fmt: skip
        self.set_by_ns = 0
        self.score_step = score_step
        self.hop_s = HOP_S
        self.gate_dbfs: float | None = None
        self.syncs_first = True
        self.log_sizes: dict[str, Any] = {}
        self.ledger_sizes: dict[str, Any] = {}
        self.on_sent: Callable[[FeedMessage], None] = lambda message: None
        self.published: list[Body] = []
        self.farewells: list[tuple[str, ...]] = []
        self.folder = folder or Path(tempfile.mkdtemp(prefix="ast-", dir="/tmp"))
        self.now_s = 1_700_000_000.0
        self.journal_path = self.folder / "journal.json"
        self._tagger = tagger
        self._capture_sockets = Sockets()
        self._captures: dict[str, Capture] = {}
        self._worker_sockets: WatchedSockets | None = None
        self._feed: Listener | None = None
        self._push: Socket | None = None
        self.log: EventLog | None = None

    def start_capture(
        self, name: str = "mic", ring_s: float = 90.0, *, is_paced: bool = True
    ) -> None:
        """Start a capture process, or start it again: another epoch, an empty ring."""
        if name in self._captures:
            self._capture_sockets.forget(self._captures[name].router)
        endpoint = f"ipc://{self.folder}/ring.{name}.sock"
        capture = self._captures[name] = Capture(
            self._capture_sockets, name, endpoint, ring_s, self.now_s, is_paced=is_paced
        )
        if self._worker_sockets is not None and endpoint in self._worker_sockets.to_rings:
            _wait_until(lambda: capture.router.n_peers > 0)  # what is sent before that may be lost

    def kill_capture(self, name: str = "mic") -> None:
        """Lose a capture process."""
        self._capture_sockets.forget(self._captures.pop(name).router)

    def start_worker(self, *configured: str, settings: str = "same") -> Worker:
        """Start a worker; `settings` names model and detection settings in its journal."""
        sockets = self._worker_sockets = WatchedSockets()
        endpoint = f"ipc://{self.folder}/audio.sock"
        self._live = LiveBlocks(sockets.bind("pull", endpoint, AUDIO_HWM_BLOCKS))
        query = sockets.bind("router", f"ipc://{self.folder}/query.sock", 8)
        feed = sockets.bind("pub", f"ipc://{self.folder}/feed.sock", FEED_HWM_MESSAGES)
        self._feed = feed
        spare = self.folder / "unlogged.jsonl"
        self.log = EventLog(self.folder / "events", spare=spare, **self.log_sizes)
        self.ledger = CoverageLedger(
            *self._coverage_paths, now_s=lambda: self.now_s, **self.ledger_sizes
        )
        self.audit = AuditLog(
            self.folder / "audit", max_bytes=1024 * 1024, now_s=lambda: self.now_s
        )
        self.worker = Worker(
            [self.config(name) for name in configured],
            self._make_detector,
            self.log,
            Journal(
                JournalFile(self.journal_path, settings, len(self._tagger.labels)),
                MAX_STREAMS,
                self.now_s,
            ),
            self.ledger,
            self.audit,
            WorkerSockets(sockets, cast(Listener, self._live), WatchedFeed(feed, self), query),
            privacy=self.privacy,
            metrics=WorkerMetrics(Metrics("worker", None)),
            facts=FACTS,
            ring_folder=f"ipc://{self.folder}/",
            syncs_first=self.syncs_first,
            now_s=lambda: self.now_s,
            now=lambda: _moment(round(self.now_s * NS_PER_SECOND), self.set_by_ns),
        )
        self._push = self._capture_sockets.connect("push", endpoint, AUDIO_HWM_BLOCKS)
        assert self._push.waitable.poll(PATIENCE_MS, zmq.POLLOUT), "no connection to the worker"
        return self.worker

    def _make_detector(
        self, on_scores: Callable[[Scores], None], on_run: Callable[[HopRun], None]
    ) -> Detector:
        tagger = cast(Tagger, SlowTagger(self._tagger, self))
        detection = DETECTION.model_copy(update={"gate_dbfs": self.gate_dbfs})
        return Detector(tagger, detection, hop_s=self.hop_s, on_scores=on_scores, on_run=on_run)

    def use_streams(self, *names: str) -> None:
        """Have the worker follow a configuration that has these streams."""
        self.worker.use_streams([self.config(name) for name in names])

    def config(self, name: str) -> StreamConfig:
        """Return what the configuration says of a stream."""
        endpoint = f"ipc://{self.folder}/ring.{name}.sock"
        return StreamConfig(name, {}, endpoint, self.calibration_db)

    def kill_worker(self) -> None:
        """Lose the worker with everything it had in memory."""
        assert self._worker_sockets is not None
        assert self.log is not None
        assert self._push is not None
        self._worker_sockets.close()
        self._worker_sockets = None
        self.log.close()
        self.ledger.release()
        self.audit.close()
        self._capture_sockets.forget(self._push)

    def play(self, pcm: Pcm16, name: str = "mic", block_samples: int = BLOCK) -> None:
        """Capture audio in real time, and push it to the worker if there is one."""
        for first in range(0, len(pcm), block_samples):
            block = pcm[first : first + block_samples]
            capture = self._captures[name]
            start = capture.ring.next
            capture.write(block)
            self.now_s += len(block) / SAMPLE_RATE
            if self._worker_sockets is not None:
                self._send(capture.server.block(start, block_samples))
                self.tick()

    def capture(self, name: str = "mic") -> Capture:
        """Return a capture process."""
        return self._captures[name]

    def n_captured(self, name: str = "mic") -> int:
        """Return how many samples a capture process has written so far."""
        return self._captures[name].ring.next

    def send_newest(self, name: str, block_samples: int = BLOCK) -> None:
        """Push the newest block of a stream to the worker."""
        capture = self._captures[name]
        self._send(capture.server.block(capture.ring.next - block_samples, block_samples))

    def n_open(self, name: str) -> int:
        """Return how many events of a stream have begun and not ended."""
        kinds = [body["type"] for body in self.messages() if body["stream"] == name]
        return kinds.count("begin") - kinds.count("end")

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
        while self.now_s < until_s:
            self.now_s += BLOCK / SAMPLE_RATE
            for name, pcm in sounds.items():
                capture = self._captures[name]
                n_samples = round((self.now_s - capture.began_ns / NS_PER_SECOND) * SAMPLE_RATE)
                while (start := capture.ring.next) + BLOCK <= min(n_samples, len(pcm)):
                    capture.write(pcm[start : start + BLOCK])
                    self._send(capture.server.block(start, BLOCK))
            self.tick()

    def tick(self, n_ticks: int = 1, seconds: float = 0.0) -> None:
        """Run the worker's loop `n_ticks` times, each time after `seconds`."""
        assert self._worker_sockets is not None
        for _ in range(n_ticks):
            self.now_s += seconds
            self.worker.tick()
            self._live.end_tick()
            for capture in self._captures.values():
                client = self._worker_sockets.to_rings.get(capture.endpoint)
                if client is not None and not capture.is_stopped:
                    capture.answer_all(client)

    def send_on_feed(self, frames: list[bytes]) -> None:
        """Send to the readers of the feed what is not the worker's."""
        assert self._feed is not None
        self._feed.send(frames)

    def messages(self, kind: str = "event") -> list[Body]:
        """Return the bodies of all durable messages of a kind, of all runs of the worker."""
        assert self.log is not None
        page = self.log.replay(None)
        assert isinstance(page, ReplayPage)
        return [message.body for message in page.messages if message.kind == kind]

    def spans(self, stream: str = "mic") -> list[Span]:
        """Return what the ledger says of a stream, as anybody can read it meanwhile."""
        return read_spans(*self._coverage_paths).get(stream, [])

    @property
    def _coverage_paths(self) -> tuple[Path, Path]:
        return self.folder / "coverage", self.folder / "unwritten-coverage.jsonl"

    def close(self) -> None:
        """End everything."""
        if self._worker_sockets is not None:
            self.kill_worker()
        self._capture_sockets.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self, block: AudioBlock) -> None:
        """Send a live block to the worker, unless the queues are full."""
        assert self._push is not None
        if not self._live.has_room:
            return
        # all before it has arrived, but libzmq may not have noticed yet that it has room
        assert self._push.waitable.poll(PATIENCE_MS, zmq.POLLOUT), "no room in an empty queue"
        assert self._push.send(block.encode()), "no room in an empty queue"
        self._live.wait()


def _moment(time_ns: int, set_by_ns: int) -> Moment:
    return Moment(time_ns + set_by_ns, time_ns - MACHINE_STARTED_NS)


def _wait_until(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_MS / 1000
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.001)


@contextmanager
def site(tagger: Tagger, score_step: float = 0.0) -> Iterator[Site]:
    """Yield a box, and remove it afterwards."""
    box = Site(tagger, score_step)
    try:
        yield box
    finally:
        box.close()
