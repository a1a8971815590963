"""Audio Spectrogram Transformer: a window of normalised log-mel frames in, class logits out.

Source: Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021) and its
repository YuanGongND/ast; parity with transformers' ASTForAudioClassification is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02
MAX_SIZE = 1 << 20  # of any one dimension; a larger one is a damaged file
N_PREFIX_TOKENS = 2  # class and distillation token

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values in, mixed values out; all of shape (B, n_heads, N, head_dim)."""


@dataclass(frozen=True)
class AstDims:
    """Sizes of one checkpoint; the defaults are those of the published AudioSet models.

    Attributes:
        max_frames: frames of a window, 10 ms each.
        frequency_stride, time_stride: steps of the patch grid, in mel bands and frames.
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

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if type(value) is int}
        for name, value in sizes.items():
            if not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{name}: expected 1 to {MAX_SIZE}, got {value}")
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


class PatchEmbed(nn.Module):
    """Overlapping patches of the spectrogram as tokens, frequency-major."""

    def __init__(self, dims: AstDims) -> None:
        super().__init__()
        stride = (dims.frequency_stride, dims.time_stride)
        self.proj = nn.Conv2d(1, dims.hidden_size, dims.patch_size, stride)

    def forward(self, fbank: Tensor) -> Tensor:
        """Return (B, n_patches, hidden_size) for (B, n_frames, n_mels)."""
        image = fbank.unsqueeze(1).transpose(2, 3)  # (B, 1, n_mels, n_frames)
        patches: Tensor = self.proj(image)  # (B, hidden_size, F, T)
        return patches.flatten(2).transpose(1, 2)  # (B, F * T, hidden_size)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, dims: AstDims) -> None:
        super().__init__()
        self.n_heads = dims.n_heads
        self.qkv = nn.Linear(dims.hidden_size, 3 * dims.hidden_size, bias=dims.qkv_bias)
        self.proj = nn.Linear(dims.hidden_size, dims.hidden_size)
        self.attend: Attend = F.scaled_dot_product_attention

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, hidden_size) for the same shape."""
        n_windows, n_tokens, width = x.shape
        qkv = self.qkv(x).view(n_windows, n_tokens, 3, self.n_heads, width // self.n_heads)
        # These strides are what cuDNN's attention asks for: (B, N, 3, H, D), split, transposed.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, H, N, D)
        mixed = self.attend(q, k, v)  # (B, H, N, D)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(n_windows, n_tokens, width))
        return projected


class Mlp(nn.Module):
    """The feed-forward half of a block, with the exact (erf) gelu."""

    def __init__(self, dims: AstDims) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims.hidden_size, dims.intermediate_size)
        self.fc2 = nn.Linear(dims.intermediate_size, dims.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, hidden_size) for the same shape."""
        expanded: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return expanded


class DropPath(nn.Module):
    """Stochastic depth: while training, leave a branch out for some windows of the batch."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """Return `branch` (B, N, hidden_size), with whole windows zeroed and the rest scaled up."""
        if not self.training or self.probability == 0:
            return branch
        keep = 1 - self.probability
        mask = branch.new_empty((len(branch), 1, 1)).bernoulli_(keep)  # (B, 1, 1)
        return branch * (mask / keep)


class Block(nn.Module):
    """One pre-norm transformer layer; LayerNorm accumulates in fp32 whatever the precision."""

    def __init__(self, dims: AstDims, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims.hidden_size, eps=dims.layer_norm_eps)
        self.attn = Attention(dims)
        self.norm2 = nn.LayerNorm(dims.hidden_size, eps=dims.layer_norm_eps)
        self.mlp = Mlp(dims)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, hidden_size) for the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class AudioSpectrogramTransformer(nn.Module):
    """The whole model, initialised for training from scratch.

    Args:
        drop_path: stochastic depth of the last block while training; rises linearly from 0.
    """

    def __init__(self, dims: AstDims, drop_path: float = 0.0) -> None:
        super().__init__()
        self.dims = dims
        self.patch_embed = PatchEmbed(dims)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dims.hidden_size))
        self.dist_token = nn.Parameter(torch.empty(1, 1, dims.hidden_size))
        self.pos_embed = nn.Parameter(torch.empty(1, dims.n_tokens, dims.hidden_size))
        self.blocks = nn.ModuleList(
            Block(dims, drop_path * index / max(1, dims.n_layers - 1))
            for index in range(dims.n_layers)
        )
        self.norm = nn.LayerNorm(dims.hidden_size, eps=dims.layer_norm_eps)
        self.head_norm = nn.LayerNorm(dims.hidden_size, eps=dims.head_layer_norm_eps)
        self.head = nn.Linear(dims.hidden_size, dims.n_classes)
        self._initialize()

    def forward(self, fbank: Tensor) -> Tensor:
        """Return logits (B, n_classes) of normalised windows (B, max_frames, n_mels)."""
        x = self.patch_embed(fbank)  # (B, n_patches, hidden_size)
        prefix = torch.cat((self.cls_token, self.dist_token), dim=1)  # (1, 2, hidden_size)
        x = torch.cat((prefix.expand(len(x), -1, -1), x), dim=1)  # (B, n_tokens, hidden_size)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        # The final norm works token by token, so only the two tokens that are read need it.
        pooled = self.norm(x[:, :N_PREFIX_TOKENS]).mean(dim=1)  # (B, hidden_size)
        logits: Tensor = self.head(self.head_norm(pooled))
        return logits

    def use_attention(self, attend: Attend) -> None:
        """Compute attention with `attend` in every block."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def _initialize(self) -> None:
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
