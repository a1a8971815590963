"""Addresses that this process binds: the listening socket, its file, and the lock beside it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from ast_stream.runtime.files import is_in_place, lock_file

_BACKLOG = 1024


class BoundAddress:
    """An endpoint that this process binds, and the socket file of ipc.

    Raises:
        OSError: it is not an endpoint that can be bound.
    """

    def __init__(self, endpoint: str) -> None:
        scheme, _, place = endpoint.partition("://")
        if scheme not in ("ipc", "tcp"):
            raise OSError("expected ipc:///path or tcp://127.0.0.1:5555")
        self._path = Path(place) if scheme == "ipc" else None
        host, _, port = place.rpartition(":")
        self._host, self._port = host.strip("[]"), port
        self._file: os.stat_result | None = None

    def listen(self) -> socket.socket:
        """Return a socket that listens there; the file of an earlier one is replaced."""
        if self._path is None:
            family, kind, protocol, _, address = min(
                socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM),
                key=lambda found: found[0] != socket.AF_INET,  # libzmq connects to this one
            )
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return _listening_socket(listening, address)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise FileExistsError(f"{self._path} exists and is not a socket")
            self._path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(listening.fileno(), 0o660)  # so the file never has more rights than this
        listening = _listening_socket(listening, str(self._path))
        self._path.chmod(0o660)
        self._file = self._path.lstat()
        return listening

    def is_in_place(self) -> bool:
        """Return whether clients still find the socket there."""
        return self._path is None or self._file is None or is_in_place(self._path, self._file)

    def remove(self) -> None:
        """Remove the socket's file, if it is still this one's."""
        if self._path is not None and self.is_in_place():
            with contextlib.suppress(OSError):  # whoever binds it next removes it
                self._path.unlink()


def _listening_socket(listening: socket.socket, address: object) -> socket.socket:
    try:
        listening.bind(address)  # type: ignore[arg-type]
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def lock_endpoint(endpoint: str) -> int | None:
    """Lock the file beside an ipc endpoint; return None for other transports.

    Raises:
        StartupError: another process holds the endpoint, or its folder cannot be written.
    """
    if not endpoint.startswith("ipc://"):
        return None
    return lock_file(lock_path(endpoint), endpoint)


def lock_path(endpoint: str) -> Path:
    """Return the lock file beside an ipc endpoint."""
    return Path(endpoint.removeprefix("ipc://") + ".lock")
