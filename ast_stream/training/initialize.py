"""A better start than noise: what trained vision transformers have in common, built in.

A few hundred clips are too few to learn from scratch where things are and that near patches belong
together. Position embeddings start as sines of frequency and time, and attention starts as it ends
up in trained models: tokens look at what is like them.

Source: Trockman and Kolter, "Mimetic initialization of self-attention layers" (ICML 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ast_stream.model.ast import Attention, AudioSpectrogramTransformer
from ast_stream.model.dims import N_PREFIX_TOKENS, AstDims
from ast_stream.training.recipe import Recipe

QUERY_KEY = (0.7, 0.7)  # product of query and key: noise, identity
VALUE_PROJECTION = (0.4, -0.4)  # product of value and projection: noise, identity
POSITION_STD = 0.3  # as large as the embeddings of typical patches
LONGEST_WAVE = 64.0  # patches


@torch.no_grad()
def initialize(model: AudioSpectrogramTransformer) -> None:
    """Give a new model sinusoidal positions and mimetic attention, from torch's generator."""
    positions = sinusoidal_positions(model.dims)  # (P, C)
    model.pos_embed[0, N_PREFIX_TOKENS:] = positions * (POSITION_STD / positions.std())
    for module in model.modules():
        if isinstance(module, Attention):
            _initialize_attention(module)


def new_model(dims: AstDims, recipe: Recipe) -> AudioSpectrogramTransformer:
    """Return a model initialised for small data, the same for the same recipe seed."""
    torch.manual_seed(recipe.seed)
    model = AudioSpectrogramTransformer(dims, drop_path=recipe.drop_path)
    initialize(model)
    return model


def sinusoidal_positions(dims: AstDims) -> Tensor:
    """Return sines and cosines of each patch's place, shape (n_patches, hidden_size).

    The first half of the width tells frequency, the second half time.
    """
    half = dims.hidden_size // 2
    rows = _waves(torch.arange(dims.n_frequency_patches), half)  # (F, C / 2)
    columns = _waves(torch.arange(dims.n_time_patches), dims.hidden_size - half)  # (T, C / 2)
    grid = (
        rows[:, None].expand(-1, len(columns), -1),
        columns[None].expand(len(rows), -1, -1),
    )
    return torch.cat(grid, dim=2).flatten(0, 1)  # (F * T, C), frequency-major


def _waves(places: Tensor, width: int) -> Tensor:
    n_waves = (width + 1) // 2
    rates = torch.exp(-math.log(LONGEST_WAVE) * torch.arange(n_waves) / n_waves)
    angles = places[:, None] * rates  # (n_places, n_waves)
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :width]


def _initialize_attention(attention: nn.Module) -> None:
    assert isinstance(attention, Attention)
    width = attention.proj.weight.shape[0]
    head_dim = width // attention.n_heads
    for head in range(attention.n_heads):
        query, key = _factors(width, head_dim, *QUERY_KEY)  # (head_dim, C) each
        rows = slice(head * head_dim, (head + 1) * head_dim)
        attention.qkv.weight[:width][rows] = query
        attention.qkv.weight[width : 2 * width][rows] = key
    value, projection = _factors(width, width, *VALUE_PROJECTION)
    attention.qkv.weight[2 * width :] = value
    attention.proj.weight.copy_(projection.T)


def _factors(width: int, rank: int, noise: float, identity: float) -> tuple[Tensor, Tensor]:
    """Return A, B of shape (rank, width) with A' B near `noise` x random + `identity` x 1."""
    random = torch.randn(width, width) / math.sqrt(width)
    left, strengths, right = torch.linalg.svd(noise * random + identity * torch.eye(width))
    roots = strengths[:rank].sqrt()
    return (left[:, :rank] * roots).T, right[:rank] * roots[:, None]
