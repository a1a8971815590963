"""One stream of a capture process: its sockets last, while its source may be restarted.

A source that hangs, or fails in a way that nobody has foreseen, is left behind with its thread, and
the stream begins again with a new one: another ring, another epoch. So no other stream of the
process notices. A device is different: where its library hangs, only ending the process helps.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from enum import Enum, auto
from functools import partial

from ast_stream.audio.pcm import ChannelSelector
from ast_stream.capture.intake import Intake, make_source
from ast_stream.capture.link import StreamLink, WorkerChoice
from ast_stream.capture.opus_ring import OpusRing
from ast_stream.capture.ring import BlockSender, Ring, RingServer
from ast_stream.capture.ring_readers import RingReaders
from ast_stream.capture.sources.base import SourceHungError
from ast_stream.errors import AstStreamError, AudioError
from ast_stream.machine_clock import CLOCK_ID
from ast_stream.privacy.audit import open_audit_log
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.logging import LimitedLog, speaking_as
from ast_stream.settings.paths import audio_endpoint, ring_endpoint
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.transport.sockets import (
    AUDIO_HWM_BLOCKS,
    MAX_PEERS,
    QUERY_HWM_MESSAGES,
    Socket,
    Sockets,
)
from ast_stream.units import seconds_to_samples

logger = logging.getLogger(__name__)

PROGRESS_LIMIT_S = 10.0  # a source that gives nothing for longer, and says nothing, is stuck
MAX_HUNG = 4  # threads of one stream that have not returned; then it waits for one of them
_LINGER_S = 0.5  # after the worker is done with it the ring stays, for others that read it,
_LINGER_AWAY_S = 5.0  # and longer for a worker away from here that does not say so
_HUNG_GRACE_S = 5.0  # before the ring of a hung source goes, the worker reads the rest
_AGAIN_S = (0.5, 60.0)  # first and longest pause before a stream begins again
_HEALTHY_S = 30.0  # one that went well for so long begins again without a penalty
_REQUESTS_A_TURN = 16  # of one stream, before others have theirs answered


class StreamOutcome(Enum):
    """How a run of a source has ended."""

    ENDED = auto()  # what it had was delivered, even if that was not all it should have had
    HUNG = auto()
    FAILED = auto()


class SourceRun:
    """A source from its first sample until it ends, fails or hangs: one epoch of a stream.

    Args:
        endpoint: of the ring.
        clock: name of this machine's monotonic clock, where the worker may be on another.
        link: to the worker; None: it reads the ring at `endpoint`.
    """

    def __init__(
        self,
        stream: StreamSettings,
        endpoint: str,
        readers: RingReaders,
        clock: str | None,
        sender: BlockSender,
        link: StreamLink | None = None,
    ) -> None:
        self._name = stream.name
        source = make_source(stream.source)
        self._shares_process = stream.source.shares_process
        self._stop = threading.Event()
        self._sender = sender
        self._link = link
        self.ring = Ring(seconds_to_samples(stream.ring_s))
        wire = stream.wire
        is_coded = wire.codec == "opus"
        coded = OpusRing(self.ring, wire.bit_rate, wire.block_s) if is_coded else None
        self.intake = Intake(
            source,
            self.ring,
            self._stop,
            channels=ChannelSelector(stream.source.channel),
            coded=coded,
            warn_lost=LimitedLog(logger).warning,
            warn_back=LimitedLog(logger).warning,
            warn_fault=LimitedLog(logger).warning,
        )
        self.server = RingServer(
            stream.name,
            secrets.token_hex(16),
            endpoint,
            self.ring,
            self.intake.status,
            is_paced=source.is_paced,
            is_trusted=lambda client: _is_of(link, client) or readers.may_listen(client),
            note=lambda client, request, given: (
                None if _is_of(link, client) else readers.note(client, request, given)
            ),
            clock=clock,
            coding=coded,
            placement=lambda: None if link is None else link.placement(),
        )
        self._notify = partial(sender.notify, self.server)
        self.ring.on_written = self._notify
        self._limit_s = PROGRESS_LIMIT_S + stream.source.longest_step_s
        self._is_so_since_s: float | None = None
        self.thread = threading.Thread(target=self._take_in, name="intake", daemon=True)

    def start(self) -> None:
        """Start capturing."""
        self.thread.start()
        with speaking_as(f"capture {self._name}"):
            logger.info("capturing")

    def stop(self) -> None:
        """Stop sending, and tell the thread to end, without waiting for it."""
        self._stop.set()
        self._sender.remove(self.server)

    @property
    def is_stuck(self) -> bool:
        """Whether no audio arrives, and no progress in waiting for the source is reported."""
        return not self.intake.has_ended and self.intake.stuck_s >= self._limit_s

    @property
    def failure(self) -> Exception | None:
        """What went wrong, if known."""
        return self.intake.failure or self.server.failure

    def outcome(self, now_s: float) -> StreamOutcome | None:
        """Return how the run has ended; None while it continues."""
        if self.server.failure is not None:
            return StreamOutcome.FAILED
        is_read = self.ring.acked == self.ring.next
        failure = self.intake.failure
        if isinstance(failure, SourceHungError) or (self.is_stuck and self._shares_process):
            is_over = self._is_so_for(_HUNG_GRACE_S, True, now_s) or is_read
            return StreamOutcome.HUNG if is_over else None
        if failure is not None and not isinstance(failure, AudioError):
            return StreamOutcome.FAILED
        is_near = self._link is None or self.server.is_confirmed
        linger_s = _LINGER_S if is_near else _LINGER_AWAY_S
        return (
            StreamOutcome.ENDED
            if self._is_so_for(linger_s, self.server.is_done_with, now_s)
            else None
        )

    def _is_so_for(self, duration_s: float, is_so: bool, now_s: float) -> bool:
        if not is_so:
            self._is_so_since_s = None
            return False
        if self._is_so_since_s is None:
            self._is_so_since_s = now_s
        return now_s - self._is_so_since_s >= duration_s

    def _take_in(self) -> None:
        with speaking_as(f"capture {self._name}"):
            self.intake.run()
            self._notify()


class StreamCapture:
    """One stream from the start of its process, or its addition, until it ends or is removed.

    Args:
        settings: of the worker that the stream belongs to.
        max_peers: of the ring.
        choice: says which worker on another box has the stream; None: the worker meets it here.

    Attributes:
        run: of the source, now.
        is_over: nothing more will come: the source has ended, or failed for good.
        failure: what was wrong with a source that is over, or None.
        n_restarts: times that the source hung or failed, and began again.

    Raises:
        StartupError: the ring's endpoint is in use, or a library for the source is missing.
        ConfigError: the source cannot be what is configured.
    """

    def __init__(
        self,
        settings: Settings,
        stream: StreamSettings,
        sockets: Sockets,
        sender: BlockSender,
        max_peers: int = MAX_PEERS,
        choice: WorkerChoice | None = None,
    ) -> None:
        self.name = stream.name
        self.is_over = False
        self.failure: Exception | None = None
        self.n_restarts = 0
        self._stream = stream
        self._sockets = sockets
        self._sender = sender
        self._endpoint = ring_endpoint(settings, stream.name)
        audio = audio_endpoint(settings)
        is_away = choice is not None or audio.startswith("tcp://")
        self._clock = CLOCK_ID if is_away else None
        self.link: StreamLink | None = None
        self._push: Socket | None = None
        if choice is not None:
            keeps_record = choice.takes_over
            self.link = StreamLink(stream, sockets, sender, choice, keeps_record=keeps_record)
        else:
            self._push = sockets.connect("push", audio, AUDIO_HWM_BLOCKS)
        try:
            self._router = sockets.bind("router", self._endpoint, QUERY_HWM_MESSAGES, max_peers)
        except BaseException:
            if self._push is not None:
                sockets.forget(self._push)
            raise
        audit = open_audit_log(settings, f"capture {stream.name}")
        self._readers = RingReaders(self._router, audio, settings.privacy, audit)
        self._left: list[threading.Thread] = []  # behind; each may return some day
        self._backoff = Backoff(*_AGAIN_S, healthy_s=_HEALTHY_S)
        self._log = LimitedLog(logger)
        self._again_s: float | None = None
        try:
            self.run = self._begin(time.monotonic())
        except BaseException:
            self._close_sockets()
            raise

    @property
    def waitable(self) -> int:
        """A descriptor that is readable while a request is pending."""
        return self._router.waitable

    @property
    def is_working(self) -> bool:
        """Whether audio arrives, or the process reports progress in waiting for the source."""
        return not self.run.is_stuck

    @property
    def threads(self) -> list[threading.Thread]:
        """Threads of the source and of its earlier runs that have not ended."""
        return [thread for thread in (*self._left, self.run.thread) if thread.is_alive()]

    def answer(self) -> None:
        """Answer some of the pending requests."""
        with speaking_as(f"capture {self.name}"):
            for _ in range(_REQUESTS_A_TURN):
                request = self._router.receive()
                if request is None:
                    return
                identity, *frames = request
                reply = self.run.server.answer(frames, identity)
                if reply is not None:
                    self._router.send([identity, *reply])

    def turn(self, now_s: float) -> None:
        """Check the state of the source; call this several times a second."""
        with speaking_as(f"capture {self.name}"):
            if self.link is not None:
                self.link.turn()
            if self._again_s is not None:
                if now_s >= self._again_s and self._has_thread_left():
                    self._begin_again(now_s)
            elif (outcome := self.run.outcome(now_s)) is not None:
                self._finish(outcome, now_s)

    def serve_link(self) -> None:
        """Answer requests of a worker on another box."""
        if self.link is not None:
            with speaking_as(f"capture {self.name}"):
                self.link.serve()

    def write_repeats(self) -> None:
        """Write the counted ring reads to the audit log, once a minute."""
        self._readers.write_repeats()

    def stop(self) -> None:
        """Tell the thread of the source to end, without waiting for it."""
        self.run.stop()

    def close(self) -> None:
        """Stop, and release the endpoint."""
        self.stop()
        self._close_sockets()
        with speaking_as(f"capture {self.name}"):
            logger.info("stopped: %s", self.summary())

    def summary(self) -> str:
        """Return the figures of the source since its last start, in one line."""
        ring, intake, server = self.run.ring, self.run.intake, self.run.server
        text = (
            f"{ring.next} samples, {intake.n_losses} losses, "
            f"{intake.n_overflows} overflows, {intake.n_clipped} clipped, "
            f"{server.n_sent} blocks sent, {server.n_refused} refused, "
            f"{server.n_malformed} malformed requests"
        )
        if self.link is not None:
            text += f", {self.link.figures}"
        return text + (f", begun again {self.n_restarts} times" if self.n_restarts else "")

    def _begin(self, now_s: float) -> SourceRun:
        run = SourceRun(
            self._stream, self._endpoint, self._readers, self._clock, self._sender, self.link
        )
        self._began_s, self._again_s = now_s, None
        if self.link is not None:
            self.link.use(run.server, run.ring)
        elif self._push is not None:
            self._sender.add(run.server, self._push.send)
        run.start()
        return run

    def _begin_again(self, now_s: float) -> None:
        try:
            self.run = self._begin(now_s)
        except Exception as error:  # the old ring goes on to say what is wrong
            self.run.intake.trouble = str(error)
            self._again_s = now_s + self._backoff.next_s()
            self._log.warning("the source cannot restart: %s", error)

    def _finish(self, outcome: StreamOutcome, now_s: float) -> None:
        """End the stream, or restart it."""
        failure, source = self.run.failure, self._stream.source
        if not source.shares_process:
            if outcome is StreamOutcome.HUNG and failure is None:
                failure = SourceHungError("stalled", f"the source of {self.name} does not return")
            self.is_over, self.failure = True, failure
            return
        is_of_one_go = source.can_end and not source.can_resume
        is_end = outcome is StreamOutcome.ENDED and failure is None
        if is_end or (is_of_one_go and outcome is not StreamOutcome.HUNG):
            if outcome is StreamOutcome.FAILED:
                logger.error("the source failed and is not restarted", exc_info=failure)
            self.is_over, self.failure = True, failure
            return
        self.n_restarts += 1
        self.run.stop()
        self._left = [thread for thread in (*self._left, self.run.thread) if thread.is_alive()]
        pause_s = self._backoff.after_run(now_s - self._began_s)
        self._again_s = now_s + pause_s
        text = "the source does not return" if failure is None else str(failure)
        self.run.intake.trouble = text or type(failure).__name__
        is_known = failure is None or isinstance(failure, AstStreamError)
        logger.error(
            "%s; the stream restarts in %g s",
            self.run.intake.trouble,
            pause_s,
            exc_info=None if is_known else failure,
        )

    def _has_thread_left(self) -> bool:
        """Whether another thread may hang; otherwise the stream waits until one of them returns."""
        self._left = [thread for thread in self._left if thread.is_alive()]
        if len(self._left) < MAX_HUNG:
            return True
        self.run.intake.trouble = f"{len(self._left)} calls to the source have not returned"
        self._log.warning("%s: waiting for one of them", self.run.intake.trouble)
        return False

    def _close_sockets(self) -> None:
        self._sockets.forget(self._router)
        if self.link is not None:
            self.link.close()
        elif self._push is not None:
            self._sockets.forget(self._push)
        self._readers.close()


def _is_of(link: StreamLink | None, client: bytes) -> bool:
    return link is not None and link.is_client(client)
