"""Mean and standard deviation of the log-mel energies that a model is normalised with."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import Fbank, pad_frames
from ast_stream.soundscape.mixing import WindowMaker
from ast_stream.soundscape.takes import Material
from ast_stream.training.augment import Augment, SpectrogramAugmentation
from ast_stream.training.clip_batches import ClipMaker, ClipMixing

NORMALIZATION_WINDOWS = 400
# Source: YuanGongND/ast, src/get_norm_stats.py
PUBLISHED_BATCH = 1000
PUBLISHED_MIXUP_SHARE = 0.5
PUBLISHED_MASKS = SpectrogramAugmentation(filter_spread=0.0, frequency_mask=24, time_mask=192)
_AS_IT_IS = Normalization(mean=0.0, std=0.5)


def measure_normalization(maker: WindowMaker, seed: int) -> Normalization:
    """Return mean and standard deviation of the log-mel energies of some training windows.

    Padding is left out: unlike in the AST repository's statistics, nothing but sound counts.
    """
    fbank = Fbank()
    frames = []
    for number in range(NORMALIZATION_WINDOWS):
        window = maker.draw(np.random.default_rng((seed, 0, number)))
        one = fbank.frames(torch.from_numpy(window.waveform))
        frames.append(one[: window.n_real_frames])
    energies = torch.cat(frames)
    return Normalization(round(float(energies.mean()), 4), round(float(energies.std()), 4))


def published_normalization(material: Material, max_frames: int, seed: int) -> Normalization:
    """Return the statistics of all clips as the AST repository's get_norm_stats computes them.

    That is the mean of the means, and of the standard deviations, of batches of 1000 clips in
    order, mixed up and masked as in training, with masks and padding counted as the zeros they
    are. Zero lies above nearly all energies, so that the mean is higher than the clean one that
    `measure_normalization` returns, the more so the shorter the clips are.
    """
    maker = ClipMaker(material, max_frames, ClipMixing(mixup_share=PUBLISHED_MIXUP_SHARE))
    masks = replace(PUBLISHED_MASKS, time_mask=min(PUBLISHED_MASKS.time_mask, max_frames))
    augment = Augment(masks, _AS_IT_IS)
    fbank, rng = Fbank(), np.random.default_rng(seed)
    torch.manual_seed(seed)
    means, stds = [], []
    for start in range(0, len(material.takes), PUBLISHED_BATCH):
        n_values, total, squares = 0, 0.0, 0.0
        for take in material.takes[start : start + PUBLISHED_BATCH]:
            window = maker.window(rng, take)
            frames = pad_frames(fbank.frames(torch.from_numpy(window.waveform)), max_frames)
            masked = augment(frames[None], torch.tensor([window.n_real_frames])).double()
            n_values += masked.numel()
            total += float(masked.sum())
            squares += float(masked.square().sum())
        means.append(total / n_values)
        stds.append(math.sqrt((squares - total**2 / n_values) / (n_values - 1)))
    return Normalization(round(float(np.mean(means)), 4), round(float(np.mean(stds)), 4))
