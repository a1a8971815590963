"""One file of the event log: JSON lines, appended whole or not at all, with an index in memory."""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from ast_stream.errors import WireError
from ast_stream.messages.feed import MAX_LINE_BYTES, FeedMessage, Position
from ast_stream.runtime.files import read_bounded

FILE_MODE = 0o640


class LineIndex:
    """What a run of lines holds, in few bytes a line: boot and seq, place, stream and epoch."""

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
        """Position of the last line, None if there is none."""
        return (self._boots[-1][0], self.seqs[-1]) if self.seqs else None

    def add(self, message: FeedMessage, offset: int) -> None:
        """Learn of the next line, which begins at byte `offset`."""
        boot, seq = message.position
        number = len(self.seqs)
        if not self._boots or self._boots[-1][0] != boot:
            self._boots.append((boot, number))
        self.seqs.append(seq)
        self.offsets.append(offset)
        if (about := message.epoch_of_stream) is not None:
            self._streams.setdefault(about, array("Q")).append(number)

    def line_after(self, position: Position) -> int | None:
        """Number of the first line after `position`, None if no line is of its boot."""
        boot, seq = position
        for place, (candidate, first) in enumerate(self._boots):
            if candidate == boot:
                is_last = place + 1 == len(self._boots)
                stop = len(self.seqs) if is_last else self._boots[place + 1][1]
                return bisect.bisect_right(self.seqs, seq, first, stop)
        return None

    def lines_of(self, stream: str, epoch: str) -> list[int]:
        """Numbers of the lines about `epoch` of `stream`."""
        return list(self._streams.get((stream, epoch), ()))


class Segment:
    """One file; only the newest of a log is written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.index = LineIndex()
        self.damaged = 0
        self._fd: int | None = None

    def scan(
        self, known_boots: set[str], last: Position | None, max_bytes: int
    ) -> Iterator[FeedMessage]:
        """Index and yield the lines on disk; those damaged or out of order are passed over.

        A last line without its end is what a kill left, and no damage: the next append cuts it
        off.

        Args:
            max_bytes: what lies beyond was not written by this program, and is not read.

        Raises:
            OSError: the file cannot be read.
            DamagedFileError: it is something else than a file.
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
            if message is not None and follows(message.position, last, known_boots):
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
        """Whether the path still leads to the file with the lines that were written."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        if self._fd is not None and found.st_ino != os.fstat(self._fd).st_ino:
            return False
        return found.st_size >= self.size

    def read(self, numbers: Iterable[int]) -> list[tuple[FeedMessage, int]]:
        """Return the messages of these lines with their bytes; damaged ones are left out.

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
        """Close the file; it is opened again where needed."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.close(fd)

    def _open(self) -> int:
        fd = _open_at_once(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.ftruncate(fd, self.size)  # what a kill or a full disk left of a line
        except OSError:
            os.close(fd)
            raise
        return fd


def _open_at_once(path: Path | str, flags: int) -> int:
    """Open without waiting for what somebody may have put in the place of the file."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)


def _message(line: bytes) -> FeedMessage | None:
    try:
        return FeedMessage.decode_line(line)
    except WireError:
        return None


def follows(position: Position, last: Position | None, known_boots: set[str]) -> bool:
    """Tell whether a line may come after `last`: later in its boot, or of a boot not met yet."""
    boot, seq = position
    if last is not None and boot == last[0]:
        return seq > last[1]
    return boot not in known_boots
