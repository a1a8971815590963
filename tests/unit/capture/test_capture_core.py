"""The capture process without its sockets: losses, retries, replies, blocks."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ast_stream.audio.channels import Channels
from ast_stream.audio.source import Pcm, SourceBlock, SourceError, SourceHungError
from ast_stream.capture.intake import Intake, SourceStatus
from ast_stream.capture.ring import Ring, RingSlice
from ast_stream.capture.ring_service import RingService
from ast_stream.capture.sender import BlockSender
from ast_stream.errors import AudioError, StartupError
from ast_stream.messages.audio import (
    MAX_BLOCK_SAMPLES,
    AckRequest,
    ReadRequest,
    RingReply,
    decode_block,
    decode_ring_reply,
    encode_request,
)
from ast_stream.messages.event import AudioBlock, Pcm16
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

MONO0, WALL0 = 5_000_000_000, 1_763_700_000_000_000_000
EPOCH, OTHER_EPOCH = "ab" * 16, "cd" * 16
BLOCK = 1_600
LISTENING = SourceStatus("listening")
ENDED = SourceStatus("ended")


class Clock:
    """A clock that the script of a source moves."""

    def __init__(self) -> None:
        self.now_ns = MONO0

    def __call__(self) -> int:
        return self.now_ns

    def move(self, duration_s: float) -> None:
        self.now_ns += round(duration_s * NS_PER_SECOND)


class Stop(threading.Event):
    """A stop event on the clock of the test: waiting takes no time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.clock.move(timeout)
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
    channels: Channels = field(default_factory=Channels)

    def __post_init__(self) -> None:
        self.clock = Clock()
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


def lost(reason: str = "device_lost") -> SourceError:
    return SourceError(reason, f"the device: {reason}")


def test_blocks_become_one_line_of_samples_and_time() -> None:
    bench = Bench([[block(0.0), None, block(0.13, 2), block(0.2, 3)]]).run()
    (piece,) = bench.slices()
    assert (piece.start_sample, piece.time_ns, piece.gap_reason) == (0, WALL0, None)
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
    assert after.time_ns == WALL0 + 4_013_000_000
    assert bench.source.calls == ["open", "close"] * 3
    assert bench.intake.n_losses == 2
    assert bench.warnings[-1] == "audio goes on after device_lost: 3.91 s lost"


def test_a_device_absent_at_the_start_is_waited_for_and_the_wait_is_a_gap() -> None:
    bench = Bench([lost("device_absent"), lost("device_absent"), [block(7.0)]]).run()
    (piece,) = bench.slices()
    assert (piece.start_sample, piece.gap_reason) == (7 * SAMPLE_RATE, "device_absent")
    assert bench.warnings[0] == "the device: device_absent; trying again"


def test_pauses_grow_to_five_seconds_and_start_over_after_steady_sound() -> None:
    failures: list[list[Step] | Exception] = [lost()] * 6
    bench = Bench([*failures, [block(100.0), block(106.0), lost()], [block(107.0)]]).run()
    assert bench.stop.waits == pytest.approx([0.5, 1, 2, 4, 5, 5, 0.5])


def test_pauses_are_spread_so_that_many_do_not_come_back_in_step() -> None:
    bench = Bench([lost(), [block(1.0)]])
    bench.intake = Intake(
        bench.source, bench.ring, bench.stop, monotonic_ns=bench.clock, random_unit=lambda: 0.0
    )
    bench.run()
    assert bench.stop.waits == pytest.approx([0.4])


def test_pauses_go_on_growing_where_a_source_is_lost_soon_after_each_opening() -> None:
    openings: list[list[Step] | Exception] = [[block(at), lost()] for at in range(4)]
    bench = Bench([*openings, [block(20.0), lost()], [block(40.0)]]).run()
    assert bench.stop.waits == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert bench.intake.n_losses == 5


def test_a_source_steady_for_a_while_is_tried_soon_again() -> None:
    openings: list[list[Step] | Exception] = [[block(at), lost()] for at in range(3)]
    bench = Bench([*openings, [block(20.0), block(26.0), lost()], lost(), [block(40.0)]])
    bench.run()
    assert bench.stop.waits == [0.5, 1.0, 2.0, 0.5, 1.0]


def test_a_server_that_denies_access_is_asked_ever_more_rarely_and_that_is_no_hang() -> None:
    denied = [SourceError("url_absent", "wrong password", longest_pause_s=60.0) for _ in range(9)]
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
    assert last.time_ns is not None
    true_ns = WALL0 + samples_to_ns(last.start_sample) * drift
    assert abs(last.time_ns - true_ns) < 90_000_000


def test_a_recording_ends_with_its_last_sample() -> None:
    last = block(0.1, 2, n_frames=700, is_last=True)
    bench = Bench([[block(0.0), last]], is_live=False).run()
    assert bench.ring.next == BLOCK + 700
    assert bench.intake.status == ENDED
    assert bench.intake.failure is None
    assert not bench.stop.is_set()


def test_a_recording_that_was_not_there_at_first_begins_without_a_gap() -> None:
    bench = Bench([lost("file_absent"), [block(3.0, is_last=True)]], is_live=False).run()
    (piece,) = bench.slices()
    assert (piece.start_sample, piece.gap_reason, piece.time_ns) == (0, None, WALL0 + 3 * 10**9)


def test_the_time_of_a_recording_is_never_corrected() -> None:
    blocks: list[Step] = [block(number * 0.001) for number in range(1_000)]
    assert len(Bench([blocks], is_live=False, ring_s=200).run().slices()) == 1


def test_a_damaged_recording_ends_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        bench = Bench([[block(0.0), AudioError("a.wav: damaged")]], is_live=False).run()
    assert bench.intake.status == SourceStatus("ended", "a.wav: damaged")
    assert isinstance(bench.intake.failure, AudioError)
    assert "a.wav: damaged" in caplog.text
    assert bench.ring.next == BLOCK


def test_a_hung_source_ends_the_intake_and_stays_missing() -> None:
    bench = Bench([[block(0.0), lost("stalled")]])
    bench.source.close_error = SourceHungError("stalled", "no answer")
    bench.run()
    assert isinstance(bench.intake.failure, SourceHungError)
    assert bench.intake.status == SourceStatus("missing", "no answer")


@pytest.mark.parametrize("error", [StartupError("no PortAudio"), KeyError("a bug of ours")])
def test_what_cannot_be_retried_is_handed_to_the_main_thread(error: Exception) -> None:
    bench = Bench([error]).run()
    assert bench.intake.failure is error


def test_status_is_missing_until_sound_comes_and_when_it_stays_away() -> None:
    bench = Bench([[block(0.0)]])
    assert bench.intake.status == SourceStatus("missing", "starting")
    bench.run()
    assert bench.intake.status == LISTENING
    bench.clock.move(2.9)
    assert bench.intake.status == LISTENING
    bench.clock.move(0.2)
    assert bench.intake.status == SourceStatus("missing", "no audio for 3 s")


def test_status_says_why_the_device_is_missing() -> None:
    bench = Bench([[block(0.0), lost()], StartupError("enough")]).run()
    assert bench.intake.status == SourceStatus("missing", "the device: device_lost")


def silence(at_s: float, n_channels: int = 1) -> SourceBlock:
    since_ns = round(at_s * NS_PER_SECOND)
    pcm = np.zeros((SAMPLE_RATE, n_channels), dtype=np.int16)
    return SourceBlock(pcm, SAMPLE_RATE, WALL0 + since_ns, MONO0 + since_ns)


def test_a_source_of_zeros_alone_is_degraded_and_well_again_with_its_first_sound() -> None:
    bench = Bench([[silence(at_s) for at_s in range(12)]]).run()
    assert bench.intake.status == SourceStatus(
        "degraded",
        "digital silence for 12 s: muted, unplugged, or channels of opposite phase that cancel",
    )
    (warning,) = bench.warnings
    assert warning.startswith("no sound of a room: digital silence for 10 s")
    bench = Bench([[*(silence(at_s) for at_s in range(12)), noise_block(12.0)]]).run()
    assert bench.intake.status == LISTENING
    assert bench.warnings[1:] == ["the source gives sound again"]


def test_the_wanted_channel_alone_is_captured() -> None:
    bench = Bench([[noise_block(0.0, 4)]], channels=Channels(2))
    np.testing.assert_array_equal(bench.run().slices()[0].pcm, noise_block(0.0, 4).pcm[:, 2])


def test_a_channel_that_is_not_there_ends_a_recording_and_is_waited_for_in_a_live_source() -> None:
    bench = Bench([[block(0.0)]], is_live=False, channels=Channels(1)).run()
    assert isinstance(bench.intake.failure, AudioError)
    assert "channel 1 is wanted" in str(bench.intake.failure)
    bench = Bench([[block(0.0)], [noise_block(1.0, 2)]], channels=Channels(1)).run()
    assert bench.warnings[0].startswith("channel 1 is wanted (counted from 0)")
    assert bench.intake.status == LISTENING


def noise_block(at_s: float, n_channels: int = 1) -> SourceBlock:
    generator = np.random.default_rng(n_channels)
    pcm = generator.integers(-9_000, 9_000, (BLOCK, n_channels)).astype(np.int16)
    since_ns = round(at_s * NS_PER_SECOND)
    return SourceBlock(pcm, SAMPLE_RATE, WALL0 + since_ns, MONO0 + since_ns)


def test_a_recording_does_not_outrun_the_worker_by_more_than_a_quarter_of_the_ring() -> None:
    blocks: list[Step] = [block(0.0) for _ in range(400)]
    bench = Bench([blocks], is_live=False, is_paced=False, ring_s=40)
    bench.intake = Intake(bench.source, bench.ring, threading.Event(), monotonic_ns=bench.clock)
    seen: list[int] = []

    def acknowledge() -> None:
        while bench.ring.acked < 400 * BLOCK:
            bench.ring.wait_written(bench.ring.acked, 5.0)
            seen.append(bench.ring.next - bench.ring.acked)
            bench.ring.ack(bench.ring.next)
        bench.intake._stop.set()

    worker = threading.Thread(target=acknowledge)
    worker.start()
    bench.run()
    worker.join()
    assert max(seen) <= 10 * SAMPLE_RATE + BLOCK
    assert bench.ring.oldest == 0


# --- replies to ring requests


@dataclass
class Service:
    """A ring service over a ring with 1 s, a hole of 1 s, and 1 s again."""

    status: SourceStatus = LISTENING

    def __post_init__(self) -> None:
        self.ring = Ring(60 * SAMPLE_RATE)
        self.ring.write(ramp(0, SAMPLE_RATE), WALL0)
        self.ring.skip(SAMPLE_RATE, "device_lost")
        self.ring.write(ramp(0, SAMPLE_RATE), WALL0 + 2 * NS_PER_SECOND)
        self.service = RingService(
            "porch", EPOCH, "ipc:///x", self.ring, lambda: self.status, wall_ns=lambda: WALL0
        )

    def read(self, **request: object) -> RingReply:
        frames = self.answer({"v": 1, "op": "read", "stream": "porch", **request})
        return decode_ring_reply(frames, "porch")

    def error(self, **request: object) -> dict[str, object]:
        (frame,) = self.answer({"v": 1, "op": "read", "stream": "porch", **request})
        body: dict[str, object] = json.loads(frame)
        return body

    def answer(self, request: dict[str, object]) -> list[bytes]:
        frames = self.service.answer([encode_request(ReadRequest.model_validate(request))])
        assert frames is not None
        return frames

    def ack(self, stop: int, epoch: str = EPOCH) -> None:
        self.read()  # who has read nothing has nothing to acknowledge
        request = AckRequest.model_validate({"v": 1, "op": "ack", "epoch": epoch, "stop": stop})
        assert self.service.answer([encode_request(request)]) is None


def ramp(start: int, n_samples: int) -> Pcm16:
    return (np.arange(start, start + n_samples) % 30_000).astype(np.int16)


def test_a_read_gives_what_is_held_with_the_range_and_the_state() -> None:
    reply = Service().read(epoch=EPOCH, start=100, stop=300)
    np.testing.assert_array_equal(reply.block.pcm, ramp(100, 200))
    assert (reply.block.start_sample, reply.block.epoch) == (100, EPOCH)
    assert reply.block.time_ns == WALL0 + samples_to_ns(100) // 1_000 * 1_000
    assert (reply.oldest, reply.next, reply.acked) == (0, 3 * SAMPLE_RATE, 0)
    assert (reply.state, reply.detail, reply.block.ring) == ("listening", None, "ipc:///x")


def test_a_read_without_start_goes_on_after_the_last_acknowledgement() -> None:
    service = Service()
    service.ack(1_234)
    reply = service.read()
    assert (reply.block.start_sample, reply.acked) == (1_234, 1_234)
    assert reply.block.end_sample == SAMPLE_RATE


def test_a_read_behind_a_hole_carries_its_reason() -> None:
    reply = Service().read(start=SAMPLE_RATE)
    assert (reply.block.start_sample, reply.block.gap_reason) == (2 * SAMPLE_RATE, "device_lost")


def test_a_reply_never_carries_more_than_the_codec_takes() -> None:
    service = Service()
    service.ring.write(ramp(0, 20 * SAMPLE_RATE), WALL0 + 3 * NS_PER_SECOND)
    assert len(service.read(start=2 * SAMPLE_RATE).block.pcm) == MAX_BLOCK_SAMPLES


def test_reads_of_another_epoch_or_stream_are_refused_with_the_facts() -> None:
    assert Service().error(epoch=OTHER_EPOCH) == {
        "v": 1,
        "error": "wrong_epoch",
        "epoch": EPOCH,
        "oldest": 0,
        "next": 3 * SAMPLE_RATE,
    }
    assert Service().error(stream="garden")["error"] == "wrong_stream"


def test_an_acknowledgement_of_the_process_before_this_one_moves_nothing() -> None:
    service = Service()
    service.ack(5_000, OTHER_EPOCH)
    assert service.ring.acked == 0
    service.ack(5_000)
    service.ack(4_000)
    service.ack(10**9)
    assert service.ring.acked == 5_000


def test_only_the_client_that_reads_the_ring_acknowledges_while_it_is_connected() -> None:
    ring = Ring(60 * SAMPLE_RATE)
    ring.write(ramp(0, SAMPLE_RATE), WALL0)
    connected = {b"worker", b"stranger", b"status"}
    service = RingService(
        "porch",
        EPOCH,
        "ipc:///x",
        ring,
        lambda: SourceStatus("listening"),
        is_trusted=connected.__contains__,
    )

    def read(client: bytes) -> None:
        request = ReadRequest(v=1, op="read", stream="porch")
        assert service.answer([encode_request(request)], client) is not None

    def acknowledge(client: bytes, stop: int) -> int:
        request = AckRequest(v=1, op="ack", epoch=EPOCH, stop=stop)
        assert service.answer([encode_request(request)], client) is None
        return ring.acked

    assert acknowledge(b"stranger", 16_000) == 0  # it has read nothing
    for client in connected:
        read(client)
    assert acknowledge(b"worker", 1000) == 1000
    assert acknowledge(b"stranger", 16_000) == 1000
    assert acknowledge(b"worker", 2000) == 2000
    assert service.n_malformed == 2
    connected.remove(b"worker")
    connected.add(b"next worker")
    assert acknowledge(b"next worker", 3000) == 2000
    read(b"next worker")
    assert acknowledge(b"next worker", 3000) == 3000


def test_the_state_is_told_with_its_reason_cut_to_size() -> None:
    service = Service(SourceStatus("missing", "x" * 9_999))
    reply = service.read(start=3 * SAMPLE_RATE)
    assert (reply.state, reply.detail) == ("missing", "x" * 512)
    assert len(reply.block.pcm) == 0


def test_the_last_sample_is_told_as_the_last_only_where_it_is_given() -> None:
    service = Service(ENDED)
    early = service.read(start=0, stop=100)
    assert (early.state, early.block.is_last) == ("ended", False)
    assert not service.service.has_told_end
    assert service.read(start=2 * SAMPLE_RATE).block.is_last
    assert service.service.has_told_end


def test_a_ring_that_never_had_a_sample_answers_with_the_time_of_day() -> None:
    service = RingService(
        "porch", EPOCH, "ipc:///x", Ring(100), lambda: LISTENING, wall_ns=lambda: WALL0
    )
    frames = service.answer([b'{"v":1,"op":"read","stream":"porch"}'])
    assert frames is not None
    assert decode_ring_reply(frames, "porch").block.time_ns == WALL0


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
    service = Service()
    logging.disable(logging.WARNING)
    try:
        answer = service.service.answer(frames)
    finally:
        logging.disable(logging.NOTSET)
    assert service.ring.next == 3 * SAMPLE_RATE
    assert 0 <= service.ring.acked <= service.ring.next
    if service.service.n_malformed:
        assert answer is not None
        assert json.loads(answer[0])["error"] == "malformed"
        assert service.ring.acked == 0
    np.testing.assert_array_equal(service.read(start=0).block.pcm, ramp(0, SAMPLE_RATE))


def test_malformed_requests_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            service.service.answer([b"\xff"])
    assert service.service.n_malformed == 50
    assert len(caplog.records) == 1


# --- live blocks


@dataclass
class Link:
    """A sender with its peer in hand."""

    status: SourceStatus = LISTENING
    is_paced: bool = True
    is_up: bool = True
    received: list[AudioBlock] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stop = Stop(Clock())
        self.ring = Ring(60 * SAMPLE_RATE)
        service = RingService(
            "porch", EPOCH, "ipc:///x", self.ring, lambda: self.status, wall_ns=lambda: WALL0
        )
        self.sender = BlockSender(
            self.ring, service, self._send, is_paced=self.is_paced, stop=self.stop
        )
        self.service = service

    def write(self, n_samples: int) -> None:
        start = self.ring.next
        self.ring.write(ramp(start, n_samples), WALL0 + samples_to_ns(start))

    def _send(self, frames: list[bytes]) -> bool:
        if self.is_up:
            self.received.append(decode_block(frames))
        return self.is_up


def test_what_is_written_is_sent_block_by_block() -> None:
    link = Link()
    for size in (1_600, 37, 1_600):
        link.write(size)
        link.sender.send_next()
        link.sender.send_next()
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
    link.sender.send_next()
    link.is_up = True
    link.write(1_600)
    link.sender.send_next()
    assert [b.start_sample for b in link.received] == [1_600]
    assert (link.sender.n_sent, link.sender.n_refused) == (1, 1)
    assert len(link.ring.read(0, 1_600, 1_600).pcm) == 1_600


def test_the_first_block_after_a_hole_says_why() -> None:
    link = Link()
    link.write(1_600)
    link.sender.send_next()
    link.ring.skip(16_000, "device_lost")
    link.sender.send_next()
    link.write(1_600)
    link.sender.send_next()
    assert [(b.start_sample, b.gap_reason) for b in link.received] == [
        (0, None),
        (17_600, "device_lost"),
    ]


def test_a_recording_waits_for_the_worker_and_skips_what_it_has_read_meanwhile() -> None:
    link = Link(is_paced=False, is_up=False)
    link.write(3_200)
    link.sender.send_next()
    link.sender.send_next()
    assert (link.sender.n_refused, len(link.stop.waits)) == (2, 2)
    link.is_up = True
    link.ring.ack(1_600)
    link.sender.send_next()
    assert [(b.start_sample, len(b.pcm)) for b in link.received] == [(1_600, 1_600)]


def test_a_late_sender_never_makes_a_block_longer_than_a_second() -> None:
    link = Link()
    link.write(40_000)
    for _ in range(4):
        link.sender.send_next()
    assert [len(b.pcm) for b in link.received] == [16_000, 16_000, 8_000]


def test_the_end_is_sent_with_the_last_samples_or_after_them_and_once() -> None:
    with_samples, after = Link(status=ENDED), Link()
    with_samples.write(100)
    with_samples.sender.run()
    assert [(len(b.pcm), b.is_last) for b in with_samples.received] == [(100, True)]
    after.write(100)
    after.sender.send_next()
    after.status = ENDED
    after.sender.run()
    assert [(len(b.pcm), b.is_last) for b in after.received] == [(100, False), (0, True)]


def test_the_end_of_a_live_recording_is_repeated_until_it_is_taken() -> None:
    link = Link(status=ENDED, is_up=False)
    link.write(100)
    link.sender.send_next()
    link.sender.send_next()
    assert not link.service.has_told_end
    link.is_up = True
    link.sender.run()
    assert [(b.start_sample, len(b.pcm), b.is_last) for b in link.received] == [(100, 0, True)]


def test_a_bug_in_sending_reaches_the_main_thread() -> None:
    link = Link()
    link.sender._send = lambda frames: 1 // 0  # type: ignore[assignment,return-value]
    link.write(100)
    link.sender.run()
    assert isinstance(link.sender.failure, ZeroDivisionError)
