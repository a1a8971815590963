"""PCM in memory: conversion of any rate and channel count to mono at 16 kHz, circular buffers.

The conversion is the same for every source: channels are averaged, or one is selected, before
soxr's HQ converter, whose streamed output equals its one-shot output. The other ways differ:
FFmpeg's float downmix adds 3 dB, and converters without memory leave an error at every block edge.
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import soxr

from ast_stream.errors import AudioError
from ast_stream.messages.audio import Pcm16
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

Pcm = npt.NDArray[np.float32] | npt.NDArray[np.int16]
"""Samples of shape (n_frames, n_channels), int16, or float32 in [-1, 1]."""
Floats = npt.NDArray[np.float32]
ChannelChoice = Literal["mix"] | int

FAULT_AFTER_S = 10.0  # shorter silences are pauses of a programme or padding of a recording
_CANCELLED_RATIO = 10 ** (-12 / 10)  # power of the mean, by that of the mean of unrelated channels
_FLOOR = 10 ** (-90 / 10)  # mean square of full scale: below it, polarity cannot be determined
_CHECK_EVERY_S = 1.0
_OPPOSITE = -0.8  # correlation of two channels that cancel each other
_MAX_PAIRS = 4  # of opposite channels in one sentence
_TOO_LOUD = 0.05  # ratio of samples beyond full scale above which a recording is reported
_MAX_AMPLITUDE = 16.0  # 24 dB over full scale: beyond it is garbage that would ring in the filter


class Resampler:
    """Stream of blocks at `rate` to mono int16 at 16 kHz.

    Mono int16 at 16 kHz passes bit-exact. Other input comes out later by the filter's delay (10 to
    30 ms), which `flush` returns.

    Attributes:
        n_clipped: samples beyond full scale so far.
    """

    def __init__(self, rate: int) -> None:
        if rate < 1:
            raise ValueError(f"rate: expected at least 1 Hz, got {rate}")
        self.rate = rate
        self.n_clipped = 0
        self._stream = self._new_stream()

    def push(self, pcm: Pcm) -> Pcm16:
        """Return finished samples, shape (n_samples,), int16, own memory; NaN counts as 0."""
        if self._stream is None and pcm.dtype == np.int16 and pcm.shape[1] == 1:
            return np.array(pcm[:, 0], dtype=np.int16)
        return self._to_int16(self._convert(_mix_down(pcm), is_last=False))

    def flush(self) -> Pcm16:
        """Return the remaining samples, shape (n_samples,), int16, and reset."""
        rest = self._to_int16(self._convert(np.zeros(0, dtype=np.float32), is_last=True))
        self.reset()
        return rest

    def reset(self) -> None:
        """Forget all pending samples."""
        self._stream = self._new_stream()

    def _new_stream(self) -> soxr.ResampleStream | None:
        if self.rate == SAMPLE_RATE:
            return None
        return soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def _convert(self, mono: Floats, *, is_last: bool) -> Floats:
        if self._stream is None:
            return mono
        converted: Floats = self._stream.resample_chunk(mono, last=is_last)
        return converted

    def _to_int16(self, mono: Floats) -> Pcm16:
        scaled = np.rint(mono * np.float32(FULL_SCALE))
        self.n_clipped += int(np.count_nonzero((scaled > FULL_SCALE - 1) | (scaled < -FULL_SCALE)))
        pcm: Pcm16 = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        return pcm


def _mix_down(pcm: Pcm) -> Floats:
    """Return the mean over channels, shape (n_frames,), float32 in about [-1, 1]."""
    samples = np.clip(_as_floats(pcm), -_MAX_AMPLITUDE, _MAX_AMPLITUDE)
    return _mean(samples)


def _mean(samples: Floats) -> Floats:
    """Return the mean over channels, shape (n_frames,)."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    if samples.shape[1] == 2:  # the same to the bit, in a quarter of the time
        return (samples[:, 0] + samples[:, 1]) / np.float32(2)
    mono: Floats = samples.mean(axis=1, dtype=np.float32)
    return mono


def _energy(samples: Floats) -> float:
    """Return the sum of squares."""
    flat = samples.ravel(order="K")
    return float(np.einsum("i,i", flat, flat))  # without a copy, and without BLAS's threads


def _as_floats(pcm: Pcm) -> Floats:
    if pcm.dtype == np.int16:
        return pcm.astype(np.float32) / np.float32(FULL_SCALE)
    if pcm.dtype == np.float32 and np.isfinite(pcm).all():
        return cast(Floats, pcm)
    return np.nan_to_num(pcm, nan=0.0, posinf=1.0, neginf=-1.0).astype(np.float32)


class ChannelSelector:
    """Selects one channel of each block, or leaves all to be averaged, and detects faults.

    A live room is never digitally silent: a sound card that delivers one value for seconds is muted
    or unplugged. Nor do the channels of a microphone cancel each other: if their mean is far
    quieter than that of unrelated channels, one of them has its polarity reversed.

    Args:
        choice: "mix", or the number of a channel, counted from 0.

    Attributes:
        fault: why the audio cannot be that of a room, or None.
    """

    def __init__(self, choice: ChannelChoice = "mix") -> None:
        self.fault: str | None = None
        self._choice = choice
        self._has_sound = False
        self._opposite_text = ""  # which channels
        self._sounding_s = self._cancelled_s = 0.0  # with sound, and of it where channels cancelled
        self._n_values = self._n_beyond = 0  # of all channels, and of them beyond full scale
        self.restart()

    def restart(self) -> None:
        """Forget the audio before the source was reopened, but not its fault."""
        self._n_silent = self._n_cancelled = 0  # frames in a row
        self._n_unchecked = 0  # frames since it was last checked whether the channels cancel
        self._energies = np.zeros(2)  # of the channels' mean, and of a channel in the mean

    @property
    def summary(self) -> str | None:
        """What is wrong with a recording that was read to its end; or None."""
        if self._cancelled_s and self._cancelled_s >= self._sounding_s / 2:
            return (
                f"{self._opposite_text} cancel each other when averaged, in "
                f"{self._cancelled_s:.0f} of {self._sounding_s:.0f} s with sound: opposite "
                f"polarity; choose one channel"
            )
        if self._n_beyond > _TOO_LOUD * self._n_values:
            ratio = f"{100 * self._n_beyond / self._n_values:.0f} % of its samples"
            return f"{ratio} are beyond full scale and cut off: floats are expected from -1 to 1"
        return None if self._has_sound else "nothing but digital silence"

    def select(self, pcm: Pcm, rate: int) -> Pcm:
        """Return the channel of a block, shape (n_frames, 1), or all of them.

        Args:
            pcm: shape (n_frames, n_channels).
            rate: frames per second.

        Raises:
            AudioError: the source has no such channel.
        """
        n_channels = pcm.shape[1]
        if self._choice != "mix" and self._choice >= n_channels:
            raise AudioError(_no_such_channel(self._choice, n_channels))
        if len(pcm) == 0:
            return pcm
        selected = pcm if self._choice == "mix" else pcm[:, self._choice : self._choice + 1]
        self._check(_as_floats(pcm), rate)
        return selected

    def _check(self, pcm: Floats, rate: int) -> None:
        is_mixed = self._choice == "mix" and pcm.shape[1] > 1
        self._n_values += pcm.size
        if pcm.max() > 1 or pcm.min() < -1:  # decoders of lossy formats do so now and then
            self._n_beyond += int(np.count_nonzero(np.abs(pcm) > 1))
        if self._is_constant(pcm):
            self._n_silent += len(pcm)
            if self._n_silent >= FAULT_AFTER_S * rate:
                self.fault = self._silence(pcm, self._n_silent / rate)
            return
        self._has_sound = True
        if self._n_silent >= FAULT_AFTER_S * rate or not is_mixed:
            self.fault = None
        self._n_silent = 0
        if not is_mixed:
            return
        self._energies += _energy(_mean(pcm)), _energy(pcm) / pcm.shape[1]
        self._n_unchecked += len(pcm)
        if self._n_unchecked >= _CHECK_EVERY_S * rate:
            self._check_polarity(pcm, rate)
            self._n_unchecked, self._energies = 0, np.zeros(2)

    def _check_polarity(self, pcm: Floats, rate: int) -> None:
        """Check whether the channels have cancelled each other since the last check."""
        mean, channel = (self._energies / self._n_unchecked).tolist()
        if channel < _FLOOR:
            return  # a pause
        self._sounding_s += self._n_unchecked / rate
        if mean >= channel / pcm.shape[1] * _CANCELLED_RATIO:
            self._n_cancelled, self.fault = 0, None
            return
        self._n_cancelled += self._n_unchecked
        self._cancelled_s += self._n_unchecked / rate
        self._opposite_text = _opposite(pcm)
        if self._n_cancelled >= FAULT_AFTER_S * rate:
            self.fault = (
                f"{self._opposite_text} cancel each other when averaged, for "
                f"{self._n_cancelled / rate:.0f} s now: opposite polarity; "
                f"set `channel` of the source, e.g. channel: 0"
            )

    def _is_constant(self, pcm: Floats) -> bool:
        selected = pcm if self._choice == "mix" else pcm[:, self._choice]
        if np.any(selected[-1] != selected[0]):  # nearly always
            return False
        return bool(np.all(selected == selected[0]))

    def _silence(self, pcm: Floats, silent_s: float) -> str:
        silence = f"digital silence for {silent_s:.0f} s"
        n_channels = pcm.shape[1]
        if self._choice != "mix" and n_channels > 1:
            others = [n for n in range(n_channels) if not np.all(pcm[:, n] == pcm[0, n])]
            hint = f", while there is sound in {_listed(others)}" if others else ""
            return f"{silence} in channel {self._choice} of 0 to {n_channels - 1}{hint}"
        if n_channels > 1:
            return f"{silence} in all {n_channels} channels: muted or unplugged"
        return f"{silence}: muted, unplugged, or channels of opposite phase that cancel"


class SampleBuffer:
    """The newest `capacity` samples of one stream, in a circle, addressed by absolute index.

    Args:
        capacity: samples kept; 1 or more.
        start_sample: index of the first sample.
    """

    def __init__(self, capacity: int, start_sample: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1 sample, got {capacity}")
        self.capacity = capacity
        self._pcm: Pcm16 = np.zeros(capacity, np.int16)
        self.restart(start_sample)

    @property
    def oldest(self) -> int:
        """Index of the oldest sample held; `end` if none is."""
        return max(self._start, self._end - self.capacity)

    @property
    def end(self) -> int:
        """Index just after the newest sample."""
        return self._end

    def restart(self, start_sample: int) -> None:
        """Drop all samples; the next sample has index `start_sample`."""
        self._start = self._end = start_sample

    def append(self, pcm: Pcm16) -> None:
        """Append samples, shape (n_samples,), int16, overwriting the oldest."""
        self._end += len(pcm)
        kept = pcm[-self.capacity :]
        place = (self._end - len(kept)) % self.capacity
        head = min(len(kept), self.capacity - place)
        self._pcm[place : place + head] = kept[:head]
        self._pcm[: len(kept) - head] = kept[head:]

    def append_silence(self, n_samples: int) -> None:
        """Append `n_samples` zeros, for samples that do not exist."""
        n_written = min(n_samples, self.capacity)
        self._end += n_samples - n_written
        self.append(np.zeros(n_written, np.int16))

    def read(self, start_sample: int, end_sample: int) -> tuple[int, Pcm16]:
        """Return what is held of [start, end): the index of the first sample, and a copy."""
        start = min(max(start_sample, self.oldest), self._end)
        end = max(start, min(end_sample, self._end))
        place = start % self.capacity
        head = self._pcm[place : place + end - start]
        return start, np.concatenate([head, self._pcm[: end - start - len(head)]])


class SlotBuffers:
    """The newest samples of many streams: a circular buffer for each slot.

    Samples are addressed by absolute index. Those from `first` of a slot on are still needed; a
    write that would overwrite one of them is refused.

    Args:
        capacity: samples kept for each slot.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._buffer: npt.NDArray[np.int16] = np.zeros((0, capacity), np.int16)
        self._first: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grown = np.zeros((n_slots, self.capacity), np.int16)
        grown[: len(self._buffer)] = self._buffer
        self._buffer = grown
        self._first = np.pad(self._first, (0, n_slots - len(self._first)))

    def room(self, slot: int, start: int) -> int:
        """Return how many samples can be written from sample `start` on."""
        return self.capacity - (start - int(self._first[slot]))

    def write(self, slot: int, start: int, pcm: Pcm16) -> None:
        """Store samples at their index.

        Raises:
            ValueError: samples that are still needed would be overwritten.
        """
        if len(pcm) > self.room(slot, start):
            raise ValueError(
                f"slot {slot}: expected at most {self.room(slot, start)} samples at {start}, "
                f"got {len(pcm)}: samples from {self._first[slot]} on are still needed"
            )
        at = start % self.capacity
        head = min(len(pcm), self.capacity - at)
        self._buffer[slot, at : at + head] = pcm[:head]
        self._buffer[slot, : len(pcm) - head] = pcm[head:]

    def restart(self, slot: int, first: int) -> None:
        """Fill a slot with silence; samples from `first` on will be needed."""
        self._buffer[slot] = 0
        self._first[slot] = first

    def release(self, slots: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> None:
        """Allow samples before `first`, shape (n,), of `slots`, shape (n,), to be overwritten."""
        self._first[slots] = first

    def read(
        self, slots: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], count: int
    ) -> npt.NDArray[np.int16]:
        """Return `count` samples of each slot from its start, shape (n, count).

        Raises:
            ValueError: samples that were released may be overwritten by now.
        """
        if (starts < self._first[slots]).any():
            raise ValueError("samples that were released may have been overwritten")
        samples = np.empty((len(slots), count), np.int16)
        places = (starts % self.capacity).tolist()
        for row, slot, at in zip(samples, slots.tolist(), places, strict=True):
            head = min(count, self.capacity - at)
            row[:head] = self._buffer[slot, at : at + head]
            row[head:] = self._buffer[slot, : count - head]
        return samples


def _no_such_channel(wanted: int, n_channels: int) -> str:
    there = "only channel 0" if n_channels == 1 else f"channels 0 to {n_channels - 1}"
    return f"channel {wanted} is wanted (counted from 0), and the source has {there}"


def _opposite(samples: Floats) -> str:
    """Return which channels are opposite to each other, in words."""
    n_channels = samples.shape[1]
    if n_channels == 2:
        return "channels 0 and 1"
    product = samples.T @ samples
    norm = np.sqrt(np.maximum(np.diag(product), np.finfo(np.float32).tiny))
    opposite = np.argwhere(np.triu(product / np.outer(norm, norm) < _OPPOSITE, k=1))
    pairs = ", ".join(f"{first} and {second}" for first, second in opposite[:_MAX_PAIRS])
    return f"channels {pairs}" if pairs else f"the {n_channels} channels"


def _listed(channels: list[int]) -> str:
    word = "channel" if len(channels) == 1 else "channels"
    return f"{word} {', '.join(map(str, channels))}"
