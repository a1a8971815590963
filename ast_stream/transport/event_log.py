"""The durable messages of the feed on disk, bounded, for readers that missed some.

Append-only JSON lines in segments; the oldest segment goes when the whole is too large. Lines are
written but not synced: what a killed process wrote is kept, what a power cut takes is at most the
last seconds. Nothing here raises into the publisher: a full disk, a read-only one, or a folder
that vanishes is counted, logged at a limited rate and bridged by a bounded copy in memory and, for
the case that the process is killed meanwhile, in a spare file in another place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ast_stream.errors import WireError
from ast_stream.messages.event import (
    Event,
    EventMessage,
    Gap,
    Identity,
    event_identity,
    gap_identity,
)
from ast_stream.messages.feed import FeedMessage, Position
from ast_stream.messages.query import MAX_PAGE_BYTES, MAX_PAGE_MESSAGES, ReplayPage, TooOld
from ast_stream.runtime.files import DamagedFileError, replace_file, set_aside
from ast_stream.runtime.logging import LimitedLog, Outage
from ast_stream.transport.segment import FILE_MODE, LineIndex, Segment, follows
from ast_stream.transport.segment_folder import SegmentFolder

MAX_UNWRITTEN = 10_000  # messages kept in memory while the disk refuses them
MAX_SPARE_BYTES = 64 * 1024 * 1024

_CHUNK_LINES = 128  # read at a time: a page ends early where messages are long

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What the log holds about one epoch of one stream, to publish nothing twice after a kill."""

    identities: set[Identity] = field(default_factory=set)  # of messages
    ended: set[str] = field(default_factory=set)  # ids of events

    def has_event(self, event: Event) -> bool:
        """Return whether this message about an event was published."""
        return event_identity(event.id, event.type, event.at_sample) in self.identities

    def has_gap(self, gap: Gap) -> bool:
        """Return whether this gap was published."""
        return gap_identity(gap.stream, gap.epoch, gap.start_sample) in self.identities


class _Unwritten:
    """Newest messages that are not on disk, readable like a segment."""

    def __init__(self, messages: deque[FeedMessage]) -> None:
        self._messages = messages
        self.index = LineIndex()
        for message in messages:
            self.index.add(message, 0)

    def read(self, numbers: Iterable[int]) -> list[tuple[FeedMessage, int]]:
        messages = [self._messages[number] for number in numbers]
        return [(message, len(message.encode_line())) for message in messages]


class _Spare:
    """What the disk refused, in a file elsewhere, so that a kill does not take it.

    Args:
        path: of a JSON lines file on another file system than the log; None: nothing is kept.
    """

    def __init__(self, path: Path | None, limited_log: LimitedLog) -> None:
        self._path = path
        self._log = limited_log
        self._file: Segment | None = None

    def load(self) -> list[FeedMessage]:
        """Return what an earlier run left; a file that is none is set aside."""
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
        """Forget the messages: they are on the disk."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        try:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        except OSError as error:  # the next start sees that the log has its messages
            self._log.warning("%s cannot be deleted: %s", self._path, error)

    def _has_all_but_newest(self, waiting: deque[FeedMessage]) -> bool:
        """Whether the newest message may just be added to the file."""
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
        directory: made if missing; held by one process at a time.
        max_bytes: size of all segments together.
        segment_bytes: size of one; at most half of `max_bytes`.
        now_s: a clock that only goes forward, for the rate of log lines.
        spare: file, on another file system, for what the disk refuses; the next run puts it into
            the log.

    Attributes:
        write_errors: messages that were not on disk when they were published.
        dropped: messages that never got there, because too many waited in memory.
        damaged: lines and files passed over when the log was opened.

    Raises:
        StartupError: another process has the directory.
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
        self._take_spare()

    def begin(self, boot: str) -> None:
        """Mark the start of a boot, so that readers know the order even of silent ones."""
        self.append(FeedMessage.start_of(boot))

    def append(self, message: FeedMessage) -> None:
        """Keep a durable message; `seq` must increase within a boot."""
        self._unwritten.append(message)
        self.retry()
        if not self._unwritten:
            return
        self.write_errors += 1
        self._bound_unwritten()
        self._spare.keep(self._unwritten)

    def retry(self) -> None:
        """Write what the disk refused before; does nothing where nothing waits."""
        while self._unwritten:
            try:
                self._folder.write(self._unwritten[0])
            except OSError as error:
                self.outage.failed("event log %s cannot be written: %s", self._folder.path, error)
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
            from_sample: the caller needs no events decided before it; some of them may be there.
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
        return published

    def open_events(self) -> list[EventMessage]:
        """Return the newest message of each event that had not ended when the log was opened."""
        events = []
        for message in self._left_open.values():
            with contextlib.suppress(WireError):  # written by another version
                events.append(EventMessage.from_json(message.body))
        return events

    def close(self) -> None:
        """Write what waits, if the disk takes it, and let another process have the directory."""
        self.retry()
        self._folder.close()

    def _take_spare(self) -> None:
        """Go on with what the disk refused to an earlier run, as far as it is not in the log."""
        boots = {boot for segment in self._folder.segments for boot in segment.index.boots}
        lasts = [segment.index.last for segment in self._folder.segments]
        last = next((one for one in reversed(lasts) if one is not None), None)
        for message in self._spare.load():
            if follows(message.position, last, boots):
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
        """Yield messages with their bytes from a place on."""
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
        """Whether messages between `after` and the oldest held were deleted."""
        oldest = self._oldest(parts)
        return oldest is not None and oldest[0] == after[0] and oldest[1] > after[1]


def _is_before(message: FeedMessage, sample: int) -> bool:
    return message.at_sample is not None and message.at_sample < sample


def _place_after(parts: list[_Part], after: Position) -> _Place | None:
    """Return the place of the first line after a position, None if its boot is not held."""
    place = None
    for number, part in enumerate(parts):
        line = part.index.line_after(after)
        if line is not None:
            place = number, line
            if line < len(part.index):
                break  # else its boot may go on in the next part
    return place
