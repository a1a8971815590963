"""The reassembly of a stream against a real ring behind a link that loses, delays and dies."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.capture.ring import Ring, RingServer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.errors import WireError
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    AudioBlock,
    OpusPackets,
    Pcm16,
    ReadRequest,
    RingReply,
)
from ast_stream.messages.event import Gap
from ast_stream.units import SAMPLE_RATE, samples_to_ns
from ast_stream.worker.reassembly import (
    CAPTURE_RESTART,
    LIVE_ONLY_AFTER_S,
    LOST,
    REQUEST_TIMEOUT_S,
    RING_OVERRUN,
    RING_SILENT,
    Audio,
    Ended,
    Item,
    NewEpoch,
    Reassembler,
)

EPOCH, OTHER = "aaaaaaaa", "bbbbbbbb"
BLOCK = 1600
TURN_S = 0.02
TURN_SAMPLES = 320
MODEL_CLOCK_ERROR = 200  # samples: a hole is rounded to 160
START_NS = 1_700_000_000_000_000_000


def pcm_of(epoch: str, start: int, n_samples: int) -> Pcm16:
    """Return samples whose values identify their epoch and index."""
    index = np.arange(start, start + n_samples, dtype=np.uint64)
    mixed = index * np.uint64(2654435761) + np.uint64(zlib.crc32(epoch.encode()))
    return ((mixed >> np.uint64(8)) & np.uint64(0xFFFF)).astype(np.uint16).view(np.int16)


def moment(wall_ns: int) -> Moment:
    return Moment(wall_ns, wall_ns - START_NS // 2)


def block(
    start: int, n_samples: int = BLOCK, epoch: str = EPOCH, *, is_last: bool = False
) -> AudioBlock:
    return AudioBlock(
        "porch",
        epoch,
        start,
        moment(START_NS + samples_to_ns(start)),
        pcm_of(epoch, start, n_samples),
        is_last=is_last,
    )


def reply(held: AudioBlock, oldest: int, stop: int, acked: int = 0) -> RingReply:
    return RingReply(held, oldest=oldest, next=stop, acked=acked)


def contacted() -> Reassembler:
    """A reassembler that has reached sample 1600 of EPOCH."""
    reassembler = Reassembler("porch")
    assert reassembler.request(0.0) is not None
    entered, audio = reassembler.on_reply(reply(block(0), 0, BLOCK), 0.0)
    assert entered == NewEpoch(EPOCH, 0)
    assert isinstance(audio, Audio)
    return reassembler


def spans(items: list[Item]) -> list[tuple[int, int]]:
    return [(item.start_sample, item.end_sample) for item in items if isinstance(item, Audio)]


def test_first_contact_goes_on_after_the_last_acknowledged_sample() -> None:
    reassembler = Reassembler("porch")
    request = reassembler.request(0.0)
    assert request is not None
    assert (request.epoch, request.start, request.stop) == (None, None, None)
    items = reassembler.on_reply(reply(block(3200), 0, 4800, acked=3200), 0.0)
    assert items[0] == NewEpoch(EPOCH, 3200)
    assert spans(items) == [(3200, 4800)]


def test_what_the_ring_lost_since_the_last_acknowledgement_is_a_gap() -> None:
    reassembler = Reassembler("porch")
    reassembler.request(0.0)
    assert reassembler.on_reply(reply(block(8000), 8000, 9600, acked=1600), 0.0) == [
        NewEpoch(EPOCH, 1600)
    ]
    request = reassembler.request(0.0)
    assert request is not None
    assert (request.epoch, request.start) == (EPOCH, 1600)
    gap, audio = reassembler.on_reply(reply(block(8000), 8000, 9600, acked=1600), 0.0)
    assert isinstance(gap, Gap)
    assert (gap.start_sample, gap.samples, gap.reason) == (1600, 6400, RING_OVERRUN)
    assert isinstance(audio, Audio)


def test_live_blocks_in_order_need_no_request() -> None:
    reassembler = contacted()
    for start in range(BLOCK, 16000, BLOCK):
        now_s = start / SAMPLE_RATE
        assert spans(reassembler.on_block(block(start), now_s)) == [(start, start + BLOCK)]
        assert reassembler.request(now_s) is None


def test_long_blocks_of_opus_are_waited_for() -> None:
    reassembler = contacted()
    sent = OpusPackets(0, (), 0)
    for start in range(BLOCK, 3 * SAMPLE_RATE, SAMPLE_RATE // 2):
        now_s = start / SAMPLE_RATE
        long = replace(block(start, SAMPLE_RATE // 2), opus=sent)
        assert reassembler.on_block(long, now_s)
        assert not reassembler.wants_more(now_s + 0.7)
    assert reassembler.wants_more(now_s + 0.8)


def test_a_jump_is_asked_from_the_ring_and_live_blocks_after_it_wait_there() -> None:
    reassembler = contacted()
    assert reassembler.on_block(block(4800), 0.1) == []
    request = reassembler.request(0.1)
    assert request is not None
    assert (request.start, request.stop) == (1600, None)  # as much as the ring gives at once
    assert reassembler.on_block(block(6400), 0.2) == []
    assert reassembler.request(0.2) is None
    assert spans(reassembler.on_reply(reply(block(1600, 6400), 0, 8000), 0.2)) == [(1600, 8000)]
    assert spans(reassembler.on_block(block(8000), 0.3)) == [(8000, 9600)]


def test_a_reply_older_than_a_live_block_leaves_it_asking() -> None:
    reassembler = contacted()
    reassembler.on_block(block(4800), 0.1)
    assert reassembler.request(0.1) is not None
    reassembler.on_block(block(6400), 0.1)
    assert spans(reassembler.on_reply(reply(block(1600, 4800), 0, 6400), 0.1)) == [(1600, 6400)]
    assert reassembler.newest == 8000
    assert reassembler.request(0.1) is not None


def test_a_long_absence_is_read_in_pieces_of_ten_seconds() -> None:
    reassembler = contacted()
    reassembler.on_block(block(40 * SAMPLE_RATE), 0.1)
    starts = []
    for _ in range(4):
        request = reassembler.request(0.1)
        assert request is not None
        assert request.start is not None
        starts.append(request.start)
        piece = block(request.start, MAX_BLOCK_SAMPLES)
        assert len(reassembler.on_reply(reply(piece, 0, 41 * SAMPLE_RATE), 0.1)) == 1
    assert starts == [1600 + n * MAX_BLOCK_SAMPLES for n in range(4)]


def test_a_loss_at_the_tail_is_asked_for_after_silence() -> None:
    reassembler = contacted()
    assert reassembler.request(0.19) is None
    assert reassembler.request(0.2) is not None
    assert spans(reassembler.on_reply(reply(block(1600), 0, 3200), 0.21)) == [(1600, 3200)]


def test_requests_to_a_ring_with_nothing_new_become_rarer() -> None:
    reassembler = contacted()
    asked_s = []
    for turn in range(300):
        now_s = turn * TURN_S
        if reassembler.request(now_s) is not None:
            asked_s.append(now_s)
            reassembler.on_reply(reply(block(1600, 0), 0, 1600), now_s)
    pauses = np.diff(asked_s)
    assert pauses[0] < 0.25
    assert 0.9 < pauses[-1] < 1.1


def test_a_timeout_is_counted_once_and_backs_off() -> None:
    reassembler = contacted()
    assert reassembler.request(0.2) is not None
    reassembler.tick(0.69)
    assert reassembler.timeouts == 0
    reassembler.tick(0.71)
    assert reassembler.timeouts == 1
    assert reassembler.request(0.71) is None
    reassembler.tick(0.72)
    assert reassembler.request(0.91) is not None
    assert reassembler.timeouts == 1


def test_a_reply_nobody_waits_for_changes_nothing() -> None:
    reassembler = contacted()
    assert reassembler.on_reply(reply(block(1600), 0, 3200), 0.1) == []
    assert reassembler.on_refusal("late", 0.1) == []
    assert (reassembler.position, reassembler.detail) == (1600, None)


def test_blocks_that_overlap_are_trimmed_and_duplicates_dropped() -> None:
    reassembler = contacted()
    (audio,) = reassembler.on_block(block(800), 0.1)
    assert isinstance(audio, Audio)
    assert (audio.start_sample, audio.moment) == (1600, moment(START_NS + samples_to_ns(1600)))
    np.testing.assert_array_equal(audio.pcm, pcm_of(EPOCH, 1600, 800))
    assert reassembler.on_block(block(800), 0.1) == []


def test_the_reason_of_a_hole_is_the_rings() -> None:
    reassembler = contacted()
    reassembler.on_block(block(8000), 0.1)
    reassembler.request(0.1)
    pcm = pcm_of(EPOCH, 8000, 10)
    after = AudioBlock("porch", EPOCH, 8000, moment(START_NS), pcm, gap_reason="device_lost")
    gap, _ = reassembler.on_reply(reply(after, 0, 9600), 0.1)
    assert isinstance(gap, Gap)
    assert (gap.start_sample, gap.samples, gap.reason) == (1600, 6400, "device_lost")


def test_a_hole_without_a_reason_is_lost() -> None:
    reassembler = contacted()
    reassembler.on_block(block(8000), 0.1)
    reassembler.request(0.1)
    gap, _ = reassembler.on_reply(reply(block(8000), 0, 9600), 0.1)
    assert isinstance(gap, Gap)
    assert gap.reason == LOST


def test_a_restarted_capture_ends_the_epoch_with_a_gap_of_wall_time() -> None:
    reassembler = contacted()
    late = AudioBlock("porch", OTHER, 0, moment(START_NS + 5_000_000_000), pcm_of(OTHER, 0, BLOCK))
    assert reassembler.on_block(late, 5.0) == []
    request = reassembler.request(5.0)
    assert request is not None
    assert request.epoch == EPOCH
    assert reassembler.on_refusal("ring of porch refused: wrong_epoch", 5.0) == []
    request = reassembler.request(5.05)
    assert request is not None
    assert (request.epoch, request.start) == (None, None)
    items = reassembler.on_reply(reply(late, 0, BLOCK), 5.05)
    gap = items[0]
    assert isinstance(gap, Gap)
    assert (gap.epoch, gap.start_sample) == (EPOCH, 1600)
    assert (gap.samples, gap.reason) == (5 * SAMPLE_RATE - 1600, CAPTURE_RESTART)
    assert items[1] == NewEpoch(OTHER, 0)
    assert spans(items) == [(0, BLOCK)]


def test_a_late_block_of_a_dead_epoch_is_ignored() -> None:
    reassembler = contacted()
    reassembler.on_block(block(0, epoch=OTHER), 1.0)
    reassembler.request(1.0)
    reassembler.on_reply(reply(block(0, epoch=OTHER), 0, BLOCK), 1.0)
    assert reassembler.on_block(block(1600), 1.1) == []
    assert reassembler.epoch == OTHER
    assert reassembler.request(1.1) is None


def test_a_live_block_alone_never_changes_the_epoch() -> None:
    reassembler = contacted()
    assert reassembler.on_block(block(0, epoch=OTHER), 0.1) == []
    reassembler.request(0.1)
    assert reassembler.on_reply(reply(block(1600, 0), 0, 1600), 0.1) == []
    assert spans(reassembler.on_block(block(1600), 0.2)) == [(1600, 3200)]


def test_a_capture_process_without_audio_yet_does_not_begin_its_epoch() -> None:
    reassembler = contacted()
    reassembler.on_block(block(0, epoch=OTHER), 1.0)
    reassembler.request(1.0)
    assert reassembler.on_reply(reply(block(0, 0, epoch=OTHER), 0, 0), 1.0) == []
    assert reassembler.epoch == EPOCH
    assert reassembler.request(1.2) is not None
    items = reassembler.on_reply(reply(block(0, epoch=OTHER), 0, BLOCK), 1.2)
    assert items[1] == NewEpoch(OTHER, 0)


def test_a_block_from_far_ahead_that_the_ring_does_not_know_is_forgotten() -> None:
    reassembler = contacted()
    reassembler.on_block(block(2**50), 0.1)
    assert reassembler.newest == 1600  # else one block could make all streams look overloaded
    assert reassembler.request(0.1) is not None
    assert reassembler.on_reply(reply(block(1600, 0), 0, 1600), 0.1) == []
    assert reassembler.newest == 1600
    assert spans(reassembler.on_block(block(1600), 0.2)) == [(1600, 3200)]
    assert reassembler.request(0.3) is None


def test_a_step_of_the_wall_clock_is_not_lost_audio() -> None:
    reassembler = contacted()
    year_ns = 365 * 86400 * 10**9
    late = AudioBlock("porch", OTHER, 0, moment(START_NS + year_ns), pcm_of(OTHER, 0, BLOCK))
    reassembler.on_block(late, 3.0)
    reassembler.request(3.0)
    gap = reassembler.on_reply(reply(late, 0, BLOCK), 3.0)[0]
    assert isinstance(gap, Gap)
    assert gap.samples <= 6 * SAMPLE_RATE


def test_resume_asks_from_the_journalled_position_and_is_no_new_epoch() -> None:
    reassembler = Reassembler("porch")
    reassembler.resume(EPOCH, 3200)
    request = reassembler.request(0.0)
    assert request is not None
    assert (request.epoch, request.start) == (EPOCH, 3200)
    items = reassembler.on_reply(reply(block(3200), 0, 4800, acked=4000), 0.0)
    assert [type(item) for item in items] == [Audio]


def test_resume_into_another_epoch_sizes_the_gap_by_the_journalled_time() -> None:
    reassembler = Reassembler("porch")
    reassembler.resume(EPOCH, 3200, START_NS)
    reassembler.request(0.0)
    reassembler.on_refusal("wrong_epoch", 0.0)
    reassembler.request(0.1)
    new = AudioBlock("porch", OTHER, 0, moment(START_NS + 2 * 10**9), pcm_of(OTHER, 0, BLOCK))
    gap, entered, _ = reassembler.on_reply(reply(new, 0, BLOCK), 0.1)
    assert isinstance(gap, Gap)
    assert (gap.start_sample, gap.samples) == (3200, 2 * SAMPLE_RATE)
    assert entered == NewEpoch(OTHER, 0)


def test_a_position_where_the_ring_never_was_is_given_up() -> None:
    reassembler = Reassembler("porch")
    reassembler.resume(EPOCH, 900_000)
    reassembler.request(0.0)
    assert reassembler.on_reply(reply(block(4800, 0), 0, 4800), 0.0) == [NewEpoch(EPOCH, 4800)]
    assert spans(reassembler.on_block(block(4800), 0.1)) == [(4800, 6400)]


def test_the_end_of_the_source_comes_once_after_all_samples() -> None:
    reassembler = contacted()
    assert reassembler.on_block(block(3200, is_last=True), 0.1) == []
    assert reassembler.request(0.1) is not None
    items = reassembler.on_reply(reply(block(1600, 3200, is_last=True), 0, 4800), 0.1)
    assert spans(items) == [(1600, 4800)]
    assert items[-1] == Ended(EPOCH, 4800)
    assert reassembler.on_block(block(3200, is_last=True), 0.2) == []
    assert reassembler.request(9.0) is None
    assert not reassembler.is_missing(9.0)


def ended() -> Reassembler:
    """A reassembler whose source has ended at sample 1600, as its ring says."""
    reassembler = contacted()
    assert reassembler.on_block(block(1600, 0, is_last=True), 0.1) == []
    assert reassembler.request(0.1) is not None
    last = reply(block(1600, 0, is_last=True), 0, 1600)
    assert reassembler.on_reply(last, 0.1) == [Ended(EPOCH, 1600)]
    return reassembler


def test_an_empty_last_block_ends_the_stream_once_the_ring_says_the_same() -> None:
    assert ended().has_ended


@pytest.mark.parametrize("n_samples", [0, BLOCK])
def test_a_last_block_that_the_ring_knows_nothing_of_ends_nothing(n_samples: int) -> None:
    reassembler = contacted()
    items = reassembler.on_block(block(1600, n_samples, is_last=True), 0.1)
    assert not any(isinstance(item, Ended) for item in items)
    assert reassembler.request(0.1) is not None
    reassembler.on_reply(reply(block(1600), 0, 3200), 0.1)
    assert not reassembler.has_ended
    assert spans(reassembler.on_block(block(3200), 0.2)) == [(3200, 4800)]


def test_audio_of_a_time_that_has_not_come_is_left_to_the_ring() -> None:
    reassembler = contacted()
    forged = block(1600, 60 * SAMPLE_RATE)  # would end what is open, for the ring is not there yet
    assert reassembler.on_block(forged, 0.1) == []
    assert reassembler.request(0.1) is not None
    assert spans(reassembler.on_reply(reply(block(1600), 0, 3200), 0.1)) == [(1600, 3200)]


def test_an_epoch_after_an_ended_one_leaves_no_gap() -> None:
    reassembler = ended()
    reassembler.on_block(block(0, epoch=OTHER), 1.0)
    assert reassembler.request(1.0) is not None
    items = reassembler.on_reply(reply(block(0, epoch=OTHER), 0, BLOCK), 1.0)
    assert items[0] == NewEpoch(OTHER, 0)


def test_live_blocks_are_taken_when_the_ring_never_answers() -> None:
    reassembler = contacted()
    reassembler.on_block(block(4800), 0.1)
    now_s = 0.1
    items: list[Any] = []
    while not items and now_s < 90:
        now_s += TURN_S
        reassembler.tick(now_s)
        reassembler.request(now_s)
        items = reassembler.on_block(block(int(now_s * 100) * BLOCK), now_s)
    assert now_s > LIVE_ONLY_AFTER_S  # it has answered once
    gap, audio = items
    assert isinstance(gap, Gap)
    assert gap.reason == RING_SILENT
    assert isinstance(audio, Audio)
    assert gap.start_sample + gap.samples == audio.start_sample


@pytest.mark.parametrize("away_s", [6, 20, 80])
def test_a_capture_process_that_was_stopped_is_asked_before_live_blocks_are_taken(
    away_s: float,
) -> None:
    reassembler = contacted()
    reassembler.on_block(block(1600), 0.1)
    now_s = 0.1
    while now_s < away_s:  # neither blocks nor answers
        now_s += TURN_S
        reassembler.tick(now_s)
        reassembler.request(now_s)
    newest = int(now_s * 10) * 1600
    # it goes on: what it could not push meanwhile is in its ring alone
    assert reassembler.on_block(block(newest), now_s) == []
    reassembler.tick(now_s + REQUEST_TIMEOUT_S)  # the answer to a request of before is lost
    request = reassembler.request(now_s + REQUEST_TIMEOUT_S)
    assert request is not None
    assert request.start == 3200
    items = reassembler.on_reply(reply(block(3200, 80_000), 0, newest + 1600), now_s + 0.6)
    assert [type(item) for item in items] == [Audio]
    assert spans(items) == [(3200, 83_200)]


def test_a_ring_that_never_answers_costs_nothing_after_a_pause() -> None:
    reassembler = Reassembler("porch")  # of a box whose ring cannot be reached
    now_s, start, came = 0.0, 0, 0.0
    while now_s < 60:
        now_s += 0.1
        reassembler.tick(now_s)
        reassembler.request(now_s)
        start += BLOCK
        if now_s < 20 or now_s > 40:  # nothing comes through for a while
            items = reassembler.on_block(block(start), now_s)
            came += sum(end - first for first, end in spans(items)) / SAMPLE_RATE
    assert came > 34.0  # all but what eight requests in vain take at first


def test_a_capture_process_that_begins_late_is_asked_before_live_blocks_are_taken() -> None:
    reassembler = Reassembler("porch")
    now_s = 0.0
    while now_s < 30:
        now_s += TURN_S
        reassembler.tick(now_s)
        reassembler.request(now_s)
    assert reassembler.on_block(block(16_000), now_s) == []  # the first ones found no room
    reassembler.tick(now_s + REQUEST_TIMEOUT_S)
    assert reassembler.request(now_s + REQUEST_TIMEOUT_S) is not None
    items = reassembler.on_reply(reply(block(0, 17_600), 0, 17_600), now_s + 0.6)
    assert spans(items) == [(0, 17_600)]


def test_a_stalled_worker_does_not_take_its_own_pause_for_a_silent_ring() -> None:
    reassembler = contacted()
    assert reassembler.request(0.2) is not None
    reassembler.tick(60.0)
    assert reassembler.on_block(block(48_000), 60.0) == []
    assert reassembler.request(60.3) is not None


def ask_in_vain(reassembler: Reassembler, now_s: float) -> None:
    """Let the ring answer at once that it has nothing new."""
    assert reassembler.request(now_s) is not None
    reassembler.on_reply(reply(block(1600, 0), 0, 1600), now_s)


def test_missing_is_known_two_seconds_after_the_last_audio() -> None:
    reassembler = contacted()
    ask_in_vain(reassembler, 1.9)
    assert not reassembler.is_missing(1.9)
    ask_in_vain(reassembler, 2.3)
    assert reassembler.is_missing(2.3)
    reassembler.on_block(block(1600), 2.4)
    assert not reassembler.is_missing(2.4)


def test_ring_that_does_not_answer_is_missing() -> None:
    reassembler = contacted()
    now_s = 0.0
    while now_s < 3.0:
        reassembler.tick(now_s)
        reassembler.request(now_s)
        now_s += 0.05
    assert reassembler.timeouts >= 2
    assert reassembler.is_missing(3.0)


def test_time_in_which_the_ring_was_not_asked_is_not_silence() -> None:
    reassembler = contacted()
    ask_in_vain(reassembler, 0.3)
    # the worker was stopped for a minute, or had no room for more
    assert not reassembler.is_missing(60.0)
    assert reassembler.silence_s(60.0) < 1.0
    # also where a request was out when it was stopped, and its answer is lost
    reassembler.request(60.0)
    reassembler.tick(120.0)
    assert reassembler.timeouts == 1
    assert reassembler.silence_s(120.0) < 61.0


def test_block_without_room_for_it_is_left_to_the_ring_and_proves_that_there_is_audio() -> None:
    reassembler = contacted()
    ask_in_vain(reassembler, 1.0)
    assert reassembler.on_block(block(1600), 1.5, has_room=False) == []
    assert reassembler.position == 1600
    assert reassembler.newest == 3200
    assert reassembler.silence_s(1.5) == 0
    request = reassembler.request(2.5)
    assert request is not None
    assert request.start == 1600


def test_state_and_detail_are_the_rings_until_audio_comes() -> None:
    reassembler = contacted()
    reassembler.request(0.2)
    missing = RingReply(block(1600, 0), 0, 1600, 0, state="missing", detail="device not found")
    reassembler.on_reply(missing, 0.2)
    assert (reassembler.state, reassembler.detail) == ("missing", "device not found")
    reassembler.on_block(block(1600), 0.3)
    assert (reassembler.state, reassembler.detail) == ("listening", None)


def test_a_live_block_says_how_its_source_is() -> None:
    reassembler = contacted()
    zeros = replace(block(1600), state="degraded", detail="digital silence for 12 s")
    (back,) = [AudioBlock.decode(zeros.encode())]
    reassembler.on_block(back, 0.3)
    assert (reassembler.state, reassembler.detail) == ("degraded", "digital silence for 12 s")
    reassembler.on_block(block(3200), 0.4)
    assert (reassembler.state, reassembler.detail) == ("listening", None)


def test_a_reply_that_contradicts_itself_is_refused() -> None:
    reassembler = contacted()
    reassembler.request(0.2)
    assert reassembler.on_reply(reply(block(900_000), 0, 3200), 0.2) == []
    assert reassembler.position == 1600
    assert reassembler.detail == "the ring's reply contradicts itself"


@dataclass
class Capture:
    """A capture process: real ring and its server, and what it really captured."""

    epoch: str
    started_ns: int
    capacity: int
    now: Callable[[], Moment]
    skipped: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ring = Ring(self.capacity)
        status = SourceStatus("listening", None)
        self.server = RingServer(
            "porch",
            self.epoch,
            "ipc:///r",
            self.ring,
            lambda: status,
            now=self.now,
        )
        self.sent = 0

    def time_ns(self, sample: int) -> int:
        return self.started_ns + samples_to_ns(sample)

    def write(self, n_samples: int) -> list[bytes]:
        start = self.ring.next
        self.ring.write(pcm_of(self.epoch, start, n_samples), moment(self.time_ns(start)))
        return self.server.block(start, n_samples).encode()

    def lose(self, n_samples: int) -> None:
        start = self.ring.next
        self.skipped.append((start, start + self.ring.skip(n_samples, "device_lost")))

    def is_gone(self, start: int, stop: int) -> bool:
        """Whether no sample of [start, stop) can be had any more."""
        oldest = self.ring.oldest
        held = np.zeros(max(0, stop - max(start, oldest)), bool)
        base = max(start, oldest)
        held[:] = True
        for first, end in self.skipped:
            held[max(0, first - base) : max(0, end - base)] = False
        return not held.any()


class World:
    """One capture process and one worker; checks every item that comes out."""

    def __init__(self, capacity: int, delay: int) -> None:
        self.turn = 0
        self.delay = delay
        self.capacity = capacity
        self.n_epochs = 0
        self.captures: dict[str, Capture] = {}
        self.ring_is_up = True
        self.ring_was_down = False
        self.pushed: deque[list[bytes]] = deque()
        self.replies: deque[tuple[int, list[bytes]]] = deque()
        self.start_capture()
        self.reassembler = Reassembler("porch")
        self.epoch: str | None = None
        self.cursor = 0

    @property
    def now_s(self) -> float:
        return self.turn * TURN_S

    def wall_ns(self) -> int:
        return START_NS + round(self.now_s * 1e9)

    def start_capture(self) -> None:
        self.n_epochs += 1
        epoch = f"{self.n_epochs:08x}"
        self.capture = Capture(epoch, self.wall_ns(), self.capacity, lambda: moment(self.wall_ns()))
        self.captures[epoch] = self.capture
        self.replies.clear()

    def restart_worker(self, *, journalled: bool, rewind: int) -> None:
        """kill -9: what was in the sockets is gone; the journal may be there."""
        if self.epoch == self.capture.epoch:
            self.capture.ring.ack(self.cursor)
        self.pushed.clear()
        self.replies.clear()
        self.reassembler = Reassembler("porch")
        if journalled and self.epoch is not None:
            self.cursor = max(0, self.cursor - rewind)
            time_ns = self.captures[self.epoch].time_ns(self.cursor)
            self.reassembler.resume(self.epoch, self.cursor, time_ns)
        else:
            self.epoch = None

    def lose(self, n_samples: int) -> None:
        self.run(n_samples // TURN_SAMPLES + 1)
        self.capture.lose(n_samples)

    def write(self, n_samples: int, *, arrives: bool) -> None:
        self.run(n_samples // TURN_SAMPLES + 1)
        frames = self.capture.write(n_samples)
        if arrives and len(self.pushed) < 8:
            self.pushed.append(frames)

    def run(self, turns: int, *, takes_blocks: bool = True) -> None:
        for _ in range(turns):
            self.turn += 1
            if takes_blocks:
                while self.pushed:
                    self.check(
                        self.reassembler.on_block(
                            AudioBlock.decode(self.pushed.popleft()), self.now_s
                        )
                    )
            while self.replies and self.replies[0][0] <= self.turn:
                self.on_reply(self.replies.popleft()[1])
            self.reassembler.tick(self.now_s)
            if self.reassembler.needs_new_socket:
                self.replies.clear()
            request = self.reassembler.request(self.now_s)
            if request is not None:
                self.ask(request)

    def ask(self, request: ReadRequest) -> None:
        if not self.ring_is_up:
            return
        frames = self.capture.server.answer(request.encode())
        assert frames is not None
        self.replies.append((self.turn + self.delay, frames))

    def on_reply(self, frames: list[bytes]) -> None:
        try:
            reply = RingReply.decode(frames, "porch")
        except WireError as error:
            self.check(self.reassembler.on_refusal(str(error), self.now_s))
        else:
            self.check(self.reassembler.on_reply(reply, self.now_s))

    def check(self, items: list[Item]) -> None:
        for item in items:
            if isinstance(item, NewEpoch):
                assert item.epoch != self.epoch
                self.epoch, self.cursor = item.epoch, item.start_sample
            elif isinstance(item, Audio):
                self.check_audio(item)
            elif isinstance(item, Gap):
                self.check_gap(item)

    def check_audio(self, audio: Audio) -> None:
        assert (audio.epoch, audio.start_sample) == (self.epoch, self.cursor)
        expected = pcm_of(audio.epoch, audio.start_sample, len(audio.pcm))
        np.testing.assert_array_equal(audio.pcm, expected)
        exact_ns = self.captures[audio.epoch].time_ns(audio.start_sample)
        assert abs(audio.moment.wall_ns - exact_ns) <= 1000  # the wire has whole microseconds
        self.cursor = audio.end_sample

    def check_gap(self, gap: Gap) -> None:
        assert (gap.epoch, gap.start_sample) == (self.epoch, self.cursor)
        if gap.reason == CAPTURE_RESTART:
            assert gap.epoch != self.capture.epoch
            passed_ns = self.wall_ns() - self.captures[gap.epoch].time_ns(gap.start_sample)
            passed = round(passed_ns * SAMPLE_RATE / 1e9)
            assert 0 <= gap.samples <= max(0, passed) + MODEL_CLOCK_ERROR
            return
        if gap.reason == RING_SILENT:
            assert self.ring_was_down
        else:
            stop = gap.start_sample + gap.samples
            assert self.captures[gap.epoch].is_gone(gap.start_sample, stop)
        assert gap.samples > 0
        self.cursor += gap.samples


DELAYS = st.sampled_from([0, 1, 2, 3, 4, 40, 150, 400, 1000])  # of answers; in turns: up to 20 s
STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 4000), st.booleans()),
    st.tuples(st.just("write"), st.integers(1, 4000), st.just(True)),
    st.tuples(st.just("run"), st.integers(1, 60)),
    st.tuples(st.just("lose"), st.integers(1, 50_000)),
    st.tuples(st.just("restart_capture"), st.integers(0, 200)),
    st.tuples(st.just("restart_worker"), st.booleans(), st.integers(0, 20_000)),
    st.tuples(st.just("ring"), st.booleans()),
    st.tuples(st.just("ignore_blocks"), st.integers(1, 100)),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    steps=st.lists(STEPS, max_size=40),
    capacity=st.sampled_from([3_000, 20_000, 400_000]),
    delay=DELAYS,
)
def test_every_sample_comes_once_in_order_or_is_in_a_gap(
    steps: list[tuple[Any, ...]], capacity: int, delay: int
) -> None:
    world = World(capacity, delay)
    for step in steps:
        match step:
            case ("write", int(n_samples), arrives):
                world.write(n_samples, arrives=bool(arrives))
            case ("run", int(turns)):
                world.run(turns)
            case ("lose", int(n_samples)):
                world.lose(n_samples)
            case ("restart_capture", int(turns)):
                world.run(turns)
                world.start_capture()
            case ("restart_worker", journalled, int(rewind)):
                world.restart_worker(journalled=bool(journalled), rewind=rewind)
            case ("ring", is_up):
                world.ring_is_up = bool(is_up)
                world.ring_was_down |= not is_up
            case ("ignore_blocks", int(turns)):
                world.run(turns, takes_blocks=False)
    world.ring_is_up = True
    world.write(1, arrives=False)
    world.run(400 + 20 * delay)
    assert world.epoch == world.capture.epoch
    assert world.cursor == world.capture.ring.next


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrives=st.lists(st.booleans(), min_size=1, max_size=200), delay=DELAYS)
def test_nothing_is_lost_while_the_ring_is_longer_than_the_trouble(
    arrives: list[bool], delay: int
) -> None:
    world = World(400 * BLOCK, delay)
    for does_arrive in arrives:
        world.write(BLOCK, arrives=does_arrive)
        world.run(5)
    world.run(200 + 20 * delay)
    assert world.cursor == len(arrives) * BLOCK
    assert world.reassembler.epoch == world.capture.epoch
    assert world.capture.ring.oldest == 0
