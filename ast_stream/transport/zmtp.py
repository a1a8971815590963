"""ZMTP 3.1, the protocol under ZeroMQ, as the side that binds speaks it; no sockets, no clock.

libzmq does not withstand misbehaving peers: one that sends a heartbeat into a full queue and dies,
or too many connections, fail an assertion that ends the process, and the parts of an unfinished
message are kept without a limit. So the sockets that this program binds are its own
(`transport.listener`), with a limit on everything a peer can make it keep; those that connect are
libzmq's.

The specification is RFC 37/ZMTP of the ZeroMQ project. The mechanism is NULL, or CURVE where the
session is given the side of a connection that speaks it (`transport.curve`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ast_stream.errors import WireError
from ast_stream.transport.curve import OVERHEAD_BYTES, CurveServer

Kind = Literal["pull", "pub", "router"]

MAX_TOPIC_BYTES = 512  # of a subscription
MAX_SUBSCRIPTIONS = 2048  # of one peer: every class of AudioSet, and some streams
MAX_SUBSCRIBED_BYTES = 128 * 1024  # of one peer, all its subscriptions together
MAX_PARTS = 8  # of a message; the largest of ours has five
MAX_COMMAND_BYTES = 1024

GREETING_BYTES = 64
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_MECHANISM_BYTES = 20
_VERSION = b"\x03\x01"


def _greeting(mechanism: bytes, *, is_server: bool) -> bytes:
    named = _SIGNATURE + _VERSION + mechanism.ljust(_MECHANISM_BYTES, b"\0") + bytes((is_server,))
    return named.ljust(GREETING_BYTES, b"\0")


GREETING = _greeting(b"NULL", is_server=False)
CURVE_GREETING = _greeting(b"CURVE", is_server=True)

_MORE, _LONG, _COMMAND = 1, 2, 4  # bits of the first byte of a frame
_CURVE_COMMAND = 2  # the same of one that is encrypted, where the length is not part of it
_COUNTERPARTS: dict[Kind, frozenset[bytes]] = {
    "pull": frozenset({b"PUSH"}),
    "pub": frozenset({b"SUB", b"XSUB"}),
    "router": frozenset({b"DEALER", b"REQ", b"ROUTER"}),
}


@dataclass
class Subscriptions:
    """The topics that one peer subscribes to, by prefix.

    Attributes:
        prefixes: the same, for `bytes.startswith`.
    """

    prefixes: tuple[bytes, ...] = ()
    n_bytes: int = 0
    _counts: dict[bytes, int] = field(default_factory=dict)

    def add(self, topic: bytes) -> None:
        """Subscribe to one more topic.

        Raises:
            WireError: it is too long, or there are too many.
        """
        if len(topic) > MAX_TOPIC_BYTES:
            raise WireError(
                f"subscription: expected a topic of at most {MAX_TOPIC_BYTES} bytes, "
                f"got {len(topic)}"
            )
        if topic in self._counts:
            self._counts[topic] += 1
            return
        n_bytes = self.n_bytes + len(topic)
        if len(self._counts) >= MAX_SUBSCRIPTIONS or n_bytes > MAX_SUBSCRIBED_BYTES:
            raise WireError(
                f"subscription: expected at most {MAX_SUBSCRIPTIONS} topics of together "
                f"{MAX_SUBSCRIBED_BYTES} bytes from one client, got one more"
            )
        self._counts[topic] = 1
        self._renew(n_bytes)

    def remove(self, topic: bytes) -> None:
        """Cancel a subscription; one that does not exist changes nothing."""
        count = self._counts.get(topic, 0)
        if count > 1:
            self._counts[topic] = count - 1
        elif count == 1:
            del self._counts[topic]
            self._renew(self.n_bytes - len(topic))

    def _renew(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.prefixes = tuple(self._counts)


class ZmtpSession:
    """The state of one connection: bytes in, messages out.

    Pass the bytes read to `feed`, call `next_message` until it returns None, and send what
    `pop_replies` returns. After a `WireError` the connection must be closed.

    Args:
        max_message_bytes: of all parts of a message together.
        curve: the CURVE side of the connection; None: nothing is encrypted, and anyone may come.

    Attributes:
        greeting: what is sent first.
        is_ready: the handshake is done; messages may be sent.
        subscriptions: of the peer (PUB only).
    """

    def __init__(
        self, kind: Kind, max_message_bytes: int, curve: CurveServer | None = None
    ) -> None:
        self.greeting = GREETING if curve is None else CURVE_GREETING
        self.is_ready = False
        self._curve = curve
        self.subscriptions = Subscriptions()
        self._kind = kind
        self._max_message_bytes = max_message_bytes
        self._has_greeting = False
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._replies = bytearray()

    @property
    def held_bytes(self) -> int:
        """Bytes that are kept for this peer."""
        return len(self._buffer) + self._parts_bytes + self.subscriptions.n_bytes

    def feed(self, data: bytes) -> None:
        """Add bytes as they were read."""
        self._buffer += data

    def next_message(self) -> list[bytes] | None:
        """Return the parts of the next whole message; None until more bytes come.

        Raises:
            WireError: the bytes are not ZMTP 3, or exceed a limit.
        """
        if not self._has_greeting and not self._read_greeting():
            return None
        while (frame := self._next_frame()) is not None:
            flags, body = frame
            if self._curve is not None and self.is_ready:
                flags, body = self._opened(self._curve, body)
            if flags & _COMMAND:
                self._on_command(body)
                continue
            if not self.is_ready:
                raise WireError("ZMTP: expected the command READY first, got a message")
            self._parts.append(body)
            self._parts_bytes += len(body)
            if flags & _MORE:
                continue
            message, self._parts, self._parts_bytes = self._parts, [], 0
            if self._kind != "pub":
                return message
            self._on_subscription(message)  # as peers before ZMTP 3.1 send it
        return None

    def encode(self, parts: list[bytes]) -> bytes:
        """Return the bytes of a message to the peer; each call's once, and in this order."""
        if self._curve is None:
            return encode_message(parts)
        flags = [_MORE] * (len(parts) - 1) + [0]
        sealed = map(self._curve.seal, flags, parts)
        return b"".join(_frame(frame, 0) for frame in sealed)

    def pop_replies(self) -> bytes:
        """Return what the protocol itself has to answer, and forget it."""
        replies = bytes(self._replies)
        self._replies.clear()
        return replies

    def _read_greeting(self) -> bool:
        got = self._buffer
        if (got and got[0] != 0xFF) or (len(got) > 9 and not got[9] & 1):
            raise WireError(f"ZMTP: expected the greeting of ZeroMQ, got {bytes(got[:16])!r}")
        if len(got) > 10 and got[10] < 3:
            raise WireError(f"ZMTP: expected version 3 or later, got {got[10]}")
        if len(got) < GREETING_BYTES:
            return False
        expected = b"NULL" if self._curve is None else b"CURVE"
        mechanism = bytes(got[12 : 12 + _MECHANISM_BYTES]).rstrip(b"\0")
        if mechanism != expected:
            raise WireError(
                f"ZMTP: expected the mechanism {expected.decode()}, got {mechanism!r}"
                + ("" if self._curve is None else ": the client has no key")
            )
        del got[:GREETING_BYTES]
        self._has_greeting = True
        if self._curve is None:
            self._replies += _frame(b"\x05READY" + _metadata(self._kind), _COMMAND)
        return True

    @staticmethod
    def _opened(curve: CurveServer, frame: bytes) -> tuple[int, bytes]:
        """Return flags and body of what an encrypted frame holds; those outside mean nothing."""
        flags, body = curve.open(frame)
        if flags not in (0, _MORE, _CURVE_COMMAND):
            raise WireError(f"CURVE: expected a frame, got one with flags {flags:#x}")
        return (_COMMAND if flags & _CURVE_COMMAND else flags), body

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Return flags and body of the next whole frame; its size is checked before it has come."""
        got = self._buffer
        if not got:
            return None
        flags = got[0]
        head = 9 if flags & _LONG else 2
        if flags & ~(_MORE | _LONG | _COMMAND) or (flags & _COMMAND and flags & _MORE):
            raise WireError(f"ZMTP: expected a frame, got one with flags {flags:#x}")
        if len(got) < head:
            return None
        size = int.from_bytes(got[1:head], "big")
        self._check_size(size, is_command=bool(flags & _COMMAND))
        if len(got) < head + size:
            return None
        body = bytes(got[head : head + size])
        del got[: head + size]
        return flags, body

    def _check_size(self, size: int, *, is_command: bool) -> None:
        if is_command:
            if size > MAX_COMMAND_BYTES:
                raise WireError(
                    f"ZMTP: expected a command of at most {MAX_COMMAND_BYTES} bytes, got {size}"
                )
            return
        if len(self._parts) >= MAX_PARTS:
            raise WireError(f"message: expected at most {MAX_PARTS} parts, got one more")
        allowed = self._max_message_bytes + (0 if self._curve is None else OVERHEAD_BYTES)
        if self._parts_bytes + size > allowed:
            raise WireError(
                f"message: expected at most {self._max_message_bytes} bytes, "
                f"got {self._parts_bytes + size}"
            )

    def _on_command(self, body: bytes) -> None:
        n_name = body[0] if body else 0
        name, data = body[1 : 1 + n_name], body[1 + n_name :]
        if not self.is_ready:
            self._on_handshake(name, data)
        elif name == b"PING":
            pong = b"\x04PONG" + data[2:18]
            if self._curve is None:
                self._replies += _frame(pong, _COMMAND)
            else:
                self._replies += _frame(self._curve.seal(_CURVE_COMMAND, pong), 0)
        elif name == b"SUBSCRIBE" and self._kind == "pub":
            self.subscriptions.add(data)
        elif name == b"CANCEL" and self._kind == "pub":
            self.subscriptions.remove(data)

    def _on_handshake(self, name: bytes, data: bytes) -> None:
        if self._curve is None:
            if name != b"READY":
                raise WireError(f"ZMTP: expected the command READY, got {name!r}")
            self._become_ready(data)
        elif name == b"HELLO":
            self._replies += _frame(self._curve.welcome(data), _COMMAND)
        elif name == b"INITIATE":
            self._become_ready(self._curve.initiate(data))
            self._replies += _frame(self._curve.ready(_metadata(self._kind)), _COMMAND)
        else:
            raise WireError(f"ZMTP: expected the handshake of CURVE, got {name!r}")

    def _become_ready(self, metadata: bytes) -> None:
        peer = _properties(metadata).get(b"socket-type", b"")
        if peer not in _COUNTERPARTS[self._kind]:
            expected = ", ".join(sorted(kind.decode() for kind in _COUNTERPARTS[self._kind]))
            raise WireError(f"ZMTP: expected a socket of type {expected}, got {peer!r}")
        self.is_ready = True

    def _on_subscription(self, message: list[bytes]) -> None:
        match message:
            case [body] if body[:1] == b"\x01":
                self.subscriptions.add(body[1:])
            case [body] if body[:1] == b"\x00":
                self.subscriptions.remove(body[1:])


def encode_message(parts: list[bytes]) -> bytes:
    """Return the bytes of a message."""
    frames = [_frame(part, _MORE) for part in parts[:-1]]
    return b"".join([*frames, _frame(parts[-1], 0)])


def _frame(body: bytes, flags: int) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + len(body).to_bytes(8, "big") + body


def _metadata(kind: Kind) -> bytes:
    """Return the properties that this side tells of itself."""
    name, value = b"Socket-Type", kind.upper().encode()
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def _properties(data: bytes) -> dict[bytes, bytes]:
    """Return the properties of READY by name in lower case.

    Raises:
        WireError: they are cut short.
    """
    found = {}
    while data:
        n_name = data[0]
        name, data = data[1 : 1 + n_name], data[1 + n_name :]
        n_value = int.from_bytes(data[:4], "big")
        if len(name) < n_name or len(data) < 4 + n_value:
            raise WireError("ZMTP: expected whole properties in READY, got a part of one")
        found[name.lower()] = data[4 : 4 + n_value]
        data = data[4 + n_value :]
    return found
