"""Authentication of peers over tcp: whose key may connect, and what it may do."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ast_stream.errors import StartupError, WireError
from ast_stream.runtime.files import file_version
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.section import Misfit
from ast_stream.settings.transport import TransportSettings
from ast_stream.transport.allow_list import AllowedClient, read_allow_list
from ast_stream.transport.curve import CurveServer
from ast_stream.transport.keys import (
    CLIENT_CREDENTIAL,
    NO_SECRET,
    SERVER_CREDENTIAL,
    KeyPair,
    expected_server_key,
    read_pair,
    read_public,
    server_key,
)

_CURVE = ("transport", "curve")

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
        self._found = file_version(self._path)
        self._by_key = self._read()
        if not self._by_key:
            logger.warning("%s allows nobody yet: nobody can connect over tcp", path)

    def client(self, key: str) -> AllowedClient | None:
        """Return whose key it is; None if it is not allowed."""
        return self._by_key.get(key)

    def session(self, admit: Callable[[AllowedClient], None]) -> CurveServer:
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
        found = file_version(self._path)
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

    def _read(self) -> dict[str, AllowedClient]:
        return {client.key: client for client in read_allow_list(self._path)}


def authenticator_of(transport: TransportSettings) -> Authenticator | None:
    """Return what sockets that are bound ask over tcp; None if none of them needs keys.

    Raises:
        StartupError: the key or the allow-list cannot be used.
    """
    key = server_key(transport)
    if key is None or transport.curve is None:
        return None
    return Authenticator(key, Path(transport.curve.allow_list))


def key_problems(transport: TransportSettings) -> Iterator[Misfit]:
    """Yield what is wrong with the keys and the allow-list of a configuration, if any are used."""
    curve = transport.curve
    if curve is None or not transport.has_keyed_tcp:
        return
    checks: dict[str, Callable[[], object]] = {}
    if (own := curve.server_secret) is not None:
        checks["server_secret"] = lambda: read_pair(Path(own), SERVER_CREDENTIAL)
        checks["allow_list"] = lambda: read_allow_list(Path(curve.allow_list))
    if (client := curve.client_secret) is not None:
        checks["client_secret"] = lambda: read_pair(Path(client), CLIENT_CREDENTIAL)
    elif own is None:  # then all that this box does is to connect
        yield (*_CURVE, "client_secret"), NO_SECRET
    is_of_one_worker = curve.server_key is not None or own is not None
    if is_of_one_worker and (client is not None or curve.server_key is not None):
        checks["server_key"] = lambda: read_public(expected_server_key(curve))
    for key, check in checks.items():
        try:
            check()
        except StartupError as error:
            yield (*_CURVE, key), str(error)


def key_warnings(transport: TransportSettings) -> Iterator[Misfit]:
    """Yield whom the keys and the allow-list, which can be used, keep out."""
    curve = transport.curve
    if curve is None or curve.server_secret is None or not transport.has_keyed_tcp:
        return
    path = (*_CURVE, "allow_list")
    try:
        clients = read_allow_list(Path(curve.allow_list))
        own = (
            read_pair(Path(curve.client_secret), CLIENT_CREDENTIAL) if curve.client_secret else None
        )
    except StartupError:  # a problem
        return
    authorise = "nobody can connect over tcp until `ast-stream keys authorise` adds a key"
    if not os.path.exists(curve.allow_list):
        yield path, f"there is no {curve.allow_list} yet: {authorise}"
    elif not clients:
        yield path, f"{curve.allow_list} allows nobody yet: {authorise}"
    elif own is not None and own.public not in {client.key for client in clients}:
        text = f"its key {own.public} is not in {curve.allow_list}: the worker will refuse it"
        yield (*_CURVE, "client_secret"), text
    if own is None:
        text = "none: capture, alerts, status and subscribe of this box cannot connect"
        yield (*_CURVE, "client_secret"), text
