"""The grid of patches, and how a model moves to a shorter or a finer one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ast_stream.model.dims import N_PREFIX_TOKENS, AstDims


def cut_time(
    dims: AstDims, state_dict: Mapping[str, Tensor], n_frames: int
) -> tuple[AstDims, dict[str, Tensor]]:
    """Return the model for shorter windows: the centre of the position embeddings' time axis.

    Args:
        n_frames: frames of the shorter window, from one patch to `dims.max_frames`.

    Raises:
        ValueError: `n_frames` is out of that range.

    Source: YuanGongND/ast, src/models/ast_models.py, for t_dim below the trained one.
    """
    if not dims.patch_size <= n_frames <= dims.max_frames:
        raise ValueError(
            f"n_frames: expected {dims.patch_size} to {dims.max_frames}, got {n_frames}"
        )
    short = replace(dims, max_frames=n_frames)
    prefix, grid = _parts(dims, state_dict["pos_embed"])
    start = dims.n_time_patches // 2 - short.n_time_patches // 2
    grid = grid[:, :, start : start + short.n_time_patches]
    return short, {**state_dict, "pos_embed": _joined(prefix, grid)}


def change_stride(
    dims: AstDims, state_dict: Mapping[str, Tensor], stride: int
) -> tuple[AstDims, dict[str, Tensor]]:
    """Return the model with patches `stride` apart: position embeddings between the trained ones.

    A patch that lies where one lay before keeps its embedding; one that reaches beyond the last of
    them, which a finer grid may, takes that of the edge. The model hears a little better at once
    for a finer grid, and more after some training; it costs as many times more as it has patches.

    Args:
        stride: in mel bands and frames, from 1 to `dims.patch_size`.

    Raises:
        ValueError: `stride` is out of that range.
    """
    if not 1 <= stride <= dims.patch_size:
        raise ValueError(f"stride: expected 1 to {dims.patch_size}, got {stride}")
    changed = replace(dims, frequency_stride=stride, time_stride=stride)
    prefix, grid = _parts(dims, state_dict["pos_embed"])
    rows = _places(changed.n_frequency_patches, stride / dims.frequency_stride, grid.shape[1])
    columns = _places(changed.n_time_patches, stride / dims.time_stride, grid.shape[2])
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)  # (F, T, 2)
    image = F.grid_sample(
        grid.float().permute(0, 3, 1, 2), places[None], padding_mode="border", align_corners=True
    )  # (1, C, F, T)
    finer = image.permute(0, 2, 3, 1).to(grid.dtype)
    return changed, {**state_dict, "pos_embed": _joined(prefix, finer)}


def _places(n_patches: int, step: float, n_trained: int) -> Tensor:
    """Return where patches lie between the first trained one (-1) and the last (1)."""
    return 2 * step * torch.arange(n_patches) / max(1, n_trained - 1) - 1


def _parts(dims: AstDims, pos_embed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings of the prefix (1, 2, C) and of the patches (1, F, T, C)."""
    patches = pos_embed[:, N_PREFIX_TOKENS:]
    grid = patches.view(1, dims.n_frequency_patches, dims.n_time_patches, -1)
    return pos_embed[:, :N_PREFIX_TOKENS], grid


def _joined(prefix: Tensor, grid: Tensor) -> Tensor:
    return torch.cat((prefix, grid.flatten(1, 2)), dim=1)  # (1, n_tokens, C)
