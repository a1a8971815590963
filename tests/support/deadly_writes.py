"""Writes to disk that are counted, and of which one is the last: who wrote that dies behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock


class DiedError(BaseException):
    """What ends a process in a test: nothing in it may catch that."""


class Writes:
    """Counts what is appended to files and what takes the place of files.

    Attributes:
        done: names of the files; of lines of a log, of its folder.
        dies_behind: number of the write, or a name: behind the next one of that name.
        is_counting: whether it does so now.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.dies_behind: int | str | None = None
        self.is_counting = False
        self._folder = Path("/")

    def begin(self, dies_behind: int | str | None, folder: Path = Path("/")) -> None:
        """Count from now on what is written below a folder."""
        self.done, self.dies_behind, self._folder = [], dies_behind, folder
        self.is_counting = True

    def note(self, path: Path, name: str) -> None:
        """Note a write.

        Raises:
            DiedError: it was the last one.
        """
        if not self.is_counting or not path.is_relative_to(self._folder):
            return
        self.done.append(name)
        if self.dies_behind in (len(self.done), name):
            self.is_counting, self.dies_behind = False, None
            raise DiedError


@contextmanager
def counted_writes() -> Iterator[Writes]:
    """Yield what counts the writes of this process."""
    writes = Writes()
    write, replace = os.write, os.replace

    def noted_write(fd: int, content: bytes) -> int:
        n_bytes = write(fd, content)
        if writes.is_counting:
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            writes.note(path, path.parent.name)
        return n_bytes

    def noted_replace(old: Path, new: Path) -> None:
        replace(old, new)
        writes.note(Path(new), Path(new).name)

    with (
        mock.patch.object(os, "write", noted_write),
        mock.patch.object(os, "replace", noted_replace),
    ):
        yield writes
