"""The HTTP server, in a separate thread: sockets, certificate, start and stop."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from ast_stream.errors import StartupError
from ast_stream.settings.web import WebSettings
from ast_stream.web.connections import LiveConnection, RequestConnection

BACKLOG = 128
KEEP_ALIVE_S = 15
GRACE_S = 2  # for pending requests, at the end
MAX_HEAD_BYTES = 32 * 1024
MAX_MESSAGE_BYTES = 64 * 1024  # of a browser's WebSocket message
_JOIN_S = GRACE_S + 3.0

logger = logging.getLogger(__name__)


class PageServer:
    """Serves an application until it is stopped.

    Args:
        sockets: bound; closed at the end.
        tls: None: plain HTTP.
    """

    def __init__(
        self, app: ASGIApp, sockets: list[socket.socket], tls: ssl.SSLContext | None
    ) -> None:
        # it would log what strangers send; our own faults are logged by the application
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
        config = uvicorn.Config(
            app,
            http=RequestConnection,
            ws=LiveConnection,
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a proxy must prove that it is one, see `guard`
            ssl_context_factory=None if tls is None else (lambda *_: tls),
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # takes memory, and spectrograms do not compress well
        )
        self._server = _CountingServer(config)
        self._sockets = sockets
        self._error: BaseException | None = None
        self._seen_turns = -1
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    @property
    def is_working(self) -> bool:
        """Whether its event loop has turned since the last call."""
        before, self._seen_turns = self._seen_turns, self._server.n_turns
        return self._seen_turns != before

    @property
    def has_started(self) -> bool:
        """Whether requests are answered."""
        return self._server.started

    @property
    def n_connections(self) -> int:
        """Number of open browser connections."""
        return len(self._server.server_state.connections)

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def check(self) -> None:
        """Raise the exception that ended the server, if it has ended."""
        if not self._thread.is_alive():
            raise self._error or RuntimeError("the server ended by itself")

    def stop(self) -> None:
        """Stop, after pending requests."""
        self._server.should_exit = True
        self._thread.join(_JOIN_S)
        for listening in self._sockets:
            listening.close()

    def _run(self) -> None:
        try:
            self._server.run(self._sockets)
        except BaseException as error:  # uvicorn raises SystemExit if it cannot start
            self._error = error


class _CountingServer(uvicorn.Server):
    """Counts the turns of its event loop, ten per second."""

    n_turns = 0

    async def on_tick(self, counter: int) -> bool:
        self.n_turns += 1
        return await super().on_tick(counter)


def bind(settings: WebSettings) -> list[socket.socket]:
    """Return listening sockets at all addresses that `web.listen` resolves to.

    Raises:
        StartupError: none can be bound.
    """
    host, port = settings.address
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as error:
        raise StartupError(f"web.listen: cannot listen at {settings.listen}: {error}") from error
    sockets: list[socket.socket] = []
    first_error: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listening = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                with suppress(OSError):
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            first_error = first_error or error
        else:
            sockets.append(listening)
    if not sockets:
        assert first_error is not None
        text = f"web.listen: cannot listen at {settings.listen}: {first_error.strerror}"
        raise StartupError(text) from first_error
    return sockets


def open_tls(settings: WebSettings) -> ssl.SSLContext | None:
    """Return a TLS context with the configured certificate; None: none is configured.

    Raises:
        StartupError: the certificate or its key cannot be used.
    """
    if settings.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, settings)
    return context


def load_certificate(context: ssl.SSLContext, settings: WebSettings) -> None:
    """Read the certificate file again, for new connections.

    Raises:
        StartupError: the certificate or its key cannot be used.
    """
    assert settings.certificate is not None
    where = f"{settings.certificate} with {settings.private_key}"
    try:
        # otherwise a key with a passphrase would prompt for it on the terminal
        context.load_cert_chain(settings.certificate, settings.private_key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise StartupError(f"web.certificate: cannot use {where}: {reason}") from error


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; expected one without")
