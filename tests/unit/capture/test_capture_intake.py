"""From a source into the ring: losses, retries, rates, the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from clocks import FakeClock
from source_blocks import MONO0, WALL0

from ast_stream.audio.pcm import ChannelSelector, Pcm
from ast_stream.capture.intake import Intake
from ast_stream.capture.ring import Ring, RingSlice
from ast_stream.capture.sources.base import SourceBlock, SourceError, SourceHungError, SourceStatus
from ast_stream.errors import AudioError, StartupError
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

EPOCH, OTHER_EPOCH = "ab" * 16, "cd" * 16
BLOCK = 1_600
LISTENING = SourceStatus("listening")
ENDED = SourceStatus("ended")


class Stop(threading.Event):
    """A stop event on the clock of the test: waiting takes no time."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.clock.pass_s(timeout)
        return self.is_set()


Step = SourceBlock | Exception | None


@dataclass
class ScriptedSource:
    """Each opening takes one script: an exception, or what the reads give in turn."""

    stop: Stop
    scripts: list[list[Step] | Exception]
    is_live: bool = True
    is_paced: bool = True
    calls: list[str] = field(default_factory=list)
    close_error: Exception | None = None
    _steps: Iterator[Step] = field(default_factory=lambda: iter(()))

    def open(self) -> None:
        self.calls.append("open")
        script = self.scripts.pop(0)
        if isinstance(script, Exception):
            raise script
        self._steps = iter(script)

    def read(self, timeout_s: float) -> SourceBlock | None:
        del timeout_s
        step = next(self._steps, self.stop)
        if step is self.stop:
            self.stop.set()
            return None
        if isinstance(step, Exception):
            raise step
        if isinstance(step, SourceBlock):
            n_frames = len(step.pcm)
            self.stop.clock.now_ns = step.monotonic_ns + n_frames * NS_PER_SECOND // step.rate
        assert step is None or isinstance(step, SourceBlock)
        return step

    def close(self) -> None:
        self.calls.append("close")
        if self.close_error is not None:
            raise self.close_error


@dataclass
class Bench:
    """An intake on scripts, with everything around it in hand."""

    scripts: list[list[Step] | Exception]
    is_live: bool = True
    is_paced: bool = True
    ring_s: float = 60.0
    warnings: list[str] = field(default_factory=list)
    channels: ChannelSelector = field(default_factory=ChannelSelector)

    def __post_init__(self) -> None:
        self.clock = FakeClock(MONO0)
        self.stop = Stop(self.clock)
        self.source = ScriptedSource(self.stop, self.scripts, self.is_live, self.is_paced)
        self.ring = Ring(round(self.ring_s * SAMPLE_RATE))
        self.intake = Intake(
            self.source,
            self.ring,
            self.stop,
            channels=self.channels,
            warn_lost=self._warn,
            warn_back=self._warn,
            warn_fault=self._warn,
            monotonic_ns=self.clock,
            random_unit=lambda: 0.5,
        )

    def run(self) -> Bench:
        self.intake.run()
        return self

    def slices(self) -> list[RingSlice]:
        slices, cursor = [], 0
        while cursor < self.ring.next:
            slices.append(self.ring.read(cursor, self.ring.next, 10**9))
            cursor = slices[-1].end_sample
        return slices

    def _warn(self, message: str, *arguments: object) -> None:
        self.warnings.append(message % arguments)


def block(
    at_s: float,
    value: int = 1,
    *,
    n_frames: int = BLOCK,
    rate: int = SAMPLE_RATE,
    overflowed: bool = False,
    is_last: bool = False,
) -> SourceBlock:
    """A block of one value whose first frame was captured `at_s` after the start."""
    pcm: Pcm = np.full((n_frames, 1), value, dtype=np.int16)
    since_ns = round(at_s * NS_PER_SECOND)
    return SourceBlock(pcm, rate, WALL0 + since_ns, MONO0 + since_ns, overflowed, is_last)


def _wall_ns(piece: RingSlice) -> int:
    assert piece.moment is not None
    return piece.moment.wall_ns


def lost(reason: str = "device_lost") -> SourceError:
    return SourceError(reason, f"the device: {reason}")


def test_blocks_become_one_line_of_samples_and_time() -> None:
    bench = Bench([[block(0.0), None, block(0.13, 2), block(0.2, 3)]]).run()
    (piece,) = bench.slices()
    assert (piece.start_sample, _wall_ns(piece), piece.gap_reason) == (0, WALL0, None)
    np.testing.assert_array_equal(piece.pcm, np.repeat([1, 2, 3], BLOCK))
    assert bench.intake.failure is None
    assert bench.source.calls == ["open", "close"]


def test_a_lost_device_leaves_a_hole_as_long_as_the_time_that_passed() -> None:
    bench = Bench([[block(0.0), lost()], lost("device_absent"), [block(4.013, 2)]]).run()
    before, after = bench.slices()
    assert len(before.pcm) == BLOCK
    assert after.gap_reason == "device_lost"
    assert after.start_sample == pytest.approx(4.013 * SAMPLE_RATE, abs=80)
    assert (after.start_sample - BLOCK) % 160 == 0
    assert _wall_ns(after) == WALL0 + 4_013_000_000
    assert bench.source.calls == ["open", "close"] * 3
    assert bench.intake.n_losses == 2
    assert bench.warnings[-1] == "audio goes on after device_lost: 3.91 s lost"


def test_a_device_absent_at_the_start_is_waited_for_and_the_wait_is_a_gap() -> None:
    bench = Bench([lost("device_absent"), lost("device_absent"), [block(7.0)]]).run()
    (piece,) = bench.slices()
    assert (piece.start_sample, piece.gap_reason) == (7 * SAMPLE_RATE, "device_absent")
    assert bench.warnings[0] == "the device: device_absent; trying again"


def test_pauses_grow_to_three_seconds_and_start_over_after_steady_sound() -> None:
    failures: list[list[Step] | Exception] = [lost()] * 6
    bench = Bench([*failures, [block(100.0), block(106.0), lost()], [block(107.0)]]).run()
    assert bench.stop.waits == pytest.approx([0.5, 1, 2, 3, 3, 3, 0.5])


def test_pauses_are_spread_so_that_many_do_not_come_back_in_step() -> None:
    bench = Bench([lost(), [block(1.0)]])
    bench.intake = Intake(
        bench.source, bench.ring, bench.stop, monotonic_ns=bench.clock, random_unit=lambda: 0.0
    )
    bench.run()
    assert bench.stop.waits == pytest.approx([0.4])


def test_pauses_go_on_growing_where_a_source_is_lost_soon_after_each_opening() -> None:
    openings: list[list[Step] | Exception] = [[block(start_s), lost()] for start_s in range(4)]
    bench = Bench([*openings, [block(20.0), lost()], [block(40.0)]]).run()
    assert bench.stop.waits == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert bench.intake.n_losses == 5


def test_a_source_steady_for_a_while_is_tried_soon_again() -> None:
    openings: list[list[Step] | Exception] = [[block(start_s), lost()] for start_s in range(3)]
    bench = Bench([*openings, [block(20.0), block(26.0), lost()], lost(), [block(40.0)]])
    bench.run()
    assert bench.stop.waits == [0.5, 1.0, 2.0, 0.5, 1.0]


def test_a_server_that_denies_access_is_asked_ever_more_rarely_and_that_is_no_hang() -> None:
    denied = [SourceError("url_absent", "wrong password", max_pause_s=60.0) for _ in range(9)]
    bench = Bench([*denied, [block(200.0)]])
    stuck: list[float] = []
    wait = bench.stop.wait

    def watched(timeout: float | None = None) -> bool:
        is_set = wait(timeout)
        stuck.append(bench.intake.stuck_s)
        return is_set

    bench.stop.wait = watched  # type: ignore[method-assign]
    bench.run()
    assert sum(bench.stop.waits) == pytest.approx(0.5 + 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60)
    assert max(stuck) <= 5.0


def test_an_overflow_is_a_gap_even_where_the_clock_shows_none() -> None:
    bench = Bench([[block(0.0), block(0.1, 2, overflowed=True), block(0.7, 3, overflowed=True)]])
    first, second, third = bench.run().slices()
    assert (second.start_sample, second.gap_reason) == (BLOCK + 160, "overflow")
    assert third.gap_reason == "overflow"
    assert third.start_sample - second.end_sample == pytest.approx(0.5 * SAMPLE_RATE, abs=160)
    assert bench.intake.n_overflows == 2
    assert len(first.pcm) == BLOCK


def test_a_first_block_after_an_overflow_has_nothing_before_it_to_miss() -> None:
    (piece,) = Bench([[block(0.0, overflowed=True)]]).run().slices()
    assert (piece.start_sample, piece.gap_reason) == (0, None)


def test_what_the_resampler_holds_is_kept_when_the_device_is_lost() -> None:
    first = block(0.0, 8_000, n_frames=4_800, rate=48_000)
    again = block(1.0, 8_000, n_frames=4_800, rate=48_000)
    before, after = Bench([[first, lost()], [again]]).run().slices()
    assert len(before.pcm) == BLOCK
    assert after.start_sample == SAMPLE_RATE


def test_a_source_that_changes_its_rate_goes_on_without_a_gap() -> None:
    bench = Bench([[block(0.0), block(0.1, n_frames=4_410, rate=44_100), block(0.2)]]).run()
    (piece,) = bench.slices()
    assert len(piece.pcm) == 3 * BLOCK


def test_a_drifting_device_steps_the_clock_without_a_gap() -> None:
    drift = 1.001
    blocks: list[Step] = [block(number * 0.1 * drift) for number in range(1_200)]
    slices = Bench([blocks], ring_s=200).run().slices()
    assert len(slices) > 1
    assert [piece.gap_reason for piece in slices] == [None] * len(slices)
    assert sum(len(piece.pcm) for piece in slices) == 1_200 * BLOCK
    last = slices[-1]
    true_ns = WALL0 + samples_to_ns(last.start_sample) * drift
    assert abs(_wall_ns(last) - true_ns) < 90_000_000


def test_a_recording_ends_with_its_last_sample() -> None:
    last = block(0.1, 2, n_frames=700, is_last=True)
    bench = Bench([[block(0.0), last]], is_live=False).run()
    assert bench.ring.next == BLOCK + 700
    assert bench.intake.status() == ENDED
    assert bench.intake.failure is None
    assert not bench.stop.is_set()


def test_a_recording_that_was_not_there_at_first_begins_without_a_gap() -> None:
    bench = Bench([lost("file_absent"), [block(3.0, is_last=True)]], is_live=False).run()
    (piece,) = bench.slices()
    assert (piece.start_sample, piece.gap_reason, _wall_ns(piece)) == (0, None, WALL0 + 3 * 10**9)


def test_the_time_of_a_recording_is_never_corrected() -> None:
    blocks: list[Step] = [block(number * 0.001) for number in range(1_000)]
    assert len(Bench([blocks], is_live=False, ring_s=200).run().slices()) == 1


def test_a_damaged_recording_ends_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        bench = Bench([[block(0.0), AudioError("a.wav: damaged")]], is_live=False).run()
    assert bench.intake.status() == SourceStatus("ended", "a.wav: damaged")
    assert isinstance(bench.intake.failure, AudioError)
    assert "a.wav: damaged" in caplog.text
    assert bench.ring.next == BLOCK


def test_a_hung_source_ends_the_intake_and_stays_missing() -> None:
    bench = Bench([[block(0.0), lost("stalled")]])
    bench.source.close_error = SourceHungError("stalled", "no answer")
    bench.run()
    assert isinstance(bench.intake.failure, SourceHungError)
    assert bench.intake.status() == SourceStatus("missing", "no answer")


@pytest.mark.parametrize("error", [StartupError("no PortAudio"), KeyError("a bug of ours")])
def test_what_cannot_be_retried_is_handed_to_the_main_thread(error: Exception) -> None:
    bench = Bench([error]).run()
    assert bench.intake.failure is error


def test_status_is_missing_until_sound_comes_and_when_it_stays_away() -> None:
    bench = Bench([[block(0.0)]])
    assert bench.intake.status() == SourceStatus("missing", "starting")
    bench.run()
    assert bench.intake.status() == LISTENING
    bench.clock.pass_s(2.9)
    assert bench.intake.status() == LISTENING
    bench.clock.pass_s(0.2)
    assert bench.intake.status() == SourceStatus("missing", "no audio for 3 s")


def test_status_says_why_the_device_is_missing() -> None:
    bench = Bench([[block(0.0), lost()], StartupError("enough")]).run()
    assert bench.intake.status() == SourceStatus("missing", "the device: device_lost")


def silence(at_s: float, n_channels: int = 1) -> SourceBlock:
    since_ns = round(at_s * NS_PER_SECOND)
    pcm = np.zeros((SAMPLE_RATE, n_channels), dtype=np.int16)
    return SourceBlock(pcm, SAMPLE_RATE, WALL0 + since_ns, MONO0 + since_ns)


def test_a_source_of_zeros_alone_is_degraded_and_well_again_with_its_first_sound() -> None:
    bench = Bench([[silence(at_s) for at_s in range(12)]]).run()
    assert bench.intake.status() == SourceStatus(
        "degraded",
        "digital silence for 12 s: muted, unplugged, or channels of opposite phase that cancel",
    )
    (warning,) = bench.warnings
    assert warning.startswith("no sound of a room: digital silence for 10 s")
    bench = Bench([[*(silence(at_s) for at_s in range(12)), noise_block(12.0)]]).run()
    assert bench.intake.status() == LISTENING
    assert bench.warnings[1:] == ["the source gives sound again"]


def test_the_wanted_channel_alone_is_captured() -> None:
    bench = Bench([[noise_block(0.0, 4)]], channels=ChannelSelector(2))
    np.testing.assert_array_equal(bench.run().slices()[0].pcm, noise_block(0.0, 4).pcm[:, 2])


def test_a_channel_that_is_not_there_ends_a_recording_and_is_waited_for_in_a_live_source() -> None:
    bench = Bench([[block(0.0)]], is_live=False, channels=ChannelSelector(1)).run()
    assert isinstance(bench.intake.failure, AudioError)
    assert "channel 1 is wanted" in str(bench.intake.failure)
    bench = Bench([[block(0.0)], [noise_block(1.0, 2)]], channels=ChannelSelector(1)).run()
    assert bench.warnings[0].startswith("channel 1 is wanted (counted from 0)")
    assert bench.intake.status() == LISTENING


def noise_block(at_s: float, n_channels: int = 1) -> SourceBlock:
    generator = np.random.default_rng(n_channels)
    pcm = generator.integers(-9_000, 9_000, (BLOCK, n_channels)).astype(np.int16)
    since_ns = round(at_s * NS_PER_SECOND)
    return SourceBlock(pcm, SAMPLE_RATE, WALL0 + since_ns, MONO0 + since_ns)


def test_a_recording_does_not_outrun_the_worker_by_more_than_a_quarter_of_the_ring() -> None:
    blocks: list[Step] = [block(0.0) for _ in range(400)]
    bench = Bench([blocks], is_live=False, is_paced=False, ring_s=40)
    stop = threading.Event()
    bench.intake = Intake(bench.source, bench.ring, stop, monotonic_ns=bench.clock)
    seen: list[int] = []

    def acknowledge() -> None:
        while bench.ring.acked < 400 * BLOCK:
            if bench.ring.next == bench.ring.acked:
                time.sleep(0.001)
                continue
            seen.append(bench.ring.next - bench.ring.acked)
            bench.ring.ack(bench.ring.next)
        stop.set()

    worker = threading.Thread(target=acknowledge)
    worker.start()
    bench.run()
    worker.join()
    assert max(seen) <= 10 * SAMPLE_RATE + BLOCK
    assert bench.ring.oldest == 0
