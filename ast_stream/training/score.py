"""Scores from a model in training, for the figures of its reports."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.fbank import Fbank, Normalization, pad_frames
from ast_stream.training.cpu_speed import cpu_has_bf16
from ast_stream.training.evaluation.clips import ScoreWindows


def score_with(model: AudioSpectrogramTransformer, normalization: Normalization) -> ScoreWindows:
    """Return a function that scores waveforms with a model in training."""
    fbank = Fbank()

    @torch.inference_mode()
    def score(waveforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        frames = pad_frames(fbank.frames(torch.from_numpy(waveforms)), model.dims.max_frames)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            logits = model(normalization.apply(frames))
        scores: npt.NDArray[np.float32] = torch.sigmoid(logits.float()).numpy()
        return scores

    return score
