"""Scores from a model in training, for the figures of its reports."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.evaluation.clips import ScoreWindows
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import Fbank, pad_frames
from ast_stream.training.precision import autocast_type


def score_with(model: AudioSpectrogramTransformer, normalization: Normalization) -> ScoreWindows:
    """Return a function that scores waveforms with a model in training, on its device."""
    device = next(model.parameters()).device
    fbank, dtype = Fbank(device), autocast_type("auto", device)

    @torch.inference_mode()
    def score(waveforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        samples = torch.from_numpy(waveforms).to(device)
        frames = pad_frames(fbank.frames(samples), model.dims.max_frames)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(normalization.apply(frames))
        scores: npt.NDArray[np.float32] = torch.sigmoid(logits.float()).cpu().numpy()
        return scores

    return score
