"""A ring that is sent as Opus: what is sent, and what is read from it, are the same samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from opus_blocks import noisy_tones
from source_blocks import MONO0, WALL0

from ast_stream.audio.opus import RUN_S, OpusReader
from ast_stream.capture.intake import Intake
from ast_stream.capture.opus_ring import OpusRing
from ast_stream.capture.ring import Ring, RingServer
from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import AudioBlock, Pcm16
from ast_stream.units import SAMPLE_RATE, samples_to_ns

EPOCH = "ab" * 16
BLOCK = SAMPLE_RATE // 10
MIN_SAMPLES = BLOCK - 320
CLICK = 20_000


@dataclass
class Source:
    """Gives blocks and losses in turn, and calls `after_read` behind each."""

    steps: list[SourceBlock | SourceError]
    stop: threading.Event
    after_read: Callable[[], None] = lambda: None
    is_live: bool = True
    is_paced: bool = True

    def open(self) -> None:
        pass

    def read(self, timeout_s: float) -> SourceBlock | None:
        del timeout_s
        self.after_read()
        if not self.steps:
            self.stop.set()
            return None
        step = self.steps.pop(0)
        if isinstance(step, SourceError):
            raise step
        return step

    def close(self) -> None:
        pass


@dataclass
class Box:
    """An intake, a coded ring and the live blocks that came of them."""

    steps: Sequence[SourceBlock | SourceError]
    accepts: Callable[[int], bool] = lambda number: True
    sent: list[AudioBlock] = field(default_factory=list)
    n_offered: int = 0
    block_s: float = 0.1

    def __post_init__(self) -> None:
        stop = threading.Event()
        stop.wait = lambda timeout=None: stop.is_set()  # type: ignore[method-assign]
        self.ring = Ring(60 * SAMPLE_RATE)
        self.coded = OpusRing(self.ring, 32_000, self.block_s)
        source = Source([*self.steps], stop, self.send)
        self.intake = Intake(source, self.ring, stop, coded=self.coded)
        self.server = RingServer(
            "porch", EPOCH, "ipc:///x", self.ring, self.intake.status, coding=self.coded
        )

    def run(self) -> Box:
        self.intake.run()
        assert self.intake.failure is None
        self.send()
        return self

    def send(self) -> None:
        """Send what is there, as the sender does when the ring was written to."""
        while True:
            before = self.server.next_live
            self.server.send_next(self._take)
            if self.server.next_live == before:
                return

    def _take(self, frames: list[bytes]) -> bool:
        self.n_offered += 1
        if not self.accepts(self.n_offered - 1):
            return False
        self.sent.append(AudioBlock.decode(frames))
        return True

    def held(self, start: int, stop: int) -> Pcm16:
        piece = self.ring.read(start, stop, SAMPLE_RATE)
        assert piece.start_sample == start
        return piece.pcm

    def decoded(self) -> list[tuple[AudioBlock, Pcm16 | None]]:
        """Return each block with what a worker makes of it, which must be what the ring holds."""
        reader, found = OpusReader(), []
        for block in self.sent:
            pcm = block.pcm if block.opus is None else reader.read(block)
            if pcm is not None:
                assert np.array_equal(pcm, self.held(block.start_sample, block.end_sample))
            found.append((block, pcm))
        return found


def source_blocks(
    pcm: Pcm16, *, rate: int = SAMPLE_RATE, after_s: float = 0.0, block: int = BLOCK
) -> list[SourceBlock]:
    blocks = []
    for start in range(0, len(pcm), block):
        passed_ns = round((after_s + start / rate) * 1e9)
        part = pcm[start : start + block]
        is_last = False
        blocks.append(
            SourceBlock(part[:, None], rate, WALL0 + passed_ns, MONO0 + passed_ns, is_last=is_last)
        )
    return blocks


def spans(blocks: Sequence[AudioBlock]) -> list[tuple[int, int]]:
    return [(block.start_sample, block.end_sample) for block in blocks]


def test_every_live_block_is_opus_and_decodes_to_what_the_ring_holds() -> None:
    pcm = noisy_tones(5.0)
    box = Box(source_blocks(pcm)).run()
    found = box.decoded()
    assert all(block.opus is not None and got is not None for block, got in found)
    assert spans(box.sent)[0][0] == 0
    assert all(a.end_sample == b.start_sample for a, b in zip(box.sent, box.sent[1:], strict=False))
    n_missing = len(pcm) - box.ring.next  # flushed when the source ends or is lost
    assert 0 <= n_missing <= 360
    assert box.sent[-1].end_sample >= box.ring.next - MIN_SAMPLES
    payload = sum(len(p.data) for b in box.sent if b.opus for p in b.opus.packets)
    assert payload < 0.25 * 2 * len(pcm)


def test_sample_k_of_the_ring_is_sample_k_of_the_source_across_losses_and_rates() -> None:
    pcm = np.zeros(2 * SAMPLE_RATE, np.int16)
    clicks = [1_000, 20_000, len(pcm) - 60]
    pcm[clicks] = CLICK
    lost = SourceError("device_lost", "the device is gone")
    box = Box([*source_blocks(pcm), lost, *source_blocks(pcm, after_s=3.0)]).run()
    first = box.ring.read(0, 10**9, 10**7)
    assert first.end_sample == len(pcm)  # the tail came out when the source was lost
    after = box.ring.read(len(pcm), 10**9, 10**7)
    assert after.gap_reason == "device_lost"
    assert after.start_sample == 3 * SAMPLE_RATE
    assert after.moment is not None
    assert after.moment.wall_ns == WALL0 + samples_to_ns(3 * SAMPLE_RATE)
    for piece in (first.pcm, after.pcm):
        for click in clicks[: 3 if piece is first.pcm else 2]:
            start = max(0, click - 100)
            around = np.abs(piece[start : click + 100].astype(int))
            assert abs(start + int(np.argmax(around)) - click) <= 1
    box.decoded()
    begins = [b for b in box.sent if b.opus is not None and b.opus.run == b.start_sample]
    assert after.start_sample in [block.start_sample for block in begins]
    assert [block.gap_reason for block in box.sent if block.gap_reason] == ["device_lost"]


def test_sound_at_another_rate_keeps_its_place() -> None:
    rate = 48_000
    pcm = np.zeros(2 * rate, np.int16)
    pcm[30_000:30_030] = CLICK
    box = Box(source_blocks(pcm, rate=rate, block=4_800)).run()
    ring = box.held(9_000, 11_000).astype(int)
    assert abs(9_000 + int(np.argmax(np.abs(ring))) - 10_005) <= 4
    assert all(got is not None for _, got in box.decoded())


def test_after_a_block_that_could_not_be_sent_the_worker_decodes_again_from_the_next_run() -> None:
    box = Box(source_blocks(noisy_tones(5.0)), accepts=lambda number: number not in (3, 4)).run()
    assert box.server.n_refused == 2
    unread = [block for block, got in box.decoded() if got is None]
    assert unread[0].start_sample == box.sent[2].end_sample + 2 * BLOCK
    assert unread[-1].end_sample == round(RUN_S * SAMPLE_RATE)


def test_what_the_ring_holds_does_not_depend_on_who_listens() -> None:
    pcm = noisy_tones(5.0)
    heard = Box(source_blocks(pcm)).run()
    alone = Box(source_blocks(pcm), accepts=lambda number: False).run()
    assert alone.server.n_sent == 0
    assert alone.ring.next == heard.ring.next
    for start in range(0, heard.ring.next, SAMPLE_RATE):
        piece = heard.ring.read(start, heard.ring.next, SAMPLE_RATE)
        assert np.array_equal(piece.pcm, alone.held(start, piece.end_sample))


def test_what_is_too_old_to_have_packets_goes_out_as_pcm() -> None:
    box = Box(source_blocks(noisy_tones(14.0)), accepts=lambda number: False).run()
    block = box.coded.code(box.server.block(0, SAMPLE_RATE))
    assert block.opus is None
    assert len(block.pcm) == SAMPLE_RATE


def test_reads_of_the_ring_are_pcm_whatever_goes_over_the_wire() -> None:
    box = Box(source_blocks(noisy_tones(2.0))).run()
    block = box.server.block(7, 1_000)
    assert block.opus is None
    assert np.array_equal(block.pcm, box.held(7, 1_007))


def test_many_small_blocks_are_gathered_for_their_headers_cost_bytes() -> None:
    box = Box(source_blocks(noisy_tones(3.0), block=320)).run()
    lengths = [len(block.pcm) for block in box.sent]
    assert min(lengths[:-1]) >= MIN_SAMPLES - 960  # fewer only where a run ends
    assert np.mean(lengths) > 0.8 * MIN_SAMPLES
    assert all(got is not None for _, got in box.decoded())


def test_long_blocks_are_sent_if_they_are_wanted() -> None:
    box = Box(source_blocks(noisy_tones(6.0)), block_s=0.5).run()
    lengths = [len(block.pcm) for block in box.sent]
    assert np.mean(lengths) > 0.4 * SAMPLE_RATE
    assert all(got is not None for _, got in box.decoded())


def test_a_step_of_the_clock_cuts_no_packet() -> None:
    ring = Ring(60 * SAMPLE_RATE)
    coded = OpusRing(ring, 32_000)
    pcm = noisy_tones(2.0)
    for start in range(0, len(pcm), BLOCK):
        step_ns = 50_000_000 if start >= SAMPLE_RATE else 0

        def moment_of(sample: int, step_ns: int = step_ns) -> Moment:
            return Moment(WALL0 + samples_to_ns(sample) + step_ns, MONO0 + samples_to_ns(sample))

        coded.write(pcm[start : start + BLOCK], moment_of)
    piece = ring.read(0, ring.next, 10**6)
    assert piece.end_sample < ring.next
    assert piece.end_sample % 320 == 0
