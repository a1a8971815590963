"""Opus gives both sides the same samples, at the indices that went in, or says that it does not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opus_blocks import blocks_of, coded_samples, noisy_tones

from ast_stream.audio import opus
from ast_stream.audio.opus import (
    RUN_S,
    DifferentSamplesError,
    OpusEncoder,
    OpusReader,
    is_packet,
    joined,
    rounded,
    safe_rounding,
)
from ast_stream.errors import StartupError, WireError
from ast_stream.messages.audio import (
    OPUS_PACKET_SAMPLES,
    ROUNDING_STEPS,
    AudioBlock,
    OpusPacket,
    OpusPackets,
    Pcm16,
)
from ast_stream.units import SAMPLE_RATE

MAX_DELAY = round(0.0225 * SAMPLE_RATE)  # what the encoder keeps back, with what it looks ahead


def received(block: AudioBlock) -> AudioBlock:
    return AudioBlock.decode(block.encode())


def read(reader: OpusReader, block: AudioBlock) -> Pcm16 | None:
    return reader.read(received(block))


def test_worker_decodes_what_the_capture_box_has_in_its_ring_bit_for_bit() -> None:
    coded = coded_samples(noisy_tones(6.0))
    reader = OpusReader()
    pieces = [read(reader, block) for block in blocks_of(coded)]
    assert all(piece is not None for piece in pieces)
    assert np.array_equal(np.concatenate([p for p in pieces if p is not None]), joined(coded))


@pytest.mark.parametrize("bit_rate", [12_000, 24_000, 48_000])
def test_clicks_stay_at_their_samples_also_around_the_beginning_of_a_run(bit_rate: int) -> None:
    pcm = np.zeros(5 * SAMPLE_RATE, np.int16)
    run = round(RUN_S * SAMPLE_RATE)
    clicks = [700, 8_000, run - 300, run, run + 450, 2 * run - 40, 2 * run + 1_000]
    pcm[clicks] = 20_000
    decoded = joined(coded_samples(pcm, bit_rate)).astype(int)
    for click in clicks:
        around = np.abs(decoded[click - 150 : click + 150])
        assert abs(int(np.argmax(around)) - 150) <= 1, click


def test_decoded_sound_is_not_shifted_against_the_source() -> None:
    pcm = noisy_tones(8.0, seed=1)
    decoded = joined(coded_samples(pcm, 48_000))
    assert len(decoded) == len(pcm)
    spectrum = np.fft.rfft(decoded.astype(float)) * np.conj(np.fft.rfft(pcm.astype(float)))
    assert int(np.argmax(np.fft.irfft(spectrum, len(pcm)))) == 0
    error = decoded.astype(float) - pcm
    assert np.sqrt(np.mean(error**2)) < 0.25 * np.sqrt(np.mean(pcm.astype(float) ** 2))


@hypothesis_settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 5_000), max_size=12), st.integers(0, 40_000))
def test_blocks_of_the_source_change_nothing_and_no_sample_is_lost(
    sizes: list[int], n_samples: int
) -> None:
    pcm = noisy_tones(2.6)[:n_samples]
    encoder, coded, at = OpusEncoder(24_000), [], 0
    for size in sizes:
        coded += encoder.push(pcm[at : at + size])
        at = min(at + size, len(pcm))
        assert at - sum(len(one.pcm) for one in coded) <= MAX_DELAY
    coded += [*encoder.push(pcm[at:]), *encoder.flush()]
    whole = coded_samples(pcm)
    assert [one.packets for one in coded] == [one.packets for one in whole]
    assert sum(len(one.pcm) for one in coded) == len(pcm)
    for one, other in zip(coded, whole, strict=True):
        assert np.array_equal(one.pcm, other.pcm)


def test_what_follows_a_flush_is_as_of_a_new_encoder() -> None:
    encoder, first, second = OpusEncoder(24_000), noisy_tones(1.23, 2), noisy_tones(1.0, 3)
    before = [*encoder.push(first), *encoder.flush()]
    assert encoder.flush() == []
    after = [*encoder.push(second), *encoder.flush()]
    assert np.array_equal(joined(before), joined(coded_samples(first)))
    assert np.array_equal(joined(after), joined(coded_samples(second)))
    assert after[0].begins_run


def test_a_run_begins_every_two_seconds_with_one_packet_more() -> None:
    coded = OpusEncoder(24_000).push(noisy_tones(5.0))
    begins = [n for n, one in enumerate(coded) if one.begins_run]
    assert begins == [0, 100, 200]
    assert [n for n, one in enumerate(coded) if len(one.packets) == 2] == begins


def test_a_decoder_that_missed_a_block_gives_nothing_until_the_next_run() -> None:
    blocks = blocks_of(coded_samples(noisy_tones(6.0)))
    reader = OpusReader()
    outcomes = [read(reader, block) is not None for block in (blocks[0], *blocks[2:])]
    begins = next(n for n, block in enumerate(blocks) if n and block.opus is not None
                  and block.opus.run == block.start_sample)  # fmt: skip
    assert outcomes == [True, *[False] * (begins - 2), *[True] * (len(blocks) - begins)]
    joins_late = OpusReader()
    assert [read(joins_late, block) is not None for block in blocks[3:]] == [
        *[False] * (begins - 3),
        *[True] * (len(blocks) - begins),
    ]


def test_late_and_repeated_blocks_do_not_bring_a_decoder_out_of_step() -> None:
    blocks = blocks_of(coded_samples(noisy_tones(3.0)))
    reader = OpusReader()
    read(reader, blocks[0])
    for before, block in pairwise(blocks):
        assert read(reader, before) is None
        assert read(reader, blocks[0]) is None
        assert np.array_equal(np.asarray(read(reader, block)), block.pcm)


def test_another_epoch_is_another_stream() -> None:
    blocks = blocks_of(coded_samples(noisy_tones(1.0)))
    other = blocks_of(coded_samples(noisy_tones(1.0, 4)), epoch="cd" * 8)
    reader = OpusReader()
    assert read(reader, blocks[0]) is not None
    assert read(reader, other[1]) is None
    assert read(reader, blocks[1]) is None  # the codec followed the other
    assert np.array_equal(np.asarray(read(reader, other[0])), other[0].pcm)


def test_samples_that_differ_are_refused_and_the_next_block_may_be_right() -> None:
    first, second, *_ = blocks_of(coded_samples(noisy_tones(1.0)))
    assert first.opus is not None
    wrong = replace(first, opus=replace(first.opus, crc=first.opus.crc ^ 1))
    reader = OpusReader()
    with pytest.raises(DifferentSamplesError):
        read(reader, wrong)
    assert np.array_equal(np.asarray(read(reader, second)), second.pcm)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" + bytes(20),  # 10 ms of SILK
        bytes([23 << 3 | 4]) + bytes(20),  # stereo
        bytes([23 << 3 | 3]) + bytes(20),  # several frames
        bytes([22 << 3]) + bytes(20),  # 10 ms of CELT
    ],
)
def test_packets_of_other_kinds_are_refused_before_they_are_decoded(data: bytes) -> None:
    assert not is_packet(data)
    block, *_ = blocks_of(coded_samples(noisy_tones(0.2)))
    assert block.opus is not None
    packets = (OpusPacket(data, 0), *block.opus.packets[1:])
    with pytest.raises(WireError, match="one frame of 20 ms"):
        read(OpusReader(), replace(block, opus=replace(block.opus, packets=packets)))


def test_decoders_of_other_builds_round_to_the_same_samples() -> None:
    """FFmpeg's own decoder shares no code with libopus; its floats differ by up to 0.01 steps."""
    coded = coded_samples(noisy_tones(8.0, 5), 32_000)
    packets = [packet for one in coded for packet in one.packets]
    begins = [n for n, one in enumerate(coded) if one.begins_run]
    n_different = n_plain = at = 0
    context: Any = None
    for number, one in enumerate(coded):
        if number in begins:
            context = av.CodecContext.create("opus", "r")
            context.sample_rate, context.layout = 48_000, "mono"
            context.open()
        for packet in one.packets:
            at += 1
            (frame,) = context.decode(av.Packet(packet.data))
        values = frame.to_ndarray().reshape(-1)[::3].astype(np.float64) * 32_768
        n_different += not np.array_equal(rounded(values, packet.rounding)[: len(one.pcm)], one.pcm)
        n_plain += bool(np.any(np.rint(values)[: len(one.pcm)] != one.pcm))
    assert at == len(packets)
    assert n_different <= len(coded) // 50
    assert n_plain > n_different


def test_rounding_keeps_away_from_ties_and_leaves_silence_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.normal(0, 3_000, OPUS_PACKET_SAMPLES)
        rounding = safe_rounding(values)
        assert -ROUNDING_STEPS // 2 <= rounding < ROUNDING_STEPS // 2
        moved = values + rng.uniform(-2e-3, 2e-3, len(values))
        assert np.array_equal(rounded(values, rounding), rounded(moved, rounding))
        assert np.abs(rounded(values, rounding) - values).max() <= 1.0
    silence = rng.normal(0, 1e-4, OPUS_PACKET_SAMPLES)
    assert not rounded(silence, safe_rounding(silence)).any()


def test_missing_library_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ImportError("no av")

    monkeypatch.setattr(opus, "pyav", absent)
    with pytest.raises(StartupError, match="pip install 'ast-stream\\[url\\]'"):
        OpusEncoder(24_000)
    block, *_ = [AudioBlock("a", "ab" * 8, 0, None, np.zeros(320, np.int16),  # type: ignore[arg-type]
                            opus=OpusPackets(0, (OpusPacket(b"x", 0),) * 2, 0))]  # fmt: skip
    with pytest.raises(StartupError):
        OpusReader().read(block)
