"""A model moves to shorter windows and to other grids of patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ast_stream.model.dims import AstDims
from ast_stream.model.grid import change_stride, cut_time

SMALL = AstDims(n_classes=3, hidden_size=4, n_heads=2, n_layers=1, max_frames=256)


@pytest.mark.parametrize("n_frames", [128, 500, 998, 1024, 16])
def test_shorter_windows_cut_the_centre_as_the_original_code_does(n_frames: int) -> None:
    dims = AstDims(n_classes=3, hidden_size=8, n_heads=2, n_layers=1)
    pos_embed = torch.randn(1, dims.n_tokens, 8, generator=torch.Generator().manual_seed(2))
    short, state = cut_time(dims, {"pos_embed": pos_embed, "norm": pos_embed[0]}, n_frames)
    # as in ast_models.py: (1, tokens, width) -> (1, width, 12, 101) -> centre of the last axis
    t_dim = short.n_time_patches
    grid = pos_embed[:, 2:].transpose(1, 2).reshape(1, 8, 12, 101)
    if t_dim < 101:
        grid = grid[:, :, :, 50 - int(t_dim / 2) : 50 - int(t_dim / 2) + t_dim]
    expected = torch.cat((pos_embed[:, :2], grid.reshape(1, 8, -1).transpose(1, 2)), dim=1)
    assert short == replace(dims, max_frames=n_frames)
    assert torch.equal(state["pos_embed"], expected)
    assert state["pos_embed"].shape[1] == short.n_tokens
    assert torch.equal(state["norm"], pos_embed[0])


@pytest.mark.parametrize("n_frames", [15, 1025])
def test_a_cut_beyond_the_trained_length_is_refused(n_frames: int) -> None:
    dims = AstDims(n_classes=3, hidden_size=8, n_heads=2, n_layers=1)
    with pytest.raises(ValueError, match="expected 16 to 1024"):
        cut_time(dims, {"pos_embed": torch.zeros(1, dims.n_tokens, 8)}, n_frames)


def _on_a_slope(dims: AstDims) -> torch.Tensor:
    """Position embeddings that say where a patch begins: (row, column, row, column)."""
    rows = torch.arange(dims.n_frequency_patches) * dims.frequency_stride
    columns = torch.arange(dims.n_time_patches) * dims.time_stride
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij") * 2, dim=-1).float()
    return torch.cat((torch.full((1, 2, 4), -1.0), grid.reshape(1, -1, 4)), dim=1)


@pytest.mark.parametrize("stride", [16, 10, 8, 5])
def test_patches_of_another_grid_are_placed_where_they_lie(stride: int) -> None:
    coarse = replace(SMALL, frequency_stride=16, time_stride=16)
    dims, state = change_stride(
        coarse, {"pos_embed": _on_a_slope(coarse), "norm": torch.ones(4)}, stride
    )
    assert dims == replace(SMALL, frequency_stride=stride, time_stride=stride)
    last = torch.tensor([(coarse.n_frequency_patches - 1) * 16, (coarse.n_time_patches - 1) * 16])
    expected = _on_a_slope(dims)
    expected[:, 2:] = torch.minimum(expected[:, 2:], last.repeat(2).float())
    assert torch.allclose(state["pos_embed"], expected, atol=1e-3)
    assert torch.equal(state["norm"], torch.ones(4))


def test_a_grid_of_one_patch_and_half_precision_can_be_changed() -> None:
    one = AstDims(
        n_classes=3, hidden_size=4, n_heads=2, n_layers=1, max_frames=16, frequency_stride=16,
        n_mels=16,
    )  # fmt: skip
    embeddings = torch.ones(1, one.n_tokens, 4, dtype=torch.float16)
    dims, state = change_stride(one, {"pos_embed": embeddings}, 8)
    assert dims.n_tokens == 3
    assert torch.equal(state["pos_embed"], embeddings)


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 16"):
        change_stride(SMALL, {"pos_embed": torch.zeros(1, SMALL.n_tokens, 4)}, stride)
