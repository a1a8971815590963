"""Intake of one stream at the worker: live blocks and ring replies in, samples in order out.

A pure state machine: no sockets, no clock. Live blocks are a hint, the ring of the capture
process is the truth: whatever is missing is asked for, and only what the ring cannot give any
more becomes a gap. Every sample of an epoch comes out exactly once, in order, or in a `Gap`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ast_stream.messages import AudioBlock, Gap, Pcm16
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns, seconds_to_samples
from ast_stream.wire.codec import MAX_BLOCK_SAMPLES, ReadRequest, RingReply
from ast_stream.wire.request_pace import RequestPace

ASK_AFTER_SILENCE_S = 0.2  # a loss at the tail shows only by silence
MISSING_AFTER_S = 2.0
FAILURES_UNTIL_LIVE_ONLY = 8  # then live blocks are taken as they come: better than deaf
CLOCK_SLACK_S = 2.0  # of the wall clock against the monotonic one, across a capture restart

# reasons of gaps that the ring does not name itself
CAPTURE_RESTART = "capture_restart"
RING_OVERRUN = "ring_overrun"
RING_SILENT = "ring_silent"
LOST = "lost"

_MAX_DEAD_EPOCHS = 16


@dataclass(frozen=True, eq=False)
class Audio:
    """The next samples: shape (n_samples,), int16; `time_ns` is the wall time of the first."""

    epoch: str
    start_sample: int
    time_ns: int
    pcm: Pcm16
    is_last: bool = False

    @property
    def end_sample(self) -> int:
        """Index just after the last sample."""
        return self.start_sample + len(self.pcm)


@dataclass(frozen=True)
class GapFound:
    """Samples that are lost for good; reading goes on after them."""

    gap: Gap


@dataclass(frozen=True)
class NewEpoch:
    """Reading starts at `start_sample` of an epoch; nothing more comes of the one before."""

    epoch: str
    start_sample: int


@dataclass(frozen=True)
class Ended:
    """The source has ended; `end_sample` is the index just after its last sample."""

    epoch: str
    end_sample: int


Item = Audio | GapFound | NewEpoch | Ended


class Intake:
    """Puts one stream in order. Every `now_s` is of one clock that only goes forward, in seconds.

    Every input returns the items it brought, in order, often none. Each turn of the loop calls
    `tick`, replaces the ring's socket if `needs_new_socket` (the late reply to a request that
    timed out would be taken for the next one's), and sends what `request` returns. A worker that
    has no room for more audio leaves `request` out for a while.

    After the restart of a capture process what was only in the dead one is a gap of the old
    epoch, sized by wall time; the new epoch is read from its last acknowledged sample, which is
    the first one for a ring that nobody has read.

    Attributes:
        epoch: epoch being read, None before the first contact.
        position: index of the next sample wanted.
        has_ended: the source has ended and all of it came out.
        needs_new_socket: set by `tick` when a request timed out, until the next `tick`.
        state, detail: what the ring last said about its source, or why it refused.
        last_heard_s: when new audio came last, None before.
        dropped: live blocks that were left to the ring, because something before was missing.
        stale: blocks that were had already, or of a dead epoch.
        timeouts, refusals: requests that were not answered, or with an error.
        unexpected: replies that nobody waited for.
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.epoch: str | None = None
        self.position = 0
        self.has_ended = False
        self.needs_new_socket = False
        self.state = "missing"
        self.detail: str | None = None
        self.last_heard_s: float | None = None
        self.dropped = self.stale = self.timeouts = self.refusals = self.unexpected = 0
        self._pace = RequestPace()
        self._position_ns: int | None = None  # wall time of `position`
        self._ring_next = 0  # the ring has samples up to here
        self._live_next = 0  # live blocks since the last request reach up to here
        self._is_contacted = False
        self._is_suspect = False  # a live block came of an epoch that is not ours
        self._asks_openly = False  # without epoch and start: a ring refused them
        self._dead_epochs: deque[str] = deque(maxlen=_MAX_DEAD_EPOCHS)
        self._started_s: float | None = None

    @property
    def newest(self) -> int:
        """Index after the newest sample that is known to exist at the source."""
        return max(self._ring_next, self._live_next, self.position)

    def resume(self, epoch: str, position: int, time_ns: int | None = None) -> None:
        """Start at a journalled position instead of after the last acknowledged sample.

        Args:
            time_ns: wall time of `position`, to size the gap if the epoch is over.
        """
        self.epoch = epoch
        self.position = position
        self._position_ns = time_ns

    def silence_s(self, now_s: float) -> float:
        """Return the seconds since new audio came, or since the first call."""
        if self._started_s is None:
            self._started_s = now_s
        return now_s - (self._started_s if self.last_heard_s is None else self.last_heard_s)

    def is_missing(self, now_s: float) -> bool:
        """Tell whether no new audio came for `MISSING_AFTER_S` and the source has not ended."""
        return not self.has_ended and self.silence_s(now_s) >= MISSING_AFTER_S

    def on_block(self, block: AudioBlock, now_s: float) -> list[Item]:
        """Take a live block."""
        if block.epoch in self._dead_epochs:
            self.stale += 1
            return []
        if block.epoch != self.epoch or not self._is_contacted:
            return self._on_unknown_epoch(block, now_s)
        if not self._brings_news(block):
            self.stale += 1
            return []
        if block.start_sample <= self.position or self._is_live_only:
            self.state, self.detail = "listening", None
            skipped = self._skip_to(block.start_sample, block.gap_reason or RING_SILENT)
            return skipped + self._accept(block, now_s)
        self._live_next = max(self._live_next, block.end_sample)
        self._leave_to_ring()
        return []

    def on_reply(self, reply: RingReply, now_s: float) -> list[Item]:
        """Take the reply to the outstanding request; one without sense counts as a refusal."""
        block = reply.block
        if reply.oldest > reply.next or block.end_sample > reply.next:
            return self.on_refusal("the ring's reply contradicts itself", now_s)
        asked = self._pace.take()
        if asked is None:
            self.unexpected += 1
            return []
        self.state, self.detail = reply.state, reply.detail
        if block.epoch != self.epoch and reply.next == 0:
            self._pace.answered(now_s, is_fruitful=False)
            return []  # a capture process that heard nothing yet: its time has not begun
        self._is_suspect = self._asks_openly = False
        items = self._enter_epoch_of(reply, asked, now_s)
        self._ring_next = reply.next
        if asked.epoch == self.epoch:  # only the answer to "from here on" can prove a loss
            reason = RING_OVERRUN if self.position < reply.oldest else LOST
            items += self._skip_to(block.start_sample, block.gap_reason or reason)
        if block.start_sample <= self.position and self._brings_news(block):
            items += self._accept(block, now_s)
        self._pace.answered(now_s, is_fruitful=bool(items))
        return items

    def on_refusal(self, text: str, now_s: float) -> list[Item]:
        """Learn that the ring refused the outstanding request, and why."""
        asked = self._pace.take()
        if asked is None:
            self.unexpected += 1
            return []
        self.refusals += 1
        self.detail = text
        self._pace.failed(now_s)
        if asked.epoch is not None:  # most likely another epoch's by now
            self._asks_openly = True
            self._pace.hurry()
        return []

    def tick(self, now_s: float) -> list[Item]:
        """Let time pass."""
        self.needs_new_socket = self._pace.expire(now_s)
        if self.needs_new_socket:
            self.timeouts += 1
        return []

    def request(self, now_s: float) -> ReadRequest | None:
        """Return the request to send now, None if none is due."""
        if not self._pace.may_ask(now_s) or not self._wants(now_s):
            return None
        request = ReadRequest(v=1, op="read", stream=self.stream)
        if self.epoch is not None and not self._asks_openly:
            stop = self.position + MAX_BLOCK_SAMPLES
            place = {"epoch": self.epoch, "start": self.position, "stop": stop}
            request = request.model_copy(update=place)
        self._pace.sent(request, now_s)
        self._live_next = 0
        return request

    def _wants(self, now_s: float) -> bool:
        if not self._is_contacted or self._is_suspect:
            return True
        is_behind = self.newest > self.position
        return not self.has_ended and (is_behind or self.silence_s(now_s) >= ASK_AFTER_SILENCE_S)

    @property
    def _is_live_only(self) -> bool:
        return self._pace.failures >= FAILURES_UNTIL_LIVE_ONLY

    def _brings_news(self, block: AudioBlock) -> bool:
        is_end = block.is_last and block.end_sample == self.position
        return not self.has_ended and (is_end or block.end_sample > self.position)

    def _on_unknown_epoch(self, block: AudioBlock, now_s: float) -> list[Item]:
        """Ask the ring before a live block may change the epoch: it could be an old one, late."""
        if not self._is_live_only:
            self._is_suspect = True
            self._leave_to_ring()
            return []
        items: list[Item] = []
        if block.epoch != self.epoch:
            items = self._enter(block.epoch, block.start_sample, block.time_ns, now_s)
        self._is_contacted = True
        return items + self.on_block(block, now_s)

    def _leave_to_ring(self) -> None:
        self.dropped += 1
        self._pace.hurry()

    def _enter_epoch_of(self, reply: RingReply, asked: ReadRequest, now_s: float) -> list[Item]:
        block = reply.block
        self._is_contacted = True
        if block.epoch != self.epoch:
            cursor = min(reply.acked, block.start_sample)
            cursor_ns = block.time_ns - samples_to_ns(block.start_sample - cursor)
            return self._enter(block.epoch, cursor, cursor_ns, now_s)
        if asked.start is not None and reply.next < asked.start:
            # we stand where the ring never was: what led here was not its audio
            self.position = reply.next
            return [NewEpoch(block.epoch, reply.next)]
        return []

    def _enter(self, epoch: str, start: int, time_ns: int, now_s: float) -> list[Item]:
        """Turn to another epoch, from sample `start` at `time_ns` on."""
        items: list[Item] = []
        if self.epoch is not None:
            self._dead_epochs.append(self.epoch)
            if not self.has_ended:
                lost = self._samples_until(time_ns, now_s)
                items += self._gap(self.epoch, lost, CAPTURE_RESTART)
        self.epoch, self.position, self._position_ns = epoch, start, time_ns
        self.has_ended = False
        self._live_next = self._ring_next = 0
        return [*items, NewEpoch(epoch, start)]

    def _samples_until(self, time_ns: int, now_s: float) -> int:
        """Samples between `position` and a wall time; a step of the clock is not taken for time."""
        if self._position_ns is None:
            return 0
        lost = (time_ns - self._position_ns) * SAMPLE_RATE // NS_PER_SECOND
        if self.last_heard_s is not None:
            not_read = self.newest - self.position
            passed = seconds_to_samples(now_s - self.last_heard_s + CLOCK_SLACK_S)
            lost = min(lost, not_read + passed)
        return max(0, lost)

    def _skip_to(self, sample: int, reason: str) -> list[Item]:
        """Leave out what does not exist any more between `position` and `sample`."""
        if sample <= self.position or self.epoch is None:
            return []
        samples = sample - self.position
        found = self._gap(self.epoch, samples, reason)
        self.position = sample
        if self._position_ns is not None:
            self._position_ns += samples_to_ns(samples)
        return found

    def _gap(self, epoch: str, samples: int, reason: str) -> list[Item]:
        return [GapFound(Gap(self.stream, epoch, self.position, samples, reason))]

    def _accept(self, block: AudioBlock, now_s: float) -> list[Item]:
        """Take the part of a block that is new."""
        had = self.position - block.start_sample
        pcm = block.pcm[had:]
        time_ns = block.time_ns + samples_to_ns(had)
        self.position = block.end_sample
        self._position_ns = block.time_ns + samples_to_ns(len(block.pcm))
        self.has_ended = block.is_last
        items: list[Item] = []
        if len(pcm):
            items.append(
                Audio(block.epoch, block.end_sample - len(pcm), time_ns, pcm, block.is_last)
            )
            self.last_heard_s = now_s
        if block.is_last:
            items.append(Ended(block.epoch, self.position))
        return items
