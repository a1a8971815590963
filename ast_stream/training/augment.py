"""Augmentation of log-mel batches: random smooth filters, padding, SpecAugment, normalisation.

Order as in the AST paper's code: filter bank, padding, masks, then normalisation, so that padding
and masks are the same value, which the model learns to read past; noise and shift come last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import SILENCE_LOG_MEL, normalize
from ast_stream.model.torchaudio_guard import import_torchaudio
from ast_stream.units import N_MELS

FILTER_KNOTS = 8  # a random filter is linear between this many points of the mel axis


@dataclass(frozen=True)
class SpectrogramAugmentation:
    """Strengths; zero switches a part off."""

    filter_spread: float = 0.6  # standard deviation in natural log of power, 2.6 dB
    frequency_mask: int = 16  # maximum width, in mel bands
    time_mask: int = 24  # maximum width, in frames
    noise: float = 0.0  # maximum level of uniform noise on the normalised frames
    shift: int = 0  # maximum roll to either side, in frames


class Augment:
    """Turns log-mel frames into the model's input while training, with torch's global generator."""

    def __init__(self, strengths: SpectrogramAugmentation, normalization: Normalization) -> None:
        transforms: Any = import_torchaudio().transforms
        self._strengths = strengths
        self._normalization = normalization
        self._masks: list[nn.Module] = []
        if strengths.frequency_mask:
            self._masks.append(
                transforms.FrequencyMasking(strengths.frequency_mask, iid_masks=True)
            )
        if strengths.time_mask:
            self._masks.append(transforms.TimeMasking(strengths.time_mask, iid_masks=True))

    def __call__(self, fbank: Tensor, n_real_frames: Tensor) -> Tensor:
        """Return normalised, augmented windows.

        Args:
            fbank: shape (B, n_frames, 128), natural log, not normalised.
            n_real_frames: shape (B,), int; later frames become padding.
        """
        if self._strengths.filter_spread:
            fbank = filter_randomly(fbank, self._strengths.filter_spread)
        image = pad_after(fbank, n_real_frames).transpose(1, 2).unsqueeze(1)  # (B, 1, mels, frames)
        for mask in self._masks:
            image = mask(image)
        normalised = normalize(image.squeeze(1).transpose(1, 2), self._normalization)
        return shift_randomly(add_noise(normalised, self._strengths.noise), self._strengths.shift)


def pad_after(fbank: Tensor, n_real_frames: Tensor) -> Tensor:
    """Return `fbank` (B, n_frames, n_mels) with zeros from frame `n_real_frames` (B,) on."""
    frames = torch.arange(fbank.shape[1], device=fbank.device)
    is_real = frames < n_real_frames[:, None]  # (B, n_frames)
    return fbank * is_real[..., None]


def filter_randomly(fbank: Tensor, spread: float) -> Tensor:
    """Return `fbank` as through a different smooth random filter for each window of the batch.

    Args:
        fbank: shape (B, n_frames, 128), natural log of power.
        spread: standard deviation of the gain at each knot, natural log of power.
    """
    knots = spread * torch.randn(len(fbank), 1, FILTER_KNOTS).to(fbank.device)
    gain = F.interpolate(knots, size=N_MELS, mode="linear", align_corners=True)  # (B, 1, 128)
    return (fbank + gain).clamp_min(SILENCE_LOG_MEL)


def add_noise(windows: Tensor, max_level: float) -> Tensor:
    """Return windows (B, n_frames, n_mels) plus noise in [0, u], each with a u in [0, `max_level`].

    Source: YuanGongND/ast, src/dataloader.py, for Speech Commands (`max_level` 0.1).
    """
    if not max_level:
        return windows
    levels = max_level * torch.rand(len(windows), 1, 1)
    return windows + (levels * torch.rand(windows.shape)).to(windows.device)


def shift_randomly(windows: Tensor, max_shift: int) -> Tensor:
    """Return windows (B, n_frames, n_mels), each rolled in time by up to `max_shift` frames.

    Source: as `add_noise`; its shift of -10 to 9 frames is drawn with `max_shift` excluded above.
    """
    if not max_shift:
        return windows
    shifts = torch.randint(-max_shift, max_shift, (len(windows),)).tolist()
    return torch.stack(
        [window.roll(shift, 0) for window, shift in zip(windows, shifts, strict=True)]
    )
