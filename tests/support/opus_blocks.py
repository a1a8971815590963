"""Blocks as a capture process codes them, and sounds to put into them."""

from __future__ import annotations

import numpy as np

from ast_stream.audio.opus import CodedSamples, OpusEncoder, checksum, joined
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import AudioBlock, OpusPackets, Pcm16
from ast_stream.units import SAMPLE_RATE, samples_to_ns

EPOCH = "ab" * 8
PACKETS = 5  # of a block


def noisy_tones(duration_s: float, seed: int = 0) -> Pcm16:
    """Return tones that come and go in noise."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * (400 + 300 * np.floor(3 * times) % 2_000) * times)
    waveform = 6_000 * tone * (np.sin(2 * np.pi * times) > 0) + rng.normal(0, 300, len(times))
    return np.clip(waveform, -32_768, 32_767).astype(np.int16)


def coded_samples(pcm: Pcm16, bit_rate: int = 24_000) -> list[CodedSamples]:
    """Return everything that an encoder makes of samples."""
    encoder = OpusEncoder(bit_rate)
    return [*encoder.push(pcm), *encoder.flush()]


def blocks_of(coded: list[CodedSamples], start: int = 0, epoch: str = EPOCH) -> list[AudioBlock]:
    """Return blocks of up to `PACKETS` packets, none across a run."""
    blocks: list[AudioBlock] = []
    parts: list[CodedSamples] = []
    run = start
    for one in [*coded, None]:
        if parts and (one is None or one.begins_run or len(parts) == PACKETS):
            run = start if parts[0].begins_run else run
            pcm = joined(parts)
            packets = tuple(packet for part in parts for packet in part.packets)
            moment = Moment(1_763_700_000_000_000_000 + samples_to_ns(start), samples_to_ns(start))
            opus = OpusPackets(run, packets, checksum(pcm))
            blocks.append(AudioBlock("porch", epoch, start, moment, pcm, opus=opus))
            start += len(pcm)
            parts = []
        if one is not None:
            parts.append(one)
    return blocks
