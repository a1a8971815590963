"""Locks on files, so that two processes never use the same thing unnoticed."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from ast_stream.errors import StartupError
from ast_stream.runtime.files import warn_set_aside

_MODE = 0o660


def lock_file(path: Path, what: str) -> int:
    """Take the lock on `path` and return its descriptor; closing it, or dying, releases it.

    Args:
        what: what the lock stands for, as it is named in the error.

    Raises:
        StartupError: another process holds the lock, or its folder cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock_fd = open_lock(path)
    except OSError as error:
        raise StartupError(f"cannot use {what}: {error}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise StartupError(f"{what} is in use by another process") from error
    return lock_fd


def open_lock(path: Path) -> int:
    """Open a lock file; what is there instead of one holds no lock, and is set aside.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(found.st_mode):
            warn_set_aside(path, "lock", "it is no file")
        elif not found.st_mode & stat.S_IRUSR and found.st_uid == os.geteuid():
            os.chmod(path, _MODE)  # ours: another name would let a second process in
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, _MODE)
