"""The durable messages of the feed on disk, bounded, for readers that missed some.

The log is a folder of segments, see `ast_stream.runtime.segments`. A message is in it from `append`
on, which survives a kill, and survives a power cut once `sync` was called. Nothing here raises into
the publisher: while the disk is full, read-only or gone, messages are counted, logged at a limited
rate and kept in memory and, in case the process is killed meanwhile, in a spare file on another
file system.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ast_stream.errors import WireError
from ast_stream.messages.event import (
    MAX_LINE_BYTES,
    EventMessage,
    FeedMessage,
    Gap,
    GapMessage,
    Identity,
    Position,
)
from ast_stream.messages.query import MAX_PAGE_BYTES, MAX_PAGE_MESSAGES, ReplayPage, TooOld
from ast_stream.runtime.files import DamagedFileError, replace_file, set_aside
from ast_stream.runtime.logging import LimitedLog, Outage
from ast_stream.runtime.segments import FILE_MODE, LineFile, SegmentFolder, open_at_once
from ast_stream.settings.storage import MAX_SPARE_BYTES

SEGMENTS = "events"  # what the names of its files begin with
MAX_UNWRITTEN = 10_000  # messages kept in memory while the disk refuses them

_CHUNK_LINES = 128  # read at a time: a page ends early where messages are long

logger = logging.getLogger(__name__)


class LineIndex:
    """Where the lines of a part are and what they are about, in few bytes for each line."""

    def __init__(self) -> None:
        self.seqs = array("Q")
        self.offsets = array("Q")  # first byte of each line
        self._boots: list[tuple[str, int]] = []  # with the number of their first line
        self._streams: dict[tuple[str, str], array[int]] = {}

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def boots(self) -> list[str]:
        """Boots in the order of their lines."""
        return [boot for boot, _ in self._boots]

    @property
    def last(self) -> Position | None:
        """Position of the last line; None if there is none."""
        return (self._boots[-1][0], self.seqs[-1]) if self.seqs else None

    def add(self, message: FeedMessage, offset: int) -> None:
        """Add the next line, which begins at byte `offset`."""
        boot, seq = message.position
        number = len(self.seqs)
        if not self._boots or self._boots[-1][0] != boot:
            self._boots.append((boot, number))
        self.seqs.append(seq)
        self.offsets.append(offset)
        if (about := message.epoch_of_stream) is not None:
            self._streams.setdefault(about, array("Q")).append(number)

    def cut(self, size: int) -> int:
        """Forget the lines that begin at byte `size` or later; return how many they are."""
        n_before = len(self)
        n_lines = bisect.bisect_left(self.offsets, size)
        del self.seqs[n_lines:], self.offsets[n_lines:]
        self._boots = [(boot, first) for boot, first in self._boots if first < n_lines]
        for numbers in self._streams.values():
            del numbers[bisect.bisect_left(numbers, n_lines) :]
        return n_before - n_lines

    def line_after(self, position: Position) -> int | None:
        """Return the number of the first line after `position`; None if its boot has no lines."""
        boot, seq = position
        for place, (candidate, first) in enumerate(self._boots):
            if candidate == boot:
                is_last = place + 1 == len(self._boots)
                stop = len(self.seqs) if is_last else self._boots[place + 1][1]
                return bisect.bisect_right(self.seqs, seq, first, stop)
        return None

    def lines_of(self, stream: str, epoch: str) -> list[int]:
        """Return the numbers of the lines about `epoch` of `stream`."""
        return list(self._streams.get((stream, epoch), ()))


class Segment(LineFile):
    """One file of the log, with an index of its lines."""

    MAX_LINE_BYTES = MAX_LINE_BYTES

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.index = LineIndex()

    def scan(
        self, known_boots: set[str], last: Position | None, max_bytes: int
    ) -> Iterator[FeedMessage]:
        """Index and yield the messages on disk; those damaged or out of order are skipped.

        Args:
            max_bytes: what lies beyond was not written by this program, and is not read.

        Raises:
            OSError: the file cannot be read.
            DamagedFileError: it is not a file.
        """
        for offset, line in self.lines(max_bytes):
            message = _message(line)
            if message is not None and _follows(message.position, last, known_boots):
                self.index.add(message, offset)
                last = message.position
                known_boots.add(last[0])
                yield message
            else:
                self.damaged += 1

    def read(self, numbers: Iterable[int]) -> list[tuple[FeedMessage, int]]:
        """Return the messages in these lines and how many bytes each is; damaged ones are skipped.

        Raises:
            OSError: the file cannot be read.
        """
        found = []
        with open(self.path, "rb", opener=open_at_once) as file:
            for number in numbers:
                file.seek(self.index.offsets[number])
                line = file.readline(MAX_LINE_BYTES)
                message = _message(line)
                if message is not None and message.position[1] == self.index.seqs[number]:
                    found.append((message, len(line)))
        return found


def _message(line: bytes) -> FeedMessage | None:
    try:
        return FeedMessage.decode_line(line)
    except WireError:
        return None


def _follows(position: Position, last: Position | None, known_boots: set[str]) -> bool:
    """Return whether a line may come after `last`: later in its boot, or of a new boot."""
    boot, seq = position
    if last is not None and boot == last[0]:
        return seq > last[1]
    return boot not in known_boots


@dataclass(frozen=True)
class Published:
    """What was published about one epoch of one stream, to publish nothing twice after a kill."""

    identities: set[Identity] = field(default_factory=set)  # of messages
    onsets: dict[str, tuple[object, object]] = field(default_factory=dict)  # of events, by id
    ended: set[str] = field(default_factory=set)  # ids of events
    gaps: list[Gap] = field(default_factory=list)


class _Unwritten:
    """The newest messages, which are not on disk, readable like a segment."""

    def __init__(self, messages: deque[FeedMessage]) -> None:
        self._messages = messages
        self.index = LineIndex()
        for message in messages:
            self.index.add(message, 0)

    def read(self, numbers: Iterable[int]) -> list[tuple[FeedMessage, int]]:
        messages = [self._messages[number] for number in numbers]
        return [(message, len(message.encode_line())) for message in messages]


class _Spare:
    """Messages that the disk refused, in a file elsewhere, so that a kill does not lose them.

    Args:
        path: a JSON lines file on another file system than the log; None: nothing is kept.
    """

    def __init__(self, path: Path | None, limited_log: LimitedLog) -> None:
        self._path = path
        self._log = limited_log
        self._file: Segment | None = None

    def load(self) -> list[FeedMessage]:
        """Return the messages of an earlier run; what is not such a file is set aside."""
        if self._path is None or not os.path.lexists(self._path):
            return []
        file = Segment(self._path)
        try:
            messages = list(file.scan(set(), None, MAX_SPARE_BYTES))
        except (OSError, DamagedFileError) as error:
            self._log.warning("%s cannot be read: %s", self._path, error)
            set_aside(self._path)
            return []
        self._file = file
        return messages

    def keep(self, waiting: deque[FeedMessage]) -> None:
        """Add the newest of the messages that wait for the disk."""
        if self._path is None:
            return
        try:
            if self._has_all_but_newest(waiting) and self._file is not None:
                offset = self._file.append(waiting[-1].encode_line())
                self._file.index.add(waiting[-1], offset)
            else:
                self._write(self._path, waiting)
        except (OSError, DamagedFileError) as error:
            self._log.warning("%s cannot be written: %s", self._path, error)

    def clear(self) -> None:
        """Delete the file: its messages are in the log."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        try:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        except OSError as error:  # the next start finds its messages in the log
            self._log.warning("%s cannot be deleted: %s", self._path, error)

    def _has_all_but_newest(self, waiting: deque[FeedMessage]) -> bool:
        """Return whether only the newest message needs to be added to the file."""
        if self._file is None or len(waiting) < 2 or not self._file.is_there():
            return False
        is_bounded = len(self._file.index) < 2 * MAX_UNWRITTEN and self._file.size < MAX_SPARE_BYTES
        return is_bounded and self._file.index.last == waiting[-2].position

    def _write(self, path: Path, waiting: deque[FeedMessage]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        replace_file(path, b"".join(message.encode_line() for message in waiting), mode=FILE_MODE)
        file = Segment(path)
        for _ in file.scan(set(), None, MAX_SPARE_BYTES):
            pass
        self._file = file


_Part = Segment | _Unwritten
_Place = tuple[int, int]  # number of a part, number of a line in it


class EventLog:
    """A bounded log of durable messages, also of earlier boots.

    Args:
        directory: created if missing; used by one process at a time.
        max_bytes: size of all segments together.
        segment_bytes: size of one; at most half of `max_bytes`.
        now_s: monotonic clock, for the rate of log lines.
        spare: file, on another file system, for messages that the disk refuses; the next run moves
            them to the log.
        max_age_s: after which messages are deleted; None: not by age.

    Attributes:
        write_errors: messages that were not on disk when they were published.
        dropped: messages that never were, because too many waited in memory.
        damaged: lines and files skipped when the log was opened.

    Raises:
        StartupError: another process uses the directory.
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int = 64 * 1024 * 1024,
        segment_bytes: int = 4 * 1024 * 1024,
        now_s: Callable[[], float] = time.monotonic,
        spare: Path | None = None,
        max_age_s: float | None = None,
    ) -> None:
        self.outage = Outage(logger, f"event log {directory} is written again", now_s)
        self._folder = SegmentFolder(
            directory, SEGMENTS, "event log", Segment, max_bytes, segment_bytes, max_age_s,
            outage=self.outage,
        )  # fmt: skip
        self._unwritten: deque[FeedMessage] = deque()
        self._unsynced: list[FeedMessage] = []  # written since the last sync
        self._left_open: dict[str, FeedMessage] = {}
        self._limited_log = LimitedLog(logger, now_s)
        self._spare = _Spare(spare, self._limited_log)
        self.write_errors = 0
        self.dropped = 0
        try:
            self._open()
        except OSError as error:
            self._limited_log.warning("event log %s cannot be read: %s", directory, error)
        self.damaged = self._folder.damaged
        if self.damaged:
            logger.warning("event log %s: %s damaged lines skipped", directory, self.damaged)
        self._load_spare()

    def begin(self, boot: str) -> None:
        """Mark the start of a boot, so that the order of boots is known even of silent ones.

        It survives a power cut: readers keep positions of this boot, and ask for what follows.
        """
        self.append(FeedMessage.start_of(boot))
        self.sync()

    def append(self, message: FeedMessage) -> None:
        """Add a durable message; `seq` must increase within a boot."""
        n_before = len(self._unwritten)
        if n_before == 0 and self._is_written(message):
            return
        self._unwritten.append(message)
        if n_before > 0:
            self.retry()
        if self._unwritten:
            self._keep_unwritten(max(1, len(self._unwritten) - n_before))

    def retry(self) -> None:
        """Write the messages that the disk has refused so far, if there are any."""
        has_waited = bool(self._unwritten)
        while self._unwritten:
            if not self._is_written(self._unwritten[0]):
                return
            self._unwritten.popleft()
        if has_waited:
            self._sync()  # before the spare file goes
            if self._unwritten:
                return
        self._spare.clear()
        self.outage.worked()

    def sync(self) -> None:
        """Sync what was appended to disk; what the disk refuses is queued to be written again."""
        n_before = len(self._unwritten)
        self._sync()
        if len(self._unwritten) > n_before:
            self._keep_unwritten(len(self._unwritten) - n_before)

    def purge(self) -> None:
        """Delete messages that are too old, and begin anew if somebody removed the folder; to be
        called also while none are written.
        """
        self._folder.purge()

    def replay(self, after: Position | None, limit: int = MAX_PAGE_MESSAGES) -> ReplayPage | TooOld:
        """Return the messages after a position, or from the oldest held.

        Returns:
            At most `limit` messages and `MAX_PAGE_BYTES`, at least one if there is one; or
            `TooOld` with the position after which everything is held.
        """
        parts = self._parts()
        place = (0, 0) if after is None else _place_after(parts, after)
        if place is None or (after is not None and self._is_cut_off(parts, after)):
            return TooOld(self._oldest(parts))
        messages: list[FeedMessage] = []
        page_bytes = 0
        for message, n_bytes in self._lines(parts, place):
            if len(messages) == limit or (messages and page_bytes + n_bytes > MAX_PAGE_BYTES):
                return ReplayPage(messages, more=True)
            messages.append(message)
            page_bytes += n_bytes
        return ReplayPage(messages, more=False)

    def recent(self, stream: str, epoch: str, from_sample: int = 0) -> list[FeedMessage]:
        """Return the messages held about one epoch of one stream, oldest first.

        Args:
            from_sample: events decided before it are not needed; some may be returned.
        """
        found: list[FeedMessage] = []
        for part in reversed(self._parts()):
            numbers = part.index.lines_of(stream, epoch)
            while numbers:
                messages = [message for message, _ in self._read(part, numbers[-_CHUNK_LINES:])]
                found = messages + found
                if any(_is_before(message, from_sample) for message in messages):
                    return found
                del numbers[-_CHUNK_LINES:]
        return found

    def published(self, stream: str, epoch: str, from_sample: int = 0) -> Published:
        """Return what was published about one epoch of one stream (see `recent`)."""
        published = Published()
        for message in self.recent(stream, epoch, from_sample):
            if (identity := message.identity) is None:
                continue
            published.identities.add(identity)
            if message.kind == "event":
                onset = message.body.get("onset_sample"), message.body.get("uncertainty_s")
                published.onsets.setdefault(identity[0], onset)
            if message.kind == "event" and identity[1] == "end":
                published.ended.add(identity[0])
            if message.kind == "gap":
                with contextlib.suppress(WireError):  # written by another version
                    published.gaps.append(GapMessage.from_json(message.body, "gap in the log").gap)
        return published

    def open_events(self) -> list[EventMessage]:
        """Return the newest message of each event that had not ended when the log was opened."""
        events = []
        for message in self._left_open.values():
            with contextlib.suppress(WireError):  # written by another version
                events.append(EventMessage.from_json(message.body))
        return events

    def close(self) -> None:
        """Write and sync all messages, if the disk accepts them, and release the directory."""
        self.retry()
        self.sync()
        self.release()

    def release(self) -> None:
        """Release the directory without writing the messages that wait."""
        self._folder.close()

    def _sync(self) -> None:
        if not self._unsynced:
            return
        try:
            self._folder.sync()
        except OSError as error:
            self._failed(error)
        self._unsynced.clear()

    def _is_written(self, message: FeedMessage) -> bool:
        try:
            segment, offset = self._folder.write(message.encode_line())
        except OSError as error:
            self._failed(error)
            return False
        segment.index.add(message, offset)
        self._unsynced.append(message)
        return True

    def _failed(self, error: OSError) -> None:
        """Report a disk error, and queue the messages that were cut off the segment."""
        self.outage.failed("event log %s cannot be written: %s", self._folder.path, error)
        if not self._folder.segments:
            return
        newest = self._folder.segments[-1]
        if (n_lost := newest.index.cut(newest.size)) > 0:
            self._unwritten.extendleft(reversed(self._unsynced[-n_lost:]))
            del self._unsynced[-n_lost:]

    def _open(self) -> None:
        """Index the messages of earlier runs.

        Raises:
            OSError: the folder cannot be created or read.
            StartupError: another process uses it.
        """
        known_boots: set[str] = set()
        last: Position | None = None

        def scan(segment: Segment, max_bytes: int) -> None:
            nonlocal last
            for message in segment.scan(known_boots, last, max_bytes):
                self._observe(message)
            last = segment.index.last or last

        self._folder.open(scan)

    def _load_spare(self) -> None:
        """Append the messages that the disk refused to an earlier run and that the log lacks."""
        boots = {boot for segment in self._folder.segments for boot in segment.index.boots}
        lasts = [segment.index.last for segment in self._folder.segments]
        last = next((position for position in reversed(lasts) if position is not None), None)
        for message in self._spare.load():
            if _follows(message.position, last, boots):
                last = message.position
                boots.add(last[0])
                self._observe(message)
                self._unwritten.append(message)
        self._bound_unwritten()
        self.retry()

    def _keep_unwritten(self, n_new: int) -> None:
        """Count the messages that have begun to wait, and keep all that do elsewhere."""
        self.write_errors += n_new
        self._bound_unwritten()
        self._spare.keep(self._unwritten)

    def _bound_unwritten(self) -> None:
        while len(self._unwritten) > MAX_UNWRITTEN:
            self._unwritten.popleft()
            self.dropped += 1

    def _observe(self, message: FeedMessage) -> None:
        if message.kind != "event" or (identity := message.identity) is None:
            return
        event_id, event_type = identity[:2]
        if event_type == "end":
            self._left_open.pop(event_id, None)
        else:
            self._left_open[event_id] = message

    def _parts(self) -> list[_Part]:
        return [*self._folder.segments, _Unwritten(self._unwritten)]

    def _lines(self, parts: list[_Part], place: _Place) -> Iterator[tuple[FeedMessage, int]]:
        """Yield the messages from a place on, and how many bytes each is."""
        first_part, first = place
        for part in parts[first_part:]:
            for start in range(first, len(part.index), _CHUNK_LINES):
                stop = min(start + _CHUNK_LINES, len(part.index))
                yield from self._read(part, range(start, stop))
            first = 0

    def _read(self, part: _Part, numbers: Sequence[int]) -> list[tuple[FeedMessage, int]]:
        try:
            return part.read(numbers) if numbers else []
        except OSError as error:
            self._limited_log.warning("event log %s cannot be read: %s", self._folder.path, error)
            if isinstance(part, Segment) and isinstance(error, FileNotFoundError):
                self._folder.forget(part)
            return []

    def _oldest(self, parts: list[_Part]) -> Position | None:
        for message, _ in self._lines(parts, (0, 0)):
            return message.position_before
        return None

    def _is_cut_off(self, parts: list[_Part], after: Position) -> bool:
        """Return whether messages between `after` and the oldest held were deleted."""
        oldest = self._oldest(parts)
        return oldest is not None and oldest[0] == after[0] and oldest[1] > after[1]


def _is_before(message: FeedMessage, sample: int) -> bool:
    return message.at_sample is not None and message.at_sample < sample


def _place_after(parts: list[_Part], after: Position) -> _Place | None:
    """Return the place of the first line after a position; None if its boot is not held."""
    place = None
    for number, part in enumerate(parts):
        line = part.index.line_after(after)
        if line is not None:
            place = number, line
            if line < len(part.index):
                break  # else its boot may continue in the next part
    return place
