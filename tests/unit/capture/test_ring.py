"""The ring never reorders, duplicates or invents samples; what the worker gets of it is that."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ast_stream.capture.ring import OVERWRITTEN, BlockSender, Ring, RingServer
from ast_stream.capture.sources.base import SourceStatus
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    AckRequest,
    AudioBlock,
    Pcm16,
    ReadRequest,
    RingReply,
)
from ast_stream.units import FRAME_SHIFT, NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

T0 = 1_700_000_000_000_000_000
WALL0 = 1_763_700_000_000_000_000
EPOCH, OTHER_EPOCH = "ab" * 16, "cd" * 16
LISTENING = SourceStatus("listening")
ENDED = SourceStatus("ended")


def moment(wall_ns: int) -> Moment:
    return Moment(wall_ns, wall_ns - T0 // 2)


def ramp(start: int, n_samples: int) -> Pcm16:
    return (np.arange(start, start + n_samples) % 30_000).astype(np.int16)


def test_samples_come_back_as_written_whatever_the_block_sizes() -> None:
    ring = Ring(1000)
    position = 0
    for size in (1, 160, 0, 333, 200):
        ring.write(ramp(position, size), moment(T0 + samples_to_ns(position)))
        position += size
    piece = ring.read(0, position, 10_000)
    assert piece.start_sample == 0
    assert piece.moment == moment(T0)
    np.testing.assert_array_equal(piece.pcm, ramp(0, position))


def test_newest_samples_replace_the_oldest() -> None:
    ring = Ring(100)
    ring.write(ramp(0, 250), moment(T0))
    assert (ring.oldest, ring.next) == (150, 250)
    piece = ring.read(0, 250, 1000)
    assert piece.start_sample == 150
    assert piece.moment == moment(T0 + samples_to_ns(150))
    assert piece.gap_reason == OVERWRITTEN
    np.testing.assert_array_equal(piece.pcm, ramp(150, 100))


def test_a_hole_ends_a_slice_and_its_reason_stands_before_the_next() -> None:
    ring = Ring(1000)
    ring.write(ramp(0, 200), moment(T0))
    assert ring.skip(470, "device_lost") == 480
    ring.write(ramp(680, 100), moment(T0 + 1))
    before, after = ring.read(100, 780, 1000), ring.read(200, 780, 1000)
    assert (before.start_sample, len(before.pcm), before.gap_reason) == (100, 100, None)
    assert (after.start_sample, len(after.pcm), after.gap_reason) == (680, 100, "device_lost")
    assert after.moment == moment(T0 + 1)
    assert ring.read(681, 780, 1000).gap_reason is None


def test_a_hole_costs_no_room() -> None:
    ring = Ring(300)
    ring.write(ramp(0, 200), moment(T0))
    ring.skip(1_000_000, "device_lost")
    ring.write(ramp(0, 100), moment(T0))
    assert ring.oldest == 0
    assert len(ring.read(0, ring.next, 1000).pcm) == 200


def test_the_shortest_hole_is_one_frame_shift_and_the_first_reason_is_kept() -> None:
    ring = Ring(300)
    assert ring.skip(0, "device_absent") == FRAME_SHIFT
    assert ring.skip(159, "overflow") == FRAME_SHIFT
    ring.write(ramp(0, 10), moment(T0))
    piece = ring.read(0, 1000, 1000)
    assert (piece.start_sample, piece.gap_reason) == (2 * FRAME_SHIFT, "device_absent")


def test_a_step_of_the_clock_ends_a_slice_without_a_gap() -> None:
    ring = Ring(1000)
    ring.write(ramp(0, 160), moment(T0))
    ring.write(ramp(160, 160), moment(T0 + samples_to_ns(160) + 30_000_000))
    first, second = ring.read(0, 320, 1000), ring.read(160, 320, 1000)
    assert len(first.pcm) == 160
    assert (second.start_sample, len(second.pcm), second.gap_reason) == (160, 160, None)
    assert second.moment == moment(T0 + samples_to_ns(160) + 30_000_000)


def test_nothing_there_is_an_empty_slice_at_the_next_sample() -> None:
    ring = Ring(1000)
    assert ring.read(0, 100, 100).moment is None
    ring.write(ramp(0, 100), moment(T0))
    piece = ring.read(100, 200, 100)
    assert (piece.start_sample, len(piece.pcm)) == (100, 0)
    assert piece.moment == moment(T0 + samples_to_ns(100))
    assert ring.read(5_000, 6_000, 100).start_sample == 100


def test_acknowledgements_only_move_forward_and_never_beyond_what_is_there() -> None:
    ring = Ring(1000)
    ring.write(ramp(0, 100), moment(T0))
    assert not ring.ack(101)
    assert ring.acked == 0
    assert ring.ack(60)
    assert not ring.ack(59)
    assert ring.ack(60)
    assert ring.acked == 60


def test_whoever_wants_to_know_is_told_when_samples_come_and_when_they_are_acknowledged() -> None:
    written: list[int] = []
    ring = Ring(1000)
    ring.on_written = lambda: written.append(ring.next)
    ring.write(ramp(0, 100), moment(T0))
    ring.write(ramp(100, 0), moment(T0))
    assert written == [100]
    assert not ring.wait_acked(50, 0.0)
    waiting = threading.Thread(target=lambda: ring.wait_acked(50, 30.0))
    waiting.start()
    ring.ack(50)
    waiting.join(30.0)
    assert not waiting.is_alive()


def test_a_reader_beside_a_writer_sees_only_what_was_written() -> None:
    ring = Ring(4_000)
    total = 200_000

    def write() -> None:
        for start in range(0, total, 500):
            ring.write(ramp(start, 500), moment(T0 + samples_to_ns(start)))

    writer = threading.Thread(target=write)
    writer.start()
    n_read, cursor = 0, 0
    while cursor < total:
        piece = ring.read(cursor, total, 1_700)
        assert piece.start_sample >= cursor
        np.testing.assert_array_equal(piece.pcm, ramp(piece.start_sample, len(piece.pcm)))
        cursor = piece.end_sample
        n_read += len(piece.pcm)
    writer.join()
    assert n_read > 0


def test_a_ring_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity: expected at least 1 sample, got 0"):
        Ring(0)


@dataclass
class _Model:
    """What was ever written: index -> (value, when)."""

    samples: dict[int, tuple[int, Moment]] = field(default_factory=dict)
    starts_after_gap: dict[int, str] = field(default_factory=dict)
    next: int = 0
    pending: str | None = None


class RingMachine(RuleBasedStateMachine):
    """Random writes, holes, clock steps, reads and acknowledgements against a dictionary."""

    @initialize(capacity=st.integers(1, 400))
    def start(self, capacity: int) -> None:
        self.ring = Ring(capacity)
        self.model = _Model()
        self.clock_ns = T0
        self.acked = 0
        self.values = np.random.default_rng(capacity)

    @rule(n_samples=st.integers(0, 500))
    def write(self, n_samples: int) -> None:
        pcm = self.values.integers(-32768, 32768, n_samples).astype(np.int16)
        self.ring.write(pcm, self._time(self.model.next))
        if n_samples and self.model.pending is not None:
            self.model.starts_after_gap[self.model.next] = self.model.pending
            self.model.pending = None
        for offset, value in enumerate(pcm.tolist()):
            index = self.model.next + offset
            self.model.samples[index] = (value, self._time(index))
        self.model.next += n_samples

    @rule(n_samples=st.integers(0, 2_000), reason=st.sampled_from(["device_lost", "overflow"]))
    def skip(self, n_samples: int, reason: str) -> None:
        skipped = self.ring.skip(n_samples, reason)
        assert skipped % FRAME_SHIFT == 0
        assert skipped >= FRAME_SHIFT
        assert abs(skipped - n_samples) <= FRAME_SHIFT
        self.model.pending = self.model.pending or reason
        self.model.next += skipped

    @rule(step_ns=st.sampled_from([-20_000_000, 30_000_000]))
    def step_clock(self, step_ns: int) -> None:
        self.clock_ns += step_ns

    @rule(stop=st.integers(0, 5_000))
    def ack(self, stop: int) -> None:
        if self.ring.ack(stop):
            assert self.acked <= stop <= self.model.next
            self.acked = stop

    @rule(start=st.integers(0, 5_000), length=st.integers(0, 600), most=st.integers(1, 700))
    def read(self, start: int, length: int, most: int) -> None:
        piece = self.ring.read(start, start + length, most)
        assert len(piece.pcm) <= most
        assert piece.start_sample >= min(start, self.model.next)
        if len(piece.pcm):
            assert piece.end_sample <= start + length
            self._check_samples(piece.start_sample, piece.pcm, piece.moment)
            skipped = [i for i in range(start, piece.start_sample) if i in self.model.samples]
            assert all(index < self.ring.oldest for index in skipped)
            expected = self.model.starts_after_gap.get(piece.start_sample)
            if expected is not None:
                assert piece.gap_reason == expected

    @invariant()
    def everything_held_can_be_read(self) -> None:
        assert self.ring.next == self.model.next
        assert self.ring.acked == self.acked
        cursor, n_read = 0, 0
        while True:
            piece = self.ring.read(cursor, self.model.next, 1_000)
            if len(piece.pcm) == 0:
                break
            self._check_samples(piece.start_sample, piece.pcm, piece.moment)
            n_read += len(piece.pcm)
            cursor = piece.end_sample
        assert n_read == min(self.ring.capacity, len(self.model.samples))

    def _check_samples(self, start: int, pcm: Pcm16, begin: Moment | None) -> None:
        assert begin is not None
        for offset, value in enumerate(pcm.tolist()):
            assert self.model.samples[start + offset] == (value, begin.after(samples_to_ns(offset)))

    def _time(self, sample: int) -> Moment:
        return moment(self.clock_ns + samples_to_ns(sample))


RingMachine.TestCase.settings = hypothesis_settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)
TestRing = RingMachine.TestCase


# --- replies to requests


@dataclass
class Served:
    """A server of a ring with 1 s, a hole of 1 s, and 1 s again."""

    status: SourceStatus = LISTENING

    def __post_init__(self) -> None:
        self.ring = Ring(60 * SAMPLE_RATE)
        self.ring.write(ramp(0, SAMPLE_RATE), moment(WALL0))
        self.ring.skip(SAMPLE_RATE, "device_lost")
        self.ring.write(ramp(0, SAMPLE_RATE), moment(WALL0 + 2 * NS_PER_SECOND))
        self.server = RingServer(
            "porch", EPOCH, "ipc:///x", self.ring, lambda: self.status, now=lambda: moment(WALL0)
        )

    def read(self, **request: object) -> RingReply:
        frames = self.answer({"v": 1, "op": "read", "stream": "porch", **request})
        return RingReply.decode(frames, "porch")

    def error(self, **request: object) -> dict[str, object]:
        (frame,) = self.answer({"v": 1, "op": "read", "stream": "porch", **request})
        body: dict[str, object] = json.loads(frame)
        return body

    def answer(self, request: dict[str, object]) -> list[bytes]:
        frames = self.server.answer(ReadRequest.model_validate(request).encode())
        assert frames is not None
        return frames

    def ack(self, stop: int, epoch: str = EPOCH) -> None:
        self.read()  # who has read nothing has nothing to acknowledge
        request = AckRequest.model_validate({"v": 1, "op": "ack", "epoch": epoch, "stop": stop})
        assert self.server.answer(request.encode()) is None


def test_a_read_gives_what_is_held_with_the_range_and_the_state() -> None:
    reply = Served().read(epoch=EPOCH, start=100, stop=300)
    np.testing.assert_array_equal(reply.block.pcm, ramp(100, 200))
    assert (reply.block.start_sample, reply.block.epoch) == (100, EPOCH)
    assert reply.block.moment.wall_ns == WALL0 + samples_to_ns(100) // 1_000 * 1_000
    assert (reply.oldest, reply.next, reply.acked) == (0, 3 * SAMPLE_RATE, 0)
    assert (reply.state, reply.detail, reply.block.ring) == ("listening", None, "ipc:///x")


def test_a_read_without_start_goes_on_after_the_last_acknowledgement() -> None:
    served = Served()
    served.ack(1_234)
    reply = served.read()
    assert (reply.block.start_sample, reply.acked) == (1_234, 1_234)
    assert reply.block.end_sample == SAMPLE_RATE


def test_a_read_behind_a_hole_carries_its_reason() -> None:
    reply = Served().read(start=SAMPLE_RATE)
    assert (reply.block.start_sample, reply.block.gap_reason) == (2 * SAMPLE_RATE, "device_lost")


def test_a_reply_never_carries_more_than_the_codec_takes() -> None:
    served = Served()
    served.ring.write(ramp(0, 20 * SAMPLE_RATE), moment(WALL0 + 3 * NS_PER_SECOND))
    assert len(served.read(start=2 * SAMPLE_RATE).block.pcm) == MAX_BLOCK_SAMPLES


def test_reads_of_another_epoch_or_stream_are_refused_with_the_facts() -> None:
    assert Served().error(epoch=OTHER_EPOCH) == {
        "v": 1,
        "error": "wrong_epoch",
        "epoch": EPOCH,
        "oldest": 0,
        "next": 3 * SAMPLE_RATE,
    }
    assert Served().error(stream="garden")["error"] == "wrong_stream"


def test_an_acknowledgement_of_the_process_before_this_one_moves_nothing() -> None:
    served = Served()
    served.ack(5_000, OTHER_EPOCH)
    assert served.ring.acked == 0
    served.ack(5_000)
    served.ack(4_000)
    served.ack(10**9)
    assert served.ring.acked == 5_000


def test_only_the_client_that_reads_the_ring_acknowledges_while_it_is_connected() -> None:
    ring = Ring(60 * SAMPLE_RATE)
    ring.write(ramp(0, SAMPLE_RATE), moment(WALL0))
    connected = {b"worker", b"stranger", b"status"}
    server = RingServer(
        "porch",
        EPOCH,
        "ipc:///x",
        ring,
        lambda: SourceStatus("listening"),
        is_trusted=connected.__contains__,
    )

    def read(client: bytes) -> None:
        request = ReadRequest(v=1, op="read", stream="porch")
        assert server.answer(request.encode(), client) is not None

    def acknowledge(client: bytes, stop: int) -> int:
        request = AckRequest(v=1, op="ack", epoch=EPOCH, stop=stop)
        assert server.answer(request.encode(), client) is None
        return ring.acked

    def refused(client: bytes, start: int | None, stop: int | None) -> bool:
        request = ReadRequest(v=1, op="read", stream="porch", start=start, stop=stop)
        reply = server.answer(request.encode(), client)
        assert reply is not None
        return b"not_allowed" in reply[0]

    for start, stop in ((None, None), (0, None), (None, 10), (0, 1)):
        assert refused(b"of another user", start, stop)
    assert not refused(b"of another user", 0, 0), "how the stream is may be asked"
    assert acknowledge(b"stranger", 16_000) == 0  # it has read nothing
    for client in connected:
        read(client)
    assert acknowledge(b"worker", 1000) == 1000
    assert acknowledge(b"stranger", 16_000) == 1000
    assert acknowledge(b"worker", 2000) == 2000
    assert server.n_malformed == 2
    connected.remove(b"worker")
    connected.add(b"next worker")
    assert acknowledge(b"next worker", 3000) == 2000
    read(b"next worker")
    assert acknowledge(b"next worker", 3000) == 3000


def test_the_state_is_reported_with_its_reason_cut_to_size() -> None:
    served = Served(SourceStatus("missing", "x" * 9_999))
    reply = served.read(start=3 * SAMPLE_RATE)
    assert (reply.state, reply.detail) == ("missing", "x" * 512)
    assert len(reply.block.pcm) == 0


def test_the_last_sample_is_reported_as_the_last_only_where_it_is_given() -> None:
    served = Served(ENDED)
    early = served.read(start=0, stop=100)
    assert (early.state, early.block.is_last) == ("ended", False)
    assert not served.server.end_delivered
    assert served.read(start=2 * SAMPLE_RATE).block.is_last
    assert served.server.end_delivered


def test_a_ring_that_never_had_a_sample_answers_with_the_time_of_day() -> None:
    server = RingServer(
        "porch", EPOCH, "ipc:///x", Ring(100), lambda: LISTENING, now=lambda: moment(WALL0)
    )
    frames = server.answer([b'{"v":1,"op":"read","stream":"porch"}'])
    assert frames is not None
    assert RingReply.decode(frames, "porch").block.moment.wall_ns == WALL0


JUNK = st.one_of(
    st.lists(st.binary(max_size=200), max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "v": st.sampled_from([1, 2, "1", None]),
            "op": st.sampled_from(["read", "ack", "drop", 7]),
            "stream": st.sampled_from(["porch", "", 5]),
            "epoch": st.sampled_from([None, EPOCH, "zz", 9]),
            "start": st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans()),
            "stop": st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3)),
        },
    ).map(lambda body: [json.dumps(body).encode()]),
)


@given(JUNK)
@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
def test_requests_from_outside_change_nothing_but_the_cursor(frames: list[bytes]) -> None:
    served = Served()
    logging.disable(logging.WARNING)
    try:
        answer = served.server.answer(frames)
    finally:
        logging.disable(logging.NOTSET)
    assert served.ring.next == 3 * SAMPLE_RATE
    assert 0 <= served.ring.acked <= served.ring.next
    if served.server.n_malformed:
        assert answer is not None
        assert json.loads(answer[0])["error"] == "malformed"
        assert served.ring.acked == 0
    np.testing.assert_array_equal(served.read(start=0).block.pcm, ramp(0, SAMPLE_RATE))


def test_malformed_requests_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    served = Served()
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            served.server.answer([b"\xff"])
    assert served.server.n_malformed == 50
    assert len(caplog.records) == 1


# --- live blocks


@dataclass
class Link:
    """A ring with a worker that takes live blocks, or does not."""

    status: SourceStatus = LISTENING
    is_paced: bool = True
    is_up: bool = True
    received: list[AudioBlock] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ring = Ring(60 * SAMPLE_RATE)
        self.server = RingServer(
            "porch",
            EPOCH,
            "ipc:///x",
            self.ring,
            lambda: self.status,
            is_paced=self.is_paced,
            now=lambda: moment(WALL0),
        )

    def write(self, n_samples: int) -> None:
        start = self.ring.next
        self.ring.write(ramp(start, n_samples), moment(WALL0 + samples_to_ns(start)))

    def send_next(self) -> bool:
        return self.server.send_next(self.send)

    def run(self) -> None:
        """Send until the end is sent, and asked for, or something is wrong."""
        with sending(self) as sender:
            sender.notify(self.server)
            wait_for(lambda: self._has_sent_end or self.server.failure is not None)
            self.ask()

    def ask(self, client: bytes = b"", *, confirms_end: bool = False) -> None:
        """Ask the ring as a worker does that has all of it."""
        request = ReadRequest(v=1, op="read", stream="porch", epoch=EPOCH, start=self.ring.next)
        request = request.model_copy(update={"confirms_end": confirms_end})
        self.server.answer(request.encode(), client)

    @property
    def _has_sent_end(self) -> bool:
        return any(block.is_last for block in self.received)

    def send(self, frames: list[bytes]) -> bool:
        if self.is_up:
            self.received.append(AudioBlock.decode(frames))
        return self.is_up


def test_what_is_written_is_sent_block_by_block() -> None:
    link = Link()
    for size in (1_600, 37, 1_600):
        link.write(size)
        link.send_next()
        link.send_next()
    assert [(b.start_sample, len(b.pcm)) for b in link.received] == [
        (0, 1_600),
        (1_600, 37),
        (1_637, 1_600),
    ]
    np.testing.assert_array_equal(link.received[2].pcm, ramp(1_637, 1_600))
    assert link.received[0].ring == "ipc:///x"


def test_live_blocks_that_are_not_taken_stay_in_the_ring() -> None:
    link = Link(is_up=False)
    link.write(1_600)
    link.send_next()
    link.is_up = True
    link.write(1_600)
    link.send_next()
    assert [b.start_sample for b in link.received] == [1_600]
    assert (link.server.n_sent, link.server.n_refused) == (1, 1)
    assert len(link.ring.read(0, 1_600, 1_600).pcm) == 1_600


def test_the_first_block_after_a_hole_says_why() -> None:
    link = Link()
    link.write(1_600)
    link.send_next()
    link.ring.skip(16_000, "device_lost")
    link.send_next()
    link.write(1_600)
    link.send_next()
    assert [(b.start_sample, b.gap_reason) for b in link.received] == [
        (0, None),
        (17_600, "device_lost"),
    ]


def test_a_recording_waits_for_the_worker_and_skips_what_it_has_read_meanwhile() -> None:
    link = Link(is_paced=False, is_up=False)
    link.write(3_200)
    assert not link.send_next()
    assert not link.send_next()
    assert link.server.n_refused == 2
    link.is_up = True
    link.ring.ack(1_600)
    link.send_next()
    assert [(b.start_sample, len(b.pcm)) for b in link.received] == [(1_600, 1_600)]


def test_what_is_sent_late_never_makes_a_block_longer_than_a_second() -> None:
    link = Link()
    link.write(40_000)
    for _ in range(4):
        link.send_next()
    assert [len(b.pcm) for b in link.received] == [16_000, 16_000, 8_000]


def test_the_end_is_sent_with_the_last_samples_or_after_them_until_the_worker_has_asked() -> None:
    with_samples, after = Link(status=ENDED), Link()
    with_samples.write(100)
    with_samples.run()
    assert (len(with_samples.received[0].pcm), with_samples.received[0].is_last) == (100, True)
    after.write(100)
    after.send_next()
    after.status = ENDED
    after.run()
    assert [(len(b.pcm), b.is_last) for b in after.received][:2] == [(100, False), (0, True)]


def test_the_end_of_a_live_recording_is_repeated_until_it_is_taken() -> None:
    link = Link(status=ENDED, is_up=False)
    link.write(100)
    link.send_next()
    assert not link.send_next()

    with sending(link) as sender:
        sender.notify(link.server)
        wait_for(lambda: link.server.n_refused > 3)
        link.is_up = True
        wait_for(lambda: len(link.received) > 1)
        assert not link.server.end_delivered  # what is sent may be lost
        link.ask()
    assert {(b.start_sample, len(b.pcm), b.is_last) for b in link.received} == {(100, 0, True)}


def test_only_what_the_present_worker_was_told_is_the_end() -> None:
    link = Link(status=ENDED)
    link.write(100)
    link.server.use_worker(b"one")
    link.ask(b"a recorder")
    assert not link.server.end_delivered
    link.ask(b"one")
    assert link.server.end_delivered
    link.server.use_worker(b"two")
    assert not link.server.end_delivered
    link.ask(b"two")
    assert link.server.end_delivered


def test_a_worker_that_confirms_the_end_keeps_the_ring_until_it_has_done_so() -> None:
    link = Link(status=ENDED)
    link.write(100)
    link.server.use_worker(b"one")
    link.ask(b"one", confirms_end=True)
    link.ask(b"a recorder")
    assert link.server.acknowledge(ack(100), b"one")
    assert link.server.end_delivered
    assert not link.server.is_done_with
    assert link.server.acknowledge(ack(90, last=True), b"one") is False
    assert not link.server.is_done_with
    assert link.server.acknowledge(ack(100, last=True), b"one")
    assert link.server.is_done_with
    link.server.use_worker(b"two")
    assert link.server.is_done_with  # for good


def test_a_worker_that_confirms_nothing_is_done_when_it_was_told_and_has_acknowledged() -> None:
    link = Link(status=ENDED)
    link.write(100)
    link.ask(b"one")
    assert not link.server.is_done_with
    link.server.acknowledge(ack(100), b"one")
    assert link.server.is_done_with


def test_a_source_that_goes_on_is_not_done_with_whatever_is_said() -> None:
    link = Link()
    link.write(100)
    link.ask(b"one", confirms_end=True)
    assert link.server.acknowledge(ack(100, last=True), b"one")
    assert not link.server.is_done_with


def ack(stop: int, *, last: bool = False) -> AckRequest:
    return AckRequest(v=1, op="ack", epoch=EPOCH, stop=stop, last=last)


@contextmanager
def sending(*links: Link) -> Iterator[BlockSender]:
    """Send the blocks of rings in one thread."""
    sender = BlockSender()
    for link in links:
        sender.add(link.server, link.send)
    sender.start()
    try:
        yield sender
    finally:
        sender.close(30.0)


def wait_for(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30.0
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_one_thread_sends_the_blocks_of_all_rings_in_the_order_of_each() -> None:
    links = [Link() for _ in range(3)]
    with sending(*links) as sender:
        for _ in range(20):
            for number, link in enumerate(links):
                link.write(160 * (1 + number))
                sender.notify(link.server)
        wait_for(lambda: not any(link.server.is_behind for link in links))
    for number, link in enumerate(links):
        assert sum(len(block.pcm) for block in link.received) == 20 * 160 * (1 + number)
        starts = [block.start_sample for block in link.received]
        assert starts == sorted(set(starts))


def test_what_was_written_at_once_goes_out_piece_by_piece_although_it_was_told_once() -> None:
    link = Link()
    link.write(40_000)
    with sending(link) as sender:
        sender.notify(link.server)
        wait_for(lambda: not link.server.is_behind)
    assert [len(block.pcm) for block in link.received] == [16_000, 16_000, 8_000]


def test_a_ring_whose_block_is_not_taken_does_not_hold_up_another() -> None:
    stuck, other = Link(is_paced=False, is_up=False), Link()
    with sending(stuck, other) as sender:
        stuck.write(1_600)
        sender.notify(stuck.server)
        wait_for(lambda: stuck.server.n_refused > 0)
        other.write(1_600)
        sender.notify(other.server)
        wait_for(lambda: len(other.received) == 1)
        stuck.is_up = True
        wait_for(lambda: len(stuck.received) == 1)


def test_the_end_is_sent_again_until_the_worker_has_confirmed_it() -> None:
    link = Link(status=ENDED)
    link.write(100)
    link.ask(b"one", confirms_end=True)
    assert link.server.end_delivered
    with sending(link):
        wait_for(lambda: sum(block.is_last for block in link.received) > 2)
        assert link.server.acknowledge(ack(100, last=True), b"one")
        time.sleep(0.01)  # what is being sent now is the last
        n_sent = len(link.received)
        wait_for(lambda: link.server.is_done_with)
    assert len(link.received) <= n_sent + 1


def test_a_bug_in_sending_ends_one_stream_and_reaches_the_main_thread() -> None:
    broken, other = Link(), Link()
    broken.send = lambda frames: bool(1 // 0)  # type: ignore[method-assign]
    with sending(broken, other) as sender:
        for link in (broken, other):
            link.write(100)
            sender.notify(link.server)
        wait_for(lambda: len(other.received) == 1 and broken.server.failure is not None)
    assert isinstance(broken.server.failure, ZeroDivisionError)


def test_a_ring_that_was_removed_is_sent_no_more() -> None:
    link = Link()
    with sending(link) as sender:
        sender.remove(link.server)
        link.write(100)
        sender.notify(link.server)
    assert link.received == []
