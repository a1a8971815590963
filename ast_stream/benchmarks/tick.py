"""What one turn of the worker costs, by stage, without sockets, for a number of live streams.

The worker is the real one, with event log, journal and ledger in a folder. Blocks are handed to it
as captures send them, on a clock that moves on from turn to turn as if these took no time, and its
messages are thrown away once they are encoded. Streams begin one after the other, so that their
windows are due at different times, as those of microphones are.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from ast_stream.benchmarks.report import TableColumn
from ast_stream.capture.ring import Ring, RingServer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.detect.cascade import Cascade
from ast_stream.detect.detector import Detector
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.status import WorkerFacts
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.dims import AUDIOSET_NORMALIZATION, AstDims
from ast_stream.model.metadata import Metadata
from ast_stream.model.tagger import Tagger
from ast_stream.privacy.audit import AuditLog
from ast_stream.runtime.metrics import Metrics
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.requester import NOBODY, Requester
from ast_stream.transport.sockets import Listener, Sockets
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, seconds_to_samples
from ast_stream.worker.journal import Journal, JournalFile
from ast_stream.worker.loop import TICK_MS, Worker, WorkerSockets, gather_ms
from ast_stream.worker.report import MODEL_STAGE, Stage, WorkerMetrics
from ast_stream.worker.stream import StreamConfig

BLOCK_MS = 100
BLOCK = BLOCK_MS * SAMPLE_RATE // 1000
BEGIN_EVERY_MS = 20  # one stream after the other
WARM_UP_S = 4.0  # not measured: until windows are full
RING_S = 5.0
TOPICS = ("event/", "gap/", "health/", "status/")  # what rules and programs read
REST = "rest"  # of a turn, outside the stages
_BEGAN_S = 1_700_000_000.0


@dataclass(frozen=True)
class TickFigures:
    """What the turns for one second of sound of all streams took.

    Attributes:
        classes: of the checkpoint.
        seconds: of each stream that were measured.
        receive_ms, rings_ms, levels_ms, detect_ms, journal_ms, report_ms, answer_ms: CPU time of
            the stages, of all threads; detect without the model.
        model_ms: what the model took of it.
        rest_ms: of the turns, outside the stages.
        outside_ms: all that is not the model's.
        small_model_ms: what the small model of a cascade took; 0 without one.
        windows_per_s, messages_per_s: that were scored and published for it.
        asked_per_s: windows that the checkpoint was asked about: all of them without a cascade.
    """

    streams: int
    classes: int
    hop_s: float
    seconds: float
    receive_ms: float
    rings_ms: float
    levels_ms: float
    detect_ms: float
    model_ms: float
    journal_ms: float
    report_ms: float
    answer_ms: float
    rest_ms: float
    outside_ms: float
    windows_per_s: float
    messages_per_s: float
    asked_per_s: float
    small_model_ms: float = 0.0


COLUMNS = (
    TableColumn("streams", "{streams}"),
    TableColumn("classes", "{classes}"),
    *(TableColumn(stage, f"{{{stage}_ms:.1f}}") for stage in (*get_args(Stage), REST, MODEL_STAGE)),
    TableColumn("all but the model", "{outside_ms:.1f}"),
    TableColumn("windows/s", "{windows_per_s:.0f}"),
    TableColumn("messages/s", "{messages_per_s:.0f}"),
)
CASCADE_COLUMNS = (
    TableColumn("small model", "{small_model_ms:.1f}"),
    TableColumn("asked/s", "{asked_per_s:.0f}"),
)
_SMALL = "small_model"  # a stage of its own, as the model is


def blank_tagger(n_classes: int) -> Tagger:
    """Return a tagger with random weights whose windows take next to no time."""
    dims = AstDims(
        hidden_size=16, n_layers=1, n_heads=1, intermediate_size=16, max_frames=256,
        frequency_stride=16, time_stride=16, n_classes=n_classes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=()):  # the seeds of others stay theirs
        torch.manual_seed(0)
        state_dict = AudioSpectrogramTransformer(dims).state_dict()
    state_dict["head.bias"] -= 5.0  # a quiet room: few events
    labels = [f"class_{index:03d}" for index in range(n_classes)]
    metadata = Metadata(window_s=2.56)
    torch.set_num_threads(1)  # as in a worker with a model so small
    checkpoint = Checkpoint(dims, state_dict, labels, AUDIOSET_NORMALIZATION, metadata, "blank")
    return Tagger(checkpoint, "cpu", "fp32")


def time_turns(
    tagger: Tagger,
    n_streams: int,
    hop_s: float,
    seconds: float,
    sounds: Sequence[Pcm16],
    folder: Path,
    reads: Sequence[str] = TOPICS,
    around: Callable[[Callable[[], None]], None] = lambda run: run(),
    cascade: Cascade | None = None,
) -> TickFigures:
    """Return what the turns of a worker took for `seconds` of sound of `n_streams` streams.

    Args:
        sounds: what the streams hear in turn, repeated.
        folder: for event log, journal and ledger.
        reads: prefixes of the topics that somebody subscribes to.
        around: calls its argument, which does all that is measured: for a profiler.
        cascade: a small model that hears all windows, so that `tagger` is asked about few.
    """
    bench = _Bench(tagger, n_streams, hop_s, sounds, folder, reads, cascade)
    try:
        bench.play(WARM_UP_S + n_streams * BEGIN_EVERY_MS / 1000)
        bench.times.clear()
        bench.times |= dict.fromkeys(get_args(Stage), 0.0)
        windows, asked, messages = bench.n_scored, bench.n_asked, bench.feed.n_sent
        around(lambda: bench.play(seconds))
        ms = {f"{stage}_ms": 1000 * s / seconds for stage, s in bench.times.items()}
        in_models_ms = ms[f"{MODEL_STAGE}_ms"] + ms.get(f"{_SMALL}_ms", 0.0)
        ms["detect_ms"] -= in_models_ms
        outside_ms = sum(ms.values()) - in_models_ms
        return TickFigures(
            streams=n_streams,
            classes=len(tagger.labels),
            hop_s=hop_s,
            seconds=seconds,
            **{name: round(value, 2) for name, value in ms.items()},
            outside_ms=round(outside_ms, 2),
            windows_per_s=round((bench.n_scored - windows) / seconds, 1),
            messages_per_s=round((bench.feed.n_sent - messages) / seconds, 1),
            asked_per_s=round((bench.n_asked - asked) / seconds, 1),
        )
    finally:
        bench.close()


class _StageTimes(WorkerMetrics):
    """CPU seconds by stage, of all threads."""

    def __init__(self, times: defaultdict[str, float]) -> None:
        super().__init__(Metrics("worker"))
        self._times = times
        self._model_s = 0.0

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time a stage."""
        began_s = time.process_time()
        yield
        self._times[name] += time.process_time() - began_s


class _TimedTagger:
    """A tagger that times its model as a stage."""

    runs_ahead = False  # the stage ends when the scores are there

    def __init__(self, tagger: Tagger, times: defaultdict[str, float], stage: str) -> None:
        self._tagger = tagger
        self._times = times
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tagger, name)

    def window_scores(self, windows: torch.Tensor) -> Any:
        return self._timed(self._tagger.window_scores, windows)

    def frame_logits(self, windows: torch.Tensor) -> Any:
        return self._timed(self._tagger.frame_logits, windows)

    def _timed(self, score: Callable[[torch.Tensor], Any], windows: torch.Tensor) -> Any:
        began_s = time.process_time()
        found = score(windows)
        self._times[self._stage] += time.process_time() - began_s
        return found


class _Inbox:
    """A bound socket whose only peer is this program; it never blocks.

    Args:
        reads: prefixes of the topics that somebody subscribes to.
    """

    _numbers = itertools.count(1_000_000)

    def __init__(self, reads: Sequence[str] = ()) -> None:
        self._prefixes = tuple(topic.encode() for topic in reads)
        self.waitable = next(self._numbers)
        self.waiting: deque[list[bytes]] = deque()
        self.n_sent = 0

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        return self.waiting.popleft() if self.waiting else None

    def send(self, frames: list[bytes]) -> bool:
        self.n_sent += 1
        return True

    def has_reader(self, topic: bytes) -> bool:
        return topic.startswith(self._prefixes)

    def readers(self, topic: bytes) -> list[Requester]:
        return [NOBODY] if self.has_reader(topic) else []


class _RingSocket(_Inbox):
    """The worker's socket to the ring of one stream, which answers at once."""

    def __init__(self, server: RingServer) -> None:
        super().__init__()
        self._server = server

    def send(self, frames: list[bytes]) -> bool:
        reply = self._server.answer(frames)
        if reply is not None:
            self.waiting.append(reply)
        return True


class _Capture:
    """Ring and blocks of one stream."""

    def __init__(self, number: int, pcm: Pcm16) -> None:
        self.name = f"s{number}"
        self.endpoint = f"ipc:///ring.{self.name}.sock"
        self._ring = Ring(seconds_to_samples(RING_S))
        self._pcm = pcm
        self._began_ns = 0
        self.n_sent = 0
        status = SourceStatus("listening")
        self.server = RingServer(
            self.name, f"{number:032x}", self.endpoint, self._ring, lambda: status
        )

    def block(self, now_ns: int) -> list[bytes]:
        """Capture a block and return its frames."""
        start = self._ring.next
        if start == 0:
            self._began_ns = now_ns - BLOCK * NS_PER_SECOND // SAMPLE_RATE
        captured_ns = self._began_ns + start * NS_PER_SECOND // SAMPLE_RATE
        at = start % (len(self._pcm) - BLOCK)
        self.n_sent += 1
        self._ring.write(self._pcm[at : at + BLOCK], Moment(captured_ns, captured_ns))
        return self.server.block(start, BLOCK).encode()


class _Bench:
    """A worker, and the capture processes that it is fed from."""

    def __init__(
        self,
        tagger: Tagger,
        n_streams: int,
        hop_s: float,
        sounds: Sequence[Pcm16],
        folder: Path,
        reads: Sequence[str],
        cascade: Cascade | None,
    ) -> None:
        self.times: defaultdict[str, float] = defaultdict(float)
        self.feed = _Inbox(reads)
        self._now_s = _BEGAN_S
        self._played_ms = 0.0
        self._turn_ms = max(TICK_MS, gather_ms(n_streams))
        self._captures = {
            capture.endpoint: capture
            for capture in (_Capture(n, sounds[n % len(sounds)]) for n in range(n_streams))
        }
        self._audio = _Inbox()
        self._detector: Detector | None = None
        self._log = EventLog(folder / "events", spare=folder / "unlogged.jsonl")
        self._ledger = CoverageLedger(folder / "coverage", folder / "unwritten.jsonl")
        journal = JournalFile(folder / "journal.jsonl", "bench", len(tagger.labels))
        timed = cast(Tagger, _TimedTagger(tagger, self.times, MODEL_STAGE))
        if cascade is not None:
            small = cast(Tagger, _TimedTagger(cascade.tagger, self.times, _SMALL))
            cascade = replace(cascade, tagger=small)

        def make_detector(on_scores: Any, on_run: Any) -> Detector:
            self._detector = Detector(
                timed, hop_s=hop_s, max_streams=n_streams, on_scores=on_scores, on_run=on_run,
                cascade=cascade,
            )  # fmt: skip
            return self._detector

        self._worker = Worker(
            [
                StreamConfig(capture.name, {}, capture.endpoint)
                for capture in self._captures.values()
            ],
            make_detector,
            self._log,
            Journal(journal, n_streams, self._now_s),
            self._ledger,
            AuditLog(folder / "audit", max_bytes=1 << 20),
            WorkerSockets(
                cast(Sockets, self),
                audio=cast(Listener, self._audio),
                feed=self.feed,
                query=cast(Listener, _Inbox()),
            ),
            metrics=_StageTimes(self.times),
            facts=WorkerFacts(
                model=tagger.hash, device=str(tagger.device), precision=tagger.precision,
                attention=tagger.attention, window_s=tagger.window_s, torch=str(torch.__version__),
            ),
            ring_folder="ipc:///",
            syncs_first=False,
            now_s=lambda: self._now_s,
            now=self._moment,
        )  # fmt: skip

    @property
    def n_scored(self) -> int:
        """Windows that the model has scored."""
        assert self._detector is not None
        return self._detector.n_scored

    @property
    def n_asked(self) -> int:
        """Windows that the checkpoint was asked about."""
        assert self._detector is not None
        n_asked = self._detector.n_asked
        return self.n_scored if n_asked is None else n_asked

    def connect(self, kind: str, endpoint: str, hwm: int) -> _RingSocket:
        """Return the socket to a ring, as `Sockets` does."""
        return _RingSocket(self._captures[endpoint].server)

    def play(self, seconds: float) -> None:
        """Play so many seconds of all streams."""
        for _ in range(round(seconds * 1000 / self._turn_ms)):
            self._send()
            began_s, in_stages_s = time.process_time(), self._in_stages_s()
            self._take_turn()
            while self._due:  # then the worker waits for nothing
                self._take_turn()
            took_s = time.process_time() - began_s
            self.times[REST] += took_s - (self._in_stages_s() - in_stages_s)
            self._now_s += self._turn_ms / 1000
            self._played_ms += self._turn_ms

    @property
    def _due(self) -> bool:
        assert self._detector is not None
        return self._detector.has_due

    def _take_turn(self) -> None:
        self._worker.tick()
        self._worker.has_progressed()

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._ledger.close()

    def _in_stages_s(self) -> float:
        return sum(s for stage, s in self.times.items() if stage not in (MODEL_STAGE, _SMALL, REST))

    def _send(self) -> None:
        """Send the blocks that have become whole since the last turn."""
        for number, capture in enumerate(self._captures.values()):
            while (capture.n_sent + 1) * BLOCK_MS + number * BEGIN_EVERY_MS <= self._played_ms:
                self._audio.waiting.append(capture.block(self._moment().wall_ns))

    def _moment(self) -> Moment:
        now_ns = round(self._now_s * NS_PER_SECOND)
        return Moment(now_ns, now_ns)
