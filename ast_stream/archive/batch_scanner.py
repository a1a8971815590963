"""Scans the recordings of an archive with one detector: several at once, with rows in order.

Recordings are read ahead in threads, so that the model does not wait for the disk, and are scanned
side by side like the streams of a box, so that short ones fill batches. The next batch depends on
what was read, never on when it was read: on a CPU, a recording yields the same rows whether it is
scanned alone or together with others.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ast_stream.archive.listing import Recording
from ast_stream.archive.places import NOT_OF_THE_FILE, local_copy
from ast_stream.archive.recording_rows import RecordingRows, ScoreSpool, Status, in_order
from ast_stream.archive.stores import ObjectStoreError
from ast_stream.audio.pcm import ChannelChoice, ChannelSelector
from ast_stream.audio.recording import RecordingAbsentError, RecordingError, read_mono
from ast_stream.detect.cascade import load_cascade
from ast_stream.detect.detector import Detector, hops_of_recording
from ast_stream.detect.scorer import HopRun
from ast_stream.detect.verifiers import load_verifiers
from ast_stream.labels import printable
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Scores
from ast_stream.model.loading import load_model
from ast_stream.runtime.background import ReadAhead
from ast_stream.scanner import ScannedEvent, scanned_event
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.model import ModelSettings
from ast_stream.units import SAMPLE_RATE
from ast_stream.urls import mask

DEFAULT_READERS = 4
TOGETHER_ON_CPU = 16  # a batch is filled with the rest of several short ones: a third less time
_LONG_S = 60.0  # a longer recording is scanned alone until its last batch
_AHEAD_S = 32  # of each recording that is read ahead
_OUT_OF_ORDER = 64  # recordings that may finish before one that began earlier
_EPOCH = "0" * 32


@dataclass(frozen=True)
class BatchScanOptions:
    """How recordings are scanned, besides the model and detection settings.

    Attributes:
        channel: which channel is analysed, counted from 0; "mix": the mean of all.
        readers: number of recordings read ahead of those being scanned.
        together: number of recordings scanned at once; None: the fastest number that does not
            change the rows.
        has_scores: also keep the scores.
    """

    channel: ChannelChoice = "mix"
    readers: int = DEFAULT_READERS
    together: int | None = None
    has_scores: bool = False


class BatchScanner:
    """Scans the recordings of an archive; loads the model when it is created.

    Args:
        model, detection: sections of a configuration.

    Attributes:
        model: hash of the checkpoint.
        facts: everything else that the rows depend on, as JSON values; see `settings`.
        computed_on: device and versions, which may change the last digit of a score.
        scanned_s: seconds of audio scanned so far.

    Raises:
        CheckpointError, StartupError, UsageError: the model cannot be used as asked.
    """

    def __init__(
        self,
        model: ModelSettings,
        detection: DetectionSettings,
        options: BatchScanOptions | None = None,
    ) -> None:
        options = options or BatchScanOptions()
        tagger = load_model(model)
        cascade = load_cascade(model)
        opinion = load_verifiers(model, tagger.hash, tagger.labels)
        is_cpu = tagger.device.type == "cpu"
        together = options.together or (TOGETHER_ON_CPU if is_cpu else 1)
        self.model = tagger.hash
        self.labels = list(tagger.labels)
        self.channel = str(options.channel)
        self.facts: dict[str, Any] = {
            "detection": detection.model_dump(mode="json"),
            "hop_s": model.hop_s,
            "window_s": tagger.window_s,
            "min_context_s": model.min_context_s,
            "channel": options.channel,
            "device": tagger.device.type,
            "precision": tagger.precision,
            "attention": tagger.attention,
            "checkpoint": _digest(tagger.metadata.model_dump(exclude={"provenance"}, mode="json")),
            "scores": options.has_scores,
        }
        if not is_cpu:
            self.facts["together"] = together  # on a GPU, rounding depends on the batch size
        if cascade is not None and model.cascade is not None:
            own = model.cascade.model_dump(exclude={"checkpoint"}, mode="json")
            self.facts["cascade"] = own | {"model": cascade.tagger.hash}
        if opinion is not None and model.verifiers is not None:
            verifiers = {"action": model.verifiers.action, "file": opinion.file.digest}
            self.facts["verifiers"] = verifiers
        self.computed_on = _computed_on(tagger.device)
        self.scanned_s = 0.0
        self._options, self._together = options, together
        self._streams: dict[str, _RecordingScan] = {}
        self._detector = Detector(
            tagger,
            detection,
            hop_s=model.hop_s,
            min_context_s=model.min_context_s,
            max_streams=together,
            hops_at_once=hops_of_recording(tagger),
            on_scores=self._keep_scores if options.has_scores else None,
            on_run=self._keep_run,
            cascade=cascade,
            opinion=opinion,
        )

    @property
    def settings(self) -> str:
        """Hash of `facts`."""
        return _digest(self.facts)

    def scan(
        self, recordings: Iterable[Recording], on_step: Callable[[], None] = lambda: None
    ) -> Iterator[RecordingRows]:
        """Yield the rows of each recording, in the order of `recordings`.

        Args:
            on_step: called after every few seconds of audio scanned.

        Raises:
            ObjectStoreError: an object store, or the file system of the archive, cannot be read.
            OSError: the disk with the temporary files is full.
        """
        reading: deque[_RecordingScan] = deque()
        free = [f"r{number}" for number in reversed(range(self._together))]
        finished: dict[int, RecordingRows] = {}
        source = enumerate(recordings)
        n_yielded, is_over = 0, False
        try:
            while True:
                while not is_over and len(reading) < max(1, self._options.readers):
                    following = next(source, None)
                    if following is None:
                        is_over = True
                    else:
                        reading.append(_RecordingScan(*following, self._options))
                limit = n_yielded + self._together + _OUT_OF_ORDER
                if free and reading and reading[0].number < limit:
                    self._begin(free.pop(), reading.popleft())
                    continue
                if not self._streams:
                    return
                for number, recording in self._advance(free):
                    finished[number] = recording
                on_step()
                while (next_rows := finished.pop(n_yielded, None)) is not None:
                    n_yielded += 1
                    yield next_rows
        finally:
            for stream in (*reading, *self._streams.values()):
                stream.close()
            for name in self._detector.streams:  # after an interrupt nothing more is scored
                self._detector.drop(name)
            for stream in self._streams.values():
                if stream.scores is not None:
                    stream.scores.close()
            self._streams.clear()
            for left in finished.values():
                if left.scores is not None:
                    left.scores.close()

    def _begin(self, name: str, stream: _RecordingScan) -> None:
        self._detector.open(name, _EPOCH)
        if self._options.has_scores:
            stream.scores = ScoreSpool(len(self.labels))
        self._streams[name] = stream

    def _advance(self, free: list[str]) -> Iterator[tuple[int, RecordingRows]]:
        """Give streams enough audio for a batch, score it, and yield the finished recordings.

        A long recording fills batches by itself. It is scanned alone until its end, so that a kill
        does not also leave the recordings after it half scanned.
        """
        detector, n_fed = self._detector, 0
        for name, stream in self._streams.items():  # the oldest first
            if n_fed >= self._together:
                break
            is_enough = self._feed(name, stream) and stream.n_samples > _LONG_S * SAMPLE_RATE
            n_fed += self._together if is_enough else 1
        for event in detector.run():
            self._streams[event.stream].take(event)
        for name in [name for name in self._streams if name not in detector.streams]:
            stream = self._streams.pop(name)
            free.append(name)
            n_windows = detector.windows_of(stream.n_samples)
            stream.close()
            yield stream.number, stream.rows(n_windows)

    def _feed(self, name: str, stream: _RecordingScan) -> bool:
        """Give a stream audio for as many windows as are scored at once; False: it has ended."""
        detector = self._detector
        while detector.windows_due(name) < detector.hops_at_once:
            pcm = stream.next_block()
            if pcm is None:
                detector.begin_flush(name)
                return False
            detector.push(name, stream.n_samples, pcm)
            stream.n_samples += len(pcm)
            self.scanned_s += len(pcm) / SAMPLE_RATE
        return True

    def _keep_scores(self, scores: Scores) -> None:
        spool = self._streams[scores.stream].scores
        assert spool is not None
        spool.add(scores)

    def _keep_run(self, run: HopRun) -> None:
        if run.kind == "gated":
            self._streams[run.stream].n_gated += run.stop - run.start


@dataclass
class _RecordingScan:
    """A recording being scanned, and what was found in it so far."""

    number: int
    recording: Recording
    options: BatchScanOptions
    n_bytes: int | None = None
    n_samples: int = 0
    n_gated: int = 0
    problem: str | None = None
    is_absent: bool = False
    scores: ScoreSpool | None = None
    events: list[ScannedEvent] = field(default_factory=list)
    began: dict[str, Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.channels = ChannelSelector(self.options.channel)
        self._blocks = ReadAhead(self._read, _AHEAD_S)

    def _read(self) -> Iterator[Pcm16]:
        if self.recording.is_left_out:
            raise RecordingError(self.recording.name, "left out: --skip")
        with local_copy(self.recording.place) as (path, n_bytes):
            self.n_bytes = n_bytes
            yield from read_mono(path, channels=self.channels)

    def next_block(self) -> Pcm16 | None:
        """Return about a second of audio, waiting for it; None at the end."""
        try:
            return next(self._blocks, None)
        except RecordingError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NOT_OF_THE_FILE:
                raise ObjectStoreError(f"scan: {error}") from error
            self.problem = error.text
            self.is_absent = isinstance(error, RecordingAbsentError)
            return None

    def take(self, event: Event) -> None:
        if event.type == "begin":
            self.began[event.id] = event
        elif event.type == "end":
            self.events.append(scanned_event("", self.began.pop(event.id), event))

    def rows(self, n_windows: int) -> RecordingRows:
        """Return the rows of the recording, which has been read to its end."""
        status: Status = "ok"
        sentence = self.problem
        if sentence is not None:
            status = "partial" if self.n_samples else "unreadable"
        else:
            sentence = self.channels.summary if self.n_samples else "it holds no sound"
            status = "ok" if sentence is None else "warned"
        return RecordingRows(
            name=self.recording.name,
            n_bytes=self.n_bytes,
            duration_s=round(self.n_samples / SAMPLE_RATE, 3),
            status=status,
            sentence=None if sentence is None else printable(mask(sentence)),
            n_windows=n_windows,
            gated_s=round(self.n_gated / SAMPLE_RATE, 3),
            events=in_order(self.events),
            is_absent=self.is_absent,
            scores=self.scores,
        )

    def close(self) -> None:
        self._blocks.close()


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _computed_on(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(name), "torch": str(torch.__version__)}
