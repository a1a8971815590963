"""The ring: the last minutes of one stream, sent as live blocks and read back on request.

The ring is the truth about what was captured: a block that could not be sent stays here and is
requested later. No sockets here: requests and replies are frames, and blocks go to a function.
"""

from __future__ import annotations

import bisect
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ast_stream.audio.pcm import SampleBuffer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.errors import WireError
from ast_stream.machine_clock import Moment, read_clocks
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    AckRequest,
    AudioBlock,
    Pcm16,
    ReadRequest,
    RingRefusal,
    RingReply,
    decode_ring_request,
)
from ast_stream.messages.pool import Placement
from ast_stream.runtime.logging import LimitedLog
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE, samples_to_ns

logger = logging.getLogger(__name__)

OVERWRITTEN = "overwritten"  # gap reason: requested too late, newer audio has taken the room
MAX_LIVE_SAMPLES = SAMPLE_RATE  # blocks are as the source wrote them; longer only when late
_LOOK_S = 0.2  # between checks of all rings, in case a notification was missed
_RETRY_S = 0.02


@dataclass(frozen=True)
class _Segment:
    """Consecutive samples on one time line, whose time is linear in the sample index."""

    start: int  # absolute index of the first sample
    place: int  # index of the first sample in the buffer, where holes take no room
    moment: Moment  # of the first sample
    gap_reason: str | None  # why samples are missing just before it


@dataclass(frozen=True, eq=False)
class RingSlice:
    """Consecutive samples from the ring, none across a hole or a step of the clock.

    Attributes:
        start_sample: absolute index of the first sample.
        moment: when the first sample was captured; None if nothing has been written.
        pcm: shape (n_samples,), int16, own memory.
        gap_reason: why there is nothing just before it, or None.
    """

    start_sample: int
    moment: Moment | None
    pcm: Pcm16
    gap_reason: str | None

    @property
    def end_sample(self) -> int:
        """Index just after the last sample."""
        return self.start_sample + len(self.pcm)


class Ring:
    """The newest `capacity` samples by absolute index, for one writer and many reading threads.

    A hole takes no space, so that a long loss does not displace unread audio.

    Args:
        capacity: samples kept; 1 or more.

    Attributes:
        on_written: called by the writer after each write.
    """

    def __init__(self, capacity: int) -> None:
        self.on_written: Callable[[], None] = lambda: None
        self._samples = SampleBuffer(capacity)
        self._segments: list[_Segment] = []
        self._next = 0
        self._acked = 0
        self._hole_reason: str | None = None  # of the hole that ends at `next`
        self._changed = threading.Condition()

    @property
    def capacity(self) -> int:
        """Samples kept."""
        return self._samples.capacity

    @property
    def next(self) -> int:
        """Index that the next sample will have."""
        with self._changed:
            return self._next

    @property
    def oldest(self) -> int:
        """Index of the oldest sample held; `next` if none is."""
        with self._changed:
            return self._begin_of(0) if self._segments else self._next

    @property
    def acked(self) -> int:
        """All samples before this index are acknowledged."""
        with self._changed:
            return self._acked

    def write(self, pcm: Pcm16, moment: Moment) -> None:
        """Append samples, overwriting the oldest.

        Args:
            pcm: shape (n_samples,), int16; may be empty.
            moment: when the first one was captured; where it is not the straight continuation
                of the samples before, slices will not cross this point.
        """
        if len(pcm) == 0:
            return
        with self._changed:
            if self._hole_reason is not None or self._moment_of(self._next) != moment:
                place = self._samples.end
                self._segments.append(_Segment(self._next, place, moment, self._hole_reason))
                self._hole_reason = None
            self._samples.append(pcm)
            self._next += len(pcm)
            self._forget_overwritten()
        self.on_written()

    def skip(self, n_samples: int, reason: str) -> int:
        """Skip samples that do not exist; return how many.

        Args:
            n_samples: rounded to a multiple of 160, at least 160, so that a hole always shows
                and never moves the 10 ms grid of the frames.
        """
        n_skipped = max(1, round(n_samples / FRAME_SHIFT)) * FRAME_SHIFT
        with self._changed:
            self._next += n_skipped
            self._hole_reason = self._hole_reason or reason
        return n_skipped

    def read(self, start: int, stop: int, max_samples: int) -> RingSlice:
        """Return the first samples held at or after `start`.

        The slice ends at `stop`, at the next hole or step of the clock, or after `max_samples`,
        whichever comes first. If there is nothing before `stop`, it is empty and starts where
        the audio continues, or at `next`.
        """
        with self._changed:
            index = bisect.bisect_right(self._segments, start, key=lambda segment: segment.start)
            index = max(0, index - 1)  # the segment that holds `start`, if one does
            while index < len(self._segments) and self._end_of(index) <= start:
                index += 1
            if index == len(self._segments):
                moment = self._moment_of(self._next)
                return RingSlice(self._next, moment, _nothing(), self._hole_reason)
            begin = max(start, self._begin_of(index))
            end = max(begin, min(stop, self._end_of(index), begin + max_samples))
            segment = self._segments[index]
            moment = segment.moment.after(samples_to_ns(begin - segment.start))
            place = segment.place + begin - segment.start
            _, pcm = self._samples.read(place, place + end - begin)
            return RingSlice(begin, moment, pcm, self._reason_before(index, start, begin))

    def ack(self, stop: int) -> bool:
        """Move the acknowledgement cursor to `stop`; return False if that is not possible.

        The cursor only moves forward, and never beyond `next`.
        """
        with self._changed:
            if not self._acked <= stop <= self._next:
                return False
            self._acked = stop
            self._changed.notify_all()
            return True

    def wait_acked(self, n_samples: int, timeout_s: float) -> bool:
        """Wait until at most `n_samples` are unacknowledged; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next - self._acked <= n_samples, timeout_s)

    def _moment_of(self, sample: int) -> Moment | None:
        """Return when a sample at or after the start of the newest segment was captured."""
        if not self._segments:
            return None
        newest = self._segments[-1]
        return newest.moment.after(samples_to_ns(sample - newest.start))

    def _end_of(self, index: int) -> int:
        segment = self._segments[index]
        is_newest = index + 1 == len(self._segments)
        end = self._samples.end if is_newest else self._segments[index + 1].place
        return segment.start + end - segment.place

    def _begin_of(self, index: int) -> int:
        """First sample of a segment that is not overwritten yet."""
        segment = self._segments[index]
        return segment.start + max(0, self._samples.oldest - segment.place)

    def _reason_before(self, index: int, start: int, begin: int) -> str | None:
        segment = self._segments[index]
        if begin == segment.start and segment.gap_reason is not None:
            return segment.gap_reason
        return OVERWRITTEN if start < begin else None

    def _forget_overwritten(self) -> None:
        while len(self._segments) > 1 and self._segments[1].place <= self._samples.oldest:
            del self._segments[0]


def _nothing() -> Pcm16:
    return np.zeros(0, dtype=np.int16)


Note = Callable[[bytes, ReadRequest, AudioBlock | None], None]
"""Records what a client of a ring is sent or refused; raises `WireError` to refuse it."""


class Coding(Protocol):
    """Encodes the live blocks of a ring, see `ast_stream.capture.opus_ring`."""

    @property
    def min_samples(self) -> int:
        """Minimum samples of a block, unless it is the last."""

    def begin_of(self, sample: int) -> int:
        """Return where a block must begin in order to contain `sample`."""

    def code(self, block: AudioBlock) -> AudioBlock:
        """Return a block of the ring, or the beginning of one, encoded."""


class RingServer:
    """Sends the blocks of one stream and answers requests for what the worker has missed.

    A block of a live source that the worker does not take is skipped: it stays in the ring, and
    the next one is more urgent. A recording that is read faster than real time waits.

    Args:
        is_trusted: whether a client is connected and may listen and acknowledge; others may ask
            for an empty range, which says how the stream is. Only one acknowledges: the first
            that did, for as long as it is connected.
        note: called before audio is given to a client, or refused.
        clock: name of this machine's monotonic clock, where the worker may be on another.
        coding: codes live blocks; None: they are PCM.
        placement: says which worker of a pool has the stream; None: it is in none.

    Attributes:
        end_delivered: the worker has asked, and got the answer that the source has ended. A
            live block that says so is a hint, and may be lost.
        is_confirmed: the worker has said that it is done with a source that has ended.
        failure: why nothing more is sent although the source goes on, or None.
        next_live: first sample of the next live block.
        n_sent, n_refused: live blocks.
        n_bytes: of the blocks that were sent.
        n_malformed: requests that did not follow the format.
    """

    def __init__(
        self,
        stream: str,
        epoch: str,
        endpoint: str,
        ring: Ring,
        status: Callable[[], SourceStatus],
        *,
        is_paced: bool = True,
        is_trusted: Callable[[bytes], bool] = lambda _: True,
        note: Note = lambda client, request, given: None,
        clock: str | None = None,
        coding: Coding | None = None,
        placement: Callable[[], Placement | None] = lambda: None,
        now: Callable[[], Moment] = read_clocks,
    ) -> None:
        self.end_delivered = self.is_confirmed = False
        self.failure: Exception | None = None
        self.n_sent = self.n_refused = self.n_malformed = self.n_bytes = 0
        self._stream = stream
        self._epoch = epoch
        self._endpoint = endpoint
        self._ring = ring
        self._status = status
        self._is_paced = is_paced
        self._is_trusted = is_trusted
        self._note = note
        self._clock = clock
        self._coding = coding
        self._placement = placement
        self._now = now
        self.next_live = 0
        self._readers: set[bytes] = set()
        self._worker: bytes | None = None  # the client whose acknowledgements count
        self._is_awaited = False  # whether it will confirm that it is done
        self._log = LimitedLog(logger)

    @property
    def epoch(self) -> str:
        """The run of the source."""
        return self._epoch

    @property
    def is_done_with(self) -> bool:
        """Whether the source has ended and the worker has all of it, so that the ring can go.

        It has all when it has decided the last windows, which it says where it is able to. Until
        then another worker may have to take over.
        """
        is_told = self.end_delivered and self._ring.acked == self._ring.next
        return self.is_confirmed or (is_told and not self._is_awaited)

    @property
    def is_behind(self) -> bool:
        """Whether there are samples that were not in a live block yet."""
        return self._ring.next > self.next_live

    def begin_live(self) -> None:
        """Send only new audio from now on: the worker requests what came before."""
        if self._is_paced:
            self.next_live = self._ring.next

    def send_next(self, send: Callable[[list[bytes]], bool]) -> bool:
        """Send the next block, if there is one; return False if it must be sent again."""
        if not self._is_paced:
            self.next_live = max(self.next_live, self._ring.acked)
        block = self._live_block()
        if len(block.pcm) == 0 and not block.is_last:
            return True
        frames = block.encode()
        is_sent = send(frames)
        if is_sent:
            self.n_sent += 1
            self.n_bytes += sum(map(len, frames))
        else:
            self.n_refused += 1
        is_done_with = is_sent or (self._is_paced and len(block.pcm) > 0)
        if is_done_with:
            self.next_live = block.end_sample
        return is_done_with

    def _live_block(self) -> AudioBlock:
        """Return the next block to send; it has no samples if there is none yet."""
        if self._coding is None:
            return self.block(self.next_live, MAX_LIVE_SAMPLES)
        block = self.block(self._coding.begin_of(self.next_live), MAX_LIVE_SAMPLES)
        is_short = len(block.pcm) < self._coding.min_samples and block.end_sample == self._ring.next
        if is_short and not block.is_last:
            return replace(block, pcm=_nothing())
        return self._coding.code(block)

    def block(self, start: int, max_samples: int) -> AudioBlock:
        """Return the first block at or after `start`; it is the last if the source has ended."""
        status = self._status()  # before the ring: after the end `next` stays
        return self._block(self._ring.read(start, self._ring.next, max_samples), status)

    def answer(self, frames: list[bytes], client: bytes = b"") -> list[bytes] | None:
        """Return the frames of the reply to a request, or None if none is expected.

        Args:
            frames: the request as a DEALER sent it, without the identity.
            client: the identity of its connection.
        """
        try:
            request = decode_ring_request(frames)
        except WireError as error:
            self.n_malformed += 1
            self._log.warning("malformed request refused: %s", error)
            return RingRefusal.malformed(str(error)).encode()
        if isinstance(request, AckRequest):
            self.acknowledge(request, client)
            return None
        if request.stream != self._stream:
            return RingRefusal.wrong_stream(self._stream).to(request).encode()
        if request.epoch not in (None, self._epoch):
            held = self._ring.oldest, self._ring.next
            return RingRefusal.wrong_epoch(self._epoch, *held).to(request).encode()
        is_empty = request.start is not None and request.start == request.stop
        if not is_empty and not self._is_trusted(client):
            self._log.warning(
                "read refused: the client may query the state of the stream, but not its audio"
            )
            self._note(client, request, None)
            return RingRefusal.not_allowed().to(request).encode()
        self._readers = {reader for reader in self._readers if self._is_trusted(reader)} | {client}
        return self._read(request, client)

    def _read(self, request: ReadRequest, client: bytes) -> list[bytes]:
        if request.confirms_end and self._is_trusted(client):
            self._is_awaited = True
        status = self._status()
        start = self._ring.acked if request.start is None else request.start
        stop = self._ring.next if request.stop is None else request.stop
        block = self._block(self._ring.read(start, stop, MAX_BLOCK_SAMPLES), status)
        if len(block.pcm):
            try:
                self._note(client, request, block)
            except WireError as error:
                self._log.warning("read refused: %s", error)
                return RingRefusal.not_allowed().to(request).encode()
        if block.is_last and self._worker in (None, client):
            self.end_delivered = True
        reply = RingReply(
            block=block,
            oldest=self._ring.oldest,
            next=self._ring.next,
            acked=self._ring.acked,
            state=status.state,
            detail=block.detail,
            is_paced=self._is_paced,
            placement=self._placement() if start == stop else None,  # asked how the stream is
            request_id=request.id,
        )
        return reply.encode()

    def use_worker(self, client: bytes) -> None:
        """Accept acknowledgements from this client alone, from now on."""
        self._worker = client
        self._readers.add(client)
        self.end_delivered = self._is_awaited = False

    def acknowledge(self, request: AckRequest, client: bytes) -> bool:
        """Move the acknowledgement cursor; return whether the client is the worker."""
        # an acknowledgement meant for the process before this one is late, not wrong
        if request.epoch != self._epoch:
            return False
        if not self._is_of_worker(client):
            self.n_malformed += 1
            self._log.warning(
                "acknowledgement refused: expected one of the client that reads this ring, "
                "got one of another"
            )
        elif self._ring.ack(request.stop):
            self._worker = client
            is_end = request.last and request.stop == self._ring.next
            self.is_confirmed = self.is_confirmed or (is_end and self._status().state == "ended")
            return True
        else:
            logger.debug("acknowledgement of %d ignored", request.stop)
        return False

    def _is_of_worker(self, client: bytes) -> bool:
        """Return whether this client has read the ring, and no other client acknowledges."""
        if self._worker is not None and self._worker != client and self._is_trusted(self._worker):
            return False
        return client in self._readers and self._is_trusted(client)

    def _block(self, slice_: RingSlice, status: SourceStatus) -> AudioBlock:
        return AudioBlock(
            stream=self._stream,
            epoch=self._epoch,
            start_sample=slice_.start_sample,
            moment=slice_.moment or self._now(),
            pcm=slice_.pcm,
            ring=self._endpoint,
            gap_reason=slice_.gap_reason,
            is_last=status.state == "ended" and slice_.end_sample == self._ring.next,
            state=status.state,
            detail=status.detail,
            clock=self._clock,
        )


class BlockSender:
    """Sends the live blocks of all rings of a process, in one thread.

    A ring that is written to is served at once; one whose block must be sent again does not hold
    up the others.
    """

    def __init__(self) -> None:
        self._changed: queue.SimpleQueue[RingServer | None] = queue.SimpleQueue()
        self._sends: dict[RingServer, Callable[[list[bytes]], bool]] = {}
        self._lock = threading.Lock()  # of `_sends`, and held while a block is sent
        self._again: set[RingServer] = set()
        self._next_look_s = self._next_retry_s = time.monotonic()
        self._is_stopping = False
        self._thread = threading.Thread(target=self.run, name="sender", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop the thread, if it stops in time."""
        self._is_stopping = True
        self._changed.put(None)
        self._thread.join(timeout_s)

    def add(self, server: RingServer, send: Callable[[list[bytes]], bool]) -> None:
        """Send the blocks of another ring.

        Args:
            send: hands frames to the worker; returns False if it does not take them now.
        """
        with self._lock:
            self._sends[server] = send

    def remove(self, server: RingServer) -> None:
        """Stop sending a ring; afterwards its socket is no longer in use."""
        with self._lock:
            self._sends.pop(server, None)

    def notify(self, server: RingServer) -> None:
        """Wake the thread for a ring that was written to, or whose source has ended."""
        self._changed.put(server)

    def run(self) -> None:
        """Send due blocks until `close`; the body of the thread."""
        while not self._is_stopping:
            timeout_s = _RETRY_S if self._again else _LOOK_S
            try:
                server = self._changed.get(timeout=timeout_s)
            except queue.Empty:
                server = None
            if server is not None:
                self._serve(server)
            now_s = time.monotonic()
            if self._again and now_s >= self._next_retry_s:
                again, self._again = self._again, set()
                for server in again:
                    self._serve(server)
                self._next_retry_s = time.monotonic() + _RETRY_S
            if now_s >= self._next_look_s:
                self._next_look_s = now_s + _LOOK_S
                with self._lock:
                    servers = list(self._sends)
                for server in servers:
                    if server not in self._again:
                        self._serve(server)

    def _serve(self, server: RingServer) -> None:
        """Send the next block of a ring, if there is one."""
        with self._lock:
            send = self._sends.get(server)
            if send is None or server.is_done_with:
                return
            before = server.next_live
            try:
                is_done_with = server.send_next(send)
            except Exception as error:  # the main thread deals with it: no bug ends this thread
                server.failure = error
                del self._sends[server]
                return
        if not is_done_with:
            self._again.add(server)
        elif server.is_behind and server.next_live > before:
            self._changed.put(server)
