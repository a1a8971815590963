"""Positions of outputs on disk: a small file for each, replaced atomically and synced.

For a broker that may lose what it has confirmed, the file has several positions: one that is safe,
and later ones, each with a mark that was sent to the broker. After each connection, the output
finds out which marks the broker still has, and continues from the newest of them.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ast_stream.forward.output import Memory
from ast_stream.forward.source import Cursor
from ast_stream.messages.codec import encode_json
from ast_stream.runtime.files import (
    RemovedError,
    expect_in_place,
    lock_file,
    make_folder,
    read_state,
    reason_of,
    replace_file,
)
from ast_stream.runtime.logging import Outage
from ast_stream.settings.storage import MAX_POSITION_BYTES

SAVE_EVERY_S = 1.0  # so much may be sent again after a kill if the broker cannot tell what it has
MAX_MARKS = 16  # beyond this, every other mark of the older half is dropped
_WHAT = "position of the output"
_MODE = 0o640

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Mark:
    """A position that is not safe yet.

    Attributes:
        number: from 1, unique in the file.
        at_s: when the broker had confirmed everything before it, monotonic time.
    """

    number: int
    at_s: float
    cursors: Mapping[str, Cursor]


class PositionFile:
    """The position of one output in its sources, and its counters.

    Args:
        path: of the file; its folder must exist.
        now_s: monotonic clock.
        receiver: identifies the receiver of the messages, so that `adopt` can find the file; None:
            not known.

    Attributes:
        cursors: by source: the safe positions.
        lost: number of lost messages, in all runs.
        outage: whether and why it cannot be written.
        problem: why nothing may be sent any more: another machine or process writes the file.
    """

    def __init__(
        self,
        path: Path,
        now_s: Callable[[], float] = time.monotonic,
        receiver: str | None = None,
    ) -> None:
        self.path = path
        self.problem: str | None = None
        self._receiver = receiver
        self.outage = Outage(logger, f"the {_WHAT} {path} is written again", now_s)
        self._now_s = now_s
        self._saved_s = float("-inf")
        found = read_state(path, _decode, MAX_POSITION_BYTES, _WHAT) or {}
        sources, lost = found.get("sources"), found.get("lost")
        self.cursors: dict[str, Cursor] = dict(sources) if isinstance(sources, dict) else {}
        self.lost: int = lost if isinstance(lost, int) else 0
        self._kept: bytes | None = None
        self._written = _stamp(path)
        # distinguishes this file's marks from those of a lost file or of another box
        self._series, self._newest, self._marks = _marks(found.get("marks"), self.cursors, now_s())

    @property
    def newest(self) -> dict[str, Cursor]:
        """The newest confirmed positions, whether or not the broker still has the messages."""
        return self.cursors | (dict(self._marks[-1].cursors) if self._marks else {})

    def save(
        self,
        cursors: Mapping[str, Cursor],
        *,
        at_once: bool = False,
        memory: Memory | None = None,
    ) -> bool:
        """Save the positions of the sources, at once or at intervals; never raises.

        The positions of other sources stay in the file: they may be used again.

        Args:
            memory: of a broker that may lose messages; a mark is sent to it.

        Returns:
            Whether the positions are in the file now.
        """
        if self.problem is not None or (
            not at_once and self._now_s() - self._saved_s < SAVE_EVERY_S
        ):
            return False
        known = {name: cursor for name, cursor in cursors.items() if cursor is not None}
        if memory is None:
            self.cursors |= known
            self._marks = []
        else:
            self._add_mark(known, memory.safe_s)
        content, found = self._encode(), _stamp(self.path)
        if content == self._kept and found == self._written:
            return True
        self._saved_s = self._now_s()
        if found not in (None, self._written):
            self.problem = (
                f"the {_WHAT} {self.path} was changed by another machine or process: two must not "
                "use one state folder; end the other one, and start this one again"
            )
            return False
        try:
            replace_file(self.path, content, is_synced=True, mode=_MODE)
            self._written = _stamp(self.path)
        except OSError as error:
            text = "the %s %s cannot be written: %s: a kill would have messages sent twice"
            self.outage.failed(text, _WHAT, self.path, reason_of(error))
            return False
        self._kept = content
        self.outage.worked()
        if memory is not None and self._marks:  # only now: no number is ever used again
            memory.mark(f"{self._series} {self._marks[-1].number}")
        return True

    def go_back(self, kept: Sequence[str]) -> dict[str, Cursor]:
        """Return the position up to which the broker has everything, and go back to it.

        Args:
            kept: marks that the broker has; those of others are ignored.
        """
        numbers = [self._number(word) for word in kept]
        upto, now_s = max(numbers, default=0), self._now_s()
        # even these messages may only be in the broker's memory
        self._marks = [replace(mark, at_s=now_s) for mark in self._marks if mark.number <= upto]
        return self.newest

    def _add_mark(self, known: dict[str, Cursor], safe_s: float) -> None:
        if not self._marks or self._marks[-1].cursors != known:
            self._newest += 1
            self._marks.append(_Mark(self._newest, self._now_s(), known))
        while self._marks and self._marks[0].at_s <= safe_s:
            self.cursors |= self._marks.pop(0).cursors
        if len(self._marks) > MAX_MARKS:
            del self._marks[1 : MAX_MARKS // 2 : 2]

    def _encode(self) -> bytes:
        content: dict[str, Any] = {"v": 1, "sources": self.cursors, "lost": self.lost}
        if self._receiver is not None:
            content["receiver"] = self._receiver
        if self._newest:
            kept = _differences(self.cursors, self._marks)
            content["marks"] = {"series": self._series, "newest": self._newest, "kept": kept}
        return encode_json(content)

    def _number(self, word: str) -> int:
        series, _, number = word.partition(" ")
        if series != self._series or not number.isdecimal() or int(number) > self._newest:
            return 0
        return int(number)


class PositionFolder:
    """The folder of all positions, of one process at a time.

    If somebody removes it, it is made anew: the positions are in memory, and are written again.

    Args:
        path: made if it is not there.
        now_s: a clock that only goes forward.

    Attributes:
        outage: reports that it was removed.

    Raises:
        StartupError: another process has it, or it cannot be written.
    """

    def __init__(self, path: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._what = f"the folder of positions {path}"
        self.outage = Outage(logger, f"{self._what} is as it was", now_s)
        make_folder(path, 0o750)
        self._lock_fd = lock_file(path / "lock", self._what)

    def stay_in_place(self) -> None:
        """Make the folder anew if it was removed or replaced; to be called often.

        Raises:
            StartupError: another process has the one in its place, or it cannot be locked.
        """
        try:
            expect_in_place(self._path / "lock", os.fstat(self._lock_fd), self._what)
        except RemovedError:
            text = "%s was removed or replaced while it was in use: it is made anew"
            self.outage.failed(text, self._what)
        else:
            self.outage.worked()
            return
        with suppress(OSError):  # the positions cannot be written either, and say so
            make_folder(self._path, 0o750)
            lock_fd = lock_file(self._path / "lock", self._what)
            os.close(self._lock_fd)
            self._lock_fd = lock_fd

    def close(self) -> None:
        """Release the folder."""
        os.close(self._lock_fd)


def adopt(path: Path, receiver: str, in_use: Collection[str]) -> Path | None:
    """Let a renamed output continue where it stopped under its old name, for the same receiver.

    Args:
        path: of the output's file; an existing one is left as it is.
        in_use: names of the outputs in the configuration.

    Returns:
        The old file, which was renamed; None: there is none.
    """
    if path.exists():
        return None
    for file in sorted(path.parent.glob("*.json")):
        if file.stem in in_use:
            continue
        found = read_state(file, _decode, MAX_POSITION_BYTES, _WHAT) or {}
        if found.get("receiver") == receiver:
            with suppress(OSError):
                file.rename(path)
                return file
    return None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when the file is replaced; None: there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _differences(
    safe: Mapping[str, Cursor], marks: Sequence[_Mark]
) -> list[tuple[int, dict[str, Cursor]]]:
    """Return the number of each mark, and the cursors that differ from the previous mark's."""
    found = []
    before = dict(safe)
    for mark in marks:
        new = {name: cursor for name, cursor in mark.cursors.items() if before.get(name) != cursor}
        found.append((mark.number, new))
        before |= new
    return found


def _marks(found: Any, safe: Mapping[str, Cursor], now_s: float) -> tuple[str, int, list[_Mark]]:
    """Return the series, the number of the newest mark, and the marks of a file."""
    match found:
        case {"series": str(series), "newest": int(newest), "kept": list(kept)}:
            marks = []
            cursors = dict(safe)
            for number, new in filter(_is_mark, kept):
                cursors = cursors | new
                marks.append(_Mark(number, now_s, cursors))
            return series, max([newest, *(mark.number for mark in marks)]), marks
    return secrets.token_hex(6), 0, []


def _is_mark(value: Any) -> bool:
    match value:
        case [int(), dict()]:
            return True
    return False


def _decode(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("v") != 1:
        raise ValueError("expected a JSON object of version 1")
    return found
