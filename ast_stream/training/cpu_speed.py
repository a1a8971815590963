"""What makes training on CPUs twice as fast: no page faults, and attention for short sequences."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # mallopt(3)
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it; elsewhere this does nothing.

    Every step allocates the same activations. By default each large one is mapped anew, and
    clearing its pages costs a third of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, _KEEP_BYTES),
            (_M_TOP_PAD, _KEEP_BYTES // 4),
        ):
            mallopt(parameter, value)


def attend_short(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return plain softmax attention, shapes (B, n_heads, N, head_dim).

    For a hundred tokens on a CPU its backward pass is several times faster than that of torch's
    fused kernel.
    """
    weights = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (B, H, N, N)
    mixed: Tensor = torch.softmax(weights, dim=-1) @ values  # (B, H, N, D)
    return mixed


def cpu_has_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
