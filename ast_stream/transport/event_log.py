"""The durable messages of the feed on disk, bounded, for readers that missed some.

The log is a folder of segments: files of JSON lines that are only appended to. The oldest segment
is deleted when all together are too large. Lines are written but not synced: a kill loses none, a
power cut at most those of the last seconds. Nothing here raises into the publisher: while the disk
is full, read-only or gone, messages are counted, logged at a limited rate and kept in memory and,
in case the process is killed meanwhile, in a spare file on another file system.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ast_stream.errors import StartupError, WireError
from ast_stream.messages.event import (
    MAX_LINE_BYTES,
    EventMessage,
    FeedMessage,
    GapMessage,
    Identity,
    Position,
)
from ast_stream.messages.query import MAX_PAGE_BYTES, MAX_PAGE_MESSAGES, ReplayPage, TooOld
from ast_stream.runtime.files import (
    DamagedFileError,
    open_lock,
    read_bounded,
    replace_file,
    set_aside,
    warn_set_aside,
)
from ast_stream.runtime.logging import LimitedLog, Outage

MAX_UNWRITTEN = 10_000  # messages kept in memory while the disk refuses them
MAX_SPARE_BYTES = 64 * 1024 * 1024

_CHUNK_LINES = 128  # read at a time: a page ends early where messages are long
_SEGMENT_NAME = re.compile(r"events-(\d{12})\.jsonl\Z")
_ASIDE = "segment"
_FOLDER_MODE = 0o750
_FILE_MODE = 0o640

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


class Segment:
    """One file of the log, appended to by whole lines; only the newest one is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.index = LineIndex()
        self.damaged = 0
        self._fd: int | None = None

    def scan(
        self, known_boots: set[str], last: Position | None, max_bytes: int
    ) -> Iterator[FeedMessage]:
        """Index and yield the lines on disk; those damaged or out of order are skipped.

        A last line without its end was left by a kill, and is no damage: the next append cuts it
        off.

        Args:
            max_bytes: what lies beyond was not written by this program, and is not read.

        Raises:
            OSError: the file cannot be read.
            DamagedFileError: it is not a file.
        """
        content = read_bounded(self.path, max_bytes, is_cut=True)
        self.size = content.rfind(b"\n") + 1
        torn = content[self.size :]
        is_too_long = self.path.stat().st_size > max_bytes
        self.damaged = int(is_too_long or len(torn) > MAX_LINE_BYTES or b"\0" in torn)
        offset = 0
        while offset < self.size:
            line = content[offset : content.index(b"\n", offset) + 1]
            message = _message(line)
            if message is not None and _follows(message.position, last, known_boots):
                self.index.add(message, offset)
                last = message.position
                known_boots.add(last[0])
                yield message
            else:
                self.damaged += 1
            offset += len(line)

    def append(self, message: FeedMessage, line: bytes) -> None:
        """Write one line.

        Raises:
            OSError: it could not be written; the next append cuts off what the disk took of it.
        """
        try:
            if self._fd is None:
                self._fd = self._open()
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.close()
            raise
        self.index.add(message, self.size)
        self.size += len(line)

    def is_there(self) -> bool:
        """Return whether the path still leads to the file with the lines that were written."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        if self._fd is not None and found.st_ino != os.fstat(self._fd).st_ino:
            return False
        return found.st_size >= self.size

    def read(self, numbers: Iterable[int]) -> list[tuple[FeedMessage, int]]:
        """Return the messages in these lines and how many bytes each is; damaged ones are skipped.

        Raises:
            OSError: the file cannot be read.
        """
        found = []
        with open(self.path, "rb", opener=_open_at_once) as file:
            for number in numbers:
                file.seek(self.index.offsets[number])
                line = file.readline(MAX_LINE_BYTES)
                message = _message(line)
                if message is not None and message.position[1] == self.index.seqs[number]:
                    found.append((message, len(line)))
        return found

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.close(fd)

    def _open(self) -> int:
        fd = _open_at_once(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.ftruncate(fd, self.size)  # the rest of a line that a kill or a full disk left
        except OSError:
            os.close(fd)
            raise
        return fd


def _open_at_once(path: Path | str, flags: int) -> int:
    """Open without blocking, whatever somebody may have put in the place of the file."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, _FILE_MODE)


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


class SegmentFolder:
    """The segments of a log in order, with one writer at a time.

    Args:
        path: created if missing; used by one process at a time.
        max_bytes: size of all segments together.
        segment_bytes: size of one; at most half of `max_bytes`.

    Attributes:
        segments: oldest first.
        damaged: lines and files skipped when the folder was opened.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(self, path: Path, max_bytes: int, segment_bytes: int) -> None:
        if not 0 < segment_bytes <= max_bytes // 2:
            raise ValueError(
                f"segment_bytes: expected 1 to {max_bytes // 2}, half of max_bytes, "
                f"got {segment_bytes}"
            )
        self.path = path
        self.segments: list[Segment] = []
        self.damaged = 0
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._next_number = 1
        self._lock_fd: int | None = None

    def open(self, observe: Callable[[FeedMessage], None]) -> None:
        """Index the messages of earlier runs, and pass each to `observe`, oldest first.

        Raises:
            OSError: the folder cannot be created or read.
            StartupError: another process uses it.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            warn_set_aside(self.path, "event log", "it is not a folder")
        self.path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self._lock()
        names = (_SEGMENT_NAME.match(path.name) for path in self.path.iterdir())
        numbers = sorted(int(name[1]) for name in names if name)
        known_boots: set[str] = set()
        last: Position | None = None
        for number in numbers:
            self._next_number = number + 1
            segment = Segment(self._path_of(number))
            try:
                for message in segment.scan(known_boots, last, self._segment_bytes):
                    observe(message)
            except (OSError, DamagedFileError) as error:
                self._set_aside(segment.path, error)
                continue
            self.damaged += segment.damaged
            last = segment.index.last or last
            self.segments.append(segment)
            while self._size() > self._max_bytes:  # more than this program leaves
                oldest = self.segments[0]
                with contextlib.suppress(OSError):
                    oldest.path.unlink()
                self.forget(oldest)

    def write(self, message: FeedMessage) -> None:
        """Append a message to the newest segment.

        Raises:
            OSError: it could not be written; no part of it is in the folder.
        """
        line = message.encode_line()
        if self.segments and not self.segments[-1].is_there():
            self.forget(self.segments[-1])
        while self.segments and self._size() + len(line) > self._max_bytes:
            self._delete_oldest()
        if not self.segments or self.segments[-1].size + len(line) > self._segment_bytes:
            self._start_segment()
        try:
            self.segments[-1].append(message, line)
        except PermissionError:  # the file belongs to another user or was made read-only
            self._start_segment()
            self.segments[-1].append(message, line)

    def forget(self, segment: Segment) -> None:
        """Drop a segment whose file is gone."""
        segment.close()
        if segment in self.segments:
            self.segments.remove(segment)

    def close(self) -> None:
        """Close all files and release the folder."""
        for segment in self.segments:
            segment.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _set_aside(self, path: Path, error: OSError | DamagedFileError) -> None:
        self.damaged += 1
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        kept_as = self.path / _ASIDE
        warn_set_aside(path, "event log", reason, "going on with the other files", kept_as)

    def _size(self) -> int:
        return sum(segment.size for segment in self.segments)

    def _delete_oldest(self) -> None:
        oldest = self.segments[0]
        with contextlib.suppress(FileNotFoundError):
            oldest.path.unlink()
        self.forget(oldest)

    def _start_segment(self) -> None:
        self.path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        if self.segments:
            self.segments[-1].close()
        self.segments.append(Segment(self._path_of(self._next_number)))
        self._next_number += 1

    def _path_of(self, number: int) -> Path:
        return self.path / f"events-{number:012}.jsonl"

    def _lock(self) -> None:
        try:
            lock_fd = open_lock(self.path / "lock")
        except OSError:
            return  # a read-only disk: nobody writes, and the messages on it can still be replayed
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock_fd)
            raise StartupError(f"{self.path} is in use by another process") from error
        self._lock_fd = lock_fd


@dataclass(frozen=True)
class Published:
    """What was published about one epoch of one stream, to publish nothing twice after a kill."""

    identities: set[Identity] = field(default_factory=set)  # of messages
    ended: set[str] = field(default_factory=set)  # ids of events
    gaps: list[tuple[int, int]] = field(default_factory=list)  # half-open ranges of samples


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
                self._file.append(waiting[-1], waiting[-1].encode_line())
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
        replace_file(path, b"".join(message.encode_line() for message in waiting), mode=_FILE_MODE)
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
    ) -> None:
        self._folder = SegmentFolder(directory, max_bytes, segment_bytes)
        self._unwritten: deque[FeedMessage] = deque()
        self._left_open: dict[str, FeedMessage] = {}
        self._limited_log = LimitedLog(logger, now_s)
        self._spare = _Spare(spare, self._limited_log)
        self.outage = Outage(logger, f"event log {directory} is written again", now_s)
        self.write_errors = 0
        self.dropped = 0
        try:
            self._folder.open(self._observe)
        except OSError as error:
            self._limited_log.warning("event log %s cannot be read: %s", directory, error)
        self.damaged = self._folder.damaged
        if self.damaged:
            logger.warning("event log %s: %s damaged lines skipped", directory, self.damaged)
        self._load_spare()

    def begin(self, boot: str) -> None:
        """Mark the start of a boot, so that the order of boots is known even of silent ones."""
        self.append(FeedMessage.start_of(boot))

    def append(self, message: FeedMessage) -> None:
        """Add a durable message; `seq` must increase within a boot."""
        if not self._unwritten and self._is_written(message):
            return
        self._unwritten.append(message)
        if len(self._unwritten) > 1:
            self.retry()
        if not self._unwritten:
            return
        self.write_errors += 1
        self._bound_unwritten()
        self._spare.keep(self._unwritten)

    def retry(self) -> None:
        """Write the messages that the disk has refused so far, if there are any."""
        while self._unwritten:
            if not self._is_written(self._unwritten[0]):
                return
            self._unwritten.popleft()
        self._spare.clear()
        self.outage.worked()

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
            if message.kind == "event" and identity[1] == "end":
                published.ended.add(identity[0])
            if message.kind == "gap":
                with contextlib.suppress(WireError):  # written by another version
                    gap = GapMessage.from_json(message.body, "gap in the log")
                    published.gaps.append((gap.start_sample, gap.start_sample + gap.samples))
        return published

    def open_events(self) -> list[EventMessage]:
        """Return the newest message of each event that had not ended when the log was opened."""
        events = []
        for message in self._left_open.values():
            with contextlib.suppress(WireError):  # written by another version
                events.append(EventMessage.from_json(message.body))
        return events

    def close(self) -> None:
        """Write the messages that wait, if the disk accepts them, and release the directory."""
        self.retry()
        self.release()

    def release(self) -> None:
        """Release the directory without writing the messages that wait."""
        self._folder.close()

    def _is_written(self, message: FeedMessage) -> bool:
        try:
            self._folder.write(message)
        except OSError as error:
            self.outage.failed("event log %s cannot be written: %s", self._folder.path, error)
            return False
        return True

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
