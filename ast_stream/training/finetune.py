"""The model that a training run starts from, new or from a checkpoint, and what it inherits.

A few hundred clips are too few to learn from scratch where things are and that near patches belong
together. What trained vision transformers have in common is built into a new model: position
embeddings start as sines of frequency and time, and tokens attend to what is like them.

Source: Trockman and Kolter, "Mimetic initialization of self-attention layers" (ICML 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ast_stream.errors import UsageError
from ast_stream.model.ast import Attention, AudioSpectrogramTransformer, change_stride, cut_time
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.dims import N_PREFIX_TOKENS, AstDims
from ast_stream.model.metadata import FrameDecisions, Metadata
from ast_stream.model.weights import FRAME_HEAD
from ast_stream.soundscape.soundbank import Soundbank
from ast_stream.training.config import HEAD_DIM, Optimization, TrainingConfig
from ast_stream.units import FRAMES_PER_SECOND

DEFAULT_WINDOW_S = 2.56  # from scratch
DEFAULT_STRIDE = 16
EPS = 1e-6  # of LayerNorm: survives fp16, unlike transformers' default
HEAD = ("head.weight", "head.bias")

QUERY_KEY = (0.7, 0.7)  # product of query and key: noise, identity
VALUE_PROJECTION = (0.4, -0.4)  # product of value and projection: noise, identity
POSITION_STD = 0.3  # as large as the embeddings of typical patches
MAX_WAVELENGTH = 64.0  # patches

# of a checkpoint's metadata, by label
INHERITED = (
    "onset_thresholds",
    "confirm_s",
    "smoothing_s",
    "onset_fits",
    "rise_on_s",
    "rise_off_s",
    "rise_on_spread_s",
    "rise_off_spread_s",
    "score_maps",
)
FRAMES_INHERITED = ("onset_thresholds", "confirm_s", "smoothing_s", "hold_s", "score_maps")


def window_of(config: TrainingConfig, start: Checkpoint | None) -> float:
    """Return the seconds of a window.

    Raises:
        UsageError: longer than the windows of the start.
    """
    if start is None:
        return config.window_s or DEFAULT_WINDOW_S
    if config.window_s is not None and config.window_s > start.window_s:
        raise UsageError(
            f"{start.origin}: expected windows of {config.window_s:g} s or more, "
            f"got a checkpoint with {start.window_s:g} s"
        )
    return config.window_s or start.window_s


def initial_dims(config: TrainingConfig, start: Checkpoint | None, n_classes: int) -> AstDims:
    """Return the sizes of the model to train; of a start but for classes, window and stride."""
    n_frames = config.max_frames or round(window_of(config, start) * FRAMES_PER_SECOND)
    if start is None:
        return AstDims(
            n_classes=n_classes,
            hidden_size=config.width,
            n_layers=config.n_layers,
            n_heads=config.width // HEAD_DIM,
            intermediate_size=4 * config.width,
            frequency_stride=config.stride or DEFAULT_STRIDE,
            time_stride=config.stride or DEFAULT_STRIDE,
            max_frames=n_frames,
            layer_norm_eps=EPS,
            head_layer_norm_eps=EPS,
        )
    is_cut = window_of(config, start) < start.window_s
    n_frames = n_frames if is_cut else start.dims.max_frames
    dims = replace(start.dims, n_classes=n_classes, max_frames=n_frames)
    if config.stride is None:
        return dims
    if config.stride > dims.patch_size:
        raise UsageError(
            f"--stride: expected at most the {dims.patch_size} of a patch of {start.origin}, "
            f"got {config.stride}"
        )
    return replace(dims, frequency_stride=config.stride, time_stride=config.stride)


def initial_model(
    config: TrainingConfig, start: Checkpoint | None, labels: Sequence[str]
) -> AudioSpectrogramTransformer:
    """Return the model to train on `labels`, the same for the same config.

    Of a start with other classes the rows of its classifier go along with their labels; rows of
    new labels begin as noise with the lowest bias of the others, since a new sound is rare.
    """
    dims = initial_dims(config, start, len(labels))
    model = new_model(dims, config.optimization, config.has_frames)
    if start is None:
        return model
    names = HEAD + (FRAME_HEAD if config.has_frames else ())
    body = {name: weight for name, weight in start.state_dict.items() if name not in FRAME_HEAD}
    cut_dims, weights = cut_time(start.dims, body, dims.max_frames)
    if config.stride is not None:
        _, weights = change_stride(cut_dims, weights, config.stride)
    indices = {label: index for index, label in enumerate(start.labels)}
    heads = {name: model.state_dict()[name].clone() for name in names}
    known = {name: start.state_dict[name] for name in names if name in start.state_dict}
    for name, weight in known.items():
        if weight.ndim == 1:
            heads[name].fill_(float(weight.min()))
        for row, label in enumerate(labels):
            if label in indices:
                heads[name][row] = weight[indices[label]]
    model.load_state_dict(weights | heads)
    return model


def inherited(start: Checkpoint | None, labels: Sequence[str], held_out: Soundbank) -> Metadata:
    """Return the metadata of the start for those of `labels` without held-out examples."""
    if start is None:
        return Metadata()
    measured = {held_out.labels[index] for sound in held_out.foregrounds for index in sound.classes}
    kept = [label for label in labels if label in start.labels and label not in measured]
    facts: dict[str, Any] = {name: _of(start.metadata, name, kept) for name in INHERITED}
    facts["default_onset_threshold"] = start.metadata.default_onset_threshold
    facts["background"] = [label for label in start.metadata.background if label in labels]
    facts["off"] = [label for label in start.metadata.off if label in kept]
    if (frames := start.metadata.frames) is not None:
        of_frames = {name: _of(frames, name, kept) for name in FRAMES_INHERITED}
        facts["frames"] = frames.model_copy(update=of_frames)
    return Metadata().model_copy(update=facts)


def _of(metadata: Metadata | FrameDecisions, name: str, labels: Sequence[str]) -> dict[str, Any]:
    return {label: value for label, value in getattr(metadata, name).items() if label in labels}


def new_model(
    dims: AstDims, optimization: Optimization, has_frames: bool = False
) -> AudioSpectrogramTransformer:
    """Return a model initialised for small data, the same for the same seed."""
    torch.manual_seed(optimization.seed)
    model = AudioSpectrogramTransformer(dims, optimization.drop_path, has_frames=has_frames)
    initialize_mimetically(model)
    return model


@torch.no_grad()
def initialize_mimetically(model: AudioSpectrogramTransformer) -> None:
    """Give a new model sinusoidal positions and mimetic attention, from torch's generator."""
    positions = sinusoidal_positions(model.dims)  # (P, C)
    model.pos_embed[0, N_PREFIX_TOKENS:] = positions * (POSITION_STD / positions.std())
    for module in model.modules():
        if isinstance(module, Attention):
            _initialize_attention(module)


def sinusoidal_positions(dims: AstDims) -> Tensor:
    """Return sines and cosines of each patch's place, shape (n_patches, hidden_size).

    The first half of the width encodes frequency, the second half time.
    """
    half = dims.hidden_size // 2
    rows = _waves(torch.arange(dims.n_frequency_patches), half)  # (F, C / 2)
    columns = _waves(torch.arange(dims.n_time_patches), dims.hidden_size - half)  # (T, C / 2)
    grid = (
        rows[:, None].expand(-1, len(columns), -1),
        columns[None].expand(len(rows), -1, -1),
    )
    return torch.cat(grid, dim=2).flatten(0, 1)  # (F * T, C), frequency-major


def _waves(positions: Tensor, width: int) -> Tensor:
    n_waves = (width + 1) // 2
    rates = torch.exp(-math.log(MAX_WAVELENGTH) * torch.arange(n_waves) / n_waves)
    angles = positions[:, None] * rates  # (n_positions, n_waves)
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
