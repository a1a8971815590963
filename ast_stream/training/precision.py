"""In which precision a training multiplies matrices."""

from __future__ import annotations

import torch

from ast_stream.errors import StartupError
from ast_stream.training.cpu_speed import cpu_has_bf16
from ast_stream.training.recipe import TrainingPrecision


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
