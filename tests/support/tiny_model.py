"""A seeded AST of a few thousand weights, for tests that need a real checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint, save_checkpoint
from ast_stream.model.dims import AUDIOSET_NORMALIZATION, AstDims
from ast_stream.model.metadata import FrameDecisions, Metadata

TINY_LABELS = ["Bark", "Siren", "Background"]
TINY_DIMS = AstDims(
    n_classes=len(TINY_LABELS),
    hidden_size=64,
    n_layers=2,
    n_heads=1,
    intermediate_size=96,
    frequency_stride=16,
    time_stride=16,
    max_frames=128,
)


def tiny_checkpoint(
    seed: int = 0, dims: AstDims = TINY_DIMS, frames: FrameDecisions | None = None, **metadata: Any
) -> Checkpoint:
    """Return a checkpoint whose every weight is random, so that no two inputs score alike.

    Args:
        frames: how its frame head decides; None: it has none, and else the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = AudioSpectrogramTransformer(dims, has_frames=frames is not None).state_dict()
    state_dict = {}
    for name, tensor in shapes.items():
        spread = 0.5 if name.endswith(("token", "pos_embed", "head.weight")) else 0.1
        state_dict[name] = torch.randn(tensor.shape, generator=generator) * spread
        if "norm" in name and name.endswith("weight"):
            state_dict[name] += 1
    labels = TINY_LABELS if dims.n_classes == len(TINY_LABELS) else None
    return Checkpoint(
        dims=dims,
        state_dict=state_dict,
        labels=labels or [f"class_{index:03d}" for index in range(dims.n_classes)],
        normalization=AUDIOSET_NORMALIZATION,
        metadata=Metadata(frames=frames, **metadata),
        origin=f"tiny model, seed {seed}",
    )


def save_tiny(directory: Path, seed: int = 0, **metadata: Any) -> Path:
    """Write a tiny checkpoint to `directory` and return that."""
    save_checkpoint(directory, tiny_checkpoint(seed, **metadata))
    return directory
