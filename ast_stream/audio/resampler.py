"""Any rate and channel count to mono int16 at 16 kHz, once and the same for every source.

Channels are averaged before soxr's HQ converter, whose streamed output equals its one-shot
output. The other ways differ: FFmpeg's float downmix adds 3 dB, and converters without memory
leave an error at every block edge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import soxr

from ast_stream.audio.source import Pcm
from ast_stream.messages.audio import Pcm16
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

_MAX_AMPLITUDE = 16.0  # 24 dB over full scale: beyond it is garbage that would ring in the filter


class Resampler:
    """Stream of blocks at `rate` to mono int16 at 16 kHz.

    Mono int16 at 16 kHz passes bit-exact. Other input comes out later by the filter's delay (10
    to 30 ms), which `flush` hands out.

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
        """Return what is ready.

        Args:
            pcm: shape (n_frames, n_channels), int16, or float32 in [-1, 1]; NaN counts as 0.

        Returns:
            Shape (n_samples,), int16, own memory.
        """
        if self._stream is None and pcm.dtype == np.int16 and pcm.shape[1] == 1:
            return np.array(pcm[:, 0], dtype=np.int16)
        mono = _mix_down(pcm)
        return self._to_int16(mono if self._stream is None else self._convert(mono, last=False))

    def flush(self) -> Pcm16:
        """Return what is still inside, shape (n_samples,), int16, and be as new for more audio."""
        if self._stream is None:
            return np.zeros(0, dtype=np.int16)
        rest = self._to_int16(self._convert(np.zeros(0, dtype=np.float32), last=True))
        self._stream = self._new_stream()
        return rest

    def reset(self) -> None:
        """Forget what is inside."""
        self._stream = self._new_stream()

    def _new_stream(self) -> soxr.ResampleStream | None:
        if self.rate == SAMPLE_RATE:
            return None
        return soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def _convert(self, mono: npt.NDArray[np.float32], *, last: bool) -> npt.NDArray[np.float32]:
        assert self._stream is not None
        converted: npt.NDArray[np.float32] = self._stream.resample_chunk(mono, last=last)
        return converted

    def _to_int16(self, mono: npt.NDArray[np.float32]) -> Pcm16:
        scaled = np.rint(mono * np.float32(FULL_SCALE))
        self.n_clipped += int(np.count_nonzero((scaled > FULL_SCALE - 1) | (scaled < -FULL_SCALE)))
        pcm: Pcm16 = np.clip(scaled, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
        return pcm


def _mix_down(pcm: Pcm) -> npt.NDArray[np.float32]:
    """Return the mean over channels, shape (n_frames,), float32 in about [-1, 1]."""
    if pcm.dtype == np.int16:
        samples = pcm.astype(np.float32) / np.float32(FULL_SCALE)
    else:
        samples = np.nan_to_num(pcm, nan=0.0, posinf=1.0, neginf=-1.0).astype(np.float32)
        samples = np.clip(samples, -_MAX_AMPLITUDE, _MAX_AMPLITUDE)
    mono: npt.NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32)
    return mono
