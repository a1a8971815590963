"""The ring of a stream that is sent as Opus: it holds the decoded audio, and the packets.

The ring stays the truth. What is written to it is not what the source gave, but what is left of
that after coding: so a block that is decoded at the worker, and one that it reads from the ring,
are the same samples.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from ast_stream.audio.opus import CodedSamples, OpusEncoder, checksum, joined
from ast_stream.capture.ring import Ring
from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import OPUS_PACKET_SAMPLES, AudioBlock, OpusPackets, Pcm16
from ast_stream.units import seconds_to_samples

MAX_KEPT = 500  # packets, 10 s: live blocks are of what has just come

MomentOf = Callable[[int], Moment]
"""Returns when a sample was captured, by its index."""


@dataclass(frozen=True, eq=False)
class _Part:
    """The samples of one packet, by their place in the ring."""

    start: int
    run: int
    coded: CodedSamples


class OpusRing:
    """Writes a ring through an encoder, and encodes the blocks that are read from it.

    Args:
        bit_rate: bits per second.
        block_s: seconds of a block, about, where the source gives less at a time.

    Attributes:
        min_samples: of a block where more will follow: a packet less, for sources do not give whole
            packets.

    Raises:
        StartupError: there is no libopus.
    """

    def __init__(self, ring: Ring, bit_rate: int, block_s: float = 0.1) -> None:
        self.min_samples = max(0, seconds_to_samples(block_s) - OPUS_PACKET_SAMPLES)
        self._ring = ring
        self._encoder = OpusEncoder(bit_rate)
        self._parts: list[_Part] = []
        self._run = 0
        self._lock = threading.Lock()  # of `_parts`: blocks are coded in another thread

    def write(self, pcm: Pcm16, moment_of: MomentOf) -> None:
        """Append these samples as decoded; the last of them follow with the next call."""
        self._keep(self._encoder.push(pcm), moment_of)

    def flush(self, moment_of: MomentOf) -> None:
        """Append the remaining samples; the next sample need not be consecutive."""
        self._keep(self._encoder.flush(), moment_of)

    def begin_of(self, sample: int) -> int:
        """Return where a block must begin to contain `sample`: at the start of a packet."""
        with self._lock:
            part = self._part_at(sample)
            return sample if part is None else part.start

    def code(self, block: AudioBlock) -> AudioBlock:
        """Return a block of the ring, or the beginning of one, with its packets.

        As it is where it does not begin with a packet that is still kept.
        """
        with self._lock:
            first = bisect.bisect_left(self._parts, block.start_sample, key=_start_of)
            end = block.start_sample
            chosen: list[_Part] = []
            for part in self._parts[first:]:
                is_next = part.start == end and (not chosen or part.run == chosen[0].run)
                if not is_next or part.start + len(part.coded.pcm) > block.end_sample:
                    break
                chosen.append(part)
                end += len(part.coded.pcm)
        if not chosen:
            return block
        pcm = block.pcm[: end - block.start_sample]
        packets = tuple(packet for part in chosen for packet in part.coded.packets)
        opus = OpusPackets(chosen[0].run, packets, checksum(pcm))
        return replace(block, pcm=pcm, opus=opus, is_last=block.is_last and end == block.end_sample)

    def _keep(self, coded: list[CodedSamples], moment_of: MomentOf) -> None:
        if not coded:
            return
        start = at = self._ring.next
        with self._lock:
            for samples in coded:
                if samples.begins_run:
                    self._run = at
                self._parts.append(_Part(at, self._run, samples))
                at += len(samples.pcm)
            del self._parts[:-MAX_KEPT]
        self._ring.write(joined(coded), moment_of(start))

    def _part_at(self, sample: int) -> _Part | None:
        index = bisect.bisect_right(self._parts, sample, key=_start_of) - 1
        if index < 0:
            return None
        part = self._parts[index]
        return part if sample < part.start + len(part.coded.pcm) else None


def _start_of(part: _Part) -> int:
    return part.start
