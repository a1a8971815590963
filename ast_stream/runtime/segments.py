"""A bounded log on disk: a folder of segments, files of lines that are only appended to.

The oldest segment is deleted when all together are too large. A folder that somebody removes or
replaces meanwhile is begun anew, under another lock: one in a deleted folder keeps nobody out.

A line that is written survives a kill; after the next `sync` it survives a power cut, and all lines
before it do. A last line without its end was left by one of them, and is cut off before the next
one is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from ast_stream.errors import StartupError
from ast_stream.runtime.files import (
    DamagedFileError,
    make_folder,
    open_lock,
    read_bounded,
    reason_of,
    replace_file,
    sync,
    warn_set_aside,
)
from ast_stream.runtime.logging import Outage

FILE_MODE = 0o640
PURGE_EVERY_S = 60.0
SEGMENTS_AN_AGE = 10  # at least, where lines are deleted by their age
LINES = ".jsonl"
_ASIDE = "segment"
_LOCK = "lock"
_FOLDER_MODE = 0o750

logger = logging.getLogger(__name__)


class LineFile:
    """One file of a log, appended to by whole lines; only the newest one is.

    Attributes:
        size: bytes of whole lines.
        damaged: lines skipped, counted by whoever reads them.
    """

    MAX_LINE_BYTES = 64 * 1024

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.damaged = 0
        self._fd: int | None = None
        self._synced_size = 0  # bytes of lines that are synced
        self._has_new_name = False  # its folder is not synced since

    def lines(self, max_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Yield the first byte and the text of each whole line on disk.

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
        self.damaged = int(is_too_long or len(torn) > self.MAX_LINE_BYTES or b"\0" in torn)
        offset = 0
        while offset < self.size:
            line = content[offset : content.index(b"\n", offset) + 1]
            yield offset, line
            offset += len(line)

    def append(self, line: bytes) -> int:
        """Write one line; return its first byte.

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
        offset, self.size = self.size, self.size + len(line)
        return offset

    def sync(self) -> None:
        """Make all lines survive a power cut.

        Raises:
            OSError: the disk failed. Lines since the last sync are cut off the file: after a failed
                sync the kernel may drop their pages and report the next one as done.
        """
        if self.size == self._synced_size:
            return
        try:
            if self._fd is None:
                sync(self.path)
            else:
                os.fdatasync(self._fd)
            if self._has_new_name:
                sync(self.path.parent)
        except OSError:
            self.size = self._synced_size
            self.close()
            raise
        self._synced_size, self._has_new_name = self.size, False

    def assume_synced(self) -> None:
        """Treat the lines that were found as synced."""
        self._synced_size = self.size

    def replace(self, content: bytes) -> None:
        """Put other lines in the place of those that are there; they survive a power cut.

        Raises:
            OSError: they could not be written; what was there is whole.
        """
        replace_file(self.path, content, is_synced=True, mode=FILE_MODE)
        self.close()
        self.size = self._synced_size = len(content)
        self._has_new_name = False

    def is_there(self) -> bool:
        """Return whether the path still leads to the file with the lines that were written."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        if self._fd is not None and found.st_ino != os.fstat(self._fd).st_ino:
            return False
        return found.st_size >= self.size

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.close(fd)

    def _open(self) -> int:
        self._has_new_name = self._has_new_name or not self.path.exists()
        fd = open_at_once(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.ftruncate(fd, self.size)  # the rest of a line that a kill or a full disk left
        except OSError:
            os.close(fd)
            raise
        return fd


def open_at_once(path: Path | str, flags: int) -> int:
    """Open without blocking, whatever is in the place of the file."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)


_Segment = TypeVar("_Segment", bound=LineFile)


class SegmentFolder(Generic[_Segment]):
    """The segments of a log in order, with one writer at a time.

    Args:
        path: created if missing; used by one process at a time.
        name: the segments are `NAME-000000000001.jsonl` and so on, or end in `suffix`.
        what: the content, as warnings name it.
        make: returns the segment of a path.
        max_bytes: size of all segments together.
        segment_bytes: size of one; at most half of `max_bytes`.
        max_age_s: after which lines are deleted, give or take a tenth of it; None: not by age.
        wall_s: the time of day, as the file system has it.
        outage: the owner's, where it is reported that the folder was removed while in use.

    Attributes:
        segments: oldest first.
        damaged: lines and files skipped when the folder was opened.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        what: str,
        make: Callable[[Path], _Segment],
        max_bytes: int,
        segment_bytes: int,
        max_age_s: float | None = None,
        wall_s: Callable[[], float] = time.time,
        suffix: str = LINES,
        *,
        outage: Outage,
    ) -> None:
        if not 0 < segment_bytes <= max_bytes // 2:
            raise ValueError(
                f"segment_bytes: expected 1 to {max_bytes // 2}, half of max_bytes, "
                f"got {segment_bytes}"
            )
        self.path = path
        self.segments: list[_Segment] = []
        self.damaged = 0
        self._name = name
        self._suffix = suffix
        self._what = what
        self._make = make
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._max_age_s = max_age_s
        self._wall_s = wall_s
        self._began_s = float("-inf")  # the newest segment, at the latest
        self._purged_s = float("-inf")
        self._next_number = 1
        self._lock_fd: int | None = None
        self._outage = outage
        self._is_removed = False
        self._was_removed = False  # and that is reported still

    def open(self, scan: Callable[[_Segment, int], None]) -> None:
        """Find the segments of earlier runs.

        Args:
            scan: reads one of them, up to so many bytes; called with each, oldest first.

        Raises:
            OSError: the folder cannot be created or read.
            StartupError: another process uses it.
        """
        if os.path.lexists(self.path) and not self.path.is_dir():
            warn_set_aside(self.path, self._what, "it is not a folder")
        make_folder(self.path, _FOLDER_MODE)
        with contextlib.suppress(OSError):  # read-only: nobody writes, and the lines can be read
            self._lock_fd = self._lock()
        for number in segment_numbers(self.path, self._name, self._suffix):
            self._next_number = number + 1
            segment = self._make(self._path_of(number))
            try:
                scan(segment, self._segment_bytes)
            except (OSError, DamagedFileError) as error:
                self._set_aside(segment.path, error)
                continue
            self.damaged += segment.damaged
            self.segments.append(segment)
            while self._size() > self._max_bytes:  # more than this program leaves
                oldest = self.segments[0]
                with contextlib.suppress(OSError):
                    oldest.path.unlink()
                self.forget(oldest)
        with contextlib.suppress(OSError):  # a killed run may have written without this
            for path in [segment.path for segment in self.segments[-1:]] + [self.path]:
                sync(path)
        for segment in self.segments:
            segment.assume_synced()
        for segment in self.segments[-2:-1]:  # the newest was begun when it was full
            with contextlib.suppress(OSError):
                self._began_s = segment.path.stat().st_mtime
        self.purge()

    def purge(self) -> None:
        """Delete what is too old, once a minute; to be called also while nothing is written.

        If the folder was removed, it is begun anew. The newest segment ends after a tenth of the
        age, so that its oldest lines go in time.
        """
        with contextlib.suppress(OSError):  # the next line cannot be written either, and says so
            self._stay_in_place()
        self._delete_old()

    def write(self, line: bytes) -> tuple[_Segment, int]:
        """Append a line to the newest segment; return that and the line's first byte.

        Raises:
            OSError: it could not be written; no part of it is in the folder. If its segment is
                shorter than it was, other lines that were not synced are not there either.
        """
        self._stay_in_place()
        self._delete_old()
        if self.segments and not self.segments[-1].is_there():
            self.forget(self.segments[-1])
        while self.segments and self._size() + len(line) > self._max_bytes:
            self._delete_oldest()
        if self.newest_without_room_for(line) or not self.segments or self._is_newest_old():
            self._start_segment()
        try:
            return self.segments[-1], self.segments[-1].append(line)
        except PermissionError:  # the file belongs to another user or was made read-only
            self._start_segment()
            return self.segments[-1], self.segments[-1].append(line)

    def sync(self) -> None:
        """Make all lines survive a power cut.

        Raises:
            OSError: the disk failed; the newest segment is as after the last sync.
        """
        if self.segments:  # those before it were synced when it was begun
            self.segments[-1].sync()

    def newest_without_room_for(self, line: bytes) -> _Segment | None:
        """Return the newest segment if this line would begin another one; None: it has room."""
        if self.segments and self.segments[-1].size + len(line) > self._segment_bytes:
            return self.segments[-1]
        return None

    def forget(self, segment: _Segment) -> None:
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
        kept_as = self.path / _ASIDE
        warn_set_aside(path, self._what, reason_of(error), "going on with the other files", kept_as)

    def _size(self) -> int:
        return sum(segment.size for segment in self.segments)

    def _delete_oldest(self) -> None:
        oldest = self.segments[0]
        with contextlib.suppress(FileNotFoundError):
            oldest.path.unlink()
        self.forget(oldest)
        with contextlib.suppress(OSError):
            sync(self.path)  # else a power cut could bring back this one without its successors

    def _is_newest_old(self) -> bool:
        """Return whether the newest segment holds as much time as one may."""
        if self._max_age_s is None or self.segments[-1].size == 0:
            return False
        return self._wall_s() - self._began_s >= self._max_age_s / SEGMENTS_AN_AGE

    def _start_segment(self) -> None:
        make_folder(self.path, _FOLDER_MODE)
        if self.segments:
            self.segments[-1].sync()
            self.segments[-1].close()
        self.segments.append(self._make(self._path_of(self._next_number)))
        self._next_number += 1
        self._began_s = self._wall_s()

    def _path_of(self, number: int) -> Path:
        return segment_path(self.path, self._name, number, self._suffix)

    def _delete_old(self) -> None:
        now_s = self._wall_s()
        if self._max_age_s is None or abs(now_s - self._purged_s) < PURGE_EVERY_S:
            return
        self._purged_s = now_s
        oldest_s = now_s - self._max_age_s
        for segment in list(self.segments):
            with contextlib.suppress(OSError):
                if segment.path.stat().st_mtime < oldest_s:
                    segment.path.unlink()
                    self.forget(segment)
        for path in self.path.glob(f"{_ASIDE}.damaged-*"):
            with contextlib.suppress(OSError):
                if path.lstat().st_ctime < oldest_s:
                    path.unlink()

    def _stay_in_place(self) -> None:
        """Begin anew if the folder was removed or replaced: what is left in it is used no more.

        Raises:
            OSError: that is not possible now.
        """
        if self._lock_fd is not None:
            if self._holds_lock(self._lock_fd):
                self._forget_removal()
                return
            os.close(self._lock_fd)
            self._lock_fd = None
            self._is_removed = self._was_removed = True
            text = "%s %s was removed or replaced while it was in use: it is begun anew"
            self._outage.failed(text, self._what, self.path)
        if not self._is_removed:
            return
        make_folder(self.path, _FOLDER_MODE)
        try:
            self._lock_fd = self._lock()
        except StartupError as error:
            raise OSError(errno.EBUSY, str(error), str(self.path)) from error
        for segment in [known for known in self.segments if not known.is_there()]:
            self.forget(segment)
        others = segment_numbers(self.path, self._name, self._suffix)
        self._next_number = max(self._next_number, max(others, default=0) + 1)
        self._is_removed = False

    def _holds_lock(self, lock_fd: int) -> bool:
        """Return whether the lock is still that of the folder.

        Raises:
            OSError: it cannot be looked at.
        """
        try:
            return os.path.samestat(os.lstat(self.path / _LOCK), os.fstat(lock_fd))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _forget_removal(self) -> None:
        """Let the report of a removal end, also where nothing is written for long."""
        if self._was_removed:
            self._outage.worked()
            self._was_removed = self._outage.text is not None

    def _lock(self) -> int:
        """Return the descriptor of the lock.

        Raises:
            OSError: it cannot be opened.
            StartupError: another process has it.
        """
        lock_fd = open_lock(self.path / _LOCK)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock_fd)
            raise StartupError(f"{self.path} is in use by another process") from error
        return lock_fd


def segment_path(folder: Path, name: str, number: int, suffix: str = LINES) -> Path:
    """Return where a segment of a folder is."""
    return folder / f"{name}-{number:012}{suffix}"


def segment_numbers(folder: Path, name: str, suffix: str = LINES) -> list[int]:
    """Return the numbers of the segments in a folder, oldest first.

    Raises:
        OSError: it cannot be read.
    """
    pattern = re.compile(re.escape(name) + r"-(\d{12})" + re.escape(suffix) + r"\Z")
    found = (pattern.match(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)
