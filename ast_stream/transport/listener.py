"""Sockets that this process binds: PULL, PUB and ROUTER of ZeroMQ for peers that are not trusted.

Misbehaviour harms only the peer itself: everything kept for it is limited, and a peer that exceeds
a limit is disconnected with a line in the log. The number of peers is limited as well. When it is
reached, the process with the most connections loses the one that was idle longest, so that a
program that leaks connections only harms itself. What a PULL receives is trusted, so over ipc only
processes of the same user, and root's, may send to one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import resource
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.errors import StartupError, WireError
from ast_stream.runtime.files import is_in_place
from ast_stream.runtime.logging import LimitedLog
from ast_stream.transport.allow_list import ALL_RIGHTS, AllowedClient
from ast_stream.transport.authenticator import Authenticator
from ast_stream.transport.bound_address import BoundAddress, lock_endpoint, lock_path
from ast_stream.transport.requester import NOBODY, Requester
from ast_stream.transport.zmtp import Kind, ZmtpSession, encode_message

MAX_PEERS = 256
MAX_DESCRIPTORS = 65_536  # requested at most, even if the system allows more
_RESERVED_DESCRIPTORS = 128  # of the process, for everything but peers
_SOCKETS_A_PROCESS = 4  # that share the other descriptors

_READ_BYTES = 32 * 1024
_FLUSH_BUFFERS = 16
_HANDSHAKE_S = 10.0  # a peer without its greeting by then is disconnected
_SLOW_S = 2.0  # after which such a peer is the first to go if there are too many,
_MAX_PENDING = 64  # or at once if so many connect at a time
_SWEEP_S = 1.0  # between checks of timeouts and of the socket's file
_ACCEPTS_A_TURN = 16
_EVICTIONS_A_SWEEP = 200  # then new peers wait: evicted ones connect again at once
_MESSAGE_COST = 128  # bytes, about, of a small Python object
_TOTAL_BYTES = 64 * 1024 * 1024  # kept for all peers of a socket together

_GONE = select.EPOLLHUP | select.EPOLLERR

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one peer can make this process keep.

    Attributes:
        message_bytes: of one message from it.
        in_bytes: of messages from it that wait; then nothing more is read from it.
        out_bytes: of messages that it does not read; then further ones are dropped.
        answered_bytes: of answers that it does not read; then its requests wait.
    """

    message_bytes: int
    in_bytes: int
    out_bytes: int
    answered_bytes: int = 0


_LIMITS: dict[Kind, Limits] = {
    # ten seconds of audio, as much as a block can have, with its header
    "pull": Limits(message_bytes=384 * 1024, in_bytes=384 * 1024, out_bytes=4096),
    "pub": Limits(message_bytes=1024, in_bytes=0, out_bytes=8 * 1024 * 1024),
    "router": Limits(
        message_bytes=256
        * 1024,  # longer than any query, so that one that is too long gets an answer
        in_bytes=64 * 1024,
        out_bytes=4 * 1024 * 1024,
        answered_bytes=256 * 1024,
    ),
}


# of a ROUTER that capture processes connect to: what they answer is audio
_RINGS = Limits(
    message_bytes=384 * 1024, in_bytes=384 * 1024, out_bytes=1024 * 1024, answered_bytes=1024 * 1024
)


class Reactor:
    """The thread that reads and writes for all listeners of a process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # of all state of the listeners
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._sweeps: list[Callable[[], None]] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="sockets", daemon=True)
        self._thread.start()

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events of a descriptor, from now on."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no longer, if it was watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def add_sweep(self, sweep: Callable[[], None]) -> None:
        """Call `sweep` each second."""
        self._sweeps.append(sweep)

    def remove_sweep(self, sweep: Callable[[], None]) -> None:
        """Stop calling `sweep`."""
        self._sweeps.remove(sweep)

    def close(self) -> None:
        """End the thread."""
        self._is_stopping = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake_fd)

    def _run(self) -> None:
        next_sweep_s = time.monotonic() + _SWEEP_S
        while not self._is_stopping:
            ready = self._epoll.poll(max(0.0, next_sweep_s - time.monotonic()))
            with self.lock:
                for fd, events in ready:
                    handler = self._handlers.get(fd)
                    if handler is not None:
                        self._call(handler, events)
                if time.monotonic() >= next_sweep_s:
                    next_sweep_s = time.monotonic() + _SWEEP_S
                    for sweep in list(self._sweeps):
                        self._call(sweep)

    def _call(self, handler: Callable[..., None], *args: int) -> None:
        try:
            handler(*args)
        except Exception:  # a bug must not end this thread: every peer would wait forever
            logger.exception("a peer could not be served")


class _Peer:
    """One connection."""

    session: ZmtpSession

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.identity = number.to_bytes(5, "big")
        self.connection = connection
        self.fd = connection.fileno()
        self.requester = Requester.of(connection)
        self.client: AllowedClient | None = None  # whose key it has shown
        self.since_s = self.active_s = time.monotonic()
        self.inbox: deque[tuple[list[bytes], int]] = deque()
        self.in_bytes = 0
        self.outbox: deque[bytes] = deque()
        self.out_bytes = 0
        self.sent_of_first = 0
        self.events = select.EPOLLIN
        self.is_closed = False
        self.counted_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self.session.held_bytes + self.in_bytes + self.out_bytes

    def reads(self, topic: bytes) -> bool:
        """Return whether messages of a topic are for this peer."""
        if not topic.startswith(self.session.subscriptions.prefixes):
            return False
        rights = self.requester.rights
        return rights is ALL_RIGHTS or rights.may_receive(topic)

    def use(self, client: AllowedClient) -> None:
        """Give the peer the rights of a client on the allow-list."""
        self.client, self.requester = client, self.requester.with_key_of(client)


class Listener:
    """A bound socket, for use by any thread; neither sending nor receiving blocks.

    Args:
        hwm: messages of one peer that wait, in each direction.
        authenticator: knows the keys that are allowed over tcp; None: there everybody is.
        reads_rings: a ROUTER that capture processes connect to: it takes the right to push.

    Attributes:
        dropped: messages that a peer was too slow for.
        disconnected: peers that exceeded a limit, or whose key is not allowed.
        refused: messages that a peer has no right to send.

    Raises:
        StartupError: the endpoint is in use by another process, or cannot be bound.
    """

    def __init__(
        self,
        reactor: Reactor,
        kind: Kind,
        endpoint: str,
        hwm: int,
        max_peers: int = MAX_PEERS,
        authenticator: Authenticator | None = None,
        *,
        reads_rings: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._authenticator = authenticator if endpoint.startswith("tcp://") else None
        self._changes_seen = 0 if authenticator is None else authenticator.changes
        self.dropped = 0
        self.disconnected = 0
        self.refused = 0
        self._reactor = reactor
        self._kind: Kind = kind
        # what a client may do here that connects: as at the socket for live blocks, or the kind's
        self._admits: Kind = "pull" if reads_rings else kind
        self._limits = _RINGS if reads_rings else _LIMITS[kind]
        self._hwm = hwm
        self._max_peers = min(max_peers, _peers_affordable())
        self._log = LimitedLog(logger)
        self._refusals = LimitedLog(logger)  # of audio: who was cut off before must not hide them
        self._numbers = itertools.count(1)
        self._peers: dict[bytes, _Peer] = {}  # by identity
        self._ready: deque[_Peer] = deque()  # have a message that may be received
        self._held_bytes = 0
        self._evictions = 0
        self._is_closed = False
        self._lock_fd = lock_endpoint(endpoint)
        self._has_messages = threading.Condition(reactor.lock)
        try:
            self._address = BoundAddress(endpoint)
            self._listening = self._address.listen()
        except OSError as error:
            self._release_lock()
            raise StartupError(f"cannot bind {endpoint}: {error}") from error
        self._ready_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_accepting = False
        with reactor.lock:
            self._start_accepting()
            reactor.add_sweep(self._sweep)

    @property
    def waitable(self) -> int:
        """A descriptor that is readable while a message waits."""
        return self._ready_fd

    @property
    def n_peers(self) -> int:
        """Connections at present."""
        return len(self._peers)

    def is_trusted(self, identity: bytes) -> bool:
        """Return whether the peer of a request (ROUTER) is connected and of this user, or root's.

        Over tcp the user is not known: any connected peer is trusted.
        """
        peer = self._peers.get(identity)
        return peer is not None and peer.requester.is_of_own_user

    def requester(self, identity: bytes) -> Requester:
        """Return who the peer of a request (ROUTER) is; nobody once it is gone."""
        peer = self._peers.get(identity)
        return NOBODY if peer is None else peer.requester

    def send(self, frames: list[bytes]) -> bool:
        """Send now; return False if it was dropped for a peer that is gone or too slow.

        A PUB sends to all subscribers, a ROUTER to the peer that the first frame names.
        """
        with self._reactor.lock:
            if self._kind == "router":
                peer = self._peers.get(frames[0])
                return peer is not None and self._queue(peer, frames[1:])
            topic = frames[0]
            data = encode_message(frames) if self._authenticator is None else None  # for all alike
            readers = [peer for peer in self._peers.values() if peer.reads(topic)]
            missed = [peer for peer in readers if not self._queue(peer, frames, data)]
            return not missed

    def has_reader(self, topic: bytes) -> bool:
        """Return whether anybody connected subscribes to a topic, and has the right to (PUB)."""
        with self._reactor.lock:
            return any(peer.reads(topic) for peer in self._peers.values())

    def readers(self, topic: bytes) -> list[Requester]:
        """Return who is connected, subscribes to a topic, and has the right to (PUB)."""
        with self._reactor.lock:
            return [peer.requester for peer in self._peers.values() if peer.reads(topic)]

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        """Return the frames of the next message; None after `timeout_ms`.

        Peers take turns; a message of a ROUTER begins with the identity of the peer.
        """
        with self._has_messages:
            if timeout_ms and not self._ready:
                self._has_messages.wait_for(lambda: self._ready, timeout_ms / 1000)
            if not self._ready:
                return None
            peer = self._ready.popleft()
            message, cost = peer.inbox.popleft()
            peer.in_bytes -= cost
            if not peer.is_closed:
                self._process(peer)
            elif peer.inbox:
                self._ready.append(peer)
            self._count(peer)
            self._signal_ready()
            return [peer.identity, *message] if self._kind == "router" else message

    def close(self) -> None:
        """Disconnect everyone, remove the socket's file and release the endpoint."""
        with self._reactor.lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._reactor.remove_sweep(self._sweep)
            self._stop_accepting()
            for peer in list(self._peers.values()):
                self._disconnect(peer)
            self._address.remove()
            self._listening.close()
            os.close(self._ready_fd)
            self._release_lock()

    # connections

    def _start_accepting(self) -> None:
        if not self._is_accepting:
            self._is_accepting = True
            self._reactor.watch(self._listening.fileno(), select.EPOLLIN, self._accept)

    def _stop_accepting(self) -> None:
        """Let new peers wait until the next sweep."""
        self._is_accepting = False
        self._reactor.unwatch(self._listening.fileno())

    def _accept(self, _: int) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            if len(self._peers) >= self._max_peers:
                if self._evictions >= _EVICTIONS_A_SWEEP:
                    self._stop_accepting()
                    return
                self._evict()
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._log.warning("%s: cannot accept a client: %s", self.endpoint, error)
                self._stop_accepting()
                return
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            _keep_alive(connection)
        peer = _Peer(next(self._numbers), connection)
        peer.session = self._session(peer)
        self._peers[peer.identity] = peer
        self._watch(peer)
        if self._admits == "pull" and not peer.requester.is_of_own_user:
            self._expel(peer, f"expected a process of user {os.geteuid()} or root")
            return
        self._append(peer, peer.session.greeting)

    def _session(self, peer: _Peer) -> ZmtpSession:
        """Return the state of a new connection, which asks for a key where there is a list."""
        if self._authenticator is None:
            return ZmtpSession(self._kind, self._limits.message_bytes)
        peer.requester = peer.requester.without_rights()

        def admit(client: AllowedClient) -> None:
            if not client.rights.may_connect(self._admits):
                words = ", ".join(client.words) or "nothing"
                raise WireError(f"{client.name} may {words}, and none of that here")
            peer.use(client)

        curve = self._authenticator.session(admit)
        return ZmtpSession(self._kind, self._limits.message_bytes, curve)

    def _follow_allow_list(self) -> None:
        """Give connected peers the rights that they have now; those without any must go."""
        if self._authenticator is None:
            return
        self._authenticator.poll()
        if self._authenticator.changes == self._changes_seen:
            return
        self._changes_seen = self._authenticator.changes
        for peer in list(self._peers.values()):
            if peer.client is None:
                continue
            client = self._authenticator.client(peer.client.key)
            if client is None or not client.rights.may_connect(self._admits):
                self._expel(peer, "its key is revoked")
            else:
                peer.use(client)

    def _watch(self, peer: _Peer) -> None:
        self._reactor.watch(peer.fd, peer.events, lambda events: self._on_peer(peer, events))

    def _evict(self) -> None:
        """Disconnect one peer: one without a greeting, else an idle one of the process with most.

        New peers have a moment for their greeting, or none would ever get in beside a program that
        connects again and again.
        """
        self._evictions += 1
        peers = list(self._peers.values())
        pending = [peer for peer in peers if not peer.session.is_ready]
        if len(pending) <= _MAX_PENDING:
            late_s = time.monotonic() - _SLOW_S
            pending = [peer for peer in pending if peer.since_s < late_s]
        by_owner = Counter(peer.requester.name for peer in peers)
        most = max(by_owner.values())
        of_largest = [peer for peer in peers if by_owner[peer.requester.name] == most]
        victim = min(pending or of_largest, key=lambda peer: peer.active_s)
        self._report(victim, f"more than {self._max_peers} connections, {most} of them its own")
        self._disconnect(victim)

    def _report(self, peer: _Peer, reason: str) -> None:
        self.disconnected += 1
        self._log.warning(
            "%s: a client (%s) is disconnected: %s", self.endpoint, peer.requester.name, reason
        )

    def _expel(self, peer: _Peer, reason: str) -> None:
        self._report(peer, reason)
        self._disconnect(peer)
        self._forget_messages(peer)

    def _disconnect(self, peer: _Peer) -> None:
        """Close a connection; messages that a PULL has read from it can still be received."""
        if peer.is_closed:
            return
        peer.is_closed = True
        del self._peers[peer.identity]
        self._reactor.unwatch(peer.fd)
        peer.connection.close()
        peer.outbox.clear()
        peer.out_bytes = 0
        peer.session = ZmtpSession(self._kind, 0)
        if self._kind == "pull" and peer.inbox and not self._is_closed:
            self._count(peer)
        else:
            self._forget_messages(peer)

    def _forget_messages(self, peer: _Peer) -> None:
        peer.inbox.clear()
        peer.in_bytes = 0
        with contextlib.suppress(ValueError):
            self._ready.remove(peer)
        self._count(peer)
        self._signal_ready()

    def _sweep(self) -> None:
        """Check timeouts of greetings and the socket's file, and accept new peers again."""
        self._evictions = 0
        self._follow_allow_list()
        late_s = time.monotonic() - _HANDSHAKE_S
        for peer in list(self._peers.values()):
            if not peer.session.is_ready and peer.since_s < late_s:
                self._expel(peer, f"no ZeroMQ greeting within {_HANDSHAKE_S:.0f} s")
        if not self._address.is_in_place() or not self._is_lock_in_place():
            self._bind_again()
        self._start_accepting()

    def _bind_again(self) -> None:
        """Restore a socket file that was removed; connected peers stay connected."""
        try:
            if not self._is_lock_in_place():
                lock_fd = lock_endpoint(self.endpoint)
                self._release_lock()
                self._lock_fd = lock_fd
            if self._address.is_in_place():
                return
            listening = self._address.listen()
        except (OSError, StartupError) as error:
            self._log.warning("%s was removed and cannot be bound again: %s", self.endpoint, error)
            return
        self._stop_accepting()
        self._listening.close()
        self._listening = listening
        logger.warning("%s was removed: bound again", self.endpoint)

    def _is_lock_in_place(self) -> bool:
        if self._lock_fd is None:
            return True
        return is_in_place(lock_path(self.endpoint), os.fstat(self._lock_fd))

    def _release_lock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # bytes

    def _on_peer(self, peer: _Peer, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(peer)
        if peer.is_closed:
            return
        if peer.events & select.EPOLLIN:
            if events & (select.EPOLLIN | _GONE):
                self._read(peer)
        elif events & _GONE:
            if self._kind == "pull":  # what it sent before it hung up is read when there is room
                self._reactor.unwatch(peer.fd)
            else:
                self._disconnect(peer)

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect(peer)
            return
        peer.session.feed(data)
        self._process(peer)
        self._count(peer)
        self._signal_ready()

    def _process(self, peer: _Peer) -> None:
        """Decode the messages in what was read, as far as there is room, and wait for more."""
        try:
            while self._has_room(peer):
                message = peer.session.next_message()
                if message is None:
                    break
                if self._authenticator is not None and self._is_refused(peer, message):
                    continue
                cost = sum(map(len, message)) + _MESSAGE_COST * (1 + len(message))
                peer.inbox.append((message, cost))
                peer.in_bytes += cost
                peer.active_s = time.monotonic()
        except WireError as error:
            self._expel(peer, str(error))
            return
        replies = peer.session.pop_replies()
        if len(peer.outbox) > 2 * self._hwm + _FLUSH_BUFFERS:
            self._expel(peer, "it sends heartbeats and does not read the replies")
            return
        if replies:
            self._append(peer, replies)
        if peer.is_closed:
            return
        self._make_ready(peer)
        self._wait_for(peer)

    def _is_refused(self, peer: _Peer, message: list[bytes]) -> bool:
        """Return whether its sender has no right to a message; it stays connected for others."""
        if self._kind != "pull" or peer.requester.rights.may_push(message[0]):
            return False
        self.refused += 1
        shown = message[0][:64]
        self._refusals.warning(
            "%s: audio of %r refused: %s may not send it", self.endpoint, shown, peer.requester.name
        )
        return True

    def _has_room(self, peer: _Peer) -> bool:
        return (
            not self._is_waiting(peer)
            and len(peer.inbox) < self._hwm
            and (self._kind == "pub" or peer.in_bytes < self._limits.in_bytes)
        )

    def _make_ready(self, peer: _Peer) -> None:
        """Let a peer's messages be received; those of one that reads no answers wait."""
        if peer.inbox and not self._is_waiting(peer) and peer not in self._ready:
            self._ready.append(peer)

    def _is_waiting(self, peer: _Peer) -> bool:
        """Return whether a peer's requests wait until it has read its answers."""
        return self._kind == "router" and peer.out_bytes > self._limits.answered_bytes

    def _wait_for(self, peer: _Peer) -> None:
        """Watch for what this peer may do next."""
        events = select.EPOLLIN if self._has_room(peer) else 0
        events |= select.EPOLLOUT if peer.outbox else 0
        if events == peer.events:
            return
        peer.events = events
        try:
            self._reactor.change(peer.fd, events)
        except FileNotFoundError:  # it hung up while there was no room
            self._watch(peer)

    def _queue(self, peer: _Peer, frames: list[bytes], data: bytes | None = None) -> bool:
        """Queue a message, for whose bytes `data` is known or they are made for the peer."""
        is_full = len(peer.outbox) >= self._hwm or peer.out_bytes >= self._limits.out_bytes
        if peer.is_closed or (is_full and peer.outbox):
            self.dropped += 1
            return False
        self._append(peer, peer.session.encode(frames) if data is None else data)
        return not peer.is_closed

    def _append(self, peer: _Peer, data: bytes) -> None:
        peer.outbox.append(data)
        peer.out_bytes += len(data)
        if len(peer.outbox) == 1:
            self._flush(peer)
        if self._is_waiting(peer) and peer in self._ready:
            self._ready.remove(peer)
            self._signal_ready()
        self._count(peer)

    def _flush(self, peer: _Peer) -> None:
        """Send as much as the system accepts."""
        try:
            while peer.outbox:
                first = memoryview(peer.outbox[0])[peer.sent_of_first :]
                rest = itertools.islice(peer.outbox, 1, _FLUSH_BUFFERS)
                self._sent(peer, peer.connection.sendmsg([first, *rest]))
        except BlockingIOError:
            pass
        except OSError:
            self._stop_sending(peer)
            return
        self._count(peer)
        if self._kind == "router":
            self._process(peer)  # requests that waited until it read its answers
            self._signal_ready()
        else:
            self._wait_for(peer)

    def _stop_sending(self, peer: _Peer) -> None:
        """Note that the peer reads no longer; what it sent to a PULL can still be read."""
        if self._kind != "pull":
            self._disconnect(peer)
            return
        peer.outbox.clear()
        peer.out_bytes = peer.sent_of_first = 0
        self._wait_for(peer)

    def _sent(self, peer: _Peer, n_bytes: int) -> None:
        peer.active_s = time.monotonic()
        peer.out_bytes -= n_bytes
        n_bytes += peer.sent_of_first
        while peer.outbox and n_bytes >= len(peer.outbox[0]):
            n_bytes -= len(peer.outbox.popleft())
        peer.sent_of_first = n_bytes

    # what is kept

    def _count(self, peer: _Peer) -> None:
        """Count the bytes kept for a peer; expel one of the largest if all have too many."""
        held_bytes = peer.held_bytes
        self._held_bytes += held_bytes - peer.counted_bytes
        peer.counted_bytes = held_bytes
        while self._held_bytes > _TOTAL_BYTES:
            everyone = [*self._peers.values(), *self._ready]
            large = max(peer.counted_bytes for peer in everyone) // 2
            victim = min(
                (peer for peer in everyone if peer.counted_bytes >= large),
                key=lambda peer: peer.active_s,  # one that reads is not to blame
            )
            self._expel(
                victim,
                f"{victim.counted_bytes} bytes wait for it, {self._held_bytes} for all clients",
            )

    def _signal_ready(self) -> None:
        """Make `waitable` readable while messages wait, and wake a thread that waits for one."""
        if self._is_closed:
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._ready_fd)
        if self._ready:
            os.eventfd_write(self._ready_fd, 1)
            self._has_messages.notify()


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice within half a minute that the peer is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def raise_descriptor_limit() -> int:
    """Raise the limit of descriptors as far as the system allows; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return limit
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError) as error:  # a sandbox may forbid the call
        logger.info("limit of %d file descriptors cannot be raised: %s", soft, error)
        return soft
    return limit


def _peers_affordable() -> int:
    """Return how many peers one socket may have so that others do not lack descriptors."""
    return max(8, (raise_descriptor_limit() - _RESERVED_DESCRIPTORS) // _SOCKETS_A_PROCESS)
