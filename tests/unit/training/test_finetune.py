"""The start of training: positions tell where patches are, attention looks at what is alike."""

from __future__ import annotations

import torch

from ast_stream.model.ast import Attention, AudioSpectrogramTransformer
from ast_stream.model.dims import N_PREFIX_TOKENS, AstDims
from ast_stream.training.finetune import POSITION_STD, initialize_mimetically, sinusoidal_positions

DIMS = AstDims(
    n_classes=2, hidden_size=64, n_layers=2, n_heads=2, intermediate_size=64,
    frequency_stride=16, time_stride=16, max_frames=96,
)  # fmt: skip


def _initialized() -> AudioSpectrogramTransformer:
    torch.manual_seed(4)
    model = AudioSpectrogramTransformer(DIMS)
    initialize_mimetically(model)
    return model


def test_positions_are_frequency_major_and_all_different() -> None:
    positions = sinusoidal_positions(DIMS)
    assert positions.shape == (DIMS.n_tokens - N_PREFIX_TOKENS, 64)
    grid = positions.view(DIMS.n_frequency_patches, DIMS.n_time_patches, -1)
    # one row shares its frequency half, one column its time half
    torch.testing.assert_close(grid[3, :, :32], grid[3, :1, :32].expand(DIMS.n_time_patches, -1))
    torch.testing.assert_close(grid[:, 2, 32:], grid[:1, 2, 32:].expand(len(grid), -1))
    apart = torch.cdist(positions, positions) + 10 * torch.eye(len(positions))
    assert apart.min() > 0.1


def test_near_patches_have_more_alike_positions_than_far_ones() -> None:
    positions = sinusoidal_positions(DIMS)[: DIMS.n_time_patches]  # the lowest frequencies
    similarity = positions @ positions[0]
    assert similarity[1] > similarity[3]
    assert similarity[0] > similarity[1]


def test_the_model_gets_these_positions_and_keeps_its_prefix_tokens() -> None:
    model = _initialized()
    patches = model.pos_embed[0, N_PREFIX_TOKENS:]
    torch.testing.assert_close(patches.std(), torch.tensor(POSITION_STD))
    assert model.pos_embed[0, :N_PREFIX_TOKENS].std() < 0.1


def test_attention_starts_with_tokens_looking_at_what_is_like_them() -> None:
    model = _initialized()
    for module in model.modules():
        if isinstance(module, Attention):
            query, key, value = module.qkv.weight.view(3, 64, 64)
            query_key = query[:32].T @ key[:32]  # of the first head
            assert query_key.diagonal().mean() > 4 * query_key.mean().abs()
            assert query_key.diagonal().mean() > 0.2
            through = module.proj.weight @ value
            assert through.diagonal().mean() < -0.2
