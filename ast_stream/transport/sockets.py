"""ZeroMQ sockets with every option explicit; the only module that imports zmq.

Sockets that connect are libzmq's; those that bind are `transport.listener`'s, because libzmq ends
the process when peers misbehave. Measured behaviour behind the choices: PUSH with IMMEDIATE never
queues for an absent peer, and a small HWM bounds what is lost with a killed peer. libzmq's
heartbeats are off: one that is due when the peer has died and the queue is full fails an assertion
of libzmq that ends the process. Readers notice silence themselves: `FeedReader` by the status that
is sent each second, requests by their timeout.
"""

from __future__ import annotations

from typing import Literal, Protocol

import zmq

from ast_stream.errors import StartupError
from ast_stream.transport.listener import MAX_PEERS, Listener, Reactor, lock_endpoint
from ast_stream.transport.zmtp import Kind as BoundKind

__all__ = ["MAX_PEERS", "Listener", "Poller", "Socket", "Sockets", "Waitable", "lock_endpoint"]

ConnectedKind = Literal["push", "sub", "dealer"]

AUDIO_HWM_BLOCKS = 8  # small: the ring, not the queue, is what keeps audio
FEED_HWM_MESSAGES = 10_000
QUERY_HWM_MESSAGES = 64
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # that a connecting socket accepts
_MAX_SOCKETS = 8192  # of libzmq in one process: one for each ring at most
_HANDSHAKE_MS = 5000  # then it connects again: a dead tunnel may accept connections
_KINDS = {"push": zmq.PUSH, "sub": zmq.SUB, "dealer": zmq.DEALER}


class Waitable(Protocol):
    """What a poller can wait for."""

    @property
    def waitable(self) -> zmq.Socket[bytes] | int:
        """A socket or descriptor for zmq's poller."""


class Socket:
    """A ZeroMQ socket that connects; sends and receives never block."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    @property
    def waitable(self) -> zmq.Socket[bytes]:
        """The socket for a poller."""
        return self._socket

    def send(self, frames: list[bytes]) -> bool:
        """Send now; return False if the peer is absent or its queue is full."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        """Return the frames of the next message; None after `timeout_ms`."""
        if timeout_ms and not self._socket.poll(timeout_ms):
            return None
        try:
            return self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def subscribe(self, prefix: str) -> None:
        """Receive messages whose topic starts with `prefix` (SUB only)."""
        self._socket.setsockopt(zmq.SUBSCRIBE, prefix.encode())

    def close(self) -> None:
        """Close without waiting for unsent messages."""
        self._socket.close(0)


class Sockets:
    """The sockets of one process (or thread group), closed together."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._reactor: Reactor | None = None
        self._open: list[Socket | Listener] = []

    def bind(
        self, kind: BoundKind, endpoint: str, hwm: int, max_peers: int = MAX_PEERS
    ) -> Listener:
        """Return a bound socket.

        Raises:
            StartupError: the endpoint is in use by another process, or cannot be bound.
        """
        if self._reactor is None:
            self._reactor = Reactor()
        listener = Listener(self._reactor, kind, endpoint, hwm, max_peers)
        self._open.append(listener)
        return listener

    def connect(self, kind: ConnectedKind, endpoint: str, hwm: int) -> Socket:
        """Return a socket that connects, and always reconnects, in the background.

        Raises:
            StartupError: `endpoint` is not an endpoint.
        """
        socket = self._context.socket(_KINDS[kind])
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
        if kind == "push":
            socket.setsockopt(zmq.IMMEDIATE, 1)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise StartupError(f"cannot connect to {endpoint}: {error}") from error
        connected = Socket(socket)
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
