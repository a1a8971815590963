"""Sizes of a model and statistics of its features, also those that published recipes imply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ast_stream.errors import CheckpointError
from ast_stream.units import FRAMES_PER_SECOND, N_MELS

if TYPE_CHECKING:
    from torch import Tensor

MAX_SIZE = 1 << 20  # of any one dimension; a larger one is a damaged file
N_PREFIX_TOKENS = 2  # class and distillation token

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
StoredPrecision = Literal["fp32", "fp16"]
Scoring = Literal["sigmoid", "softmax"]
"""How logits become scores: each class for itself, or one class out of all."""
if TYPE_CHECKING:
    from torch import Tensor

_STRIDES = (10, 12, 14, 16)
_PATCH_SIZE = 16
_HEAD_DIM = 64  # of all published sizes, as in DeiT
_ORIGINAL_EPS = (1e-6, 1e-5)  # timm's blocks, torch's default in the head
_HUB_EPS = (1e-12, 1e-12)
# Tensors that sizes are read from.
_AXES = {"cls_token": 3, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2, "head.weight": 2}


@dataclass(frozen=True)
class AstDims:
    """Sizes of one checkpoint; the defaults are those of the published AudioSet models.

    Attributes:
        max_frames: frames of a window, 10 ms each.
        frequency_stride, time_stride: steps of the patch grid, in mel bands and frames.
        activation: of the feed-forward halves; `gelu` is the exact one (erf).
    """

    n_classes: int
    hidden_size: int = 768
    n_layers: int = 12
    n_heads: int = 12
    intermediate_size: int = 3072
    patch_size: int = 16
    frequency_stride: int = 10
    time_stride: int = 10
    max_frames: int = 1024
    n_mels: int = 128
    layer_norm_eps: float = 1e-12
    head_layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if type(value) is int}
        for name, value in sizes.items():
            if not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{name}: expected 1 to {MAX_SIZE}, got {value}")
        if min(self.layer_norm_eps, self.head_layer_norm_eps) < 0:
            raise ValueError(f"layer_norm_eps: expected 0 or more, got {self.layer_norm_eps}")
        if self.hidden_size % self.n_heads:
            raise ValueError(
                f"hidden_size: expected a multiple of n_heads={self.n_heads}, "
                f"got {self.hidden_size}"
            )
        if min(self.n_mels, self.max_frames) < self.patch_size:
            raise ValueError(
                f"patch_size: expected at most n_mels={self.n_mels} and "
                f"max_frames={self.max_frames}, got {self.patch_size}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.n_heads

    @property
    def time_patch_s(self) -> float:
        """Seconds from one time patch to the next."""
        return self.time_stride / FRAMES_PER_SECOND

    @property
    def n_frequency_patches(self) -> int:
        """Rows of the patch grid."""
        return (self.n_mels - self.patch_size) // self.frequency_stride + 1

    @property
    def n_time_patches(self) -> int:
        """Columns of the patch grid."""
        return (self.max_frames - self.patch_size) // self.time_stride + 1

    @property
    def n_tokens(self) -> int:
        """Length of the transformer's sequence."""
        return N_PREFIX_TOKENS + self.n_frequency_patches * self.n_time_patches

    @property
    def gflop(self) -> float:
        """Work for one window in 10^9 operations (2 per multiply-add), patches left out."""
        linear = 2 * self.n_tokens * self.hidden_size
        linear *= 4 * self.hidden_size + 2 * self.intermediate_size
        attention = 4 * self.n_tokens**2 * self.hidden_size
        return self.n_layers * (linear + attention) / 1e9


@dataclass(frozen=True)
class Normalization:
    """Statistics of the training set's log-mel energies, see `fbank.normalize`."""

    mean: float
    std: float


AUDIOSET_NORMALIZATION = Normalization(mean=-4.2677393, std=4.5689974)

# Source: YuanGongND/ast, egs/*/run*.sh. The clips are shorter than the input, the rest is padding:
# AudioSet 10 s in 1024 frames, ESC-50 5 s in 512, Speech Commands 1 s in 128.
_WINDOW_S = {1024: 10.0, 512: 5.0, 128: 1.0}
_NORMALIZATION = {
    1024: AUDIOSET_NORMALIZATION,
    512: Normalization(mean=-6.6268077, std=5.358466),
    128: Normalization(mean=-6.845978, std=5.5654526),
}


def default_window_s(max_frames: int) -> float:
    """Return the seconds of audio that a model of `max_frames` frames was trained on."""
    return _WINDOW_S.get(max_frames, max_frames / FRAMES_PER_SECOND)


def default_normalization(max_frames: int) -> Normalization:
    """Return the statistics of the published recipe with this input, else AudioSet's."""
    return _NORMALIZATION.get(max_frames, AUDIOSET_NORMALIZATION)


def infer_dims(own: Mapping[str, Tensor], *, is_original: bool, where: str) -> AstDims:
    """Return the sizes of a model from its tensors (in our names) alone.

    The patch grid follows from the number of position embeddings for the published strides and
    window lengths; heads are 64 wide.

    Raises:
        CheckpointError: the tensors leave it open; a config.json beside them would say it.
    """
    for name, n_axes in _AXES.items():
        if own[name].ndim != n_axes:
            raise CheckpointError(
                f"{where}: {name}: expected {n_axes} dimensions, got {own[name].ndim}"
            )
    width = own["cls_token"].shape[-1]
    if width % _HEAD_DIM:
        raise CheckpointError(
            f"{where}: expected a width that is a multiple of {_HEAD_DIM}, got {width}; "
            "put a config.json beside the file"
        )
    stride, max_frames = _patch_grid(own["pos_embed"].shape[1], where)
    eps, head_eps = _ORIGINAL_EPS if is_original else _HUB_EPS
    return AstDims(
        n_classes=own["head.weight"].shape[0],
        hidden_size=width,
        n_layers=sum(name.endswith(".norm1.weight") for name in own),
        n_heads=width // _HEAD_DIM,
        intermediate_size=own["blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=_PATCH_SIZE,
        frequency_stride=stride,
        time_stride=stride,
        max_frames=max_frames,
        n_mels=N_MELS,
        layer_norm_eps=eps,
        head_layer_norm_eps=head_eps,
        qkv_bias="blocks.0.attn.qkv.bias" in own,
    )


def _patch_grid(n_positions: int, where: str) -> tuple[int, int]:
    """Return (stride, max_frames) of the published model with that many position embeddings."""
    for max_frames in _WINDOW_S:
        for stride in _STRIDES:
            dims = AstDims(
                n_classes=1, frequency_stride=stride, time_stride=stride, max_frames=max_frames
            )
            if dims.n_tokens == n_positions:
                return stride, max_frames
    raise CheckpointError(
        f"{where}: cannot tell stride and window length from {n_positions - N_PREFIX_TOKENS} "
        "position embeddings; put a config.json beside the file"
    )
