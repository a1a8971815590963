"""Answers of a ring that come after the worker has stopped waiting for them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ast_stream.capture.ring import Ring, RingServer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    AudioBlock,
    ReadRequest,
    RefusedByRingError,
    RingReply,
)
from ast_stream.messages.event import Gap
from ast_stream.units import SAMPLE_RATE, samples_to_ns, seconds_to_samples
from ast_stream.worker.reassembly import (
    CONNECTION_LASTS_S,
    MAX_AWAITED,
    Audio,
    Item,
    NewEpoch,
    Reassembler,
)

EPOCH, OTHER = "aaaaaaaa", "bbbbbbbb"
BLOCK = 1600
TURN_S = 0.02
START_NS = 1_700_000_000_000_000_000


def moment(sample: int) -> Moment:
    passed_ns = samples_to_ns(sample)
    return Moment(START_NS + passed_ns, passed_ns)


class SleepyRing:
    """The ring of a capture process that runs for a moment only now and then.

    When it runs, it takes what its source gave meanwhile and answers the requests that have come.
    Its live blocks are all lost. Requests and answers of a connection that was closed are lost: of
    all but the newest and the one before it.

    Attributes:
        n_answered: requests that were answered.

    Args:
        pause_s: between the moments in which it runs.
        way_s: for which requests, and answers, are on their way.
    """

    def __init__(self, pause_s: float, epoch: str = EPOCH, way_s: float = 0.0) -> None:
        self.ring = Ring(90 * SAMPLE_RATE)
        self.server = RingServer(
            "porch",
            epoch,
            "ipc:///r",
            self.ring,
            lambda: SourceStatus("listening", None),
            now=lambda: moment(self.ring.next),
        )
        self.asked_s: list[float] = []
        self._pause_s = pause_s
        self._wakes_s = pause_s
        self.n_answered = 0
        self._way_s = way_s
        self._connection = 0
        self._requests: deque[tuple[float, int, list[bytes]]] = deque()
        self._answers: deque[tuple[float, int, list[bytes]]] = deque()

    def run(self, now_s: float) -> list[list[bytes]]:
        """Return the answers that are given now."""
        if now_s >= self._wakes_s:
            self._wakes_s += self._pause_s
            start, end = self.ring.next, seconds_to_samples(now_s)
            self.ring.write(np.arange(start, end).astype(np.int16), moment(start))
            while self._requests and self._requests[0][0] <= now_s:
                _, connection, frames = self._requests.popleft()
                answer = self.server.answer(frames)
                assert answer is not None
                self.n_answered += 1
                self._answers.append((now_s + self._way_s, connection, answer))
        arrived = []
        while self._answers and self._answers[0][0] <= now_s:
            _, connection, answer = self._answers.popleft()
            if connection >= self._connection - 1:
                arrived.append(answer)
        return arrived

    def ask(self, request: ReadRequest, now_s: float) -> None:
        """Take a request, for when the process runs again."""
        self.asked_s.append(now_s)
        self._requests.append((now_s + self._way_s, self._connection, request.encode()))

    def connect_again(self) -> None:
        """Make another connection."""
        self._connection += 1


def turn(reassembler: Reassembler, ring: SleepyRing, now_s: float) -> list[Item]:
    """Do what the worker does with a ring in one turn of its loop."""
    items: list[Item] = []
    for frames in ring.run(now_s):
        try:
            reply = RingReply.decode(frames, "porch")
        except RefusedByRingError as error:
            items += reassembler.on_refusal(str(error), now_s, error.request_id)
        else:
            items += reassembler.on_reply(reply, now_s)
    reassembler.tick(now_s)
    if reassembler.needs_new_socket:
        ring.connect_again()
    request = reassembler.request(now_s)
    if request is not None:
        ring.ask(request, now_s)
    return items


def assert_gapless(items: list[Item]) -> int:
    """Check that audio follows audio, and return where it ends."""
    assert not [item for item in items if isinstance(item, Gap)]
    audio = [item for item in items if isinstance(item, Audio)]
    assert audio[0].start_sample == 0
    for before, after in pairwise(audio):
        assert after.start_sample == before.end_sample
    for item in audio:
        expected = np.arange(item.start_sample, item.end_sample).astype(np.int16)
        np.testing.assert_array_equal(item.pcm, expected)
    return audio[-1].end_sample


@pytest.mark.parametrize("is_of_other_box", [False, True])
@pytest.mark.parametrize("pause_s", [0.7, 1.03, 3.1, 6.2])
def test_a_ring_that_answers_late_every_time_is_read(pause_s: float, is_of_other_box: bool) -> None:
    reassembler = Reassembler("porch")
    reassembler.waits_for_ring = is_of_other_box
    ring = SleepyRing(pause_s)
    items: list[Item] = []
    late_s = []
    for n_turn in range(3000):
        now_s = n_turn * TURN_S
        items += turn(reassembler, ring, now_s)
        if now_s > 3 * pause_s:
            late_s.append(now_s - reassembler.position / SAMPLE_RATE)
    assert assert_gapless(items) == ring.ring.next
    assert max(late_s) < 2 * pause_s + TURN_S
    assert not reassembler.is_missing(60.0) or pause_s > 2
    assert len(ring.asked_s) < 60.0 / min(pause_s, 2.0) * 3


def read_for(
    reassembler: Reassembler, ring: SleepyRing, begin_s: float, end_s: float
) -> list[Item]:
    """Return what comes of a ring in a time."""
    items: list[Item] = []
    for n_turn in range(round((end_s - begin_s) / TURN_S)):
        items += turn(reassembler, ring, begin_s + n_turn * TURN_S)
    return items


@pytest.mark.parametrize("is_of_other_box", [False, True])
@pytest.mark.parametrize(
    ("pause_s", "way_s"), [(14, 0), (20, 0), (40, 0), (0.1, 8), (0.1, 13), (0.1, 20), (5, 15)]
)
def test_a_ring_is_read_however_late_it_answers_as_long_as_it_has_the_audio(
    pause_s: float, way_s: float, is_of_other_box: bool
) -> None:
    reassembler = Reassembler("porch")
    reassembler.waits_for_ring = is_of_other_box
    ring = SleepyRing(pause_s, way_s=way_s)
    lateness_s = pause_s + 2 * way_s
    items = read_for(reassembler, ring, 0.0, 600.0)
    assert assert_gapless(items) > (600 - 2 * lateness_s - pause_s) * SAMPLE_RATE
    assert len(ring.asked_s) < 600


def test_a_ring_that_answers_after_minutes_is_still_read() -> None:
    reassembler = Reassembler("porch")
    ring = SleepyRing(0.1, way_s=150)
    items = read_for(reassembler, ring, 0.0, 1500.0)
    audio = [item for item in items if isinstance(item, Audio)]
    assert audio[-1].end_sample > (1500 - 2 * 150 - 90) * SAMPLE_RATE


def test_a_process_that_was_stopped_for_an_hour_finds_few_requests_and_is_read_at_once() -> None:
    reassembler = Reassembler("porch")
    ring = SleepyRing(0.1)
    read_for(reassembler, ring, 0.0, 60.0)
    n_before, stop_s = ring.n_answered, 3660.0
    ring._wakes_s = stop_s
    read_for(reassembler, ring, 60.0, stop_s)
    assert ring.n_answered == n_before
    items = read_for(reassembler, ring, stop_s, stop_s + 5.0)
    assert ring.n_answered - n_before < 60
    audio = [item for item in items if isinstance(item, Audio)]
    assert audio[-1].end_sample > (stop_s + 4) * SAMPLE_RATE


def test_a_bounded_number_of_requests_is_remembered_of_a_ring_that_never_answers() -> None:
    reassembler = contacted()
    requests = pass_time(reassembler, 0.2, 40_000.0, step_s=1.0)
    assert len(requests) < MAX_AWAITED


def test_live_blocks_after_a_pause_show_that_a_ring_may_be_asked_again() -> None:
    reassembler = contacted()
    pass_time(reassembler, 0.2, 4000.0, step_s=1.0)
    assert reassembler.request(4000.0) is None
    far = AudioBlock("porch", OTHER, 0, moment(0), np.zeros(BLOCK, np.int16))
    assert reassembler.on_block(far, 4000.0) == []
    assert reassembler.request(4000.0) is not None


@pytest.mark.parametrize("has_answered", [True, False])
def test_what_a_late_ring_has_is_not_given_up_for_live_blocks(has_answered: bool) -> None:
    reassembler = contacted() if has_answered else Reassembler("porch")
    reassembler.ring_is_there = not has_answered
    request = asked(reassembler, 0.3)
    for n_turn in range(50, 1500):  # blocks come, all but the second
        now_s = n_turn * TURN_S
        reassembler.tick(now_s)
        reassembler.request(now_s)
        if n_turn % 5 == 0:
            start = n_turn // 5 * BLOCK
            live = AudioBlock("porch", EPOCH, start, moment(start), np.zeros(BLOCK, np.int16))
            assert reassembler.on_block(live, now_s) == []
    items = reassembler.on_reply(answer(request, BLOCK, 20 * BLOCK, 290 * BLOCK, acked=BLOCK), 30.0)
    assert [item for item in items if isinstance(item, Gap)] == []
    assert isinstance(items[-1], Audio)


def asked(reassembler: Reassembler, now_s: float) -> ReadRequest:
    request = reassembler.request(now_s)
    assert request is not None
    return request


def pass_time(
    reassembler: Reassembler, begin_s: float, end_s: float, step_s: float = TURN_S
) -> list[ReadRequest]:
    """Return what a ring is asked that gives no answer."""
    requests = []
    for n_turn in range(round((end_s - begin_s) / step_s)):
        now_s = begin_s + n_turn * step_s
        reassembler.tick(now_s)
        if (request := reassembler.request(now_s)) is not None:
            requests.append(request)
    return requests


def answer(
    request: ReadRequest, start: int, end: int, stop: int, epoch: str = EPOCH, acked: int = 0
) -> RingReply:
    """Return the answer with samples from `start` to `end` of a ring that has them to `stop`."""
    pcm = np.arange(start, end).astype(np.int16)
    block = AudioBlock("porch", epoch, start, moment(start), pcm)
    return RingReply(block, oldest=0, next=stop, acked=acked, request_id=request.id)


def contacted() -> Reassembler:
    """A reassembler that has reached sample 1600."""
    reassembler = Reassembler("porch")
    reassembler.on_reply(answer(asked(reassembler, 0.0), 0, BLOCK, BLOCK), 0.0)
    assert reassembler.position == BLOCK
    return reassembler


def new_connections(reassembler: Reassembler, end_s: float) -> list[float]:
    """Return when a ring that does not answer was to be asked by another connection."""
    made_s = []
    for n_turn in range(round(end_s / TURN_S)):
        reassembler.tick(n_turn * TURN_S)
        if reassembler.needs_new_socket:
            made_s.append(n_turn * TURN_S)
        reassembler.request(n_turn * TURN_S)
    return made_s


def test_a_connection_is_suspected_when_many_requests_on_it_were_not_answered() -> None:
    reassembler = Reassembler("porch")
    made_s = new_connections(reassembler, 100.0)
    assert made_s[0] < 15.0
    assert len(made_s) == 2


def test_a_connection_that_has_brought_answers_is_trusted_for_longer() -> None:
    (made_s,) = new_connections(contacted(), 100.0)
    assert made_s >= CONNECTION_LASTS_S


def test_answers_of_the_last_but_one_connection_count_and_not_those_of_earlier_ones() -> None:
    reassembler = contacted()
    first, *_ = pass_time(reassembler, 0.2, 61.0)
    reassembler.tick(61.0)
    requests = [first]
    n_made = 0
    for n_turn in range(600):
        now_s = 61.0 + n_turn
        reassembler.tick(now_s)
        if (request := reassembler.request(now_s)) is not None:
            requests.append(request)
        n_made += reassembler.needs_new_socket
        if n_made == 1:
            kept = requests[-1]
        if n_made == 2:
            break
    before = reassembler.position
    late = answer(first, 0, 5 * BLOCK, 5 * BLOCK)
    assert reassembler.on_reply(late, now_s) == []
    assert reassembler.on_refusal("late", now_s, first.id) == []
    assert (reassembler.position, reassembler.detail) == (before, None)
    assert reassembler.on_reply(answer(kept, BLOCK, 5 * BLOCK, 5 * BLOCK), now_s)
    assert reassembler.position == 5 * BLOCK


def test_answers_after_a_stop_bring_each_sample_once_and_the_next_request_goes_at_once() -> None:
    reassembler = contacted()
    requests = pass_time(reassembler, 0.2, 6.0)
    assert len(requests) > 3
    stop = 30 * SAMPLE_RATE
    items: list[Item] = []
    for request in requests:
        assert request.start == BLOCK
        items += reassembler.on_reply(answer(request, BLOCK, BLOCK + MAX_BLOCK_SAMPLES, stop), 6.0)
    (audio,) = items
    assert isinstance(audio, Audio)
    assert (audio.start_sample, audio.end_sample) == (BLOCK, BLOCK + MAX_BLOCK_SAMPLES)
    assert asked(reassembler, 6.0).start == audio.end_sample


def test_an_answer_shows_that_those_to_earlier_requests_are_lost() -> None:
    reassembler = contacted()
    first, second, *_ = pass_time(reassembler, 0.2, 2.0)
    assert reassembler.on_reply(answer(second, BLOCK, 2 * BLOCK, 2 * BLOCK), 2.0)
    assert reassembler.on_reply(answer(first, BLOCK, 3 * BLOCK, 3 * BLOCK), 2.0) == []


def test_a_ring_that_does_not_number_its_answers_gives_them_in_the_order_of_the_requests() -> None:
    reassembler = contacted()
    requests = pass_time(reassembler, 0.2, 2.0)
    for n_blocks, request in enumerate(requests, 2):
        unnumbered = replace(
            answer(request, BLOCK, n_blocks * BLOCK, n_blocks * BLOCK), request_id=None
        )
        assert reassembler.on_reply(unnumbered, 2.0)
        assert reassembler.position == n_blocks * BLOCK
    assert reassembler.on_refusal("one too many", 2.0) == []
    assert reassembler.detail is None


def test_late_refusals_of_a_new_process_do_not_count_as_a_silent_ring() -> None:
    reassembler = contacted()
    requests = pass_time(reassembler, 0.2, 10.0)
    for request in requests:
        assert reassembler.on_refusal("wrong_epoch", 10.0, request.id) == []
    far = AudioBlock("porch", OTHER, 5 * BLOCK, moment(0), np.zeros(BLOCK, np.int16))
    assert reassembler.on_block(far, 10.0) == []  # not before the ring was asked without an epoch
    unplaced = asked(reassembler, 10.1)
    assert (unplaced.epoch, unplaced.start) == (None, None)
    items = reassembler.on_reply(answer(unplaced, 0, BLOCK, BLOCK, OTHER), 10.1)
    assert [item for item in items if isinstance(item, NewEpoch)] == [NewEpoch(OTHER, 0)]


def test_a_position_where_the_ring_never_was_is_given_up_once() -> None:
    reassembler = Reassembler("porch")
    reassembler.resume(EPOCH, 900_000)
    first, second, *_ = pass_time(reassembler, 0.0, 2.0)
    assert reassembler.on_reply(answer(first, 4800, 4800, 4800), 2.0) == [NewEpoch(EPOCH, 4800)]
    assert reassembler.on_reply(answer(second, 4900, 4900, 4900), 2.0) == []
    assert reassembler.position == 4800


@pytest.mark.parametrize(("stream", "epoch"), [("yard", None), ("porch", OTHER)])
def test_a_number_comes_back_with_a_refusal(stream: str, epoch: str | None) -> None:
    request = ReadRequest(v=1, op="read", stream=stream, epoch=epoch, id=7)
    frames = SleepyRing(1.0).server.answer(request.encode())
    assert frames is not None
    with pytest.raises(RefusedByRingError) as raised:
        RingReply.decode(frames, "porch")
    assert raised.value.request_id == 7


def answer_empty(reassembler: Reassembler, now_s: float) -> None:
    """Let a request be answered at once with nothing new."""
    position = reassembler.position
    reassembler.tick(now_s)
    request = reassembler.request(now_s)
    if request is not None:
        reassembler.on_reply(answer(request, position, position, position), now_s)


def test_silence_that_the_ring_confirms_begins_anew_after_it_did_not_answer() -> None:
    reassembler = contacted()
    for n_turn in range(200):
        answer_empty(reassembler, n_turn * TURN_S)
    assert 2.5 < reassembler.confirmed_silence_s(4.0) <= 4.0
    requests = pass_time(reassembler, 4.0, 9.0)
    before = reassembler.confirmed_silence_s(9.0)
    assert before <= 4.0
    for request in requests:  # it runs again, and has taken nothing from its source yet
        reassembler.on_reply(answer(request, BLOCK, BLOCK, BLOCK), 9.0)
    for n_turn in range(100):
        answer_empty(reassembler, 9.0 + n_turn * TURN_S)
    assert reassembler.silence_s(11.0) > 8.0
    assert reassembler.confirmed_silence_s(11.0) < 3.0
