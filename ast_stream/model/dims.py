"""What a checkpoint's configuration says: sizes, and statistics of its features; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

MAX_SIZE = 1 << 20  # of any one dimension; a larger one is a damaged file
N_PREFIX_TOKENS = 2  # class and distillation token

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
StoredPrecision = Literal["fp32", "fp16"]
Scoring = Literal["sigmoid", "softmax"]
"""How logits become scores: each class for itself, or one class out of all."""


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
    """Statistics of the training set's log-mel energies."""

    mean: float
    std: float

    def apply(self, fbank: Tensor) -> Tensor:
        """Return (fbank - mean) / (2 std): about mean 0 and standard deviation 0.5."""
        return (fbank - self.mean) / (self.std * 2)


AUDIOSET_NORMALIZATION = Normalization(mean=-4.2677393, std=4.5689974)
