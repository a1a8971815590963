"""One stream at the worker: audio from socket and ring, through the detector, onto the feed."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ast_stream.audio.opus import DifferentSamplesError, OpusReader
from ast_stream.audio.pcm import SampleBuffer
from ast_stream.detect.detector import LONGEST_SILENT_HOLE, Detector, HeardFrames
from ast_stream.detect.scorer import HopRun
from ast_stream.errors import StartupError, WireError
from ast_stream.levels.seconds import NEEDED, LevelSeconds, SecondOfSound
from ast_stream.machine_clock import CLOCK_ID, Moment, read_clocks
from ast_stream.messages.audio import (
    AckRequest,
    AudioBlock,
    Pcm16,
    ReadRequest,
    RefusedByRingError,
    RingReply,
)
from ast_stream.messages.event import EndReason, Event, EventMessage, Gap, Scores
from ast_stream.messages.rings import MAX_RECORD_BYTES
from ast_stream.messages.spectrogram import WITHHELD
from ast_stream.messages.status import SOURCE_ENDED, STREAM_REMOVED, Health, StreamState
from ast_stream.privacy.access import AudioAccess
from ast_stream.privacy.speech import SpeechMask
from ast_stream.runtime.logging import LimitedLog
from ast_stream.sample_clock import SampleClock
from ast_stream.transport.publisher import DeduplicatingPublisher
from ast_stream.transport.query import AudioRange
from ast_stream.transport.requester import is_listened_at
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Poller, Socket, Sockets
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE, samples_to_seconds, seconds_to_samples
from ast_stream.worker.account import StreamAccount
from ast_stream.worker.journal import StreamRecord
from ast_stream.worker.links import RingLink
from ast_stream.worker.overload import CAUGHT_UP_S
from ast_stream.worker.reassembly import CAPTURE_RESTART, Audio, Ended, Item, NewEpoch, Reassembler
from ast_stream.worker.recent_losses import RecentLosses
from ast_stream.worker.spectrogram import LiveSpectrogram

logger = logging.getLogger(__name__)

MAX_WAITING_S = 5.0  # a stream with more than this waiting leaves further audio in its ring,
MIN_WAITING_HOPS = 2  # but not with less than this: decisions come once a hop
LOST_AFTER_S = 5.0  # without new audio: the open events of a stream are ended,
STOPPED_S = 60.0  # later if its capture process is there and does not answer: the ring may have it
LOOK_S = 2.0  # between looks whether it is there
UNHEARD_S = 3.0  # a capture process that is there answers more often
MISSING_LINK_S = 8.0  # without a word from a capture process on another box
_CLOCK_STEP_NS = 20_000_000
FORGET_AFTER_S = 60.0  # without new audio: a stream that is not in the configuration is dropped
FORGET_ENDED_S = 2.0  # the same where it has ended, and its capture process knows and has gone

CodedOutcome = Literal["decoded", "missed", "differs", "no_codec"]
"""Of a block of Opus. missed: what it follows was lost; all but `decoded` are read from the ring.
"""


@dataclass(frozen=True)
class StreamConfig:
    """The configuration of a stream, as the worker needs it."""

    name: str
    labels: dict[str, str]
    ring_endpoint: str
    calibration_db: float | None = None
    is_configured: bool = True


class RingClient:
    """A DEALER to one ring, connected when first needed and again after `close`.

    A connection that may be at fault is not closed before the next one has brought an answer: the
    ring may just be slow.
    """

    def __init__(self, sockets: Sockets, poller: Poller, endpoint: str) -> None:
        self.endpoint = endpoint
        self._sockets = sockets
        self._poller = poller
        self._socket: Socket | None = None
        self._has_asked = False
        self._former: Socket | None = None  # the connection before, and whether it has asked
        self._former_has_asked = False
        self._looked_s = float("-inf")
        self._is_there = False

    def is_there(self, now_s: float) -> bool:
        """Return whether a process has the ring, be it stopped; it is looked for now and then."""
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s, self._is_there = now_s, is_listened_at(self.endpoint)
        return self._is_there

    def send(self, request: ReadRequest | AckRequest) -> bool:
        """Send a request; return False if it could not go out now.

        A ring accepts acknowledgements from connections that read it: none goes before a read. Of
        two it accepts those of the first, as long as that is open.
        """
        if isinstance(request, AckRequest):
            if self._former is not None and self._former_has_asked:
                return self._former.send(request.encode())
            if not self._has_asked:
                return False
        if self._socket is None:
            self._socket = self._sockets.connect("dealer", self.endpoint, QUERY_HWM_MESSAGES)
            self._poller.add(self._socket)
        is_sent = self._socket.send(request.encode())
        self._has_asked = self._has_asked or is_sent
        return is_sent

    def receive(self) -> list[bytes] | None:
        """Return the frames of a reply, or None."""
        if self._former is not None and (frames := self._former.receive()) is not None:
            return frames
        frames = None if self._socket is None else self._socket.receive()
        if frames is not None:
            self._close_former()
        return frames

    def renew(self) -> None:
        """Send requests by another connection from now on; the last one stays open for answers."""
        self._close_former()
        self._former, self._former_has_asked = self._socket, self._has_asked
        self._socket, self._has_asked = None, False

    def close(self) -> None:
        """Close the sockets: requests on them are not answered any more."""
        self._close_former()
        if self._socket is not None:
            self._forget(self._socket)
            self._socket = None
            self._has_asked = False

    def _close_former(self) -> None:
        if self._former is not None:
            self._forget(self._former)
            self._former = None

    def _forget(self, socket: Socket) -> None:
        self._poller.remove(socket)
        self._sockets.forget(socket)


class WorkerStream:
    """Puts the audio of one stream in order, has it scored, and publishes what follows from it.

    Args:
        account: accounts for the samples.
        record: journalled state to resume from; None: start after the last acknowledged sample.
        levels: analyses the sound levels of all streams.
        history_s: seconds of audio that are kept to be handed out; 0: none.
        coded: blocks of Opus, by what became of them, is counted here.
        masks_speech: whether speech in them is looked for.
        is_shared: other workers may have had earlier epochs of a stream of another box.
        encode_record: makes what a worker on another box can go on from.
        now: reads both clocks of this machine.

    Attributes:
        name: the stream's name.
        config: what the configuration says of it.
        is_open: the detector has a slot for it.
        is_leaving: it is no longer in the configuration, see `leave`.
        has_left: all audio that came before that is decided, and its events have ended.
        has_just_ended: so did its source, since the streams were last journalled.
        epoch: the epoch that the detector is in; audio that waits may be of a later one.
        gaps, lost_samples, overflows: gaps published, all and those of an overflowing device.
    """

    def __init__(
        self,
        config: StreamConfig,
        ring: RingClient | RingLink,
        detector: Detector,
        publisher: DeduplicatingPublisher,
        account: StreamAccount,
        levels: LevelSeconds,
        record: StreamRecord | None,
        history_s: int = 0,
        *,
        coded: Counter[CodedOutcome] | None = None,
        masks_speech: bool = False,
        is_shared: bool = False,
        encode_record: Callable[[str, StreamRecord], bytes] | None = None,
        now: Callable[[], Moment] = read_clocks,
    ) -> None:
        self.name = config.name
        self.config = config
        self.is_open = False
        self.is_leaving = self.has_left = self.has_just_ended = False
        self.epoch: str | None = None
        self.gaps = self.lost_samples = self.overflows = 0
        self._recent_losses = RecentLosses()
        self.is_catching_up = False
        self._ring: RingClient | RingLink = ring
        self._link = ring if isinstance(ring, RingLink) else None
        self._is_shared = is_shared and self._link is not None
        self._encode_record = encode_record
        self._now = now
        self._foreign_clock: tuple[str, Moment] | None = None
        self._detector = detector
        self._publisher = publisher
        self._account = account
        self._levels = levels
        self._is_measured = False  # `levels` has its audio
        self._levels_after = 0  # sample up to which an earlier run has published levels
        self._reassembler = Reassembler(config.name)
        self._reassembler.waits_for_ring = self._link is not None
        self._opus = OpusReader()
        self._coded = Counter() if coded is None else coded
        self._log = LimitedLog(logger)
        self._clock = SampleClock()
        self._history = SampleBuffer(max(1, history_s * SAMPLE_RATE))  # at least its end
        parameters = detector.parameters
        self._speech: SpeechMask | None = None
        if masks_speech:
            width = parameters.geometry.window
            self._speech = SpeechMask(parameters.labels, width, self._history.capacity)
        self._spectrogram: LiveSpectrogram | None = None  # while somebody watches
        self._waiting: deque[Item] = deque()  # not in the detector yet, in order
        # the first of them ends the audio before it, which is not completely scored yet
        self._is_ending = False
        self._is_lost = False  # no audio for so long that its events were ended
        self._left_at: int | None = None  # first sample that existed after `leave`
        self._resume_from = self._journalled = record
        # what is before it is accounted for already: no gap that is found now has that
        self._known_before = 0
        self._acked = 0
        self._ended_at: int | None = None  # all is decided: the source ended here
        self._is_end_acked = False  # and the ring knows it
        self._stride = 1
        self._gives_up = False  # audio, because not even windows that just touch can be scored
        if record is not None:
            context = detector.context_needed(record.detector)
            of_levels = max(record.detector.context_start, record.position - NEEDED)
            first = min(context, of_levels)
            self._reassembler.resume(record.epoch, first, record.time_ns(first))

    @property
    def is_paced(self) -> bool:
        """Whether audio comes in real time; otherwise as fast as it is acknowledged."""
        return self._reassembler.is_paced

    @property
    def has_audio(self) -> bool:
        """Whether any audio of the present epoch has come."""
        return self.epoch is not None and bool(self._clock.anchors)

    @property
    def link(self) -> RingLink | None:
        """The connection from its capture process, if that is on another box."""
        return self._link

    @property
    def known_epoch(self) -> str | None:
        """The epoch that this worker is in, or would resume."""
        if self.epoch is not None:
            return self.epoch
        return None if self._resume_from is None else self._resume_from.epoch

    def decided_of(self, epoch: str) -> int | None:
        """Return up to which sample of an epoch all is decided; None: not known."""
        record = self._resume_from
        if self.is_open and self.epoch == epoch:
            return self._detector.position(self.name)
        return record.position if record is not None and record.epoch == epoch else 0

    def use_link(self, link: RingLink) -> None:
        """Read the ring by a connection of its capture process, which has just been made."""
        if self._ring is not link:
            self._ring.close()
        self._ring = self._link = link
        self._reassembler.waits_for_ring = True
        self._reassembler.on_ring_back()

    def drop(self) -> list[EventMessage]:
        """Release the stream, which continues elsewhere, and return its open events."""
        events = self.open_events()
        if self.is_open:
            self._detector.drop(self.name)
            self.is_open = False
        self._stop_measuring()
        self._ring.close()
        return events

    def receive_block(self, block: AudioBlock, now_s: float) -> None:
        """Accept a live block, or leave it in the ring.

        Raises:
            WireError: it is coded, and no packets of this codec.
        """
        if self.is_leaving:
            return
        if self._link is not None:
            self._link.heard_s = now_s
        elif block.is_last and (block.epoch, block.end_sample) == (self.epoch, self._ended_at):
            self.repeat_end()  # it is still there: an acknowledgement was lost, or not accepted
        block = self._by_own_clock(block)
        has_room = self._has_room()
        if block.opus is not None:  # in order, even without room: what follows builds on it
            pcm = self._decoded(block)
            has_room = has_room and pcm is not None
            block = block if pcm is None else replace(block, pcm=pcm)
        self._waiting += self._reassembler.on_block(block, now_s, has_room=has_room)

    def _decoded(self, block: AudioBlock) -> Pcm16 | None:
        """Return the samples of a coded block; None: the ring has them.

        Raises:
            WireError: it holds no packets of this codec.
        """
        try:
            pcm = self._opus.read(block)
        except StartupError as error:
            self._coded["no_codec"] += 1
            self._log.warning("stream %s: read from the ring: %s", self.name, error)
            return None
        except DifferentSamplesError as error:
            self._coded["differs"] += 1
            self._log.warning("stream %s: read from the ring: %s", self.name, error)
            return None
        self._coded["missed" if pcm is None else "decoded"] += 1
        return pcm

    def exchange_with_ring(self, now_s: float) -> None:
        """Receive the ring's replies, and request more if there was room for it."""
        if self.is_leaving:
            return
        while (frames := self._ring.receive()) is not None:
            try:
                reply = RingReply.decode(frames, self.name)
            except RefusedByRingError as error:
                self._waiting += self._reassembler.on_refusal(str(error), now_s, error.request_id)
            except WireError as error:
                self._waiting += self._reassembler.on_refusal(str(error), now_s)
            else:
                reply = replace(reply, block=self._by_own_clock(reply.block))
                self._waiting += self._reassembler.on_reply(reply, now_s)
        if self._link is not None and not self._link.is_connected:
            return
        if isinstance(self._ring, RingClient) and self._reassembler.may_give_up_ring:
            self._reassembler.ring_is_there = self._ring.is_there(now_s)
        self._reassembler.tick(now_s)
        if self._reassembler.needs_new_socket and isinstance(self._ring, RingClient):
            self._ring.renew()
        is_wanted = self._has_room() or self._reassembler.is_skipping
        if self._reassembler.wants_more(now_s) and is_wanted:
            request = self._reassembler.request(now_s)
            assert request is not None
            self._ring.send(request)

    def push_to_detector(self) -> None:
        """Push what is waiting into the detector, in order, as far as there is room.

        Nothing is scored here: an item that has to wait until earlier audio is scored waits for
        the detector's next run.
        """
        while self._waiting:
            match self._waiting[0]:
                case Audio() as audio:
                    is_done = self._on_audio(audio)
                case Gap() as gap:
                    is_done = self._on_gap(gap)
                case NewEpoch(epoch, start):
                    is_done = self._on_new_epoch(epoch, start)
                case Ended(epoch, end):
                    is_done = self._on_ended(epoch, end)
            if not is_done:
                return
            self._waiting.popleft()
            self._is_ending = False
        if self.is_leaving and not self.has_left and self._is_flushed("shutdown"):
            self.has_left = True
            self._publisher.end_orphans(self.name)

    def publish(self, results: Iterable[Event | Scores]) -> None:
        """Publish what the detector found in this stream."""
        for result in results:
            if isinstance(result, Scores):
                if self._speech is not None:
                    self._speech.add_scores(result.end_sample, result.scores)
                self._publisher.publish_scores(result, self._clock)
            else:
                self._publisher.publish_event(result, self._event_message(result))

    def has_viewer(self) -> bool:
        """Return whether anybody watches the spectrogram."""
        if self._publisher.has_reader("spectrogram", self.name):
            return True
        self._spectrogram = None
        return False

    def show(self, heard: HeardFrames, access: AudioAccess) -> None:
        """Publish frames for viewers, masked, if the access can be recorded."""
        if self._spectrogram is None:
            self._spectrogram = LiveSpectrogram(self._speech)
        for start, levels in self._spectrogram.add(heard):
            withheld = int((levels[:, 0] == WITHHELD).sum()) * FRAME_SHIFT
            viewers = self._publisher.readers("spectrogram", self.name)
            try:
                access.show(self.name, start, len(levels) * FRAME_SHIFT, withheld, viewers)
            except WireError:  # the record's outage is logged, and part of the status
                continue
            self._publisher.publish_spectrogram(self.name, heard.epoch, start, levels, self._clock)

    def publish_levels(self, second: SecondOfSound) -> None:
        """Publish the sound levels of a second."""
        labels, calibration_db = self.config.labels, self.config.calibration_db
        self._publisher.publish_levels(lambda now: second.message(labels, now, calibration_db))

    def account_for(self, run: HopRun) -> None:
        """Account for samples that the detector is done with."""
        self._account.add_run(run, self._clock)

    def end_events(self, reason: EndReason) -> None:
        """End the open events of a stream that continues."""
        if self.is_open:
            self.publish(self._detector.end_events(self.name, reason))

    def _by_own_clock(self, block: AudioBlock) -> AudioBlock:
        """Return a block of another machine with its moment on the clocks of this one.

        They are compared once, and again when one of them was set: else each block would have a
        line of time of its own.
        """
        if block.clock in (None, CLOCK_ID):
            return block
        now, known = self._now(), self._foreign_clock
        if known is None or known[0] != block.clock or _is_set(known[1], now):
            known = self._foreign_clock = block.clock or "", now
        return block.by_clock_of(known[1])

    def end_events_if_lost(self, now_s: float) -> None:
        """End the open events once all audio is scored and none has come for a while.

        That is where its ring says that nothing is new. A capture process that says nothing may
        be stopped, or its box out of reach, and its ring have the sound: then as soon as that is
        not to be expected any more.
        """
        if not self.is_open or self._is_lost or not self._is_silent_for_good(now_s):
            return
        if not self._waiting and not self._detector.windows_due(self.name):
            logger.warning("stream %s: no audio for %.0f s", self.name, self._silence_s(now_s))
            self._is_lost = True
            self.end_events("stream_lost")
            if self._link is not None:
                self._link.expect_record()  # in the one that it has, they are open

    def _is_silent_for_good(self, now_s: float) -> bool:
        if self._reassembler.confirmed_silence_s(now_s) > LOST_AFTER_S:
            return True
        if isinstance(self._ring, RingLink):
            return self.unheard_s(now_s) > self._ring.lost_after_s()
        return self._reassembler.silence_s(now_s) > LOST_AFTER_S and not self.may_be_stopped(now_s)

    def may_be_stopped(self, now_s: float) -> bool:
        """Return whether its capture process is there, on this box, and has not said that nothing
        is new: then its ring may have audio.
        """
        source = self._reassembler
        if isinstance(self._ring, RingLink) or source.confirmed_silence_s(now_s) > LOST_AFTER_S:
            return False
        return source.silence_s(now_s) <= STOPPED_S and self._ring.is_there(now_s)

    def _silence_s(self, now_s: float) -> float:
        """Return for how long no audio came, as far as the ring was asked, or could be."""
        unheard_s = self.unheard_s(now_s)
        return max(self._reassembler.silence_s(now_s), unheard_s if unheard_s > UNHEARD_S else 0.0)

    def unheard_s(self, now_s: float) -> float:
        """Return for how long a capture process on another box has said nothing; else 0."""
        return 0.0 if self._link is None else now_s - self._link.heard_s

    def end_orphans(self) -> None:
        """End events of an earlier run that the audio scored so far has not derived again."""
        position = self._detector.position(self.name)
        self._publisher.end_orphans(self.name, of_epoch=self.epoch, before=position)

    def configure(self, config: StreamConfig) -> None:
        """Go by what the configuration says now; events that are open keep their labels."""
        self.config = config

    def leave(self, now_s: float) -> None:
        """Take no more audio: the stream is not in the configuration any more."""
        self.is_leaving = True
        if self.has_audio and not self._reassembler.is_missing(now_s):
            self._left_at = self._reassembler.newest

    @property
    def left_ns(self) -> int | None:
        """Wall time of the first sample that came too late; None: there was no audio then."""
        return None if self._left_at is None else self._clock.time_ns(self._left_at)

    def is_gone(self, now_s: float) -> bool:
        """Return whether a stream that is not in the configuration may be dropped."""
        if self.config.is_configured:
            return False
        if self._link is None:
            return self._reassembler.silence_s(now_s) > FORGET_AFTER_S
        if self._is_end_acked and not self._link.is_connected:
            return self.unheard_s(now_s) > FORGET_ENDED_S
        limit_s = FORGET_AFTER_S if self._reassembler.has_ended else self._link.lost_after_s()
        return self.unheard_s(now_s) > max(FORGET_AFTER_S, limit_s)

    def close(self) -> None:
        """End everything."""
        if self.is_open:
            self.publish(self._detector.close(self.name, "stream_lost"))
        if self.has_left:
            self.acknowledge(self._history.end)
        self._stop_measuring()
        self._ring.close()
        self._publisher.forget(self.name)

    def set_stride(self, stride: int, *, is_exhausted: bool = False) -> None:
        """Score one of `stride` windows from now on, if audio comes in real time.

        Args:
            is_exhausted: that is not enough, and audio is given up.
        """
        stride = stride if self.is_paced else 1
        self._gives_up = is_exhausted and self.is_paced
        if stride != self._stride:
            self._stride = stride
            self._detector.set_stride(self.name, stride)

    def skip_backlog(self) -> None:
        """Give up, as a gap, what waits in the ring."""
        self._reassembler.skip_backlog()

    @property
    def can_be_dropped(self) -> bool:
        """Whether the next record says all that another worker must know."""
        return not self._is_unsettled

    @property
    def _is_unsettled(self) -> bool:
        """Whether something is in progress that a later run has to do again, or to account for."""
        return self._is_ending or (self._account.has_gaps and not self._clock.anchors)

    @property
    def position(self) -> int | None:
        """Samples before this index are decided; None while that cannot be journalled."""
        if self._ended_at is not None:
            return self._ended_at
        if not self.is_open or self._is_unsettled:
            return None
        return self._detector.position(self.name)

    def record(self) -> StreamRecord | None:
        """Return what a later run needs to continue from here; None if there is nothing."""
        if self._ended_at is not None and not self._is_end_acked:
            known = self._journalled  # until then all is derived from there again
            return known if known is not None and known.epoch == self.epoch else None
        if not self.is_open or self.epoch is None:
            return self._resume_from
        if not self._is_unsettled:  # else windows beyond the audio are in progress, for example
            state = self._detector.export(self.name)
            self._journalled = StreamRecord.of(self.epoch, state, self._clock)
        return self._journalled

    def acknowledge(self, stop: int) -> None:
        """Tell the ring that everything before `stop` is decided, published and journalled."""
        is_last = stop == self._ended_at
        if self.epoch is None or (is_last and self._is_end_acked):
            return
        record = None if is_last else self._record_to_send()
        if stop <= self._acked and record is None and not is_last:
            return
        request = AckRequest(v=1, op="ack", epoch=self.epoch, stop=stop, last=is_last)
        if self._link is None or record is None:
            is_sent = self._ring.send(request)
        elif is_sent := self._link.acknowledge(request, record):
            self._link.note_recorded()
        if is_sent:
            self._acked, self._is_end_acked = stop, is_last

    def repeat_end(self) -> None:
        """Acknowledge the end of the source again, if its ring still asks."""
        self._is_end_acked = False

    def _record_to_send(self) -> bytes | None:
        """Return what the capture process should keep for the next worker, if it is time."""
        link, record = self._link, self._journalled
        if link is None or record is None or self._encode_record is None:
            return None
        if not link.is_record_due() or record.epoch != self.epoch:
            return None
        encoded = self._encode_record(self.name, record)
        return encoded if len(encoded) <= MAX_RECORD_BYTES else None

    def backlog_s(self) -> float:
        """Return seconds of audio that exist at the source and are not scored."""
        in_ring = self._reassembler.newest - self._reassembler.position
        in_detector = max(0, self._history.end - self._detector.position(self.name))
        backlog_s = samples_to_seconds(in_ring + self._n_waiting() + in_detector)
        self.is_catching_up = self.is_catching_up and backlog_s > CAUGHT_UP_S
        return backlog_s

    def has_windows_due(self) -> bool:
        """Return whether a window waits to be scored."""
        return self._detector.windows_due(self.name) > 0

    def open_events(self) -> list[EventMessage]:
        """Return messages about the events that have begun and not ended."""
        if not self.is_open:
            return []
        return [self._event_message(event) for event in self._detector.open_events(self.name)]

    def audio(self, wanted: AudioRange) -> AudioBlock:
        """Return what is held of the audio that a query asks for.

        Raises:
            WireError: no audio yet, or of an epoch that is over.
        """
        if self.epoch is None or wanted.epoch not in (None, self.epoch):
            raise WireError(f"audio: expected the present epoch {self.epoch}, got {wanted.epoch!r}")
        start, pcm = self._history.read(*wanted.samples(self._clock))
        return AudioBlock(self.name, self.epoch, start, self._clock.moment(start), pcm)

    def speech_in(self, block: AudioBlock) -> list[tuple[int, int]]:
        """Return which samples of a block of this stream may hold speech."""
        if self._speech is None:
            return [(block.start_sample, block.end_sample)]
        return self._speech.withheld(block.start_sample, block.end_sample)

    def health(self, now_s: float) -> Health:
        """Return the stream's health; some figures are None while the stream is not open."""
        status = self._detector.status(self.name) if self.is_open else None
        state, detail = self._state(now_s)
        return Health(
            stream=self.name,
            labels=dict(self.config.labels),
            epoch=self.epoch or self._reassembler.epoch,
            state=state,
            detail=detail,
            silence_s=round(self._silence_s(now_s), 1),
            gaps=self.gaps,
            lost_samples=self.lost_samples,
            overflows=self.overflows,
            ring_timeouts=self._reassembler.timeouts,
            audio_s=samples_to_seconds(self._history.end) if status else None,
            level_dbfs=round(status.level_dbfs, 1) if status else None,
            lag_s=round(self.backlog_s(), 3) if status else None,
            hop_s=status.hop_s if status else None,
            open_events=status.open_events if status else None,
            placement=None if self._link is None else self._link.placement(),
            recent_loss=self._recent_losses.summary(self._now().monotonic_ns),
        )

    def state(self, now_s: float) -> StreamState:
        """Return the stream's state."""
        return self._state(now_s)[0]

    def _state(self, now_s: float) -> tuple[StreamState, str | None]:
        """Return the stream's state and, where something is wrong, why."""
        source = self._reassembler
        if self.has_left:
            return "missing", STREAM_REMOVED
        if source.has_ended:
            return "missing", SOURCE_ENDED
        if self.unheard_s(now_s) > MISSING_LINK_S:
            return "missing", f"the box of its capture process is out of reach: {self._where}"
        if not self.is_open or source.is_missing(now_s):
            return "missing", source.detail or self._why_silent()
        problems = [source.detail] if source.state == "degraded" else []
        if self._stride > 1:
            problems.append(f"overload: one of {self._stride} windows is scored")
        if self._gives_up:
            problems.append("overload: audio is given up, more windows cannot be left out")
        if problems:
            return "degraded", "; ".join(filter(None, problems))
        if self._detector.is_gated(self.name):
            return "gated", None
        return ("warming" if self._detector.is_warming(self.name) else "listening"), None

    @property
    def _where(self) -> str:
        return self._ring.endpoint

    def _why_silent(self) -> str:
        if self._reassembler.epoch is None:
            return f"no capture process answers at {self._where}"
        return "the capture process sends no audio"

    def _event_message(self, event: Event) -> EventMessage:
        labels, audio_end = self.config.labels, self._history.end
        return self._publisher.event_message(event, self._clock, labels, audio_end)

    def _n_waiting(self) -> int:
        """Return how many samples are waiting."""
        if not self._waiting:
            return 0
        return sum(len(item.pcm) for item in self._waiting if isinstance(item, Audio))

    def _has_room(self) -> bool:
        """Return whether more audio is wanted now; else the ring keeps it."""
        waiting = self._n_waiting()
        if self.is_open:
            waiting += self._detector.received(self.name) - self._detector.position(self.name)
        min_waiting = MIN_WAITING_HOPS * self._detector.hop
        if self._gives_up:  # what waits here is scored, however late
            return waiting < min_waiting
        return waiting < max(seconds_to_samples(MAX_WAITING_S), min_waiting)

    def _on_audio(self, audio: Audio) -> bool:
        if not self.is_open and self._resume_from is not None:
            self._resume(self._resume_from, audio.start_sample)
        if self._detector.room(self.name) < len(audio.pcm):
            return False
        if self._is_lost:
            logger.info("stream %s: audio is back", self.name)
            self._is_lost = False
        is_first = not self._clock.anchors
        self._clock.observe(audio.start_sample, audio.moment)
        if is_first:  # of the gaps before it the time was not known
            self._account.add_gaps(self._detector.position(self.name), self._clock)
        self._history.append_silence(audio.start_sample - self._history.end)
        self._history.append(audio.pcm)
        if self._speech is not None:
            self._speech.hear(self._history)
        self._measure_levels(audio)
        self._detector.push(self.name, audio.start_sample, audio.pcm)
        return True

    def _measure_levels(self, audio: Audio) -> None:
        """Compute sound levels if somebody reads them."""
        if not self._publisher.has_reader("levels", self.name):
            self._stop_measuring()
            return
        if not self._is_measured:
            assert self.epoch is not None
            start, after = audio.start_sample, self._levels_after
            self._levels.begin(self.name, self.epoch, self._clock, start, after)
            self._is_measured = True
        self._levels.hear(self.name, audio.start_sample, audio.pcm)

    def _stop_measuring(self) -> None:
        if self._is_measured:
            self._levels.forget(self.name)
            self._is_measured = False

    def _on_gap(self, gap: Gap) -> bool:
        if not self._is_ending:
            record = self._resume_from
            if record is not None and gap.epoch == record.epoch:
                if gap.reason == CAPTURE_RESTART:
                    self._publisher.begin_epoch(self.name, record.epoch, record.position)
                    gap = self._publisher.as_long_as_known(gap)
                # audio decided before the restart was requested again only to fill the window
                if gap.stop_sample <= record.position:
                    return True
                self._resume_before(gap, record)
            if self.is_open and self._detector.room(self.name) < LONGEST_SILENT_HOLE:
                return False
            first = max(gap.start_sample, self._known_before)
            lost = gap.between(first, gap.stop_sample)
            self._publish_gap(lost)
            if not self.is_open or gap.epoch != self.epoch:
                return True
            for part in self._publisher.as_published(lost):
                self._account.expect(part)
            received = self._detector.received(self.name)
            self._detector.begin_gap(gap.between(received, gap.stop_sample))
            self._is_ending = True
        if self._detector.is_ending(self.name):
            return False
        self._detector.settle_runs()  # what is in front of the gap comes first
        self._account.add_gaps(self._detector.position(self.name), self._clock)
        end = gap.start_sample + gap.samples
        if self._speech is not None and gap.samples > LONGEST_SILENT_HOLE:
            self._speech.interrupt(end)
        self._publisher.end_orphans(self.name, of_epoch=gap.epoch, before=end)
        return True

    def _publish_gap(self, gap: Gap) -> None:
        for part in self._publisher.publish_gap(gap, self._clock):
            self.gaps += 1
            self.lost_samples += part.samples
            self.overflows += part.reason == "overflow"
            self._recent_losses.add(part, self._now().monotonic_ns)

    def _on_new_epoch(self, epoch: str, start: int) -> bool:
        if not self._is_flushed():
            return False
        # an epoch without acknowledged audio is read from its start: its events are derived again
        self._end_orphans_of_others(than=epoch)
        if start > 0:
            self._publisher.end_orphans(self.name, of_epoch=epoch)
        logger.info("stream %s: epoch %s from sample %d", self.name, epoch[:8], start)
        is_new = epoch != self.epoch  # else what led here was none of its audio
        self._begin_epoch(epoch, start, SampleClock())
        self._known_before = self._known_in(epoch) if is_new else 0
        self._publisher.begin_epoch(self.name, epoch, start)
        self._detector.open(self.name, epoch, start)
        return True

    def _on_ended(self, epoch: str, end: int) -> bool:
        record = self._resume_from
        if not self.is_open and record is not None and record.epoch == epoch:
            self._resume(record, record.position)  # nothing came after it
        if self.epoch != epoch:
            return True
        if not self._is_flushed():
            return False
        logger.info("stream %s: the source has ended", self.name)
        self._end_orphans_of_others(than=epoch)
        self._publisher.end_orphans(self.name, of_epoch=epoch)
        # the ring is told when all this is on the disk, and goes then
        self._ended_at, self._is_end_acked, self.has_just_ended = end, False, True
        return True

    def _is_flushed(self, reason: EndReason = "stream_lost") -> bool:
        """Return whether everything so far is scored and ended; start that if necessary."""
        if self.is_open and not self._is_ending:
            self._detector.begin_flush(self.name, reason)
            self._is_ending = True
        if self._detector.is_ending(self.name):
            return False
        self.is_open = False
        if self._speech is not None:
            self._speech.interrupt(self._history.end)
        return True

    def _resume(self, record: StreamRecord, start: int) -> None:
        """Open the epoch that the journal knows; audio comes from `start` on."""
        self._begin_epoch(record.epoch, start, record.sample_clock())
        self._known_before = max(record.position, self._known_in(record.epoch))
        self._levels_after = record.position
        self._detector.resume(self.name, record.epoch, start, record.detector)
        if self._link is not None:
            # what another worker has decided up to here is in the record, if it has not ended
            goes_on = {event.id for event in self._detector.open_events(self.name)}
            self._publisher.drop_orphans(
                self.name, record.epoch, before=record.position, but=goes_on
            )
        if self._reassembler.epoch == record.epoch:  # else the next epoch may derive its own again
            self._end_orphans_of_others(than=record.epoch)
        self._publisher.begin_epoch(self.name, record.epoch, record.position)
        self._publisher.continue_events(self._detector.open_events(self.name))
        logger.info("stream %s: resumed at sample %d", self.name, record.position)

    def _known_in(self, epoch: str) -> int:
        """Return up to where an earlier run, or another worker, has accounted for an epoch."""
        known = self._account.stop(self.name, epoch)
        if self._link is not None and self._link.hello.epoch == epoch:
            known = max(known, self._link.hello.acked)
        return known

    def _resume_before(self, gap: Gap, record: StreamRecord) -> None:
        """Open the epoch that the journal knows, of which nothing is left before a gap.

        The run that was killed may have accounted for more than it has journalled, and what was
        heard is not lost: events that are open end there, and nothing is decided a second time.
        """
        known = max(record.position, self._known_in(record.epoch))
        # a hole that becomes silence lets events go on, of which nobody knows the rest
        is_long = gap.stop_sample - known > LONGEST_SILENT_HOLE
        if known > record.position and gap.stop_sample - record.position > LONGEST_SILENT_HOLE:
            record = record.without_frames()
        self._resume(record, known if is_long else record.position)

    def _end_orphans_of_others(self, than: str | None) -> None:
        """End what an earlier run left open in other epochs; in a pool it is asked who ends it."""
        if not self._is_shared:
            self._publisher.end_orphans(self.name, except_epoch=than)

    def _begin_epoch(self, epoch: str, start_sample: int, clock: SampleClock) -> None:
        """Forget what belongs to the epoch before."""
        self.epoch = epoch
        self._clock = clock
        self._account.restart()
        self._history.restart(start_sample)
        self._stop_measuring()
        self._levels_after = 0
        if self._speech is not None:
            self._speech.restart(start_sample)
        self._resume_from = None
        self._known_before = 0
        self._acked = 0
        self._ended_at = None
        self._is_end_acked = self.has_just_ended = False
        self._stride = 1
        self.is_open = True


def _is_set(before: Moment, now: Moment) -> bool:
    """Return whether one of the clocks was set between two moments."""
    return abs(before.offset_ns - now.offset_ns) > _CLOCK_STEP_NS
