"""The folder of the event log: its segments in order, one writer at a time, bounded in size."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

from ast_stream.errors import StartupError
from ast_stream.messages.feed import FeedMessage, Position
from ast_stream.runtime.files import DamagedFileError, warn_set_aside
from ast_stream.transport.locks import open_lock
from ast_stream.transport.segment import Segment

_SEGMENT_NAME = re.compile(r"events-(\d{12})\.jsonl\Z")
_ASIDE = "segment"
_FOLDER_MODE = 0o750


class SegmentFolder:
    """Segments of JSON lines; the oldest goes where the whole would be too large.

    Args:
        path: made if missing; held by one process at a time.
        max_bytes: size of all segments together.
        segment_bytes: size of one; at most half of `max_bytes`.

    Attributes:
        segments: oldest first.
        damaged: lines and files passed over when the folder was opened.

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
        """Index what earlier runs left, and show each message, oldest first.

        Raises:
            OSError: the folder cannot be made or read.
            StartupError: another process has it.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            warn_set_aside(self.path, "event log", "it is no folder")
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
            while self._size() > self._max_bytes:  # more than this program would have left
                oldest = self.segments[0]
                with contextlib.suppress(OSError):
                    oldest.path.unlink()
                self.forget(oldest)

    def write(self, message: FeedMessage) -> None:
        """Append a message to the newest segment.

        Raises:
            OSError: it could not be written; nothing of it is in the folder.
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
        except PermissionError:  # the file of another user, or one that was made read-only
            self._start_segment()
            self.segments[-1].append(message, line)

    def forget(self, segment: Segment) -> None:
        """Go on without a segment whose file has vanished."""
        segment.close()
        if segment in self.segments:
            self.segments.remove(segment)

    def close(self) -> None:
        """Close all files and let another process have the folder."""
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
            return  # a read-only disk: nobody writes, and what is there can still be replayed
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock_fd)
            raise StartupError(f"{self.path} is in use by another process") from error
        self._lock_fd = lock_fd
