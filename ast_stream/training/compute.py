"""How training steps are computed on a device: precision, and speed on CPUs."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ast_stream.errors import StartupError
from ast_stream.model.runners import cpu_has_bf16
from ast_stream.training.config import TrainingPrecision

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # mallopt(3)
_KEEP_BYTES = 1 << 30


def autocast_type(precision: TrainingPrecision, device: torch.device) -> torch.dtype | None:
    """Return the type for autocast, None for fp32 throughout.

    `auto` is bf16 where the device multiplies it in hardware, else fp16 on CUDA and fp32 on CPUs.

    Raises:
        StartupError: fp16 on a CPU, whose gradients it cannot scale.
    """
    if device.type == "cuda" and precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision == "auto":
        return torch.bfloat16 if cpu_has_bf16() else None
    if precision == "fp16" and device.type == "cpu":
        raise StartupError("precision fp16 needs a CUDA device; on a CPU use bf16 or fp32")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the context in which products are computed in `dtype`; None: in fp32."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


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
