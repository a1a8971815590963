"""The connection of a stream to a worker on another box: handshake, blocks, ring reads, acks.

The capture process connects, because microphones are behind routers. Beside the PUSH socket of the
live blocks it has a DEALER, over which it says which stream it has, the worker asks for what it
missed, and acknowledges. Which worker has a stream is decided here alone, so there are never two
that both may acknowledge: what comes from any other than the present one is not read.

With acknowledgements comes the journal record of the stream, now and then. It is kept for the
worker that comes next, and only as long as an earlier one could still go on from it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from ast_stream.capture.ring import BlockSender, Ring, RingServer
from ast_stream.errors import StartupError, WireError
from ast_stream.machine_clock import read_clocks
from ast_stream.messages.pool import Placement
from ast_stream.messages.rings import (
    ACK,
    REPLY,
    REQUEST,
    Accepted,
    Hello,
    Leaving,
    RecordedAck,
    Refused,
    Release,
    Released,
    Stay,
    decode_of_worker,
)
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.streams import StreamSettings
from ast_stream.transport.sockets import AUDIO_HWM_BLOCKS, QUERY_HWM_MESSAGES, Socket, Sockets
from ast_stream.units import seconds_to_ns

logger = logging.getLogger(__name__)

HELLO_S = (0.5, 4.0)  # first and longest pause between hellos that are not answered,
KEEP_EVERY_S = 5.0  # and between those that are, so that either side knows of the other;
JITTER = 0.4  # part of a pause: thousands of streams lose their worker at the same moment
LOOK_EVERY_S = 1.0  # whether another worker is the one: that takes a hash of each of them
SILENT_S = 3.0  # a worker that says nothing for so long may be gone
CUT_S = 20.0  # one that lives, by what others say, and does not answer here, is out of reach
# since its worker was heard: one that begins again ends what it left open after two minutes
RECORD_LASTS_S = 90.0
REFUSED_S = 30.0  # before a worker that refused a stream is asked again
OFFER_S = 10.0  # in which a worker must answer whether it takes a stream,
RELEASE_S = 15.0  # and the one before let go of it
_MESSAGES_A_TURN = 64


@dataclass(frozen=True)
class WorkerAddress:
    """Where a worker is.

    Attributes:
        name: of the member of a pool; empty where there is one worker.
        audio, rings: endpoints of its PULL and its ROUTER.
        server_key: its public key in Z85; None: as configured, or none is needed.
    """

    name: str
    audio: str
    rings: str
    server_key: str | None = None


class WorkerChoice(Protocol):
    """Says which worker a stream belongs to.

    Attributes:
        takes_over: whether other workers may have the streams of one that is gone.
    """

    takes_over: bool

    def start(self) -> None:
        """Begin to look, in the background."""

    def close(self) -> None:
        """Stop."""

    def best(
        self, stream: str, without: Collection[str] = (), current: str | None = None
    ) -> WorkerAddress | None:
        """Return the worker that is to have a stream, None if there is none at present.

        Args:
            without: names of workers that have refused it.
            current: the one that has it.
        """

    def is_lost(self, name: str) -> bool:
        """Return whether a worker is dead that says nothing here.

        It is asked only about such workers, so what it takes to find out may begin with this.
        """

    def is_moving(self, stream: str, now_s: float) -> bool:
        """Return whether it is time to move a stream to the worker that it belongs to."""

    def opened_s(self, name: str) -> float:
        """Return when a worker that was full had room again; long ago if that is not known."""


class FixedWorkers:
    """Each stream has one worker that never changes, and waits for it.

    Args:
        worker_of: returns the worker of a stream.
    """

    takes_over = False

    def __init__(self, worker_of: Callable[[str], WorkerAddress]) -> None:
        self._worker_of = worker_of

    def start(self) -> None:
        """Do nothing: all workers are known."""

    def close(self) -> None:
        """Do nothing."""

    def best(
        self, stream: str, without: Collection[str] = (), current: str | None = None
    ) -> WorkerAddress | None:
        """Return the worker of a stream, whatever it has refused."""
        return self._worker_of(stream)

    def is_lost(self, name: str) -> bool:
        """Return that it is not lost: it comes back."""
        return False

    def is_moving(self, stream: str, now_s: float) -> bool:
        """Return that there is nowhere to move to."""
        return False

    def opened_s(self, name: str) -> float:
        """Return that it is not known when a worker had room again."""
        return float("-inf")


@dataclass
class _Held:
    """What a capture process keeps of an epoch for the next worker."""

    owner: str | None = None
    record: bytes | None = None
    contact_s: float | None = None  # when the last acknowledgement was accepted


@dataclass(frozen=True)
class _Refusal:
    """That a worker does not take a stream, or is out of reach."""

    at_s: float
    until_s: float
    is_full: bool


@dataclass(eq=False)
class _Connection:
    """The sockets of a stream to one worker."""

    address: WorkerAddress
    client: bytes
    push: Socket
    link: Socket
    opened_s: float
    heard_s: float
    unanswered: Backoff  # of its hellos
    say_at_s: float = float("-inf")  # when one is due again
    worker: str | None = None  # who answered: the worker and its run,
    taken_s: float | None = None  # first
    is_sending: bool = False

    def begin_again(self) -> None:
        """Say hello at once, as if nothing had been said."""
        self.worker, self.say_at_s = None, float("-inf")
        self.unanswered.reset()


@dataclass
class LinkFigures:
    """What went over the connections of a stream."""

    moves: int = 0  # to another worker
    takeovers: int = 0  # of these, from one that was lost
    handover_s: float | None = None  # of the last: from acknowledgement to acknowledgement
    hellos: int = 0
    hello_bytes: int = 0
    ack_bytes: int = 0
    record_bytes: int = 0
    records: int = 0

    def __str__(self) -> str:
        """Return the figures in words."""
        return (
            f"moved {self.moves} times, {self.takeovers} of them from a worker that was gone, "
            f"{self.hello_bytes} bytes of hellos, {self.ack_bytes} of acknowledgements, "
            f"{self.record_bytes} of {self.records} records"
        )


class StreamLink:
    """Connects one stream to the worker that is to have it; to be turned several times a second.

    Args:
        keeps_record: for other workers, and so that they may take over.
        now_s: a monotonic clock.
        random_unit: a number in [0, 1) for the jitter of pauses.
    """

    def __init__(
        self,
        stream: StreamSettings,
        sockets: Sockets,
        sender: BlockSender,
        choice: WorkerChoice,
        *,
        keeps_record: bool,
        now_s: Callable[[], float] = time.monotonic,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self.figures = LinkFigures()
        self._stream = stream
        self._sockets = sockets
        self._sender = sender
        self._choice = choice
        self._keeps_record = keeps_record
        self._now_s = now_s
        self._random_unit = random_unit
        self._server: RingServer | None = None
        self._ring: Ring | None = None
        self._held = _Held()
        self._term = 0
        self._numbers = 0
        self._current: _Connection | None = None
        self._next: _Connection | None = None  # that is asked whether it takes the stream
        self._asked_release_s: float | None = None
        self._looked_s = float("-inf")
        self._must_leave = False  # the current worker ends
        self._refused: dict[str, _Refusal] = {}  # by worker
        self._log = LimitedLog(logger)

    @property
    def worker(self) -> str | None:
        """Worker that has the stream, None while there is none."""
        return None if self._current is None else self._current.worker

    def is_client(self, client: bytes) -> bool:
        """Return whether requests of a client come from the present worker."""
        return client == self._client

    @property
    def _client(self) -> bytes:
        return b"link:" if self._current is None else self._current.client

    def use(self, server: RingServer, ring: Ring) -> None:
        """Connect another run of the source: another epoch begins."""
        self._stop_sending()
        self._server, self._ring = server, ring
        self._held = _Held()
        server.use_worker(self._client)
        if self._current is not None:
            self._current.begin_again()

    def turn(self) -> None:
        """Answer the worker, and see whether the stream belongs to another one."""
        now_s = self._now_s()
        self._refused = {
            name: refusal
            for name, refusal in self._refused.items()
            if refusal.until_s > now_s
            and not (refusal.is_full and self._choice.opened_s(name) > refusal.at_s)
        }
        for connection in (self._current, self._next):
            if connection is not None:
                self._receive(connection, now_s)
        if self._current is None:
            address = self._choice.best(self._stream.name, self._refused)
            opened = None if address is None else self._open(address, now_s)
            if opened is None:
                return
            self._connect_to(opened)
        self._keep(now_s)
        self._look_for_better(now_s)

    def serve(self) -> None:
        """Answer the requests of the worker."""
        if self._current is not None:
            self._receive(self._current, self._now_s())

    def close(self) -> None:
        """Disconnect; the worker keeps the stream open for as long as its ring would last."""
        self._stop_sending()
        for connection in (self._current, self._next):
            if connection is not None:
                self._close(connection)
        self._current = self._next = None

    def placement(self) -> Placement | None:
        """Return which worker of the pool has the stream; None: there is only one."""
        current, figures = self._current, self.figures
        if current is not None and not current.address.name:
            return None
        has_worker = current is not None and current.worker is not None
        return Placement(
            worker=current.address.name if current is not None and has_worker else None,
            since_ns=read_clocks().wall_ns - seconds_to_ns(self.worker_age_s or 0.0)
            if has_worker
            else None,
            changes=figures.moves,
            takeovers=figures.takeovers,
            handover_s=None if figures.handover_s is None else round(figures.handover_s, 3),
        )

    @property
    def worker_age_s(self) -> float | None:
        """Seconds since the worker took the stream; None while there is none."""
        current = self._current
        if current is None or current.taken_s is None or current.worker is None:
            return None
        return self._now_s() - current.taken_s

    def status(self) -> str | None:
        """Return what is wrong, in words; None if the worker has the stream."""
        if self._current is None:
            return "no worker takes it"
        if self._current.worker is None:
            return f"worker {self._current.address.name or self._current.address.rings} is awaited"
        return None

    # connections

    def _open(self, address: WorkerAddress, now_s: float) -> _Connection | None:
        """Begin to connect; None if the address cannot be used, as if the worker had refused."""
        self._numbers += 1
        connect = self._sockets.connect
        opened: list[Socket] = []
        try:
            opened.append(connect("push", address.audio, AUDIO_HWM_BLOCKS, address.server_key))
            opened.append(connect("link", address.rings, QUERY_HWM_MESSAGES, address.server_key))
        except BaseException as error:
            for socket in opened:
                self._sockets.forget(socket)
            if not isinstance(error, StartupError) or not address.name:
                raise
            # of a pool: what one member says of itself must end no recording
            self._log.warning("worker %s: %s", address.name, error)
            self._refuse(address.name, now_s)
            return None
        push, link = opened
        client = b"link:%d" % self._numbers
        unanswered = Backoff(*HELLO_S, jitter=JITTER, random_unit=self._random_unit)
        return _Connection(address, client, push, link, now_s, now_s, unanswered)

    def _close(self, connection: _Connection) -> None:
        self._sockets.forget(connection.push)
        self._sockets.forget(connection.link)

    def _connect_to(self, connection: _Connection) -> None:
        """Make a connection the one whose acknowledgements count."""
        before = self._current
        self._stop_sending()
        self._current, self._next = connection, None
        self._asked_release_s = None
        self._must_leave = False
        if before is not None:
            self._close(before)
            self._term += before.address.name != connection.address.name
            self.figures.moves += 1
        connection.begin_again()
        if self._server is not None:
            self._server.use_worker(connection.client)

    def _start_sending(self, connection: _Connection) -> None:
        if self._server is not None and not connection.is_sending:
            self._server.begin_live()
            self._sender.add(self._server, connection.push.send)
            self._sender.notify(self._server)
            connection.is_sending = True

    def _stop_sending(self) -> None:
        """Stop before the socket is closed: another thread sends through it."""
        if self._current is not None and self._current.is_sending and self._server is not None:
            self._sender.remove(self._server)
            self._current.is_sending = False

    # what the worker says

    def _receive(self, connection: _Connection, now_s: float) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if connection not in (self._current, self._next):
                return
            frames = connection.link.receive()
            if frames is None:
                return
            connection.heard_s = now_s
            try:
                self._process(connection, frames, now_s)
            except WireError as error:
                self._log.warning("message of the worker refused: %s", error)

    def _process(self, connection: _Connection, frames: list[bytes], now_s: float) -> None:
        is_current = connection is self._current
        if frames[0] == REQUEST:
            if is_current:
                self._answer(connection, frames)
        elif frames[0] == ACK:
            if is_current:
                self._acknowledge(connection, RecordedAck.decode(frames), frames, now_s)
        else:
            match decode_of_worker(frames):
                case Accepted(worker=worker):
                    self._on_accepted(connection, worker)
                case Refused() as refusal:
                    self._on_refused(connection, refusal, now_s)
                case Released():
                    if is_current and self._next is not None:
                        self._connect_to(self._next)
                        self._keep(now_s)
                case Leaving():
                    self._must_leave = self._must_leave or is_current

    def _answer(self, connection: _Connection, frames: list[bytes]) -> None:
        if len(frames) != 3:
            raise WireError(f"ring request: expected 3 frames, got {len(frames)}")
        if self._server is None:
            return
        reply = self._server.answer(frames[2:], connection.client)
        if reply is not None:
            connection.link.send([REPLY, frames[1], *reply])

    def _acknowledge(
        self, connection: _Connection, ack: RecordedAck, frames: list[bytes], now_s: float
    ) -> None:
        if self._server is None or connection.worker is None:
            return  # its answer to the last hello comes first
        self.figures.ack_bytes += len(frames[1])
        if not self._server.acknowledge(ack.request, connection.client):
            return
        if self._held.owner not in (None, connection.worker) and self._held.contact_s is not None:
            self.figures.handover_s = now_s - self._held.contact_s
            text = "worker %s goes on %.1f s after the one before"
            logger.info(text, connection.address.name, self.figures.handover_s)
        self._held.owner, self._held.contact_s = connection.worker, now_s
        if ack.record is not None and self._keeps_record:
            self._held.record = ack.record
            self.figures.record_bytes += len(ack.record)
            self.figures.records += 1

    def _on_accepted(self, connection: _Connection, worker: str) -> None:
        if connection is self._next:
            if self._asked_release_s is None and self._current is not None:
                self._asked_release_s = self._now_s()
                self._current.link.send(Release().encode())
            return
        if connection.worker is None:
            connection.say_at_s = self._now_s() + connection.unanswered.jittered_s(KEEP_EVERY_S)
        if connection.worker != worker:
            logger.info("worker %s has the stream", worker.rpartition("/")[0] or worker)
            connection.taken_s = self._now_s()
        connection.worker = worker
        if worker == self._held.owner:
            self._held.contact_s = self._now_s()
        self._start_sending(connection)

    def _refuse(self, worker: str, now_s: float, *, is_full: bool = False) -> None:
        """Do without a worker for a while; without one that is full, until it has room."""
        pause_s = REFUSED_S * (1 + JITTER * (2 * self._random_unit() - 1))
        self._refused[worker] = _Refusal(now_s, now_s + pause_s, is_full)

    def _on_refused(self, connection: _Connection, refusal: Refused, now_s: float) -> None:
        name = connection.address.name or connection.address.rings
        why, is_full = refusal.detail or refusal.reason, refusal.reason == "full"
        self._log.warning("worker %s does not take the stream: %s", name, why)
        self._refuse(connection.address.name, now_s, is_full=is_full)
        if connection is self._next:
            self._give_up_move()
            return
        other = self._choice.best(self._stream.name, self._refused)
        if other is None or other.name == connection.address.name:
            return
        if (opened := self._open(other, now_s)) is not None:
            self._connect_to(opened)

    # which worker

    def _keep(self, now_s: float) -> None:
        """Say what this stream is, often until the worker has answered."""
        for connection, op in ((self._current, "hello"), (self._next, "offer")):
            if connection is None or self._server is None:
                continue
            if now_s < connection.say_at_s:
                continue
            frames = self._hello(op, now_s, has_record=connection.worker is None)
            if connection.link.send(frames):
                pause, is_answered = connection.unanswered, connection.worker is not None
                keep_s = pause.jittered_s(KEEP_EVERY_S)
                connection.say_at_s = now_s + (keep_s if is_answered else pause.next_s())
                self.figures.hellos += 1
                self.figures.hello_bytes += sum(map(len, frames))

    def _hello(self, op: str, now_s: float, *, has_record: bool) -> list[bytes]:
        assert self._server is not None
        assert self._ring is not None
        held = self._held
        lasts_s = min(self._stream.ring_s, RECORD_LASTS_S)
        if held.contact_s is not None and now_s - held.contact_s > lasts_s:
            held.record = None  # the worker that acknowledged may have ended its events by now
        hello = Hello(
            op="offer" if op == "offer" else "hello",
            stream=self._stream.name,
            epoch=self._server.epoch,
            term=self._term,
            owner=held.owner,
            labels=self._stream.labels,
            calibration_db=self._stream.calibration_db,
            ring_s=self._stream.ring_s,
            oldest=self._ring.oldest,
            next=self._ring.next,
            acked=self._ring.acked,
            keeps_record=self._keeps_record,
        )
        record = held.record if has_record and op == "hello" else None
        return hello.encode() if record is None else [*hello.encode(), record]

    def _look_for_better(self, now_s: float) -> None:
        current = self._current
        assert current is not None
        silent_s = now_s - current.heard_s
        if self._next is not None and self._asked_release_s is not None and current.link.is_lost:
            self._connect_to(self._next)  # it was asked to let go, and has
            self._keep(now_s)
            return
        if silent_s >= SILENT_S or current.link.is_lost:
            if self._choice.is_lost(current.address.name):
                self._leave_at_once(f"worker {current.address.name} is gone", now_s)
            elif silent_s >= CUT_S and self._choice.takes_over:
                self._refuse(current.address.name, now_s)
                self._leave_at_once(f"worker {current.address.name} is out of reach", now_s)
            return
        if self._next is not None:
            self._follow_move(self._next, now_s)
            return
        if current.worker is None or (
            now_s - self._looked_s < LOOK_EVERY_S and not self._must_leave
        ):
            return
        self._looked_s = now_s
        without = {*self._refused, *([current.address.name] if self._must_leave else [])}
        best = self._choice.best(self._stream.name, without, current.address.name)
        if self._must_leave and (best is None or best.name == current.address.name):
            current.link.send(Stay().encode())
            self._must_leave = False
            return
        if best is None or best.name == current.address.name:
            return
        if self._must_leave or self._choice.is_moving(self._stream.name, now_s):
            self._next = self._open(best, now_s)
            if self._next is not None:
                self._keep(now_s)

    def _leave_at_once(self, why: str, now_s: float) -> None:
        current = self._current
        assert current is not None
        without = {*self._refused, current.address.name}
        address = self._choice.best(self._stream.name, without)
        if address is None:
            self._log.warning("%s, and there is no other worker", why)
            return
        opened = self._open(address, now_s)
        if opened is None:
            return
        logger.warning("%s: its audio goes to worker %s", why, address.name)
        if self._next is not None:
            self._close(self._next)
            self._next = None
        self.figures.takeovers += 1
        self._connect_to(opened)
        self._keep(now_s)

    def _follow_move(self, candidate: _Connection, now_s: float) -> None:
        """Give up a move that takes too long; the worker that does not let go is left."""
        asked_s = self._asked_release_s
        if asked_s is None and now_s - candidate.opened_s >= OFFER_S:
            self._refuse(candidate.address.name, now_s)
            self._give_up_move()
        elif asked_s is not None and now_s - asked_s >= RELEASE_S:
            self._log.warning("the worker does not release the stream: leaving it")
            self._connect_to(candidate)
            self._keep(now_s)

    def _give_up_move(self) -> None:
        if self._next is not None:
            self._close(self._next)
        self._next = self._asked_release_s = None
