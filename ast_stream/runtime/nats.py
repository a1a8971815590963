"""One connection to NATS that is kept up in a thread of its own; with `jetstream` the only importer
of nats-py, which is asyncio throughout.

Whoever uses it calls plain functions, with time limits, from any thread. A connection that is lost
is made again for ever, with growing delays; nothing is queued meanwhile: calls fail with a sentence
at once, and whoever made them tries again.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, TypeVar

from ast_stream.errors import AstStreamError, StartupError
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.credentials import (
    connection_error,
    read_secret,
    secret_file,
    tls_context,
)
from ast_stream.runtime.logging import Outage
from ast_stream.settings.forward import NatsAccess

if TYPE_CHECKING:  # an extra, which may not be there
    from nats.aio.client import Client

DEFAULT_INBOX = "_INBOX"
PING_EVERY_S = 10
MAX_UNANSWERED_PINGS = 2  # a server that is stopped or cut off is noticed after half a minute
MAX_PENDING_BYTES = 2 * 1024 * 1024  # in the library, on their way to the socket
_RECONNECT_S = (0.5, 60.0)
_HEALTHY_S = 30.0  # a connection that lasted so long: the next one begins with the first delay
_LOOK_EVERY_S = 0.1
_LEAVE_S = 3.0  # for a connection to be closed in good order
_EXTRA = "nats-py is not installed: pip install 'ast-stream[fleet]'"

_T = TypeVar("_T")
_No = Callable[[str], str | None]

logger = logging.getLogger(__name__)
_silent = logging.getLogger(f"{__name__}.silent")
_silent.disabled = True


class NatsError(AstStreamError):
    """What the servers refuse, or what is between us and them; a sentence."""


@dataclass(frozen=True)
class NatsLogin:
    """What is passed to the library to connect: secrets and TLS, read from their files.

    Attributes:
        options: arguments of `connect`, never shown.
    """

    servers: tuple[str, ...]
    needs_tls: bool
    options: dict[str, Any] = field(repr=False)


def check_library(what: str) -> None:
    """Expect that nats-py can be imported.

    Raises:
        StartupError: it cannot.
    """
    if importlib.util.find_spec("nats") is None or importlib.util.find_spec("nkeys") is None:
        raise StartupError(f"{what}: {_EXTRA}")


def read_login(what: str, access: NatsAccess, credential: _No = lambda key: None) -> NatsLogin:
    """Return what is needed to connect.

    Args:
        what: who connects, as errors name it.
        credential: returns the name of systemd's credential for a key (password, token, nkey,
            creds, key); None: there is none.

    Raises:
        StartupError: the library is missing, or a file cannot be used.
    """
    check_library(what)
    from nats.aio.client import RawCredentials

    options: dict[str, Any] = {}
    if access.username is not None:
        password = read_secret(
            what, access.password_file, access.password_env, credential("password")
        )
        options = {"user": access.username, "password": password}
    elif access.token_file is not None or access.token_env is not None:
        token = read_secret(what, access.token_file, access.token_env, credential("token"))
        options = {"token": token}
    elif access.nkey_file is not None:
        seed = read_secret(what, access.nkey_file, None, credential("nkey")) or ""
        _check_seed(what, access.nkey_file, seed)
        options = {"nkeys_seed_str": seed}
    elif access.creds_file is not None:
        creds = read_secret(what, access.creds_file, None, credential("creds")) or ""
        if "BEGIN NATS USER JWT" not in creds or "BEGIN USER NKEY SEED" not in creds:
            text = f"expected a JWT and a seed in creds_file {access.creds_file}, got others"
            raise StartupError(f"{what}: {text}")
        options = {"user_credentials": RawCredentials(creds + "\n")}
    if access.needs_tls:
        options["tls"] = _tls(what, access, credential)
    return NatsLogin(tuple(access.servers), access.needs_tls, options)


def _tls(what: str, access: NatsAccess, credential: _No) -> SSLContext:
    key = None if access.key_file is None else secret_file(access.key_file, credential("key"))
    return tls_context(what, access.ca_file, access.cert_file, key)


def _check_seed(what: str, file: str, seed: str) -> None:
    import nkeys

    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:  # whatever the library makes of it: its errors may quote it
        text = f"{what}: expected the seed of a user's nkey in {file}, SU…, got something else"
        raise StartupError(text) from None


class NatsConnection:
    """Connects, and connects again, until it is closed; thread-safe.

    Args:
        login: called for each attempt, so that files with secrets may change; raises StartupError.
        name: of this client, as the server shows it.
        what: the other side, in errors and the log.
        inbox: begins the subjects of answers; permissions may give each client its own.
        timeout_s: for an attempt.
        is_quiet: nothing is logged: whoever uses it says `error` in words of its own.
        on_connected: called in the thread of the connection after each connect, before it can be
            used; what it raises is logged, and ends the connection.

    Attributes:
        connects: how often a connection was made.
        max_payload: largest body that the server takes, bytes; of the last connection.
    """

    def __init__(
        self,
        login: Callable[[], NatsLogin],
        name: str,
        what: str,
        *,
        inbox: str = DEFAULT_INBOX,
        timeout_s: float = 10.0,
        is_quiet: bool = False,
        on_connected: Callable[[Client], Awaitable[None]] | None = None,
    ) -> None:
        self.connects = 0
        self.max_payload = 1024 * 1024
        self.outage = Outage(_silent if is_quiet else logger, f"{what} is connected again")
        self._login = login
        self._name = name
        self._what = what
        self._inbox = inbox
        self._timeout_s = timeout_s
        self._on_connected = on_connected
        self._client: Client | None = None
        self._connected = threading.Event()
        self._stopping = threading.Event()
        self._wake: asyncio.Event | None = None  # something has changed for the loop
        self._error = f"{what}: no connection yet"
        self._refusals: list[Callable[[str], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # of the thread
        self._thread = threading.Thread(target=self._run, name=f"nats {name}", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Whether it can be used now."""
        return self._connected.is_set()

    @property
    def error(self) -> str | None:
        """Why there is no connection, a sentence; None while there is one."""
        return None if self.is_connected else self._error

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Return whether there is a connection, waiting for it unless this is closed."""
        end_s = time.monotonic() + timeout_s
        while not self._stopping.is_set() and (left_s := end_s - time.monotonic()) > 0:
            if self._connected.wait(min(left_s, _LOOK_EVERY_S)):
                return True
        return self.is_connected

    def close(self) -> None:
        """End the connection; in bounded time."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._poke)
        self._thread.join(2 * _LEAVE_S)

    def call(self, work: Callable[[Client], Coroutine[Any, Any, _T]], timeout_s: float) -> _T:
        """Run a coroutine on the connection in its thread, and return the result.

        Raises:
            NatsError: there is no connection, the time is over, or the library or server refuses.
        """
        client, loop = self._client, self._loop
        if client is None or loop is None or not self.is_connected or self._stopping.is_set():
            raise NatsError(self.error or f"{self._what}: there is no connection")
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work(client), timeout_s), loop)
        try:
            return future.result(timeout_s + _LEAVE_S)
        except (TimeoutError, FutureTimeout) as error:
            future.cancel()
            raise NatsError(f"{self._what}: no answer within {timeout_s:g} s") from error
        except (NatsError, StartupError):
            raise
        except Exception as error:  # of the library, or of the server through it
            raise NatsError(f"{self._what}: {sentence(error)}") from error

    def on_refusal(self, note: Callable[[str], None]) -> None:
        """Have each error that the server reports by itself passed to `note`, in the thread."""
        self._refusals.append(note)

    def _poke(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _run(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._keep_connected())
        finally:
            self._connected.clear()
            left = asyncio.all_tasks(loop)  # of whoever follows something
            for task in left:
                task.cancel()
            with suppress(RuntimeError):
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _keep_connected(self) -> None:
        self._wake = asyncio.Event()
        # many boxes lose one server at the same moment, and shall not come back together
        backoff = Backoff(*_RECONNECT_S, healthy_s=_HEALTHY_S, jitter=0.5)
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                client = await self._connect()
            except Exception as error:  # of the library, a file, the network, or the server
                self._note_failure(error)
            else:
                await self._use(client)
            self._connected.clear()
            if self._stopping.is_set():
                return
            await self._sleep(backoff.after_run(time.monotonic() - began_s))

    async def _use(self, client: Client) -> None:
        """Wait until a new connection is lost, or to be closed."""
        assert self._wake is not None
        self.connects += 1
        self.max_payload = client.max_payload
        self._client = client
        self.outage.worked()
        self._connected.set()
        while not self._stopping.is_set() and not client.is_closed:
            await self._sleep(1.0)
        self._connected.clear()
        self._client = None
        if not self._stopping.is_set():
            self._note_failure(client.last_error or ConnectionError("the server has gone"))
        await _end(client)

    async def _sleep(self, duration_s: float) -> None:
        assert self._wake is not None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), duration_s)
        self._wake.clear()

    async def _connect(self) -> Client:
        login = self._login()
        client = _new_client(login.needs_tls)
        errors: list[BaseException] = []

        async def on_error(error: Exception) -> None:
            errors[:] = [error]
            if client.is_connected:
                for note in self._refusals:
                    note(sentence(error))

        async def on_gone() -> None:
            self._poke()

        try:
            await asyncio.wait_for(
                client.connect(
                    random.sample(login.servers, len(login.servers)),
                    name=self._name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=self._timeout_s,  # type: ignore[arg-type]
                    ping_interval=PING_EVERY_S,
                    max_outstanding_pings=MAX_UNANSWERED_PINGS,
                    pending_size=MAX_PENDING_BYTES,
                    inbox_prefix=self._inbox,
                    error_cb=on_error,
                    disconnected_cb=on_gone,
                    closed_cb=on_gone,
                    **login.options,
                ),
                self._timeout_s * 2,
            )
            if self._on_connected is not None:
                await asyncio.wait_for(self._on_connected(client), self._timeout_s * 2)
        except BaseException as error:
            await _end(client)
            if errors and not isinstance(error, AstStreamError) and _says_little(error):
                raise errors[0] from error
            raise
        return client

    def _note_failure(self, error: BaseException) -> None:
        text = f"{self._what}: {sentence(error)}"
        self._error = str(NatsError(text))
        self.outage.failed("%s", self._error)


async def _end(client: Client) -> None:
    """Close a connection; if the other side takes nothing any more, without waiting for it."""
    with suppress(Exception):
        await asyncio.wait_for(client.close(), _LEAVE_S)
    with suppress(Exception):  # the library would wait for ever until it has sent everything
        client._transport._io_writer.transport.abort()  # type: ignore[union-attr]


def _says_little(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__ == "NoServersError"


def _new_client(needs_tls: bool) -> Client:
    """Return a client that sends nothing, secrets least of all, to a server without TLS if needed.

    The library itself leaves it to the server whether there is TLS.
    """
    from nats.aio.client import Client

    class TlsClient(Client):
        async def _process_info(
            self, info: dict[str, Any], initial_connection: bool = False
        ) -> None:
            if initial_connection and not info.get("tls_required"):
                if not info.get("tls_available"):
                    raise NatsError("the server has no TLS, which the settings ask for")
                info["tls_required"] = True
            await super()._process_info(info, initial_connection=initial_connection)

    assert inspect.iscoroutinefunction(Client._process_info)  # else the check would not be made
    return TlsClient() if needs_tls else Client()


def sentence(error: BaseException) -> str:
    """Return in words what the library, the network or the server says, without secrets."""
    name = type(error).__name__
    text = connection_error(error)
    lower = text.lower()
    if isinstance(error, AstStreamError):
        return str(error)
    if "permissions violation" in lower:
        return f"this user may not do it: {text.removeprefix('nats: ')}"
    if "authorization violation" in lower or name == "AuthorizationError":
        return "the server refuses the login: user, password, token or key is wrong"
    if "authentication expired" in lower or "authentication revoked" in lower:
        return f"the server refuses the login: {text.removeprefix('nats: ')}"
    if name in ("NoRespondersError", "ServiceUnavailableError", "NoStreamResponseError"):
        return "nobody answers there: JetStream is off, or has no such stream"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if name == "StaleConnectionError" or name == "ErrStaleConnection":
        return "the server does not answer any more"
    if name == "UnexpectedEOF":
        return "the server has closed the connection"
    description = getattr(error, "description", None)
    if isinstance(description, str) and description:
        return f"the server says: {description}"
    return text.removeprefix("nats: ")
