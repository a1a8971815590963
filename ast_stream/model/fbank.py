"""Samples in, log-mel frames out: Kaldi fbank as AST was trained on, batched and streamable.

Every frame depends on its own 400 samples alone, so streaming in steps of 160 samples gives the
frames of the whole recording.

Source: torchaudio.compliance.kaldi.fbank with the options of ASTFeatureExtractor; the operations
and their order are the same, because near the log floor another order of rounding is visible.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ast_stream.model.dims import Normalization
from ast_stream.model.runners import at_most_threads
from ast_stream.model.torchaudio_guard import import_kaldi
from ast_stream.units import FRAME_LENGTH, FRAME_SHIFT, FULL_SCALE, N_MELS, SAMPLE_RATE, frame_count

PREEMPHASIS = 0.97
LOW_HZ = 20.0
HIGH_HZ = SAMPLE_RATE / 2
N_FFT = 512  # next power of two above FRAME_LENGTH
LOG_FLOOR = torch.finfo(torch.float32).eps
SILENCE_LOG_MEL = math.log(LOG_FLOOR)
# frames computed at once: bounds memory for recordings of any length; on CPUs what caches hold,
# which takes two thirds of the time
MAX_BLOCK_FRAMES = {"cuda": 4096, "cpu": 512}
ONE_THREAD_FRAMES = 1024  # few milliseconds of work, see `at_most_threads`
CPU_MEL_PARTS = 16  # of the mel bank, 98 % of which are zero: a third of the time
ROW_MULTIPLE = 16  # the matrix product rounds frames alike only in whole tiles
KEPT_BYTES = 48 << 20  # of windows on a CPU: 91 of AST-base
_SKEW = 8  # of rows in memory: a power of two between them makes them share few lines of a cache
# A frame needs 400 samples from its start, so frames ending by sample e start at e - 480 or before
# (e being a multiple of 160), and the step of the hop before ended 320 samples short of its end.
LOOK_BACK = FRAME_LENGTH - FRAME_LENGTH % FRAME_SHIFT  # samples a step needs before its hop
UNUSED_TAIL = FRAME_LENGTH % FRAME_SHIFT  # samples at a hop's end that no frame covers yet

Index = npt.NDArray[np.int64]


class Fbank:
    """Log-mel filterbank energies on one device; window and mel bank are computed once."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._window = torch.hann_window(FRAME_LENGTH, periodic=False).to(self.device)
        # The product with the mel bank is in double precision: no TF32 on any GPU, and a result
        # that does not depend on how many frames are computed together, nor on its parts.
        parts = CPU_MEL_PARTS if self.device.type == "cpu" else 1
        self._mel_parts = [
            (bins, filters.to(self.device, torch.float64))
            for bins, filters in _mel_parts(_mel_bank(), parts)
        ]

    def frames(self, samples: Tensor) -> Tensor:
        """Return the log-mel frames of `samples`.

        Args:
            samples: shape (..., n_samples), float32 in [-1, 1], at 16 kHz, on `device`.

        Returns:
            Shape (..., n_frames, 128), float32, natural log, not normalised;
            n_frames = 1 + (n_samples - 400) // 160, or 0 if shorter than one frame. A sample that
            is not finite makes the frames that hold it NaN and no other.

        Raises:
            ValueError: if `samples` is not float32.
        """
        if samples.dtype != torch.float32:
            raise ValueError(f"samples: expected float32 in [-1, 1], got {samples.dtype}")
        n_frames = frame_count(samples.shape[-1])
        flat = samples.reshape(math.prod(samples.shape[:-1]), samples.shape[-1])  # (B, n_samples)
        fbank = torch.empty(
            (flat.shape[0], n_frames, N_MELS), dtype=torch.float32, device=self.device
        )
        if len(flat) * n_frames > ONE_THREAD_FRAMES:
            self._fill(fbank, flat)
        elif fbank.numel():
            with at_most_threads(1):
                self._fill(fbank, flat)
        return fbank.view(*samples.shape[:-1], n_frames, N_MELS)

    def _fill(self, fbank: Tensor, samples: Tensor) -> None:
        """Compute `fbank` (B, n_frames, 128) of (B, n_samples), block by block."""
        framed = samples.unfold(-1, FRAME_LENGTH, FRAME_SHIFT)  # (B, n_frames, 400), a view
        step = max(1, MAX_BLOCK_FRAMES[self.device.type] // len(samples))
        work: _Workspace | None = None
        for start in range(0, fbank.shape[1], step):
            block = framed[:, start : start + step]
            shape = block.shape[:2]
            if work is None or work.n_frames != shape.numel():
                work = _Workspace(shape.numel(), self.device)
            work.samples[: work.n_frames].view(block.shape).copy_(block)
            log_mel = self._log_mel(work)[:, : work.n_frames]
            fbank[:, start : start + step] = log_mel.T.contiguous().view(*shape, N_MELS)

    def _log_mel(self, work: _Workspace) -> Tensor:
        """Return (128, n) log-mel energies of the (n, 400) samples in `work`, which it changes.

        Frames lie side by side from the power on: so the product with the few bins of a filter is
        one with long rows.
        """
        work.samples.sub_(work.samples.mean(dim=1, keepdim=True))
        previous = torch.mul(work.samples, PREEMPHASIS, out=work.previous)
        torch.sub(work.samples[:, 1:], previous[:, :-1], out=work.windowed[:, 1:])
        torch.sub(work.samples[:, :1], previous[:, :1], out=work.windowed[:, :1])
        work.windowed.mul_(self._window)
        squares = torch.view_as_real(torch.fft.rfft(work.padded)).square_()  # (n, 257, 2)
        power = squares[..., 0] + squares[..., 1]  # (n, 257)
        work.power.copy_(power[:, : N_FFT // 2].T)
        at = 0
        for bins, filters in self._mel_parts:
            torch.mm(filters, work.power[bins], out=work.energies[at : at + len(filters)])
            at += len(filters)
        return work.energies.float().clamp_min_(LOG_FLOOR).log_()


class _Workspace:
    """Memory for a block of frames, used again for the next one.

    Attributes:
        n_frames: that are wanted; rows behind them fill a tile.
        samples, previous: shape (n, 400).
        padded: what is transformed, (n, 512): `windowed` (n, 400), and zeros.
        power, energies: by bins and by filters, (256, n) and (128, n), float64.
    """

    def __init__(self, n_frames: int, device: torch.device) -> None:
        n = -(-n_frames // ROW_MULTIPLE) * ROW_MULTIPLE
        self.n_frames = n_frames
        self.samples = torch.zeros((n, FRAME_LENGTH), device=device)
        self.previous = torch.empty_like(self.samples)
        self.padded = torch.zeros((n, N_FFT), device=device)
        self.windowed = self.padded[:, :FRAME_LENGTH]
        wide = torch.empty((N_FFT // 2 + N_MELS, n + _SKEW), dtype=torch.float64, device=device)
        self.power, self.energies = wide[: N_FFT // 2, :n], wide[N_FFT // 2 :, :n]


class SlidingFbank:
    """Sliding-window features of many streams: int16 audio in, normalised model windows out.

    Each hop computes only its own new frames and keeps them, normalised, in a ring on the device;
    a window is a copy of that ring. Absolute frame i covers samples [160 i, 160 i + 400) of its
    stream.

    Args:
        hop: samples between windows, a multiple of 160.
        n_window_frames: frames a full window holds.
        n_input_frames: frames the model takes; the rest is padding.
        max_hops: the most hops one `push` brings.
    """

    def __init__(
        self,
        fbank: Fbank,
        normalization: Normalization,
        *,
        hop: int,
        n_window_frames: int,
        n_input_frames: int,
        max_hops: int,
        device: torch.device,
    ) -> None:
        self._fbank = fbank
        self._normalization = normalization
        self._hop_frames = hop // FRAME_SHIFT
        self._n_window_frames = n_window_frames
        self._device = device
        self._capacity = n_window_frames + (max_hops + 1) * self._hop_frames
        self._ring = torch.zeros(0, self._capacity, N_MELS, device=device)
        self._positions = torch.arange(n_input_frames, device=device)
        self._kept = np.empty((0, n_input_frames, N_MELS), np.float32)
        self._padding = float(normalize(torch.zeros(()), normalization))

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grown = torch.zeros(n_slots, self._capacity, N_MELS, device=self._device)
        grown[: len(self._ring)] = self._ring
        self._ring = grown

    def push(self, slots: Index, pcm: npt.NDArray[np.int16], ends: Index) -> Tensor:
        """Compute the frames of the hops that end at `ends`, keep them, and return them.

        Args:
            slots: shape (n,).
            pcm: shape (n, hops * hop + 240): the samples of these hops, starting LOOK_BACK
                samples earlier and stopping UNUSED_TAIL samples short of `ends`.
            ends: shape (n,), multiples of the hop.

        Returns:
            Log-mel energies, shape (n, hops * hop_frames, 128), float32, on the device.
        """
        waveforms = upload(pcm, self._device).to(torch.float32) / FULL_SCALE
        frames = self._fbank.frames(waveforms)
        self.keep(slots, frames, ends)
        return frames

    def keep(self, slots: Index, frames: Tensor, ends: Index) -> None:
        """Keep frames that `push` of another model's windows has returned; the same arguments."""
        rows, last = upload(np.stack((slots, last_frame(ends))), self._device)[:, :, None]
        back = torch.arange(frames.shape[1] - 1, -1, -1, device=self._device)
        normalized = normalize(frames, self._normalization)
        self._ring[rows, (last - back) % self._capacity] = normalized

    def begins(self, ends: Index, first: Index) -> Index:
        """Return the first frame of the windows that end at `ends`; arguments as for `windows`."""
        return np.maximum(last_frame(ends) - self._n_window_frames + 1, first)

    def windows(self, slots: Index, ends: Index, first: Index, last: Index) -> Tensor:
        """Return the model's input for the windows that end at `ends`.

        Args:
            slots, ends: shape (n,).
            first, last: the real frames of each slot: those since start or gap, and up to the
                end of the audio. A window with fewer frames is padded behind them, as in training.

        Returns:
            Normalised log-mel, shape (n, n_input_frames, 128), float32, on the device; on a CPU
            until the next call, which may write over it.
        """
        begin = self.begins(ends, first)
        count = np.maximum(np.minimum(last_frame(ends), last) - begin + 1, 0)
        if self._device.type == "cpu":
            return self._copied(slots, begin, count)
        start, n_real, rows = upload(np.stack((begin, count, slots)), self._device)[:, :, None]
        frames = self._ring[rows, (start + self._positions) % self._capacity]
        is_real = (self._positions < n_real)[:, :, None]
        return torch.where(is_real, frames, self._padding)

    def _copied(self, slots: Index, begin: Index, count: Index) -> Tensor:
        """Return the same by slices of the ring: on a CPU a tenth of the time of many windows.

        Memory that was written before is used again, which takes half of the time.
        """
        ring = self._ring.numpy()
        windows = self._room_for(len(slots))
        for window, slot, start, n_real in zip(
            windows, slots, begin % self._capacity, count, strict=True
        ):
            n_first = min(n_real, self._capacity - start)
            window[:n_first] = ring[slot, start : start + n_first]
            window[n_first:n_real] = ring[slot, : n_real - n_first]
            window[n_real:] = self._padding
        return torch.from_numpy(windows)

    def _room_for(self, n_windows: int) -> npt.NDArray[np.float32]:
        """Return memory for windows: always the same, unless they are many."""
        shape = (n_windows, len(self._positions), N_MELS)
        if len(self._kept) < n_windows:
            windows = np.empty(shape, np.float32)
            if windows.nbytes > KEPT_BYTES:
                return windows
            self._kept = windows
        return self._kept[:n_windows]


def upload(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Return a host array on the device, in its own dtype; the host does not wait for a GPU.

    A GPU copies page-locked memory while the host goes on; torch keeps such memory until the copy
    is done, and uses it again then.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def last_frame(end_sample: Index) -> Index:
    """Return the last frame that is wholly before each `end_sample`; negative if there is none."""
    return (end_sample - FRAME_LENGTH) // FRAME_SHIFT


def first_frame(start_sample: Index) -> Index:
    """Return the first frame that begins at or after each `start_sample`."""
    return -(-start_sample // FRAME_SHIFT)


def pad_frames(fbank: Tensor, n_frames: int) -> Tensor:
    """Return `fbank` with exactly `n_frames` frames: cut, or zeros at the end.

    Args:
        fbank: shape (..., any, n_mels), not normalised. Zero is not silence here; models were
            trained with this padding, applied before the normalisation.
    """
    missing = n_frames - fbank.shape[-2]
    return F.pad(fbank, (0, 0, 0, missing)) if missing > 0 else fbank[..., :n_frames, :]


def normalize(fbank: Tensor, normalization: Normalization) -> Tensor:
    """Return (fbank - mean) / (2 std): about mean 0 and standard deviation 0.5."""
    return (fbank - normalization.mean) / (normalization.std * 2)


def _mel_bank() -> Tensor:
    """Return Kaldi's triangular mel filters, shape (N_MELS, N_FFT // 2): no Nyquist bin."""
    bank, _centers = import_kaldi().get_mel_banks(
        N_MELS, N_FFT, float(SAMPLE_RATE), LOW_HZ, HIGH_HZ, 100.0, -500.0, 1.0
    )
    filters: Tensor = bank
    return filters


def _mel_parts(bank: Tensor, n_parts: int) -> list[tuple[slice, Tensor]]:
    """Return the bank as so many parts of equally many filters, each with the bins it weighs."""
    parts = []
    for filters in bank.split(len(bank) // n_parts):  # type: ignore[no-untyped-call]
        weighed = filters.any(dim=0).nonzero()
        bins = slice(int(weighed[0]), int(weighed[-1]) + 1)
        parts.append((bins, filters[:, bins].contiguous()))
    return parts
