"""Audio Spectrogram Transformer: a window of normalised log-mel frames in, class logits out.

Source: Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021) and its
repository YuanGongND/ast; parity with transformers' ASTForAudioClassification is tested.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ast_stream.model.dims import N_PREFIX_TOKENS, Activation, AstDims

INIT_STD = 0.02
BLOCK_SCORES = 1_500_000  # of attention, at once: a head of AST-base, all heads of a small model

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values in, mixed values out; all of shape (B, n_heads, N, head_dim)."""


def attention_by(backend: SDPBackend) -> Attend:
    """Return torch's attention, forced to one of its backends."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


# versions 2, 3 and 4 of the package, which may be installed side by side
_FLASH_ATTN_MODULES = ("flash_attn", "flash_attn_interface", "flash_attn.cute")


def _flash_attn_func(module: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] | None
        found = getattr(importlib.import_module(module), "flash_attn_func", None)
    except ImportError:
        return None
    return found


def flash_attn_package() -> Attend:
    """Return the attention of the flash-attn package.

    Raises:
        ImportError: it is not installed.
    """
    flash_attn_func = next(filter(None, map(_flash_attn_func, _FLASH_ATTN_MODULES)), None)
    if flash_attn_func is None:
        raise ImportError(
            "the flash-attn package is not installed; see the extra ast-stream[flash]"
        )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        # some versions return the logarithms of the sums beside it
        mixed: Tensor = found[0] if isinstance(found, tuple) else found  # (B, N, H, D)
        return mixed.transpose(1, 2)

    return attend


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention by plain matrix products, over as many heads at once as the cache holds.

    There may be fewer queries than keys.

    torch's flash attention for CPUs multiplies in fp32; in bf16 these products take less than half
    of its time (130 and 1214 tokens, AMD EPYC with AVX-512 BF16). Softmax is in the inputs' dtype.
    """
    shape, head_dim = q.shape, q.shape[-1]
    q, k, v = (part.reshape(-1, part.shape[2], head_dim) for part in (q * head_dim**-0.5, k, v))
    step = max(1, BLOCK_SCORES // (q.shape[1] * k.shape[1]))
    mixed = [
        torch.bmm(torch.softmax(torch.bmm(queries, keys.transpose(1, 2)), dim=-1), values)
        for queries, keys, values in zip(q.split(step), k.split(step), v.split(step), strict=True)
    ]
    return torch.cat(mixed).view(shape)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


def softmax_logits(logits: Tensor) -> Tensor:
    """Return logits whose sigmoid is the softmax of `logits` (..., n_classes); the same shape."""
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

    def forward(self, x: Tensor, n_read: int | None = None) -> Tensor:
        """Return (B, N, hidden_size) for the same shape, or only the first `n_read` tokens."""
        n_windows, n_tokens, width = x.shape
        qkv = self.qkv(x).view(n_windows, n_tokens, 3, self.n_heads, width // self.n_heads)
        # These strides are what cuDNN's attention asks for: (B, N, 3, H, D), split, transposed.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, H, N, D)
        if n_read is None:
            mixed = self.attend(q, k, v)  # (B, H, N, D)
        else:  # so few queries are no shape that fused kernels are made for
            mixed = blocked_attention(q[:, :, :n_read], k, v)  # (B, H, n_read, D)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(n_windows, -1, width))
        return projected


class Mlp(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, dims: AstDims) -> None:
        super().__init__()
        self.fc1: nn.Module = nn.Linear(dims.hidden_size, dims.intermediate_size)
        self.fc2 = nn.Linear(dims.intermediate_size, dims.hidden_size)
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[dims.activation]

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

    def forward(self, x: Tensor, n_read: int | None = None) -> Tensor:
        """Return (B, N, hidden_size) for the same shape, or only the first `n_read` tokens."""
        x = x[:, :n_read] + self.drop_path(self.attn(self.norm1(x), n_read))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class AudioSpectrogramTransformer(nn.Module):
    """The whole model, initialised for training from scratch.

    Args:
        drop_path: stochastic depth of the last block while training; rises linearly from 0.
        has_frames: with a second head, which says when in the window each class sounds.

    Attributes:
        frame_head: None without `has_frames`.
    """

    def __init__(self, dims: AstDims, drop_path: float = 0.0, *, has_frames: bool = False) -> None:
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
        self.frame_head = nn.Linear(dims.hidden_size, dims.n_classes) if has_frames else None
        self._initialize()

    def forward(self, fbank: Tensor) -> Tensor:
        """Return logits (B, n_classes) of normalised windows (B, max_frames, n_mels)."""
        # of the last block nothing but the tokens that are read: 7 % of AST-base's work
        return self._clip_logits(self._encode(fbank, N_PREFIX_TOKENS))

    def forward_frames(self, fbank: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of `forward`, and those of each time patch, in one pass.

        Time patch t covers frames [t * time_stride, t * time_stride + patch_size).

        Args:
            fbank: normalised windows, shape (B, max_frames, n_mels).

        Returns:
            Shapes (B, n_classes) and (B, T, n_classes), T being `dims.n_time_patches`.

        Raises:
            ValueError: the model has no frame head.
        """
        x = self._encode(fbank)
        return self._clip_logits(x), self._frame_logits(x)

    def frame_logits(self, fbank: Tensor) -> Tensor:
        """Return only the second part of `forward_frames`."""
        return self._frame_logits(self._encode(fbank))

    def embed(self, fbank: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings that the heads read: of the window, and of its time patches.

        Args:
            fbank: normalised windows, shape (B, max_frames, n_mels).

        Returns:
            Shapes (B, hidden_size) and (B, T, hidden_size), T being `dims.n_time_patches`.
        """
        x = self._encode(fbank)
        return self._pooled(x), self._patch_means(x)

    def embed_one(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Return `embed` of one window (max_frames, n_mels), in float32: (C,) and (T, C)."""
        whole, patches = self.embed(window[None])
        return whole[0].float(), patches[0].float()

    def _encode(self, fbank: Tensor, n_read: int | None = None) -> Tensor:
        """Return the output of the blocks, before the final norm: all tokens or the first ones."""
        x: Tensor = self.patch_embed(fbank)  # (B, n_patches, hidden_size)
        prefix = torch.cat((self.cls_token, self.dist_token), dim=1)  # (1, 2, hidden_size)
        x = torch.cat((prefix.expand(len(x), -1, -1), x), dim=1)  # (B, n_tokens, hidden_size)
        x = x + self.pos_embed
        for index, block in enumerate(self.blocks, 1):
            x = block(x, n_read if index == len(self.blocks) else None)
        return x  # (B, n_tokens or n_read, hidden_size)

    def _frame_logits(self, x: Tensor) -> Tensor:
        if self.frame_head is None:
            raise ValueError("forward_frames: expected a model with a frame head, got one without")
        frame_logits: Tensor = self.frame_head(self._patch_means(x))  # (B, T, n_classes)
        return frame_logits

    def _patch_means(self, x: Tensor) -> Tensor:
        """Return the normed patches' means over frequency, (B, T, hidden_size)."""
        grid = (self.dims.n_frequency_patches, self.dims.n_time_patches)
        means: Tensor = self.norm(x[:, N_PREFIX_TOKENS:]).unflatten(1, grid).mean(dim=1)
        return means

    def _clip_logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.head_norm(self._pooled(x)))
        return logits

    def _pooled(self, x: Tensor) -> Tensor:
        """Return the mean of the normed prefix tokens, (B, hidden_size)."""
        # The final norm works token by token, so only the two tokens that are read need it.
        pooled: Tensor = self.norm(x[:, :N_PREFIX_TOKENS]).mean(dim=1)
        return pooled

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
