"""The ring never reorders, duplicates or invents samples."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ast_stream.capture.ring import OVERWRITTEN, Ring
from ast_stream.messages.event import Pcm16
from ast_stream.units import FRAME_SHIFT, samples_to_ns

T0 = 1_700_000_000_000_000_000


def ramp(start: int, n_samples: int) -> Pcm16:
    return (np.arange(start, start + n_samples) % 30_000).astype(np.int16)


def test_samples_come_back_as_written_whatever_the_block_sizes() -> None:
    ring = Ring(1000)
    position = 0
    for size in (1, 160, 0, 333, 200):
        ring.write(ramp(position, size), T0 + samples_to_ns(position))
        position += size
    piece = ring.read(0, position, 10_000)
    assert piece.start_sample == 0
    assert piece.time_ns == T0
    np.testing.assert_array_equal(piece.pcm, ramp(0, position))


def test_newest_samples_replace_the_oldest() -> None:
    ring = Ring(100)
    ring.write(ramp(0, 250), T0)
    assert (ring.oldest, ring.next) == (150, 250)
    piece = ring.read(0, 250, 1000)
    assert piece.start_sample == 150
    assert piece.time_ns == T0 + samples_to_ns(150)
    assert piece.gap_reason == OVERWRITTEN
    np.testing.assert_array_equal(piece.pcm, ramp(150, 100))


def test_a_hole_ends_a_slice_and_its_reason_stands_before_the_next() -> None:
    ring = Ring(1000)
    ring.write(ramp(0, 200), T0)
    assert ring.skip(470, "device_lost") == 480
    ring.write(ramp(680, 100), T0 + 1)
    before, after = ring.read(100, 780, 1000), ring.read(200, 780, 1000)
    assert (before.start_sample, len(before.pcm), before.gap_reason) == (100, 100, None)
    assert (after.start_sample, len(after.pcm), after.gap_reason) == (680, 100, "device_lost")
    assert after.time_ns == T0 + 1
    assert ring.read(681, 780, 1000).gap_reason is None


def test_a_hole_costs_no_room() -> None:
    ring = Ring(300)
    ring.write(ramp(0, 200), T0)
    ring.skip(1_000_000, "device_lost")
    ring.write(ramp(0, 100), T0)
    assert ring.oldest == 0
    assert len(ring.read(0, ring.next, 1000).pcm) == 200


def test_the_shortest_hole_is_one_frame_shift_and_the_first_reason_is_kept() -> None:
    ring = Ring(300)
    assert ring.skip(0, "device_absent") == FRAME_SHIFT
    assert ring.skip(159, "overflow") == FRAME_SHIFT
    ring.write(ramp(0, 10), T0)
    piece = ring.read(0, 1000, 1000)
    assert (piece.start_sample, piece.gap_reason) == (2 * FRAME_SHIFT, "device_absent")


def test_a_step_of_the_clock_ends_a_slice_without_a_gap() -> None:
    ring = Ring(1000)
    ring.write(ramp(0, 160), T0)
    ring.write(ramp(160, 160), T0 + samples_to_ns(160) + 30_000_000)
    first, second = ring.read(0, 320, 1000), ring.read(160, 320, 1000)
    assert len(first.pcm) == 160
    assert (second.start_sample, len(second.pcm), second.gap_reason) == (160, 160, None)
    assert second.time_ns == T0 + samples_to_ns(160) + 30_000_000


def test_nothing_there_is_an_empty_slice_at_the_next_sample() -> None:
    ring = Ring(1000)
    assert ring.read(0, 100, 100).time_ns is None
    ring.write(ramp(0, 100), T0)
    piece = ring.read(100, 200, 100)
    assert (piece.start_sample, len(piece.pcm)) == (100, 0)
    assert piece.time_ns == T0 + samples_to_ns(100)
    assert ring.read(5_000, 6_000, 100).start_sample == 100


def test_acknowledgements_only_move_forward_and_never_beyond_what_is_there() -> None:
    ring = Ring(1000)
    ring.write(ramp(0, 100), T0)
    assert not ring.ack(101)
    assert ring.acked == 0
    assert ring.ack(60)
    assert not ring.ack(59)
    assert ring.ack(60)
    assert ring.acked == 60


def test_waiting_ends_when_samples_come_and_when_they_are_acknowledged() -> None:
    ring = Ring(1000)
    assert not ring.wait_written(0, 0.0)
    waiting = threading.Thread(target=lambda: ring.wait_written(0, 30.0))
    waiting.start()
    ring.write(ramp(0, 100), T0)
    waiting.join(30.0)
    assert not waiting.is_alive()
    assert not ring.wait_acked(50, 0.0)
    ring.ack(50)
    assert ring.wait_acked(50, 0.0)


def test_a_reader_beside_a_writer_sees_only_what_was_written() -> None:
    ring = Ring(4_000)
    total = 200_000

    def write() -> None:
        for start in range(0, total, 500):
            ring.write(ramp(start, 500), T0 + samples_to_ns(start))

    writer = threading.Thread(target=write)
    writer.start()
    n_read, cursor = 0, 0
    while cursor < total:
        ring.wait_written(cursor, 1.0)
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
    """What was ever written: index -> (value, wall time)."""

    samples: dict[int, tuple[int, int]] = field(default_factory=dict)
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
            self._check_samples(piece.start_sample, piece.pcm, piece.time_ns)
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
            self._check_samples(piece.start_sample, piece.pcm, piece.time_ns)
            n_read += len(piece.pcm)
            cursor = piece.end_sample
        assert n_read == min(self.ring.capacity, len(self.model.samples))

    def _check_samples(self, start: int, pcm: Pcm16, time_ns: int | None) -> None:
        assert time_ns is not None
        for offset, value in enumerate(pcm.tolist()):
            assert self.model.samples[start + offset] == (value, time_ns + samples_to_ns(offset))

    def _time(self, sample: int) -> int:
        return self.clock_ns + samples_to_ns(sample)


RingMachine.TestCase.settings = hypothesis_settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)
TestRing = RingMachine.TestCase
