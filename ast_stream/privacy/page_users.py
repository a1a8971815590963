"""Users of the page and their scopes: a file of this program, read again when it changes.

Without argon2 and the other packages of the page: `ast-stream users` and the page share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_stream.errors import StartupError
from ast_stream.runtime.files import (
    DamagedFileError,
    file_version,
    lock_file,
    read_bounded,
    reason_of,
    replace_file,
)
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.storage import MAX_USERS_BYTES
from ast_stream.settings.web import SCOPES, Scope

MAX_USERS = 1000
MAX_NAME_CHARACTERS = 64
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\Z")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . @ + -, beginning with a letter, digit or _"
LOOK_AGAIN_S = 1.0
_VERSION = 1
_MAX_BYTES = MAX_USERS_BYTES
_MODE = 0o600
_FOLDER_MODE = 0o750

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class User:
    """One user.

    Attributes:
        password_hash: as argon2 writes it; None: known to the proxy only, cannot log in here.
        scopes: what it may do, in the order of `SCOPES`.
    """

    name: str
    password_hash: str | None
    scopes: tuple[Scope, ...]

    @property
    def stamp(self) -> str:
        """What a login stays valid for: another password has another one."""
        return hashlib.sha256((self.password_hash or "").encode()).hexdigest()


def read_users(path: Path) -> dict[str, User]:
    """Return the users in a file, by name; empty without the file.

    Raises:
        StartupError: it cannot be read, is damaged, or others than its owner may read it.
    """
    try:
        content = read_bounded(path, _MAX_BYTES)
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return {}
    except (OSError, DamagedFileError) as error:
        raise StartupError(f"users: cannot read {path}: {reason_of(error)}") from error
    if mode & 0o077:
        text = f"users: expected mode 0600 at {path}, got {mode:04o}, with which others may read "
        raise StartupError(f"{text}or write it: chmod 600 {path}")
    try:
        return _decode(content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StartupError(f"users: {path} cannot be used: {error}") from error


@contextmanager
def changing_users(path: Path) -> Iterator[dict[str, User]]:
    """Yield the users in a file, and write them as they are left, unless that raises.

    What root writes belongs to the owner of the folder around it, as the page has to read it.

    Raises:
        StartupError: it cannot be read or written, or another process is changing it.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        lock_fd = lock_file(lock, f"the users in {path}")
    except OSError as error:
        raise StartupError(f"users: cannot write {path}: {error.strerror}") from error
    try:
        users = read_users(path)
        yield users
        _write(path, users)
        _give_away(path.parent, lock, path)
    finally:
        os.close(lock_fd)


class Users:
    """The users in a file; the file is checked for changes at most once a second.

    A file that is damaged later changes nothing; one that is removed shuts everybody out.

    Args:
        now_s: monotonic clock.

    Raises:
        StartupError: the file cannot be used.
    """

    def __init__(self, path: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._now_s = now_s
        self._lock = threading.Lock()
        self._log = LimitedLog(logger)
        self._seen = file_version(path)
        self._users: Mapping[str, User] = read_users(path)
        self._looked_s = now_s()

    def get(self, name: str) -> User | None:
        """Return the user of this name, or None."""
        with self._lock:
            if self._now_s() - self._looked_s >= LOOK_AGAIN_S:
                self._looked_s = self._now_s()
                self._look_again()
            return self._users.get(name)

    def __len__(self) -> int:
        return len(self._users)

    def _look_again(self) -> None:
        seen = file_version(self.path)
        if seen == self._seen:
            return
        try:
            self._users = read_users(self.path)
        except StartupError as error:
            self._log.warning("%s; users are unchanged", error)
            return
        self._seen = seen
        logger.info("%s users read from %s", len(self._users), self.path)


def _decode(content: bytes) -> dict[str, User]:
    body = json.loads(content)
    if not isinstance(body, dict) or body.get("version") != _VERSION:
        raise ValueError(f"expected an object of version {_VERSION}, got something else")
    entries = body["users"]
    if not isinstance(entries, list) or len(entries) > MAX_USERS:
        raise ValueError(f"expected a list of at most {MAX_USERS} users, got something else")
    users = [_decode_user(entry) for entry in entries]
    found = {user.name: user for user in users}
    if len(found) < len(users):
        raise ValueError("expected each name once, got one twice")
    return found


def _decode_user(entry: Any) -> User:
    name, password_hash, scopes = entry["name"], entry["password_hash"], entry["scopes"]
    if not isinstance(name, str) or not NAME.match(name):
        raise ValueError(f"name: expected {NAME_RULE}, got {name!r}")
    if password_hash is not None and not (
        isinstance(password_hash, str) and password_hash.startswith("$argon2")
    ):
        raise ValueError(f"password_hash of {name}: expected one of argon2 or null")
    if not isinstance(scopes, list) or not set(scopes) <= set(SCOPES):
        raise ValueError(f"scopes of {name}: expected a list of {', '.join(SCOPES)}")
    return User(name, password_hash, in_order(scopes))


def in_order(scopes: Collection[str]) -> tuple[Scope, ...]:
    """Return each scope once, in the order of `SCOPES`."""
    return tuple(scope for scope in SCOPES if scope in scopes)


def _write(path: Path, users: Mapping[str, User]) -> None:
    if len(users) > MAX_USERS:
        raise StartupError(f"users: expected at most {MAX_USERS}, got {len(users)}")
    body = {
        "version": _VERSION,
        "users": [
            {"name": user.name, "password_hash": user.password_hash, "scopes": list(user.scopes)}
            for user in users.values()
        ],
    }
    text = json.dumps(body, indent=2) + "\n"
    try:
        replace_file(path, text.encode(), is_synced=True, mode=_MODE)
    except OSError as error:
        raise StartupError(f"users: cannot write {path}: {error.strerror}") from error


def _give_away(folder: Path, *files: Path) -> None:
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        owner = folder.parent.stat()
        for path in (folder, *files):
            os.chown(path, owner.st_uid, owner.st_gid)
