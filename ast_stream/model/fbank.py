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
# which takes three quarters of the time
MAX_BLOCK_FRAMES = {"cuda": 4096, "cpu": 1024}
ONE_THREAD_FRAMES = 1024  # few milliseconds of work, see `at_most_threads`
CPU_MEL_PARTS = 4  # of the mel bank, nine tenths of which are zero: 0.4 of the time
ROW_MULTIPLE = 16  # the matrix product rounds rows alike only in whole tiles
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
        for start in range(0, fbank.shape[1], step):
            block = framed[:, start : start + step]
            rows = self._log_mel(block.reshape(-1, FRAME_LENGTH))
            fbank[:, start : start + step] = rows.view(*block.shape[:2], N_MELS)

    def _log_mel(self, framed: Tensor) -> Tensor:
        """Return (n, 128) log-mel energies of (n, 400) samples."""
        n_rows = len(framed)
        framed = F.pad(framed, (0, 0, 0, -n_rows % ROW_MULTIPLE))
        framed = framed - framed.mean(dim=1, keepdim=True)
        previous = torch.cat((framed[:, :1], framed[:, :-1]), dim=1)
        framed = (framed - PREEMPHASIS * previous) * self._window
        power = torch.fft.rfft(framed, n=N_FFT).abs().square()  # (n, 257)
        energies = torch.cat(
            [power[:, bins].double() @ filters for bins, filters in self._mel_parts], dim=1
        )  # (n, 128)
        log_mel: Tensor = energies.float().clamp_min(LOG_FLOOR).log()
        return log_mel[:n_rows]


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
            Normalised log-mel, shape (n, n_input_frames, 128), float32, on the device.
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
        """Return the same by slices of the ring: on a CPU a tenth of the time of many windows."""
        ring = self._ring.numpy()
        windows = np.empty((len(slots), len(self._positions), N_MELS), np.float32)
        for window, slot, start, n_real in zip(
            windows, slots, begin % self._capacity, count, strict=True
        ):
            n_first = min(n_real, self._capacity - start)
            window[:n_first] = ring[slot, start : start + n_first]
            window[n_first:n_real] = ring[slot, : n_real - n_first]
            window[n_real:] = self._padding
        return torch.from_numpy(windows)


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
    """Return the last frame that lies wholly before each `end_sample`; -3 or so for none."""
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
    """Return Kaldi's triangular mel filters, shape (N_FFT // 2, N_MELS): no Nyquist bin."""
    bank, _centers = import_kaldi().get_mel_banks(
        N_MELS, N_FFT, float(SAMPLE_RATE), LOW_HZ, HIGH_HZ, 100.0, -500.0, 1.0
    )
    filters: Tensor = bank
    return filters.T.contiguous()


def _mel_parts(bank: Tensor, n_parts: int) -> list[tuple[slice, Tensor]]:
    """Return the bank as so many parts of equally many filters, each with the bins it weighs."""
    parts = []
    for filters in bank.split(bank.shape[1] // n_parts, dim=1):  # type: ignore[no-untyped-call]
        weighed = filters.any(dim=1).nonzero()
        bins = slice(int(weighed[0]), int(weighed[-1]) + 1)
        parts.append((bins, filters[bins].contiguous()))
    return parts
