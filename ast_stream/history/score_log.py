"""The score log: the input of the decision stage, stored for a while so that it can be run again.

The recorder appends the messages of `scores/`. Blocks of up to `BLOCK_S` of a stream are written
when they are full, so that a kill loses no more than that. Duplicates are stored once. The page and
commands read the same files, with an index of their blocks in memory.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ast_stream.errors import UsageError, WireError
from ast_stream.history.records import Figures
from ast_stream.history.score_blocks import (
    MAX_CLASSES,
    NAME,
    SUFFIX,
    BlockFile,
    Place,
    ScoreSpan,
    decode_scores,
    encode_block,
    encode_model,
    joined,
    span_of,
)
from ast_stream.labels import did_you_mean, find_label
from ast_stream.messages.event import FeedMessage, Scores16, ScoresHeader
from ast_stream.runtime.files import DamagedFileError
from ast_stream.runtime.logging import LimitedLog, Outage
from ast_stream.runtime.segments import SegmentFolder, segment_numbers, segment_path
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns, seconds_to_samples

FOLDER = "scores"
BLOCK_S = 30.0
MAX_STREAMS = 256  # with an unfinished block; beyond this the oldest block is written
MAX_UNWRITTEN = 1000  # blocks in memory while the disk cannot be written
SEGMENT_BYTES = 8 * 1024 * 1024
_MAX_DRIFT_NS = 5_000_000  # between the times in a block and its sample indices
_LONGEST_STEP = seconds_to_samples(10.0)  # a longer step means that windows are missing
_RECENT_SEGMENTS = 2  # in which a new writer looks up the last window of each stream
_STALE_NS = 86_400 * NS_PER_SECOND  # possible error of a file's modification time
_WHAT = "score log"
logger = logging.getLogger(__name__)


@dataclass
class _Growing:
    """An unfinished block."""

    stream: str
    epoch: str
    n_classes: int
    ends: list[int] = field(default_factory=list)
    start_ns: int = 0
    rows: list[Scores16] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.ends[1] - self.ends[0] if len(self.ends) > 1 else 0

    def continues(self, header: ScoresHeader, n_classes: int) -> bool:
        """Return whether a window belongs in this block."""
        if (self.epoch, self.n_classes) != (header.epoch, n_classes):
            return False
        step = header.end_sample - self.ends[-1]
        if not 0 < step <= _LONGEST_STEP or self.step not in (0, step):
            return False
        since_start = samples_to_ns(header.end_sample - self.ends[0])
        return abs(header.time_ns - self.start_ns - since_start) <= _MAX_DRIFT_NS

    def add(self, header: ScoresHeader, scores: Scores16) -> None:
        if not self.ends:
            self.start_ns = header.time_ns
        self.ends.append(header.end_sample)
        self.rows.append(scores)

    @property
    def is_full(self) -> bool:
        return (self.ends[-1] - self.ends[0] + self.step) >= BLOCK_S * SAMPLE_RATE


class ScoreLog:
    """The writer of the log, one for a box.

    Args:
        folder: created if missing; used by one process at a time.
        max_bytes: of all files together.
        max_age_s: after which scores are deleted; None: not by age.
        labels: returns the labels of the model in use, None if they are not known; called when a
            new model appears.
        wall_s: wall clock of the file system, seconds.

    Attributes:
        figures: messages written (or part of an unfinished block), malformed or repeated; blocks
            that wait for the disk or were dropped.
        outage: whether and why it cannot be written.

    Raises:
        StartupError: another process uses the folder.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        max_age_s: float | None = None,
        labels: Callable[[], Sequence[str] | None] = lambda: None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._find_labels = labels
        self._heard_of: str | None = None
        self.figures = Figures()
        self.outage = Outage(logger, f"the {_WHAT} {folder} is written again")
        self._model: tuple[str, tuple[str, ...]] | None = None
        self._growing: dict[str, _Growing] = {}
        self._last: dict[str, tuple[str, int, str]] = {}  # epoch, end and boot
        self._unwritten: deque[bytes] = deque()
        segment_bytes = min(SEGMENT_BYTES, max_bytes // 4)
        self._folder = SegmentFolder(
            folder, NAME, _WHAT, BlockFile, max_bytes, segment_bytes, max_age_s, wall_s, SUFFIX,
            outage=self.outage,
        )  # fmt: skip
        self._recent: list[Path] = []
        try:
            if folder.is_dir():
                numbers = segment_numbers(folder, NAME, SUFFIX)[-_RECENT_SEGMENTS:]
                self._recent = [segment_path(folder, NAME, n, SUFFIX) for n in numbers]
            self._folder.open(self._scan)
        except OSError as error:
            self.outage.failed("%s %s cannot be read: %s", _WHAT, folder, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_model(self, model: str, labels: Sequence[str]) -> None:
        """Set the model of the scores that follow.

        Args:
            model: its hash, as in events and status.
            labels: of its classes.
        """
        if self._model != (model, tuple(labels)):
            self.flush()
            self._model = model, tuple(labels)

    def note_model(self, model: str) -> None:
        """Set the hash of the model that a worker uses now."""
        if model != self._heard_of:
            self._heard_of = model
            labels = self._find_labels()
            if labels is not None:
                self.set_model(model, labels)

    def append(self, message: FeedMessage) -> None:
        """Append the scores of one window; other messages are ignored."""
        if message.kind != "scores":
            return
        scores = message.scores
        try:
            header = message.content()
        except WireError:
            header = None
        if not isinstance(header, ScoresHeader) or scores is None or not _are_whole(scores):
            self.figures.malformed += 1
            return
        boot, _ = message.position
        epoch, end, last_boot = self._last.get(header.stream, ("", 0, ""))
        # within a boot there are no duplicates: after a gap, windows may start before the last one
        if epoch == header.epoch and header.end_sample <= end and boot != last_boot:
            self.figures.repeated += 1
            return
        self._last[header.stream] = header.epoch, header.end_sample, boot
        block = self._growing.get(header.stream)
        if block is not None and not block.continues(header, len(scores)):
            self._write(self._growing.pop(header.stream))
            block = None
        if block is None:
            while len(self._growing) >= MAX_STREAMS:
                self._write(self._growing.pop(next(iter(self._growing))))
            block = _Growing(header.stream, header.epoch, len(scores))
            self._growing[header.stream] = block
        block.add(header, scores)
        self.figures.written += 1
        if block.is_full:
            self._write(self._growing.pop(header.stream))

    def flush(self) -> None:
        """Write all blocks, including unfinished ones."""
        while self._growing:
            _, block = self._growing.popitem()
            self._write(block)
        self.retry()

    def retry(self) -> None:
        """Write blocks that could not be written so far, and delete what is too old."""
        self._folder.purge()
        while self._unwritten:
            try:
                self._folder.write(self._unwritten[0])
            except OSError as error:
                self.figures.write_errors += 1
                text = "%s %s cannot be written: %s"
                self.outage.failed(text, _WHAT, self._folder.path, error.strerror or error)
                break
            self._unwritten.popleft()
            self.outage.worked()
        while len(self._unwritten) > MAX_UNWRITTEN:
            self._unwritten.popleft()
            self.figures.dropped += 1
        self.figures.waiting = len(self._unwritten)

    def close(self) -> None:
        """Write all blocks, if the disk can be written, and release the folder."""
        self.flush()
        self._folder.close()

    def _write(self, block: _Growing) -> None:
        named = self._model
        model = None if named is None or len(named[1]) != block.n_classes else named[0]
        encoded = encode_block(
            block.stream, block.epoch, model,
            end=block.ends[0], step=block.step, start_ns=block.start_ns,
            scores=np.stack(block.rows),
        )  # fmt: skip
        if named is not None and model is not None and self._needs_labels(encoded, model):
            # before the first block of each file
            encoded = encode_model(*named) + encoded
        self._unwritten.append(encoded)
        self.retry()

    def _needs_labels(self, encoded: bytes, model: str) -> bool:
        self._folder.purge()
        segments = self._folder.segments
        if not segments or self._folder.newest_without_room_for(encoded) or self._unwritten:
            return True
        if model in segments[-1].labels:
            return False
        assert self._model is not None
        segments[-1].labels[model] = self._model[1]
        return True

    def _scan(self, file: BlockFile, max_bytes: int) -> None:
        """Find the last window of each stream; of older files only the size matters."""
        if file.path not in self._recent:
            file.size = os.stat(file.path).st_size
            return
        file.scan()
        for place in file.places:
            self._last[place.stream] = place.epoch, place.last_end, ""
        file.places.clear()


class ScoreReader:
    """A reader of the log, while another process may write it; for any number of threads.

    Args:
        folder: of the log; it need not exist.
        labels: of the classes, for scores whose model is not in the log.

    Attributes:
        damaged: number of blocks and files that could not be read.
    """

    def __init__(self, folder: Path, labels: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.damaged = 0
        self._labels = None if labels is None else tuple(labels)
        self._files: dict[int, BlockFile] = {}
        self._lock = threading.Lock()
        self._log = LimitedLog(logger)

    def read(
        self,
        stream: str,
        since_ns: int,
        until_ns: int,
        labels: Sequence[str] | None = None,
    ) -> list[ScoreSpan]:
        """Return the scores of windows that ended in [`since_ns`, `until_ns`), oldest first.

        A span ends where windows are missing: at a gap, a restart, or while the recorder was down.

        Args:
            labels: labels or slugs of the wanted columns; None: all. Scores of models without such
                a class are skipped.

        Raises:
            UsageError: there are scores, but no model has such a class.
        """
        parts = []
        has_class = True
        for span in self.blocks(stream, since_ns, until_ns):
            columns = None if labels is None else columns_of(span.labels, labels)
            has_class = columns is None or None not in columns
            if has_class:
                parts.append(_between(_of_columns(span, columns), since_ns, until_ns))
        if not parts and not has_class:
            raise _no_class(labels or (), span.labels)
        return list(joined(part for part in parts if len(part.ends)))

    def blocks(self, stream: str, since_ns: int, until_ns: int) -> Iterator[ScoreSpan]:
        """Yield the blocks of a stream with windows that ended in a time range."""
        for file, place in self.places(stream, since_ns, until_ns):
            span = self.load(file, place)
            if span is not None:
                yield span

    def peaks(
        self, stream: str, since_ns: int, until_ns: int, label: str
    ) -> tuple[npt.NDArray[np.int64], Scores16]:
        """Return the highest score of a class in each block, from the index alone.

        Returns:
            When the first and the last window of each block ended (ns), shape (n_blocks, 2), and
            its highest score, shape (n_blocks,).
        """
        times, scores = [], []
        for file, place in self.places(stream, since_ns, until_ns):
            (column,) = columns_of(self.labels_of(file, place), [label])
            if column is not None:
                times.append((place.start_ns, place.stop_ns))
                scores.append(place.peaks[column])
        return np.array(times, np.int64).reshape(-1, 2), np.array(scores, np.float16)

    def streams(self) -> list[str]:
        """Return the streams that have scores."""
        return sorted({place.stream for file in self._current(0) for place in file.places})

    def span_ns(self) -> tuple[int, int] | None:
        """Return when the first and the last window ended; None: there are none."""
        places = [place for file in self._current(0) for place in file.places]
        if not places:
            return None
        return min(p.start_ns for p in places), max(p.stop_ns for p in places)

    def places(self, stream: str, since_ns: int, until_ns: int) -> list[tuple[BlockFile, Place]]:
        """Return the places of a stream's blocks, in the order in which they were written."""
        return [
            (file, place)
            for file in self._current(since_ns)
            for place in file.places
            if place.stream == stream and place.stop_ns >= since_ns and place.start_ns < until_ns
        ]

    def labels_of(self, file: BlockFile, place: Place) -> tuple[str, ...] | None:
        """Return the labels of a block; None: not known."""
        named = None if place.model is None else file.labels.get(place.model)
        if named is None and self._labels is not None and len(self._labels) == place.n_classes:
            named = self._labels
        return named

    def load(self, file: BlockFile, place: Place) -> ScoreSpan | None:
        """Return the scores of a block; None: it is damaged or was deleted meanwhile."""
        try:
            scores = decode_scores(file.read(place), place)
        except FileNotFoundError:
            return None
        except (OSError, DamagedFileError) as error:
            self.damaged += 1
            self._log.warning("%s %s: %s", _WHAT, file.path, error)
            return None
        return span_of(place, self.labels_of(file, place), scores)

    def _current(self, since_ns: int) -> list[BlockFile]:
        """Return the current files that may have scores since then."""
        with self._lock:
            try:
                numbers = segment_numbers(self.folder, NAME, SUFFIX)
            except OSError:
                numbers = []
            for gone in set(self._files) - set(numbers):
                del self._files[gone]
            current = []
            for number in numbers:
                path = segment_path(self.folder, NAME, number, SUFFIX)
                file = self._files.get(number) or BlockFile(path)
                try:
                    if os.stat(path).st_mtime_ns + _STALE_NS < since_ns:
                        continue
                    file.scan()
                except OSError as error:
                    if not isinstance(error, FileNotFoundError):
                        self.damaged += 1
                        self._log.warning("%s %s: %s", _WHAT, path, error)
                    continue
                self._files[number] = file
                current.append(file)
            return current


def columns_of(labels: Sequence[str] | None, wanted: Sequence[str]) -> list[int | None]:
    """Return the column of each wanted class; None for a class that does not exist.

    Args:
        labels: of all columns; None: not known.
        wanted: labels or slugs.
    """
    found = [None if labels is None else find_label(name, labels) for name in wanted]
    return [None if label is None else list(labels or ()).index(label) for label in found]


def _no_class(wanted: Sequence[str], labels: Sequence[str] | None) -> UsageError:
    if labels is None:
        return UsageError("score log: expected scores of a model whose classes it knows, got none")
    name = next(name for name in wanted if find_label(name, labels) is None)
    hint = did_you_mean(name, labels)
    return UsageError(f"score log: expected a class of the model, got {name!r}{hint}")


def _are_whole(scores: Scores16) -> bool:
    return 0 < len(scores) <= MAX_CLASSES and bool(((scores >= 0) & (scores <= 1)).all())


def _of_columns(span: ScoreSpan, columns: Sequence[int | None] | None) -> ScoreSpan:
    if columns is None or span.labels is None:
        return span
    chosen = [column for column in columns if column is not None]
    labels = tuple(span.labels[column] for column in chosen)
    return replace(span, labels=labels, scores=np.ascontiguousarray(span.scores[:, chosen]))


def _between(span: ScoreSpan, since_ns: int, until_ns: int) -> ScoreSpan:
    first, last = np.searchsorted(span.times_ns, [since_ns, until_ns])
    part = slice(first, last)
    return replace(
        span, ends=span.ends[part], times_ns=span.times_ns[part], scores=span.scores[part]
    )
