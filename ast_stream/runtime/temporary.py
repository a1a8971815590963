"""Temporary files and folders, of which a killed process leaves nothing for long.

A file has no name, so that nothing of it is left. A folder, which other processes have to find, is
locked while its process lives; the next run of the same command deletes those that are not.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_UNLOCKED_S = 60.0  # at most, between the making of a folder and its lock


@contextmanager
def nameless_file() -> Iterator[tuple[BinaryIO, Path]]:
    """Yield an empty file in `TMPDIR`, and a path by which this process alone can open it again.

    Raises:
        OSError: it cannot be made.
    """
    with tempfile.TemporaryFile() as file:
        yield file, Path(f"/proc/self/fd/{file.fileno()}")


@contextmanager
def temporary_folder(
    what: str, parent: Path | None = None, now_s: Callable[[], float] = time.time
) -> Iterator[Path]:
    """Yield an empty folder that is deleted afterwards, as are those of runs that were killed.

    Args:
        what: it is for, a word of its name.
        parent: None: in `TMPDIR`.
        now_s: the time of day, as the file system has it.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    prefix = f"ast-stream-{what}-"
    for left in place.glob(f"{prefix}*"):
        with suppress(OSError):
            _delete_unless_used(left, now_s())
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as name:
        lock_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock_fd)


def _delete_unless_used(folder: Path, now_s: float) -> None:
    """Delete a folder of this user that no living process has locked.

    Raises:
        OSError: another process has it, or it is none of ours.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        is_new = abs(now_s - found.st_ctime) < _UNLOCKED_S
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == stat.S_IRWXU:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_new:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)
