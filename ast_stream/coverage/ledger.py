"""The ledger on disk: written by the worker, read by anybody.

Spans that have ended, and once in `WRITE_EVERY_S` those that go on, are appended to a segmented log
in the state folder; a full segment is first rewritten with its neighbours merged, so that only what
changes takes room. What is not in the log yet is in a small file in the runtime folder (memory, on
most systems), replaced before the worker's journal: a kill loses no sample, and what a resumed
worker derives again is recognised by its sample index. What is appended is synced at once: a power
cut loses at most the last `WRITE_EVERY_S`, which then count as missing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path

from ast_stream.coverage.spans import (
    ADDED,
    MAX_LINE_BYTES,
    REMOVED,
    Accounted,
    Kind,
    Span,
    decoded,
    merged,
)
from ast_stream.runtime.files import (
    DamagedFileError,
    read_bounded,
    read_state,
    replace_file,
)
from ast_stream.runtime.logging import Outage
from ast_stream.runtime.segments import (
    FILE_MODE,
    LineFile,
    SegmentFolder,
    segment_numbers,
    segment_path,
)
from ast_stream.settings.storage import MAX_SPARE_BYTES
from ast_stream.units import NS_PER_SECOND

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 300.0
MAX_BYTES = 64 * 1024 * 1024
SEGMENT_BYTES = 1024 * 1024
# in which a worker looks up where its streams stand: each has a line in them, unless it was silent
RECENT_SEGMENTS = 4
MAX_UNWRITTEN = 10_000  # spans kept in memory while the disk refuses them
_CLOCK_SET_NS = 86_400 * NS_PER_SECOND  # a wall clock was hardly ever wrong by more
_NAME = "coverage"
_WHAT = "coverage ledger"


class _LedgerSegment(LineFile):
    MAX_LINE_BYTES = MAX_LINE_BYTES


class CoverageLedger:
    """Writes the spans of all streams of a worker.

    Args:
        folder: of the log; created if missing, used by one process at a time.
        unwritten: file for what is not in the log yet.
        now_s: monotonic clock.

    Attributes:
        outage: whether spans cannot be written, and why.
        samples: accounted for since the start, by stream and kind.

    Raises:
        StartupError: another process uses the folder.
    """

    def __init__(
        self,
        folder: Path,
        unwritten: Path,
        now_s: Callable[[], float] = time.monotonic,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        max_age_s: float | None = None,
    ) -> None:
        self.outage = Outage(logger, f"{_WHAT} {folder} is written again", now_s)
        self.samples: Counter[tuple[str, Kind]] = Counter()
        self._now_s = now_s
        self._folder = SegmentFolder(
            folder,
            _NAME,
            _WHAT,
            _LedgerSegment,
            max_bytes,
            segment_bytes,
            max_age_s,
            outage=self.outage,
        )
        self._unwritten = unwritten
        self._accounted = Accounted()
        self._open: dict[str, Span] = {}  # by stream: the span that goes on
        self._newest: dict[str, Span] = {}  # by stream
        self._closed: deque[Span] = deque()
        self._unsynced: list[Span] = []  # in the log, where a power cut may lose them
        self._written_s = now_s()
        self._kept: bytes | None = None  # content of the file `unwritten`; None: not known
        recent: deque[list[bytes]] = deque(maxlen=RECENT_SEGMENTS)
        try:
            self._folder.open(lambda segment, max_bytes: recent.append(_lines(segment, max_bytes)))
        except OSError as error:
            self.outage.failed("%s %s cannot be read: %s", _WHAT, folder, error)
        n_damaged = self._folder.damaged
        for span in decoded(line for lines in recent for line in lines):
            n_damaged += span is None
            if span is not None and (part := self._accounted.new_part(span)) is not None:
                self._newest[part.stream] = part
        if n_damaged:
            logger.warning("%s %s: %s damaged lines skipped", _WHAT, folder, n_damaged)
        left = read_state(unwritten, bytes.splitlines, MAX_SPARE_BYTES, _WHAT) or []
        for span in decoded(line + b"\n" for line in left):
            if span is not None and (part := self._accounted.new_part(span)) is not None:
                self._closed.append(part)
                self._newest[part.stream] = part

    def note_removed(self, stream: str, time_ns: int) -> None:
        """Record that a stream left the configuration: from then on missing audio is no loss."""
        newest = self._newest.get(stream)
        if newest is not None and not newest.begins_off:
            self._note(newest, REMOVED, time_ns)

    def note_added(self, stream: str, time_ns: int) -> None:
        """Record that a stream is back in the configuration, if it had left."""
        if self.is_off(stream):
            self._note(self._newest[stream], ADDED, time_ns)

    def is_off(self, stream: str) -> bool:
        """Return whether a stream has left the configuration, and is not back."""
        newest = self._newest.get(stream)
        return newest is not None and newest.begins_off

    def _note(self, newest: Span, reason: str, time_ns: int) -> None:
        """Add a span of one sample, in an epoch of its own: it takes none of the audio's."""
        time_ns = max(time_ns, newest.stop_ns)
        change: dict[str, object] = {
            "kind": "off",
            "epoch": f"{time_ns:016x}-{reason}",
            "start_sample": 0,
            "samples": 1,
            "time_ns": time_ns,
            "reason": reason,
        }
        self.add(newest.model_copy(update=change))

    def add(self, span: Span) -> None:
        """Account for more samples of a stream; those that are accounted for already are left out.

        What is in memory is safe from a kill once `save` was called.
        """
        part = self._accounted.new_part(span)
        if part is None:
            return
        self.samples[part.stream, part.kind] += part.samples
        self._newest[part.stream] = part
        before = self._open.get(part.stream)
        if before is not None and part.continues(before):
            self._open[part.stream] = before.extended(part)
            return
        if before is not None:
            self._close(before)
        self._open[part.stream] = part

    def stop(self, stream: str, epoch: str) -> int:
        """Return the sample up to which an epoch is accounted for."""
        return self._accounted.stop((stream, epoch))

    def save(self, *, at_once: bool = False) -> None:
        """Protect what was added from a kill, and what is in the log from a power cut.

        Args:
            at_once: write everything to the log; otherwise spans that go on once in a while.
        """
        now_s = self._now_s()
        if at_once or now_s - self._written_s >= WRITE_EVERY_S:
            self._written_s = now_s
            for stream in list(self._open):
                self._close(self._open.pop(stream))
        self._folder.purge()
        while self._closed and self._is_written(self._closed[0]):
            self._unsynced.append(self._closed.popleft())
        self._sync()
        self._keep_unwritten()

    def close(self) -> None:
        """Write everything, if the disk accepts it, and release the folder."""
        self.save(at_once=True)
        self._folder.close()

    def release(self) -> None:
        """Release the folder without writing anything."""
        self._folder.close()

    def _close(self, span: Span) -> None:
        self._closed.append(span)
        if len(self._closed) > MAX_UNWRITTEN:
            self._closed.popleft()  # it counts as missing

    def _is_written(self, span: Span) -> bool:
        line = span.encode_line()
        try:
            if (full := self._folder.newest_without_room_for(line)) is not None:
                self._merge(full)
            self._folder.write(line)
        except (OSError, DamagedFileError) as error:
            self._failed(error)
            return False
        return True

    def _sync(self) -> None:
        if not self._unsynced:
            return
        try:
            self._folder.sync()
        except OSError as error:
            self._failed(error)
        else:
            self._unsynced.clear()
            self.outage.worked()

    def _failed(self, error: Exception) -> None:
        """Report a disk error, and queue what was not synced to be written again.

        Readers recognise what is there twice.
        """
        self.outage.failed("%s %s cannot be written: %s", _WHAT, self._folder.path, error)
        self._closed.extendleft(reversed(self._unsynced))
        self._unsynced.clear()

    def _merge(self, segment: _LedgerSegment) -> None:
        """Rewrite a full segment with neighbours merged, if that makes it much smaller."""
        if not segment.is_there():
            return
        lines = _lines(segment, segment.size)
        spans = merged(span for span in decoded(lines) if span is not None)
        content = b"".join(span.encode_line() for span in spans)
        if len(content) <= segment.size // 2:
            segment.replace(content)

    def _keep_unwritten(self) -> None:
        spans = [*self._closed, *self._open.values()]
        content = b"".join(span.encode_line() for span in spans)
        if content == self._kept:
            return
        try:
            replace_file(self._unwritten, content, mode=FILE_MODE)
        except OSError as error:
            self._kept = None
            self.outage.failed("%s %s cannot be written: %s", _WHAT, self._unwritten, error)
        else:
            self._kept = content


def read_spans(folder: Path, unwritten: Path, since_ns: int | None = None) -> dict[str, list[Span]]:
    """Return what is known of each stream, in the order of time; also beside a running worker.

    Args:
        folder, unwritten: as the worker was given them; what is not there is empty.
        since_ns: what is older may be left out: it is if it stands in files of days before.

    Raises:
        OSError: they cannot be read.
    """
    # first: what the worker moves to the log meanwhile is then there twice, and not nowhere
    lines = _lines_of(unwritten, MAX_SPARE_BYTES)
    written: list[bytes] = []
    if folder.is_dir():
        for number in segment_numbers(folder, _NAME):
            path = segment_path(folder, _NAME, number)
            if since_ns is None or not _is_older(path, since_ns):
                written += _lines_of(path, SEGMENT_BYTES)
    streams: dict[str, list[Span]] = {}
    for span in merged(span for span in decoded(written + lines) if span is not None):
        streams.setdefault(span.stream, []).append(span)
    return streams


def read_all_spans(
    ledgers: Sequence[tuple[Path, Path]], since_ns: int | None = None
) -> dict[str, list[Span]]:
    """Return the spans of each stream in the ledgers of all workers; a stream may have moved.

    Where a worker took over from one that had not acknowledged all that it had heard, both have
    some samples: they are there once.

    Args:
        ledgers: folder and file of each, as for `read_spans`.
        since_ns: as there.

    Raises:
        OSError: they cannot be read.
    """
    found: dict[str, list[Span]] = {}
    for paths in ledgers:
        for stream, spans in read_spans(*paths, since_ns).items():
            before = found.get(stream, [])
            found[stream] = (
                merged(sorted([*before, *spans], key=attrgetter("time_ns"))) if before else spans
            )
    return found


def _is_older(path: Path, since_ns: int) -> bool:
    """Return whether all that a file holds ended before, even by a clock that was set since."""
    try:
        return path.stat().st_mtime_ns < since_ns - _CLOCK_SET_NS
    except OSError:
        return False


def _lines(segment: _LedgerSegment, max_bytes: int) -> list[bytes]:
    return [line for _, line in segment.lines(max_bytes)]


def _lines_of(path: Path, max_bytes: int) -> list[bytes]:
    try:
        return read_bounded(path, max_bytes, is_cut=True).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except DamagedFileError as error:
        logger.warning("%s %s is left out: %s", _WHAT, path, error)
        return []
