"""A perfect frame head: it says of each time patch how much of it is loud, and knows no more.

The model behind it is the tiny one; only what its frame head says is replaced. What the detector
makes of frames can so be held against the true times of sounds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tiny_model import TINY_DIMS, tiny_checkpoint
from torch import Tensor

from ast_stream.messages.audio import Pcm16
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE

SURE = 6.0  # logit of a patch that is wholly loud, and of one that is not at all
_LOUD = 0.2  # of the normalised energies' mean: far from that of a tone and of the noise


class LoudFrames(Tagger):
    """Scores patches by how many of their frames are loud; all classes alike.

    Attributes:
        blind_s: the last patches of a window say nothing is there: no context follows them.
    """

    blind_s = 0.0

    def frame_logits(self, windows: Tensor) -> npt.NDArray[np.float32]:
        is_loud = windows.numpy().mean(axis=2) > _LOUD  # (B, n_frames)
        dims = self.dims
        starts = np.arange(dims.n_time_patches) * dims.time_stride
        ratio = np.stack(
            [is_loud[:, start : start + dims.patch_size].mean(axis=1) for start in starts], axis=1
        )
        ratio[:, dims.n_time_patches - round(self.blind_s / dims.time_patch_s) :] = 0
        logits = SURE * (2 * ratio - 1)
        return np.repeat(logits[:, :, None], len(self.labels), axis=2).astype(np.float32)


def loud_frames(delay_s: float = 0.16, **frames: object) -> LoudFrames:
    """Return a tagger with windows of 2.56 s whose frames know what is loud."""
    from dataclasses import replace

    dims = replace(TINY_DIMS, max_frames=256)
    decisions = FrameDecisions(delay_s=delay_s, **frames)  # type: ignore[arg-type]
    checkpoint = tiny_checkpoint(0, dims, decisions, background=["Background"])
    return LoudFrames(checkpoint, device="cpu", precision="fp32", attention="math")


def noise_bursts(
    n_bursts: int, seed: int = 3, pause_s: tuple[float, float] = (2.0, 4.0)
) -> tuple[Pcm16, npt.NDArray[np.float64]]:
    """Return near silence with loud noise in it, and onset and offset of each in seconds.

    Returns:
        The audio, and times of shape (n_bursts, 2).
    """
    rng = np.random.default_rng(seed)
    pauses = rng.uniform(*pause_s, n_bursts)
    lengths = rng.uniform(0.4, 2.0, n_bursts)
    onsets = np.cumsum(pauses) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    offsets = onsets + lengths
    audio = rng.normal(0, 5, round((offsets[-1] + 3) * SAMPLE_RATE))
    for onset, offset in zip(onsets, offsets, strict=True):
        span = slice(round(onset * SAMPLE_RATE), round(offset * SAMPLE_RATE))
        audio[span] = rng.normal(0, 9_000, span.stop - span.start)
    return np.clip(audio, -32_000, 32_000).astype(np.int16), np.stack([onsets, offsets], axis=1)
