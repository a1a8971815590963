"""A supervisor's ear on one child: what systemd's watchdog does, without systemd."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path

from ast_stream.limited_log import LimitedLog
from ast_stream.runtime.files import make_way

logger = logging.getLogger(__name__)

WATCHDOG_S = 30.0  # a child that was ready and has not worked for so long is stuck
_MAX_MESSAGE_BYTES = 4096
_PAUSE_S = 5.0  # between two looks: then we were not running, and the child perhaps neither


class Watch:
    """Hears whether a child works.

    Args:
        path: of the socket; what an earlier run left there is replaced.
        limit_s: how long a child may go without work.
    """

    def __init__(self, path: Path, limit_s: float = WATCHDOG_S) -> None:
        self._path = path
        self._limit_s = limit_s
        self._fed_s: float | None = None  # None: not ready yet, or stopping
        self._looked_s: float | None = None
        self._log = LimitedLog(logger)
        self._bind()

    @property
    def environ(self) -> dict[str, str]:
        """What the child needs in its environment to be heard."""
        return {
            "NOTIFY_SOCKET": str(self._path),
            "WATCHDOG_USEC": str(round(self._limit_s * 1e6)),
        }

    def begin(self) -> None:
        """Forget the process before: a new one is started."""
        self._drain()
        self._fed_s = self._looked_s = None

    def is_stuck(self, now_s: float) -> bool:
        """Tell whether the child was ready and has not worked for too long; look often.

        Args:
            now_s: a clock that only goes forward.
        """
        was_away = self._looked_s is not None and now_s - self._looked_s > _PAUSE_S
        self._looked_s = now_s
        for line in self._drain():
            if line in ("READY=1", "WATCHDOG=1"):
                self._fed_s = now_s
            elif line == "STOPPING=1":
                self._fed_s = None
        if not self._is_in_place():
            self._bind_again()
            was_away = True  # what the child has sent meanwhile is lost
        if was_away and self._fed_s is not None:
            self._fed_s = now_s
        return self._fed_s is not None and now_s - self._fed_s > self._limit_s

    def close(self) -> None:
        """Hear no more, and remove the socket."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _bind(self) -> None:
        make_way(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
        self._file = self._path.lstat()

    def _bind_again(self) -> None:
        """Put back a socket file that somebody has removed: the child would look stuck."""
        self._socket.close()
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._bind()
        except OSError as error:
            self._log.warning("%s was removed and cannot be bound again: %s", self._path, error)
        else:
            self._log.warning("%s was removed: bound again", self._path)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), self._file)
        except OSError:
            return False

    def _drain(self) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(OSError):  # nothing is there, or the file was removed
            while True:
                lines += self._socket.recv(_MAX_MESSAGE_BYTES).decode(errors="replace").splitlines()
        return lines
