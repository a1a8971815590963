"""Audio Spectrogram Transformer: a window of normalised log-mel frames in, class logits out.

Source: Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021) and its
repository YuanGongND/ast; parity with transformers' ASTForAudioClassification is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ast_stream.model.dims import N_PREFIX_TOKENS, Activation, AstDims

INIT_STD = 0.02

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values in, mixed values out; all of shape (B, n_heads, N, head_dim)."""


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


def softmax_logits(logits: Tensor) -> Tensor:
    """Return what the softmax of logits (..., n_classes) is the sigmoid of; the same shape."""
    n_classes = logits.shape[-1]
    others = logits.unsqueeze(-2).expand(*logits.shape, n_classes)  # (..., n_classes, n_classes)
    own = torch.eye(n_classes, dtype=torch.bool, device=logits.device)
    return logits - others.masked_fill(own, -torch.inf).logsumexp(dim=-1)


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
    """The feed-forward half of a block."""

    def __init__(self, dims: AstDims) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims.hidden_size, dims.intermediate_size)
        self.fc2 = nn.Linear(dims.intermediate_size, dims.hidden_size)
        self.activation = _ACTIVATIONS[dims.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, hidden_size) for the same shape."""
        expanded: Tensor = self.fc2(self.activation(self.fc1(x)))
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
