"""Whose key may connect, and what it may do: the allow-list, read again when it changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ast_stream.errors import StartupError, WireError
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.schema import TransportSettings
from ast_stream.transport.allow_list import Client, read_allow_list
from ast_stream.transport.curve import CurveServer
from ast_stream.transport.keys import KeyPair, server_key

logger = logging.getLogger(__name__)


class Authenticator:
    """The keys that are allowed at the tcp sockets of a process.

    Args:
        key: of this process.
        path: the allow-list. While it is damaged the last good one stays in force; where there is
            none, nobody is allowed.

    Attributes:
        changes: how often the list has changed.

    Raises:
        StartupError: the allow-list cannot be used.
    """

    def __init__(self, key: KeyPair, path: Path) -> None:
        self.changes = 0
        self._key = key
        self._path = path
        self._log = LimitedLog(logger)
        self._found = self._look()
        self._by_key = self._read()
        if not self._by_key:
            logger.warning("%s allows nobody yet: nobody can connect over tcp", path)

    def client(self, key: str) -> Client | None:
        """Return whose key it is; None if it is not allowed."""
        return self._by_key.get(key)

    def session(self, admit: Callable[[Client], None]) -> CurveServer:
        """Return this side of a new connection.

        Args:
            admit: called with the client once it has proved its key, if that is allowed; may
                raise `WireError` as well.
        """

        def authorise(key: str) -> None:
            client = self.client(key)
            if client is None:
                raise WireError(f"its key {key} is not in {self._path}")
            admit(client)

        return CurveServer(self._key, authorise)

    def poll(self) -> None:
        """Read the allow-list again if its file has changed."""
        found = self._look()
        if found == self._found:
            return
        try:
            by_key = self._read()
        except StartupError as error:
            self._log.warning("%s; the one before stays in force", error)
            return
        self._found = found
        if by_key != self._by_key:
            self._by_key = by_key
            self.changes += 1
            names = ", ".join(client.name for client in by_key.values())
            logger.info("allowed over tcp: %s", names or "nobody")

    def _read(self) -> dict[str, Client]:
        return {client.key: client for client in read_allow_list(self._path)}

    def _look(self) -> tuple[int, int, int] | None:
        """Return what differs when the file was written or replaced; None if there is none."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def authenticator_of(transport: TransportSettings) -> Authenticator | None:
    """Return what the worker's sockets ask; None if none of them needs keys.

    Raises:
        StartupError: the key or the allow-list cannot be used.
    """
    key = server_key(transport)
    if key is None or transport.curve is None:
        return None
    return Authenticator(key, Path(transport.curve.allow_list))
