"""Locks on files, so that two processes never use the same thing unnoticed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ast_stream.errors import StartupError


def lock_file(path: Path, what: str) -> int:
    """Take the lock on `path` and return its descriptor; closing it, or dying, releases it.

    Args:
        what: what the lock stands for, as it is named in the error.

    Raises:
        StartupError: another process holds the lock, or its folder cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
    except OSError as error:
        raise StartupError(f"cannot use {what}: {error}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise StartupError(f"{what} is in use by another process") from error
    return lock_fd
