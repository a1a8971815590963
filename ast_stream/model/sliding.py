"""Sliding-window features of many streams: int16 audio in, normalised model windows out.

Frames are independent, so each hop computes only its own new frames and keeps them in a ring of
log-mel frames on the device; a window is a gather from that ring. Absolute frame i covers samples
[160 i, 160 i + 400) of its stream.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import Fbank
from ast_stream.units import FRAME_LENGTH, FRAME_SHIFT, FULL_SCALE, N_MELS

# A frame needs 400 samples from its start, so frames ending by sample e start at e - 480 or before
# (e being a multiple of 160), and the step of the hop before ended 320 samples short of its end.
LOOK_BACK = FRAME_LENGTH - FRAME_LENGTH % FRAME_SHIFT  # samples a step needs before its hop
UNUSED_TAIL = FRAME_LENGTH % FRAME_SHIFT  # samples at a hop's end that no frame covers yet

Index = npt.NDArray[np.int64]


def last_frame(end_sample: Index) -> Index:
    """Return the last frame that lies wholly before each `end_sample`; -3 or so for none."""
    return (end_sample - FRAME_LENGTH) // FRAME_SHIFT


def first_frame(start_sample: Index) -> Index:
    """Return the first frame that begins at or after each `start_sample`."""
    return -(-start_sample // FRAME_SHIFT)


class SlidingFbank:
    """The log-mel rings of all slots.

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

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grown = torch.zeros(n_slots, self._capacity, N_MELS, device=self._device)
        grown[: len(self._ring)] = self._ring
        self._ring = grown

    def push(self, slots: Index, pcm: npt.NDArray[np.int16], ends: Index) -> None:
        """Compute the frames of the hops that end at `ends`.

        Args:
            slots: shape (n,).
            pcm: shape (n, hops * hop + 240): the samples of these hops, starting LOOK_BACK
                samples earlier and stopping UNUSED_TAIL samples short of `ends`.
            ends: shape (n,), multiples of the hop.
        """
        waveforms = torch.from_numpy(pcm).to(self._device, torch.float32) / FULL_SCALE
        frames = self._fbank.frames(waveforms)  # (n, hops * hop_frames, 128)
        last = torch.from_numpy(last_frame(ends)).to(self._device)
        back = torch.arange(frames.shape[1] - 1, -1, -1, device=self._device)
        places = (last[:, None] - back) % self._capacity
        rows = torch.from_numpy(slots).to(self._device)
        self._ring[rows[:, None], places] = frames

    def windows(self, slots: Index, ends: Index, first: Index, last: Index) -> Tensor:
        """Return the model's input for the windows that end at `ends`.

        Args:
            slots, ends: shape (n,).
            first, last: the real frames of each slot: those since start or gap, and up to the
                end of the audio. A window with fewer frames is padded behind them, as in training.

        Returns:
            Normalised log-mel, shape (n, n_input_frames, 128), float32, on the device.
        """
        begin = np.maximum(last_frame(ends) - self._n_window_frames + 1, first)
        count = np.maximum(np.minimum(last_frame(ends), last) - begin + 1, 0)
        start, n_real, rows = (
            torch.from_numpy(array).to(self._device)[:, None] for array in (begin, count, slots)
        )
        frames = self._ring[rows, (start + self._positions) % self._capacity]
        is_real = (self._positions < n_real)[:, :, None]
        return self._normalization.apply(torch.where(is_real, frames, 0.0))
