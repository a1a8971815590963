"""A supervisor's ear on one child: what systemd's watchdog does, without systemd."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from ast_stream.runtime.files import make_way

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
        make_way(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind(str(path))

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
        if was_away and self._fed_s is not None:
            self._fed_s = now_s
        return self._fed_s is not None and now_s - self._fed_s > self._limit_s

    def close(self) -> None:
        """Hear no more, and remove the socket."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _drain(self) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines += self._socket.recv(_MAX_MESSAGE_BYTES).decode(errors="replace").splitlines()
        return lines
