"""ZeroMQ sockets with every option explicit; the only module that imports zmq.

Sockets that connect are libzmq's; those that bind are `transport.listener`'s, because libzmq ends
the process when peers misbehave. Measured behaviour behind the choices: PUSH with IMMEDIATE never
queues for an absent peer, and a small HWM bounds what is lost with a killed peer. libzmq's
heartbeats are off: one that is due when the peer has died and the queue is full fails an assertion
of libzmq that ends the process. Readers notice silence themselves: `FeedReader` by the status that
is sent each second, requests by their timeout. Over tcp a socket with keys speaks CURVE. Where the
other side speaks something else, with keys or without, libzmq never tries again: the monitor tells,
and the socket is replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal, Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

from ast_stream.errors import StartupError
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.logging import LimitedLog
from ast_stream.transport.authenticator import Authenticator
from ast_stream.transport.bound_address import lock_endpoint
from ast_stream.transport.keys import ClientKeys
from ast_stream.transport.listener import MAX_PEERS, Listener, Reactor
from ast_stream.transport.zmtp import Kind as BoundKind

__all__ = ["MAX_PEERS", "Listener", "Poller", "Socket", "Sockets", "Waitable", "lock_endpoint"]

ConnectedKind = Literal["push", "sub", "dealer", "link"]
"""A link is a DEALER that queues nothing for an absent peer."""

AUDIO_HWM_BLOCKS = 8  # small: the ring, not the queue, is what keeps audio
FEED_HWM_MESSAGES = 10_000
QUERY_HWM_MESSAGES = 64
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # that a connecting socket accepts
_MAX_SOCKETS = 8192  # of libzmq in one process: one for each ring at most
_HANDSHAKE_MS = 5000  # then it connects again: a dead tunnel may accept connections
_REPLACE_S = (0.5, 10.0)  # pause before a socket that libzmq has given up is replaced
_GIVEN_UP = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_REFUSED = _GIVEN_UP | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_NO_KEYS_THERE = "it has no CURVE keys in its configuration"
_OTHER_KEY = "this key is not allowed there, or the server key is another's"
_NO_KEY_HERE = (
    "it asks for a CURVE key; give one in the configuration (transport.curve), as --client-key and "
    "--server-key of subscribe, or as keys= of Subscriber"
)
_KINDS = {"push": zmq.PUSH, "sub": zmq.SUB, "dealer": zmq.DEALER, "link": zmq.DEALER}


logger = logging.getLogger(__name__)


class Waitable(Protocol):
    """What a poller can wait for."""

    @property
    def waitable(self) -> zmq.Socket[bytes] | int:
        """A socket or descriptor for zmq's poller."""


class Socket:
    """A ZeroMQ socket that connects; sends and receives never block.

    Args:
        connect: returns a connected socket; again if libzmq gives one up.
        endpoint: of the other side, to speak of.
        log: for refusals; None: there are none over ipc.
        has_keys: whether it speaks CURVE.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        connect: Callable[[], zmq.Socket[bytes]],
        endpoint: str,
        log: LimitedLog | None = None,
        has_keys: bool = False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._endpoint = endpoint
        self._log = log
        self._has_keys = has_keys
        self._now_s = now_s
        self._prefixes: list[str] = []
        self._socket = connect()
        self._monitor = self._watch()
        self._pause = Backoff(*_REPLACE_S)
        self._replace_at_s: float | None = None
        self._is_lost = False

    @property
    def is_lost(self) -> bool:
        """Whether a connection over tcp was there and is gone."""
        self._look()
        return self._is_lost

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        """The socket for a poller; over tcp it is replaced now and then."""
        return self._socket

    def send(self, frames: list[bytes]) -> bool:
        """Send now; return False if the peer is absent or its queue is full."""
        self._look()
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        """Return the frames of the next message; None after `timeout_ms`."""
        self._look()
        if timeout_ms and not self._socket.poll(timeout_ms):
            return None
        try:
            return self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def subscribe(self, prefix: str) -> None:
        """Receive messages whose topic starts with `prefix` (SUB only)."""
        self._prefixes.append(prefix)
        self._socket.setsockopt(zmq.SUBSCRIBE, prefix.encode())

    def unsubscribe(self, prefix: str) -> None:
        """Receive no more messages because their topic starts with `prefix` (SUB only)."""
        self._prefixes.remove(prefix)
        self._socket.setsockopt(zmq.UNSUBSCRIBE, prefix.encode())

    def close(self) -> None:
        """Close without waiting for unsent messages."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._socket.close(0)

    def _watch(self) -> zmq.Socket[bytes] | None:
        if self._log is None:
            return None
        monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            _REFUSED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        return monitor

    def _look(self) -> None:
        """Follow how the handshakes went, and replace a socket that libzmq has given up."""
        if self._monitor is None:
            return
        while self._monitor.poll(0):
            found = recv_monitor_message(self._monitor)
            self._note(found["event"], found["value"])
        if self._replace_at_s is not None and self._now_s() >= self._replace_at_s:
            self._replace_at_s = None
            self.close()
            self._socket = self._connect()
            self._monitor = self._watch()
            for prefix in self._prefixes:
                self._socket.setsockopt(zmq.SUBSCRIBE, prefix.encode())

    def _note(self, event: int, value: int) -> None:
        if event & zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._pause.reset()
        if event & (zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED):
            self._is_lost = bool(event & zmq.EVENT_DISCONNECTED)
            return
        assert self._log is not None
        has_given_up = bool(event & _GIVEN_UP)
        reason = None
        if self._has_keys:
            reason = _NO_KEYS_THERE if has_given_up else _OTHER_KEY
        elif has_given_up and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            reason = _NO_KEY_HERE  # else the other side broke off, or is no ZeroMQ socket at all
        if reason is not None:
            self._log.warning("%s refuses the connection: %s", self._endpoint, reason)
        if has_given_up and self._replace_at_s is None:
            self._replace_at_s = self._now_s() + self._pause.next_s()


class Sockets:
    """The sockets of one process (or thread group), closed together.

    Args:
        keys: of those that connect, over tcp; None: there nothing is encrypted.
    """

    def __init__(self, keys: ClientKeys | None = None) -> None:
        self._keys = keys
        self._log = LimitedLog(logger)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._reactor: Reactor | None = None
        self._open: list[Socket | Listener] = []

    def bind(
        self,
        kind: BoundKind,
        endpoint: str,
        hwm: int,
        max_peers: int = MAX_PEERS,
        authenticator: Authenticator | None = None,
        *,
        reads_rings: bool = False,
    ) -> Listener:
        """Return a bound socket.

        Args:
            authenticator: knows the keys that are allowed over tcp; None: there everybody is.
            reads_rings: a ROUTER that capture processes connect to.

        Raises:
            StartupError: the endpoint is in use by another process, or cannot be bound.
        """
        if self._reactor is None:
            self._reactor = Reactor()
        listener = Listener(
            self._reactor,
            kind,
            endpoint,
            hwm,
            max_peers,
            authenticator,
            reads_rings=reads_rings,
        )
        self._open.append(listener)
        return listener

    def connect(
        self, kind: ConnectedKind, endpoint: str, hwm: int, server_key: str | None = None
    ) -> Socket:
        """Return a socket that connects, and always reconnects, in the background.

        Args:
            server_key: public key of the other side, in Z85; None: the one of the configuration.

        Raises:
            StartupError: `endpoint` is not an endpoint.
        """
        keys = self._keys if endpoint.startswith("tcp://") else None

        def connect() -> zmq.Socket[bytes]:
            socket = self._context.socket(_KINDS[kind])
            _set_options(socket, kind, hwm)
            if keys is not None:
                socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public.encode())
                socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret.encode())
                socket.setsockopt(zmq.CURVE_SERVERKEY, (server_key or keys.server).encode())
            try:
                socket.connect(endpoint)
            except zmq.ZMQError as error:
                socket.close(0)
                raise StartupError(f"cannot connect to {endpoint}: {error}") from error
            return socket

        log = self._log if endpoint.startswith("tcp://") else None
        connected = Socket(connect, endpoint, log, has_keys=keys is not None)
        self._open.append(connected)
        return connected

    def close(self) -> None:
        """Close all sockets and the context."""
        for socket in self._open:
            socket.close()
        self._open.clear()
        if self._reactor is not None:
            self._reactor.close()
            self._reactor = None
        self._context.destroy(linger=0)

    def forget(self, socket: Socket | Listener) -> None:
        """Close one socket."""
        self._open.remove(socket)
        socket.close()


def _set_options(socket: zmq.Socket[bytes], kind: ConnectedKind, hwm: int) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    if kind in ("push", "link"):
        socket.setsockopt(zmq.IMMEDIATE, 1)


class Poller:
    """Wait for the first of several sockets."""

    def __init__(self, sockets: list[Waitable]) -> None:
        self._poller = zmq.Poller()
        for socket in sockets:
            self.add(socket)

    def add(self, socket: Waitable) -> None:
        """Watch one more socket."""
        self._poller.register(socket.waitable, zmq.POLLIN)

    def remove(self, socket: Waitable) -> None:
        """Stop watching a socket."""
        self._poller.unregister(socket.waitable)

    def wait(self, timeout_ms: int) -> None:
        """Return when a watched socket has a message, or after `timeout_ms`."""
        self._poller.poll(timeout_ms)
