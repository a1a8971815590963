"""Intake of one stream at the worker: live blocks and ring replies in, samples in order out.

A pure state machine: no sockets, no clock. Live blocks are a hint, the ring of the capture
process is the truth: whatever is missing is asked for, and only what the ring cannot give any
more becomes a gap. Every sample of an epoch comes out exactly once, in order, or in a `Gap`.
"""

from __future__ import annotations

from dataclasses import replace

from ast_stream.messages.audio import ReadRequest, RingReply
from ast_stream.messages.event import AudioBlock
from ast_stream.units import samples_to_ns, seconds_to_samples
from ast_stream.worker.request_pace import REQUEST_TIMEOUT_S, RequestPace
from ast_stream.worker.track import Audio, Ended, GapFound, Item, NewEpoch, Track

__all__ = ["Audio", "Ended", "GapFound", "Intake", "Item", "NewEpoch"]

ASK_AFTER_SILENCE_S = 0.2  # a loss at the tail shows only by silence
MISSING_AFTER_S = 2.0
FAILURES_UNTIL_LIVE_ONLY = 8  # then live blocks are taken as they come: better than deaf
AHEAD_S = 10.0  # of a live block before the ring: networks deliver in bursts
CLOCK_SLACK_S = 2.0  # of the wall clock against the monotonic one, across a capture restart

# reasons of gaps that the ring does not name itself
RING_OVERRUN = "ring_overrun"
RING_SILENT = "ring_silent"
LOST = "lost"


class Intake:
    """Puts one stream in order. Every `now_s` is of one clock that only goes forward, in seconds.

    Every input returns the items it brought, in order, often none. Each turn of the loop calls
    `tick`, replaces the ring's socket if `needs_new_socket` (the late reply to a request that
    timed out would be taken for the next one's), and sends what `request` returns. A worker that
    has no room for more audio leaves `request` out for a while and says so to `on_block`.

    Silence is what was found when the ring was asked: time in which nobody asked, because the
    worker was stopped or had no room, is not silence.

    After the restart of a capture process what was only in the dead one is a gap of the old
    epoch, sized by wall time; the new epoch is read from its last acknowledged sample, which is
    the first one for a ring that nobody has read.

    Attributes:
        needs_new_socket: set by `tick` when a request timed out, until the next `tick`.
        state, detail: what the ring last said about its source, or why it refused.
        is_paced: audio comes in real time; otherwise as fast as it is acknowledged.
        last_heard_s: when new audio came, or was known to exist, last; None before.
        dropped: live blocks that were left to the ring, because something before was missing.
        stale: blocks that were had already, or of a dead epoch.
        timeouts, refusals: requests that were not answered, or with an error.
        unexpected: replies that nobody waited for.
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.needs_new_socket = False
        self.state = "missing"
        self.detail: str | None = None
        self.is_paced = True
        self.last_heard_s: float | None = None
        self.dropped = self.stale = self.timeouts = self.refusals = self.unexpected = 0
        self._track = Track(stream)
        self._pace = RequestPace()
        self._ring_next = 0  # the ring has samples up to here
        self._ring_known_s = 0.0
        self._live_next = 0  # live blocks since the last request reach up to here
        self._is_contacted = False
        self._is_suspect = False  # a live block said what only the ring can know
        self._asks_openly = False  # without epoch and start: a ring refused them
        self._started_s: float | None = None
        self._silent_until_s = float("-inf")  # when an answer, or none, last showed no new audio

    @property
    def epoch(self) -> str | None:
        """Epoch being read, None before the first contact."""
        return self._track.epoch

    @property
    def position(self) -> int:
        """Index of the next sample wanted."""
        return self._track.position

    @property
    def has_ended(self) -> bool:
        """Whether the source has ended and all of it came out."""
        return self._track.has_ended

    @property
    def newest(self) -> int:
        """Index after the newest sample that is known to exist at the source."""
        return max(self._ring_next, self._live_next, self.position)

    def resume(self, epoch: str, position: int, time_ns: int | None = None) -> None:
        """Start at a journalled position instead of after the last acknowledged sample.

        Args:
            time_ns: wall time of `position`, to size the gap if the epoch is over.
        """
        self._track.place(epoch, position, time_ns)

    def silence_s(self, now_s: float) -> float:
        """Return for how long there was no new audio, as far as the ring was asked."""
        return max(0.0, self._silent_until_s - self._heard_s(now_s))

    def is_missing(self, now_s: float) -> bool:
        """Tell whether there was no new audio for `MISSING_AFTER_S`, the source not being over."""
        return not self.has_ended and self.silence_s(now_s) >= MISSING_AFTER_S

    def on_block(self, block: AudioBlock, now_s: float, *, has_room: bool = True) -> list[Item]:
        """Take a live block; without room for it, only learn that it exists: the ring keeps it."""
        if self._track.is_dead(block.epoch):
            self.stale += 1
            return []
        if block.epoch != self.epoch or not self._is_contacted:
            return self._on_unknown_epoch(block, now_s, has_room=has_room)
        if block.is_last and not (self.has_ended or self._is_live_only):
            # only the ring's word ends a stream: anybody who reaches the socket can send a block
            self._is_suspect = True
            self._pace.hurry()
            block = replace(block, is_last=False)
        if not self._track.brings_news(block):
            self.stale += 1
            return []
        if self._is_beyond_ring(block, now_s):
            self._is_suspect = True
            self._leave_to_ring()
            return []
        self.last_heard_s = now_s
        if has_room and (block.start_sample <= self.position or self._is_live_only):
            self.state, self.detail = block.state, block.detail
            return self._take(block, block.gap_reason or RING_SILENT, now_s)
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
        self.is_paced = reply.is_paced
        if block.epoch != self.epoch and reply.next == 0:
            self._found_silence(self._pace.sent_s)
            self._pace.answered(now_s, is_fruitful=False)
            return []  # a capture process that heard nothing yet: its time has not begun
        self._is_suspect = self._asks_openly = False
        items = self._enter_epoch_of(reply, asked, now_s)
        self._ring_next, self._ring_known_s = reply.next, now_s
        # only the answer to "from here on" can prove a loss
        if block.start_sample <= self.position or asked.epoch == self.epoch:
            reason = RING_OVERRUN if self.position < reply.oldest else LOST
            items += self._take(block, block.gap_reason or reason, now_s)
        if not items:
            self._found_silence(self._pace.sent_s)
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
        self._found_silence(self._pace.sent_s)
        self._pace.failed(now_s)
        if asked.epoch is not None:  # most likely another epoch's by now
            self._asks_openly = True
            self._pace.hurry()
        return []

    def tick(self, now_s: float) -> list[Item]:
        """Let time pass."""
        self._heard_s(now_s)
        asked_s = self._pace.sent_s
        self.needs_new_socket = self._pace.expire(now_s)
        if self.needs_new_socket:
            self.timeouts += 1
            self._is_suspect = True  # asked again: what made it ask may be over, an answer is due
            self._found_silence(asked_s + REQUEST_TIMEOUT_S)
        return []

    def request(self, now_s: float) -> ReadRequest | None:
        """Return the request to send now, None if none is due."""
        if not self._pace.may_ask(now_s) or not self._wants(now_s):
            return None
        request = ReadRequest(v=1, op="read", stream=self.stream)
        if self.epoch is not None and not self._asks_openly:
            # no stop: where the ring has gone beyond it, the reply would bring nothing
            place = {"epoch": self.epoch, "start": self.position}
            request = request.model_copy(update=place)
        self._pace.sent(request, now_s)
        self._live_next = 0
        return request

    @property
    def _is_live_only(self) -> bool:
        return self._pace.failures >= FAILURES_UNTIL_LIVE_ONLY

    def _is_beyond_ring(self, block: AudioBlock, now_s: float) -> bool:
        """Tell whether a live block is of a time that its ring cannot have reached yet."""
        since_s = now_s - self._ring_known_s + AHEAD_S
        possible = self._ring_next + seconds_to_samples(since_s)
        return self.is_paced and not self._is_live_only and block.end_sample > possible

    def _wants(self, now_s: float) -> bool:
        if not self._is_contacted or self._is_suspect:
            return True
        is_behind = self.newest > self.position
        unheard_s = now_s - self._heard_s(now_s)
        return not self.has_ended and (is_behind or unheard_s >= ASK_AFTER_SILENCE_S)

    def _heard_s(self, now_s: float) -> float:
        """Return when audio was last known to exist, or when this was first asked."""
        if self._started_s is None:
            self._started_s = now_s
        return self._started_s if self.last_heard_s is None else self.last_heard_s

    def _found_silence(self, until_s: float) -> None:
        self._silent_until_s = max(self._silent_until_s, until_s)

    def _on_unknown_epoch(self, block: AudioBlock, now_s: float, *, has_room: bool) -> list[Item]:
        """Ask the ring before a live block may change the epoch: it could be an old one, late."""
        if not (has_room and self._is_live_only):
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
            return self._track.return_to(reply.next)
        return []

    def _enter(self, epoch: str, start: int, time_ns: int, now_s: float) -> list[Item]:
        at_most = None
        if self.last_heard_s is not None:
            passed = seconds_to_samples(now_s - self.last_heard_s + CLOCK_SLACK_S)
            at_most = passed + self.newest - self.position
        self._live_next = self._ring_next = 0
        return self._track.enter(epoch, start, time_ns, at_most)

    def _take(self, block: AudioBlock, reason: str, now_s: float) -> list[Item]:
        """Take a block after what is missing before it, for good, for `reason`."""
        items = self._track.skip_to(block.start_sample, reason)
        if self._track.brings_news(block):
            items += self._track.accept(block)
        if any(isinstance(item, Audio) for item in items):
            self.last_heard_s = now_s
        return items
