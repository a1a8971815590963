"""Reassembly of one stream: live blocks and ring replies in, samples in order and gaps out.

A pure state machine: no sockets, no clock. Live blocks are a hint, the ring of the capture
process is the truth: whatever is missing is requested, and only what the ring cannot give any
more becomes a gap. Every sample of an epoch comes out exactly once, in order, or in a `Gap`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    AudioBlock,
    Pcm16,
    ReadRequest,
    RingReply,
)
from ast_stream.messages.event import Gap
from ast_stream.runtime.backoff import Backoff
from ast_stream.units import (
    SAMPLE_RATE,
    ns_to_samples,
    samples_to_ns,
    samples_to_seconds,
    seconds_to_samples,
)

REQUEST_AFTER_SILENCE_S = 0.2  # a loss at the tail shows only by silence,
BLOCKS_OF_SILENCE = 1.5  # or later, where blocks are long to save headers
MISSING_AFTER_S = 2.0
FAILURES_UNTIL_LIVE_ONLY = 8  # then live blocks are accepted as they come: better than nothing,
LIVE_ONLY_AFTER_S = 60.0  # later if the ring has answered before, or a process has it
AWAY_S = 5.0  # without live blocks: the process was stopped, and its ring as silent as the rest
CHANCES = 4  # requests to the ring of a process that is back, each of them as long as any
MAX_AHEAD_S = 10.0  # of a live block before the ring: networks deliver in bursts
CLOCK_SLACK_S = 2.0  # of the wall clock against the monotonic one, across a capture restart

REQUEST_TIMEOUT_S = 0.5  # then the worker asks again, and the answer still counts when it comes
MAX_UNANSWERED = 8  # requests on one connection, before it may be at fault, but not
CONNECTION_LASTS_S = 60.0  # for so long if it has brought an answer
EAGER_S = 12.0  # or twice as long as the last answers took: then each pause is longer than the last
PAUSE_OF_WAIT = 0.25  # by this part of the time that the oldest request has waited
MAX_AWAITED = 64  # answers; the oldest are given up
SLOW_S = 5.0  # an answer that takes longer: what it will bring is not asked for again
SLOW_AWAITED = 16  # answers of a slow ring, about, where nothing is to be made up for
LATENESS_LASTS = 10  # how often as long as an answer took it is remembered
MAX_AHEAD_ASKED = 60 * SAMPLE_RATE
MIN_PAUSE_S = 0.2
MAX_PAUSE_S = 1.0  # between requests to a ring that answers but has nothing new
MAX_BACKOFF_S = 2.0  # to a ring that does not answer
CONFIRMED_WITHIN_S = 3.0  # between requests whose answers show that it was silent in between
URGENT_PAUSE_S = 0.05  # when a live block shows that there is something to request

# reasons of gaps that the ring does not name itself
RING_OVERRUN = "ring_overrun"
RING_SILENT = "ring_silent"
LOST = "lost"
OVERLOAD = "overload"  # given up by a worker that cannot keep up
CAPTURE_RESTART = "capture_restart"  # what was only in a capture process that died

_MAX_DEAD_EPOCHS = 16


@dataclass(frozen=True, eq=False)
class Audio:
    """The next samples: shape (n_samples,), int16; `moment` is when the first was captured."""

    epoch: str
    start_sample: int
    moment: Moment
    pcm: Pcm16
    is_last: bool = False

    @property
    def end_sample(self) -> int:
        """Index just after the last sample."""
        return self.start_sample + len(self.pcm)


@dataclass(frozen=True)
class NewEpoch:
    """The stream continues at `start_sample` of an epoch; the one before is over."""

    epoch: str
    start_sample: int


@dataclass(frozen=True)
class Ended:
    """The source has ended; `end_sample` is the index just after its last sample."""

    epoch: str
    end_sample: int


Item = Audio | Gap | NewEpoch | Ended  # after a gap the stream continues behind it


class Reassembler:
    """Puts one stream in order. All `now_s` are of one monotonic clock, in seconds.

    Every input returns the items it brought, in order, often none. Each turn of the loop calls
    `tick`, replaces the ring's socket if `needs_new_socket`, and sends what `request` returns. A
    worker that has no room for more audio sends no requests for a while and says so to `on_block`.

    A request that times out is asked again, and its answer counts whenever it comes: a process
    that hardly gets to run may answer each of them late. Answers come in the order of the requests.
    While none comes, requests become ever rarer, so that few wait for a process that was stopped.
    Of a ring whose answers take long each request asks for what those before it will not bring.

    Silence is what was found when the ring was asked: time in which nobody asked, because the
    worker was stopped or had no room, is not silence.

    After the restart of a capture process what was only in the dead one is a gap of the old
    epoch, sized by wall time; the new epoch is read from its last acknowledged sample, which is
    the first one for a ring that nobody has read.

    Attributes:
        needs_new_socket: set by `tick` when so many requests were not answered that the connection
            may be at fault, until the next `tick`. The answers to them still count, but no more
            those by the connection before it.
        state, detail: what the ring last said about its source, or why it refused.
        is_paced: audio comes in real time; otherwise as fast as it is acknowledged.
        last_audio_s: when new audio came, or was known to exist, last; None before.
        timeouts: requests that were not answered in time.
        ring_is_there: a process has the ring, and may answer late; looked at while
            `may_give_up_ring`.
        waits_for_ring: however long the ring does not answer: set for rings of other boxes, where
            the network may be cut, and whose live blocks come by the same network. Only an answer
            shows silence then.
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.waits_for_ring = False
        self.ring_is_there = False
        self.needs_new_socket = False
        self.state = "missing"
        self.detail: str | None = None
        self.is_paced = True
        self.last_audio_s: float | None = None
        self.timeouts = 0
        self._cursor = _Cursor(stream)
        self._requests = _Requests()
        self._ring_next = 0  # the ring has samples up to here
        self._ring_known_s = 0.0
        self._live_next = 0  # live blocks since the last request reach up to here
        self._is_contacted = False
        self._must_verify = False  # a live block said what only the ring can know
        self._is_skipping = False  # at the next answer, see `skip_backlog`
        self._omits_position = False  # request without epoch and start: a ring refused them
        self._started_s: float | None = None
        self._patience_s = REQUEST_AFTER_SILENCE_S
        self._last_block_s = float("-inf")  # when a live block came last
        self._has_answered = False  # the ring, ever
        self._silent_until_s = float("-inf")  # when an answer, or none, last showed no new audio,
        # and from when to when answers in time did
        self._confirmed_since_s = self._confirmed_until_s = float("-inf")

    @property
    def epoch(self) -> str | None:
        """Epoch being read, None before the first contact."""
        return self._cursor.epoch

    @property
    def position(self) -> int:
        """Index of the next sample wanted."""
        return self._cursor.position

    @property
    def has_ended(self) -> bool:
        """Whether the source has ended and all of it came out."""
        return self._cursor.has_ended

    @property
    def is_skipping(self) -> bool:
        """Whether the ring is read although there is no room: its audio is given up."""
        return self._is_skipping

    @property
    def may_give_up_ring(self) -> bool:
        """Whether so many requests were in vain that live blocks may soon be taken as they come."""
        return self._requests.failures >= FAILURES_UNTIL_LIVE_ONLY - CHANCES

    @property
    def newest(self) -> int:
        """Index after the newest sample that is known to exist at the source."""
        return max(self._ring_next, self._live_next, self.position)

    def resume(self, epoch: str, position: int, time_ns: int | None = None) -> None:
        """Start at a journalled position instead of after the last acknowledged sample.

        Args:
            time_ns: wall time of `position`, to size the gap if the epoch is over.
        """
        self._cursor.move(epoch, position, time_ns)

    def silence_s(self, now_s: float) -> float:
        """Return for how long there was no new audio, as far as the ring was asked."""
        return max(0.0, self._silent_until_s - self._last_audio_or_start_s(now_s))

    def confirmed_silence_s(self, now_s: float) -> float:
        """Return for how long the ring itself says, asked again and again, that nothing is new.

        One that does not answer may have the audio, and one that answers late, or again after a
        pause, may not have taken it from its source yet: then this begins anew.
        """
        since_s = max(self._confirmed_since_s, self._last_audio_or_start_s(now_s))
        return max(0.0, self._confirmed_until_s - since_s)

    def is_missing(self, now_s: float) -> bool:
        """Return whether a source that has not ended gave no audio for `MISSING_AFTER_S`."""
        return not self.has_ended and self.silence_s(now_s) >= MISSING_AFTER_S

    def on_block(self, block: AudioBlock, now_s: float, *, has_room: bool = True) -> list[Item]:
        """Process a live block; without room for it, only note that it exists in the ring."""
        if self._cursor.is_dead(block.epoch):
            return []
        self._note_return(now_s)
        if block.epoch != self.epoch or not self._is_contacted:
            return self._on_unknown_epoch(block, now_s, has_room=has_room)
        if block.is_last and not (self.has_ended or self._is_live_only):
            # only the ring's word ends a stream: anybody who reaches the socket can send a block
            self._must_verify = True
            self._requests.expedite()
            block = replace(block, is_last=False)
        if not self._cursor.is_new(block):
            return []
        if self._is_beyond_ring(block, now_s):
            self._must_verify = True
            self._requests.expedite()  # the ring has it
            return []
        self.last_audio_s = now_s
        self._note_length(block)
        if has_room and (block.start_sample <= self.position or self._is_live_only):
            self.state, self.detail = block.state, block.detail
            return self._accept(block, block.gap_reason or RING_SILENT, now_s)
        self._live_next = max(self._live_next, block.end_sample)
        self._requests.expedite()
        return []

    def on_reply(self, reply: RingReply, now_s: float) -> list[Item]:
        """Process the reply to a request; an absurd one counts as a refusal."""
        block, request_id = reply.block, reply.request_id
        if reply.oldest > reply.next or block.end_sample > reply.next:
            return self.on_refusal("the ring's reply contradicts itself", now_s, request_id)
        settled = self._requests.settle(request_id, now_s)
        if settled is None:
            return []
        request = settled.request
        self._has_answered = True
        self.state, self.detail = reply.state, reply.detail
        self.is_paced = reply.is_paced
        if block.epoch != self.epoch and reply.next == 0:
            self._note_empty(settled)
            self._requests.on_answer(now_s, is_empty=True)
            return []  # a capture process that has no audio yet: its time has not begun
        self._must_verify = self._omits_position = False
        items = self._enter_epoch_of(reply, request, now_s)
        self._ring_next, self._ring_known_s = reply.next, now_s
        if self._is_skipping:
            self._is_skipping = False
            items += self._cursor.skip_to(reply.next, OVERLOAD)
        if self._requests.is_slow:  # where the ring begins is known before it answers from here
            items += self._cursor.skip_to(reply.oldest, RING_OVERRUN)
        # only the answer to "from here on" can prove a loss
        is_from_here = request.epoch == self.epoch and (request.start or 0) <= self.position
        is_usable = block.start_sample <= self.position or is_from_here
        if is_usable:
            reason = RING_OVERRUN if self.position < reply.oldest else LOST
            items += self._accept(block, block.gap_reason or reason, now_s)
            if not items:
                self._note_empty(settled)
        # of what was asked twice the second answer says nothing
        is_overtaken = request.start is not None and request.start < self.position
        is_empty = is_usable and not items and not is_overtaken
        self._requests.on_answer(now_s, is_empty=is_empty)
        self._hurry_if_behind(now_s)
        return items

    def skip_backlog(self) -> None:
        """Give up what the ring will have when it answers next: the worker cannot keep up."""
        self._is_skipping = True
        self._requests.expedite()

    def on_refusal(self, text: str, now_s: float, request_id: int | None = None) -> list[Item]:
        """Note that the ring refused a request, and why.

        Args:
            request_id: number of the request; None: of the oldest that is not answered.
        """
        settled = self._requests.settle(request_id, now_s)
        if settled is None:
            return []
        self.detail = text
        self._note_empty(settled)
        if not settled.is_late:  # else it has counted as a failure
            self._requests.on_failure(now_s)
        if settled.request.epoch is not None:  # most likely another epoch's by now
            self._omits_position = True
            self._requests.expedite()
        return []

    def tick(self, now_s: float) -> None:
        """Note the time, and wait no longer for a request that is not answered."""
        self._last_audio_or_start_s(now_s)
        self.needs_new_socket = False
        if self._requests.expire(now_s, is_there=self.ring_is_there):
            self.timeouts += 1
            self._must_verify = True  # the cause of the request may be over, an answer is due
            if not self.waits_for_ring:
                self._note_silence(self._requests.sent_s + REQUEST_TIMEOUT_S)
                self.needs_new_socket = self._requests.is_connection_suspect(now_s)
            self._hurry_if_behind(now_s)
        if self.needs_new_socket:
            self._requests.on_new_connection()

    def on_ring_back(self) -> None:
        """Ask the ring at once: there is a connection to it, which there was not before."""
        self._must_verify = True
        self._requests.begin_again()

    def wants_more(self, now_s: float) -> bool:
        """Return whether a request is due."""
        return self._requests.is_due(now_s) and self._has_reason_to_ask(now_s)

    def request(self, now_s: float) -> ReadRequest | None:
        """Return the request to send now, None if none is due."""
        if not self.wants_more(now_s):
            return None
        number = self._requests.next_number
        request = ReadRequest(v=1, op="read", stream=self.stream, confirms_end=True, id=number)
        reach = 0
        if self.epoch is not None and not self._omits_position:
            start = self._next_start() if self._requests.is_slow else self.position
            # no stop: where the ring has gone beyond it, the reply would bring nothing
            request = request.model_copy(update={"epoch": self.epoch, "start": start})
            reach = min(start + MAX_BLOCK_SAMPLES, max(start, self._expected_next(now_s)))
        self._requests.on_sent(request, reach, now_s)
        self._live_next = 0
        return request

    @property
    def _is_live_only(self) -> bool:
        return self._requests.has_given_up and not self.waits_for_ring

    def _expected_next(self, now_s: float) -> int:
        """Return the index that the next sample of the source has by now, at least."""
        if not self.is_paced:
            return self.newest
        since_s = max(0.0, now_s - self._ring_known_s)
        return max(self.newest, self._ring_next + seconds_to_samples(since_s))

    def _next_start(self) -> int:
        """Return the first sample that the answers to come will not bring, as far as expected.

        Where one of them brings less, those after it are of no use, and its rest is asked for.
        """
        return min(self._requests.reach(self.epoch, self.position), self.position + MAX_AHEAD_ASKED)

    def _is_beyond_ring(self, block: AudioBlock, now_s: float) -> bool:
        """Return whether a live block is of a time that its ring cannot have reached yet."""
        since_s = now_s - self._ring_known_s + MAX_AHEAD_S
        possible = self._ring_next + seconds_to_samples(since_s)
        return self.is_paced and not self._is_live_only and block.end_sample > possible

    def _hurry_if_behind(self, now_s: float) -> None:
        """Let a slow ring be asked at once for as much as an answer can bring."""
        if not self._requests.is_slow or self._requests.is_overdue(now_s):
            return
        end = min(self.newest, self.position + MAX_AHEAD_ASKED)
        if end - self._next_start() >= MAX_BLOCK_SAMPLES:
            self._requests.allow(now_s)

    def _has_reason_to_ask(self, now_s: float) -> bool:
        if not self._is_contacted or self._must_verify:
            return True
        is_behind = self.newest > self.position
        silence_s = now_s - self._last_audio_or_start_s(now_s)
        return not self.has_ended and (is_behind or silence_s >= self._patience_s)

    def _last_audio_or_start_s(self, now_s: float) -> float:
        """Return when audio was last known to exist, or when this was first called."""
        if self._started_s is None:
            self._started_s = now_s
        return self._started_s if self.last_audio_s is None else self.last_audio_s

    def _note_return(self, now_s: float) -> None:
        """Note a live block: who sends again may answer again, if the ring ever did.

        Only a ring that is silent beside live blocks is one that cannot be had.
        """
        is_first = self._last_block_s == float("-inf")
        if now_s - self._last_block_s > AWAY_S and (is_first or self._has_answered):
            self._requests.give_chances(now_s)
        self._last_block_s = now_s

    def _note_length(self, block: AudioBlock) -> None:
        """Note how long one must wait for a block: coded ones may be long."""
        if block.opus is not None:
            wait_s = BLOCKS_OF_SILENCE * samples_to_seconds(len(block.pcm))
            self._patience_s = max(REQUEST_AFTER_SILENCE_S, wait_s)

    def _note_silence(self, until_s: float) -> None:
        self._silent_until_s = max(self._silent_until_s, until_s)

    def _note_empty(self, settled: _Settled) -> None:
        """Note that an answer brought nothing new."""
        asked_s = settled.sent_s
        self._note_silence(asked_s)
        if settled.is_late:
            return
        if asked_s - self._confirmed_until_s > CONFIRMED_WITHIN_S:
            self._confirmed_since_s = asked_s
        self._confirmed_until_s = asked_s

    def _on_unknown_epoch(self, block: AudioBlock, now_s: float, *, has_room: bool) -> list[Item]:
        """Ask the ring before a live block may change the epoch: it could be an old one, late."""
        if not (has_room and self._is_live_only):
            self._must_verify = True
            self._requests.expedite()  # the ring has it
            return []
        items: list[Item] = []
        if block.epoch != self.epoch:
            items = self._enter(block.epoch, block.start_sample, block.moment.wall_ns, now_s)
        self._is_contacted = True
        return items + self.on_block(block, now_s)

    def _enter_epoch_of(self, reply: RingReply, request: ReadRequest, now_s: float) -> list[Item]:
        block = reply.block
        self._is_contacted = True
        if block.epoch != self.epoch:
            start = min(reply.acked, block.start_sample)
            start_ns = block.moment.wall_ns - samples_to_ns(block.start_sample - start)
            return self._enter(block.epoch, start, start_ns, now_s)
        if request.start is not None and reply.next < min(request.start, self.position):
            # we stand where the ring never was: what led here was not its audio
            return self._cursor.return_to(reply.next)
        return []

    def _enter(self, epoch: str, start: int, time_ns: int, now_s: float) -> list[Item]:
        max_lost = None
        if self.last_audio_s is not None:
            passed = seconds_to_samples(now_s - self.last_audio_s + CLOCK_SLACK_S)
            max_lost = passed + self.newest - self.position
        self._live_next = self._ring_next = 0
        return self._cursor.enter(epoch, start, time_ns, max_lost)

    def _accept(self, block: AudioBlock, reason: str, now_s: float) -> list[Item]:
        """Accept a block; what is missing before it is lost for good, for `reason`."""
        items = self._cursor.skip_to(block.start_sample, reason)
        if self._cursor.is_new(block):
            items += self._cursor.accept(block)
        if any(isinstance(item, Audio) for item in items):
            self.last_audio_s = now_s
        return items


class _Cursor:
    """The position in one epoch of a stream; every move returns the items it produces.

    Attributes:
        epoch: epoch being read, None before the first.
        position: index of the next sample wanted.
        has_ended: the source has ended and all of it came out.
    """

    def __init__(self, stream: str) -> None:
        self.epoch: str | None = None
        self.position = 0
        self.has_ended = False
        self._stream = stream
        self._position_ns: int | None = None  # wall time of `position`
        self._dead_epochs: deque[str] = deque(maxlen=_MAX_DEAD_EPOCHS)

    def move(self, epoch: str, position: int, time_ns: int | None) -> None:
        """Move to a position of an epoch; `time_ns` is its wall time, if known."""
        self.epoch, self.position, self._position_ns = epoch, position, time_ns
        self.has_ended = False

    def is_dead(self, epoch: str) -> bool:
        """Return whether an epoch was left for another."""
        return epoch in self._dead_epochs

    def is_new(self, block: AudioBlock) -> bool:
        """Return whether a block of this epoch reaches beyond the position, or ends the source."""
        is_end = block.is_last and block.end_sample == self.position
        return not self.has_ended and (is_end or block.end_sample > self.position)

    def enter(self, epoch: str, start: int, time_ns: int, max_lost: int | None) -> list[Item]:
        """Change to another epoch, from sample `start` at `time_ns` on.

        Args:
            max_lost: samples that can have been lost since the position, None if not known: a
                step of the wall clock must not count as lost audio.
        """
        items: list[Item] = []
        if epoch in self._dead_epochs:
            self._dead_epochs.remove(epoch)
        if self.epoch is not None:
            self._dead_epochs.append(self.epoch)
            if not self.has_ended:
                lost = self._samples_until(time_ns)
                lost = lost if max_lost is None else min(lost, max_lost)
                items += self._gap(self.epoch, lost, CAPTURE_RESTART)
        self.move(epoch, start, time_ns)
        return [*items, NewEpoch(epoch, start)]

    def return_to(self, position: int) -> list[Item]:
        """Begin the epoch again at a position that the ring knows."""
        assert self.epoch is not None
        self.move(self.epoch, position, None)
        return [NewEpoch(self.epoch, position)]

    def skip_to(self, sample: int, reason: str) -> list[Item]:
        """Give up what does not exist any more between the position and `sample`."""
        if sample <= self.position or self.epoch is None:
            return []
        samples = sample - self.position
        items = self._gap(self.epoch, samples, reason)
        self.position = sample
        if self._position_ns is not None:
            self._position_ns += samples_to_ns(samples)
        return items

    def accept(self, block: AudioBlock) -> list[Item]:
        """Accept the new part of a block that begins at or before the position."""
        n_known = self.position - block.start_sample
        pcm = block.pcm[n_known:]
        items: list[Item] = []
        if len(pcm):
            moment = block.moment.after(samples_to_ns(n_known))
            items.append(Audio(block.epoch, self.position, moment, pcm, block.is_last))
        self.position = block.end_sample
        self._position_ns = block.moment.wall_ns + samples_to_ns(len(block.pcm))
        self.has_ended = block.is_last
        return [*items, Ended(block.epoch, self.position)] if block.is_last else items

    def _samples_until(self, time_ns: int) -> int:
        if self._position_ns is None:
            return 0
        return max(0, ns_to_samples(time_ns - self._position_ns))

    def _gap(self, epoch: str, samples: int, reason: str) -> list[Item]:
        return [Gap(self._stream, epoch, self.position, samples, reason)]


@dataclass(frozen=True)
class _Settled:
    """A request that has its answer.

    Attributes:
        is_late: it had timed out, or a later one was sent.
    """

    request: ReadRequest
    sent_s: float
    is_late: bool


@dataclass(frozen=True)
class _Sent:
    """A request that may still be answered.

    Attributes:
        reach: the index after the last sample that the answer is expected to bring.
        connection: number of the connection that it was sent by.
    """

    request: ReadRequest
    reach: int
    sent_s: float
    connection: int


class _Requests:
    """Requests to a ring, one after the other: each is awaited until it times out.

    Those that timed out may still be answered. While nothing comes pauses grow, without limit
    once it takes longer than it ever did: a process that was stopped for an hour finds a few dozen
    requests, and a ring that is later than any before is still read. All in seconds.

    Attributes:
        failures: requests without a usable reply in time, since the last one with any.
        has_given_up: no answer is to be expected any more, as far as is known.
        sent_s: when the last request was sent.
        next_number: of the next request.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.has_given_up = False
        self.sent_s = float("-inf")
        self.next_number = 1
        self._unanswered: dict[int, _Sent] = {}
        self._is_awaited = False  # the last of them
        self._not_before_s = float("-inf")
        self._backoff = Backoff(MIN_PAUSE_S, MAX_BACKOFF_S)
        self._has_answered = False  # the ring, ever
        self._silent_since_s: float | None = None  # the last answer, or the first request
        self._lateness_s = 0.0  # how long the slowest of the last answers took,
        self._late_s = float("-inf")  # and when it came
        self._connection = 0
        self._is_proven = False  # that connection has brought an answer

    @property
    def is_slow(self) -> bool:
        """Whether answers take so long that more than one must be awaited to keep up."""
        return self._lateness_s >= SLOW_S

    def is_due(self, now_s: float) -> bool:
        """Return whether a request may be sent now."""
        return not self._is_awaited and now_s >= self._not_before_s

    def is_connection_suspect(self, now_s: float) -> bool:
        """Return whether so little came by the connection that it may be at fault."""
        sent = [sent for sent in self._unanswered.values() if sent.connection == self._connection]
        lasts_s = max(CONNECTION_LASTS_S if self._is_proven else 0.0, 2 * self._lateness_s)
        return len(sent) >= MAX_UNANSWERED and now_s - sent[0].sent_s >= lasts_s

    def reach(self, epoch: str | None, position: int) -> int:
        """Return the index up to which answers are to come, one continuing the other."""
        reach = position
        for sent in self._unanswered.values():
            start = sent.request.start
            if start is not None and sent.request.epoch == epoch and start <= reach:
                reach = max(reach, sent.reach)
        return reach

    def on_sent(self, request: ReadRequest, reach: int, now_s: float) -> None:
        """Remember a request; its number is `next_number`."""
        if len(self._unanswered) >= MAX_AWAITED:
            del self._unanswered[next(iter(self._unanswered))]
        self._unanswered[self.next_number] = _Sent(request, reach, now_s, self._connection)
        self.next_number += 1
        self.sent_s = now_s
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        self._is_awaited = True

    def settle(self, number: int | None, now_s: float) -> _Settled | None:
        """Return the request that is answered; those before it will not be any more.

        Args:
            number: None: of the oldest of them.
        """
        if number is None:
            number = next(iter(self._unanswered), 0)
        if number not in self._unanswered:
            return None
        settled = self._unanswered[number]
        self._unanswered = {
            other: sent for other, sent in self._unanswered.items() if other > number
        }
        is_late = bool(self._unanswered) or not self._is_awaited
        self._is_awaited = self._is_awaited and bool(self._unanswered)
        self._is_proven = self._is_proven or settled.connection == self._connection
        took_s = now_s - settled.sent_s
        if took_s >= self._lateness_s or now_s - self._late_s > LATENESS_LASTS * self._lateness_s:
            self._lateness_s, self._late_s = took_s, now_s
        return _Settled(settled.request, settled.sent_s, is_late)

    def on_answer(self, now_s: float, *, is_empty: bool) -> None:
        """Allow the next request at once, or after a longer pause each time nothing came."""
        self.failures, self.has_given_up = 0, False
        self._has_answered, self._silent_since_s = True, now_s
        if not is_empty:
            self._backoff.reset()
        if not self._unanswered:  # else another answer is about to come
            self._not_before_s = now_s + (self._backoff.next_s(MAX_PAUSE_S) if is_empty else 0.0)

    def on_failure(self, now_s: float, *, may_answer: bool = False) -> None:
        """Back off after a refusal or a timeout.

        Args:
            may_answer: the ring may still answer, for a while.
        """
        self.failures += 1
        self._not_before_s = now_s + self._backoff.next_s()
        if self.failures >= FAILURES_UNTIL_LIVE_ONLY:
            assert self._silent_since_s is not None
            lasts_s = max(LIVE_ONLY_AFTER_S, 2 * self._lateness_s)
            self.has_given_up = not may_answer or now_s - self._silent_since_s >= lasts_s

    def expire(self, now_s: float, *, is_there: bool) -> bool:
        """Wait no longer for the last request if it is too old; return whether it was.

        Args:
            is_there: a process has the ring.
        """
        if not self._is_awaited or now_s - self.sent_s < REQUEST_TIMEOUT_S:
            return False
        self._is_awaited = False
        self.on_failure(now_s, may_answer=is_there or self._has_answered)
        pause_s = max(MAX_BACKOFF_S, self._lateness_s / SLOW_AWAITED) if self.is_slow else 0.0
        if self.is_overdue(now_s):
            pause_s = PAUSE_OF_WAIT * self._waited_s(now_s)
        self._not_before_s = max(self._not_before_s, now_s + pause_s)
        return True

    def is_overdue(self, now_s: float) -> bool:
        """Return whether an answer is later than any before."""
        return self._waited_s(now_s) > max(EAGER_S, 2 * self._lateness_s)

    def _waited_s(self, now_s: float) -> float:
        oldest = next(iter(self._unanswered.values()), None)
        return 0.0 if oldest is None else now_s - oldest.sent_s

    def on_new_connection(self) -> None:
        """Send by another connection from now on; of those before it the last one stays open."""
        self._unanswered = {
            number: sent
            for number, sent in self._unanswered.items()
            if sent.connection == self._connection
        }
        self._connection += 1
        self._is_proven = False

    def give_chances(self, now_s: float) -> None:
        """Let a ring that may be back show it: allow a request now, and a few more."""
        self.failures = min(self.failures, FAILURES_UNTIL_LIVE_ONLY - CHANCES)
        self.has_given_up = False
        self.allow(now_s)

    def begin_again(self) -> None:
        """Allow a request now: no reply to an earlier one can come any more."""
        self._unanswered = {}
        self._is_awaited = False
        self._not_before_s = float("-inf")
        self._backoff.reset()

    def allow(self, now_s: float) -> None:
        """Allow the next request as soon as the last one is not awaited."""
        self._not_before_s = min(self._not_before_s, now_s)

    def expedite(self) -> None:
        """Allow the next request soon: the ring has something."""
        if len(self._unanswered) < MAX_UNANSWERED:
            self._not_before_s = min(self._not_before_s, self.sent_s + URGENT_PAUSE_S)
