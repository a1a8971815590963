"""ZeroMQ sockets with every option explicit; the only module that imports zmq.

Measured behaviour behind the choices: PUSH with IMMEDIATE never queues for an absent peer, a
small HWM bounds what dies with a killed peer, heartbeats are needed on ipc too, and bind()
silently steals a live ipc file, hence the lock beside it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import zmq

from ast_stream.errors import StartupError
from ast_stream.wire.locks import lock_file

Kind = Literal["push", "pull", "pub", "sub", "router", "dealer"]

AUDIO_HWM_BLOCKS = 8  # small: the ring, not the queue, is what keeps audio
FEED_HWM_MESSAGES = 10_000
QUERY_HWM_MESSAGES = 64
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # a peer that sends more is disconnected
_HEARTBEAT_MS = (500, 1500, 2000)  # interval, timeout, time to live
_KINDS = {
    "push": zmq.PUSH,
    "pull": zmq.PULL,
    "pub": zmq.PUB,
    "sub": zmq.SUB,
    "router": zmq.ROUTER,
    "dealer": zmq.DEALER,
}


class Socket:
    """One ZeroMQ socket; sends never block, receives return None when nothing is there."""

    def __init__(self, socket: zmq.Socket[bytes], lock_fd: int | None = None) -> None:
        self._socket = socket
        self._lock_fd = lock_fd

    @property
    def raw(self) -> zmq.Socket[bytes]:
        """The socket for a poller."""
        return self._socket

    def send(self, frames: list[bytes]) -> bool:
        """Send now; False if the peer is absent or its queue is full."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        """Return the frames of the next message, or None after `timeout_ms`."""
        if timeout_ms and not self._socket.poll(timeout_ms):
            return None
        try:
            return self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def subscribe(self, prefix: str) -> None:
        """Take messages whose topic starts with `prefix` (SUB only)."""
        self._socket.setsockopt(zmq.SUBSCRIBE, prefix.encode())

    def close(self) -> None:
        """Close without waiting for unsent messages, and release the endpoint."""
        self._socket.close(0)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


class Sockets:
    """The sockets of one process (or thread group): one context, closed together."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._open: list[Socket] = []

    def bind(self, kind: Kind, endpoint: str, hwm: int) -> Socket:
        """Return a bound socket.

        Raises:
            StartupError: the endpoint is in use by another process, or cannot be bound.
        """
        lock_fd = lock_endpoint(endpoint)
        socket = self._new(kind, hwm)
        try:
            with _umask(0o117):  # ipc files get mode 0660
                socket.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            if lock_fd is not None:
                os.close(lock_fd)
            raise StartupError(f"cannot bind {endpoint}: {error}") from error
        return self._keep(Socket(socket, lock_fd))

    def connect(self, kind: Kind, endpoint: str, hwm: int) -> Socket:
        """Return a socket that connects, and reconnects for ever, in the background.

        Raises:
            StartupError: `endpoint` is not one.
        """
        socket = self._new(kind, hwm)
        if kind == "push":
            socket.setsockopt(zmq.IMMEDIATE, 1)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise StartupError(f"cannot connect to {endpoint}: {error}") from error
        return self._keep(Socket(socket))

    def close(self) -> None:
        """Close all sockets and the context."""
        for socket in self._open:
            socket.close()
        self._open.clear()
        self._context.destroy(linger=0)

    def forget(self, socket: Socket) -> None:
        """Close one socket."""
        self._open.remove(socket)
        socket.close()

    def _new(self, kind: Kind, hwm: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(_KINDS[kind])
        interval, timeout, ttl = _HEARTBEAT_MS
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, hwm)
        socket.setsockopt(zmq.RCVHWM, hwm)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, interval)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, timeout)
        socket.setsockopt(zmq.HEARTBEAT_TTL, ttl)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if kind == "router":
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        return socket

    def _keep(self, socket: Socket) -> Socket:
        self._open.append(socket)
        return socket


class Poller:
    """Wait for the first of several sockets."""

    def __init__(self, sockets: list[Socket]) -> None:
        self._poller = zmq.Poller()
        for socket in sockets:
            self.add(socket)

    def add(self, socket: Socket) -> None:
        """Watch one more socket."""
        self._poller.register(socket.raw, zmq.POLLIN)

    def remove(self, socket: Socket) -> None:
        """Stop watching a socket."""
        self._poller.unregister(socket.raw)

    def wait(self, timeout_ms: int) -> None:
        """Return when a watched socket has a message, or after `timeout_ms`."""
        self._poller.poll(timeout_ms)


def lock_endpoint(endpoint: str) -> int | None:
    """Take the lock beside an ipc endpoint; None for other transports.

    Raises:
        StartupError: another process holds the endpoint, or its folder cannot be written.
    """
    if not endpoint.startswith("ipc://"):
        return None
    return lock_file(Path(endpoint.removeprefix("ipc://") + ".lock"), endpoint)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
