"""Which attention kernel to use: measured on the real shape, checked against `math`, then named.

`flash`, `cudnn`, `efficient` and `math` are the backends of torch's
`scaled_dot_product_attention`, forced one by one; `flash_attn` is the flash-attn package, and
`blocked` plain matrix products, which are fastest on CPUs in bf16.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ast_stream.errors import StartupError
from ast_stream.model.ast import Attend, attention_by, blocked_attention, flash_attn_package
from ast_stream.model.dims import AstDims
from ast_stream.model.runners import at_most_threads, scoring_threads

logger = logging.getLogger(__name__)

AttentionName = Literal["flash_attn", "flash", "cudnn", "efficient", "blocked", "math"]
AttentionSetting = Literal["auto", "flash_attn", "flash", "cudnn", "efficient", "blocked", "math"]

_BACKENDS: dict[AttentionName, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# In order of preference: a later one must be clearly faster, so that noise in the measurement
# does not give two processes different kernels.
CANDIDATES: dict[str, tuple[AttentionName, ...]] = {
    "cuda": ("cudnn", "flash_attn", "flash", "efficient", "math"),
    "cpu": ("flash", "math"),
}
_CPU_BF16_CANDIDATES: tuple[AttentionName, ...] = ("blocked", "flash", "math")
# On CPUs the order is known for each precision, and other work there makes times mean little.
_CLEARLY_FASTER = {"cuda": 1.15, "cpu": math.inf}
# Below this, cuDNN is wrong for sequences that are no multiple of 128, as all of AST's are.
CUDNN_MIN_VERSION = 91_501
# Largest difference from math in fp32 on values of order 1.
MAX_ERROR = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_REPEATS = {"cuda": 20, "cpu": 5}
_SPREAD = 2.0  # of queries: peaky attention, so that errors show in outputs of order 1


@dataclass(frozen=True)
class KernelTiming:
    """What was found out about one way to compute attention.

    Attributes:
        ms: fastest of several runs of one layer's attention; None if it did not run.
        max_error: largest difference from `math` in fp32; None if it did not run.
        problem: why it cannot be used; None if it can.
    """

    name: AttentionName
    ms: float | None = None
    max_error: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class AttentionChoice:
    """The attention in use and what the choice was based on."""

    name: AttentionName
    attend: Attend
    measurements: tuple[KernelTiming, ...]


def choose_attention(
    setting: AttentionSetting,
    dims: AstDims,
    n_windows: int,
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionChoice:
    """Return the attention that `setting` asks for, tried on the shape it will be used with.

    Raises:
        StartupError: an explicit choice is not available here, or none is right; never another
            one instead.
    """
    if setting == "auto":
        measurements = measure_all(dims, n_windows, device, dtype)
        name = _preferred(measurements, _CLEARLY_FASTER[device.type])
    else:
        measurements = (measure(setting, dims, n_windows, device, dtype),)
        name = setting
        if measurements[0].problem is not None:
            raise StartupError(
                f"attention {name} cannot be used on {device} in {_short(dtype)}: "
                f"{measurements[0].problem}"
            )
    logger.info("attention %s on %s in %s (%s)", name, device, _short(dtype), setting)
    return AttentionChoice(name, _attend(name), measurements)


def measure_all(
    dims: AstDims, n_windows: int, device: torch.device, dtype: torch.dtype
) -> tuple[KernelTiming, ...]:
    """Return a measurement of every candidate of the device's kind."""
    names = CANDIDATES[device.type]
    if (device.type, dtype) == ("cpu", torch.bfloat16):
        names = _CPU_BF16_CANDIDATES
    return tuple(measure(name, dims, n_windows, device, dtype) for name in names)


@torch.inference_mode()
def measure(
    name: AttentionName, dims: AstDims, n_windows: int, device: torch.device, dtype: torch.dtype
) -> KernelTiming:
    """Return speed and error of one kernel on the shape and strides that the model uses."""
    problem = _known_problem(name, device, dtype)
    if problem is not None:
        return KernelTiming(name, problem=problem)
    q, k, v = _queries_keys_values(dims, n_windows, device, dtype)
    with sdpa_kernel(SDPBackend.MATH):
        reference = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch says in warnings why a backend does not apply
        try:
            attend = _attend(name)
            max_error = (attend(q, k, v).float() - reference).abs().max().item()
            with at_most_threads(scoring_threads(dims.gflop)):
                ms = _fastest_ms(lambda: attend(q, k, v), device)
        except (RuntimeError, ImportError) as error:
            reasons = [str(warning.message).split(" (Triggered")[0] for warning in caught]
            return KernelTiming(name, problem=" ".join(reasons) or str(error).split("\n")[0])
    problem = None
    if not max_error <= MAX_ERROR[dtype]:  # also NaN
        problem = f"differs from math by {max_error:.2g}, allowed is {MAX_ERROR[dtype]:.2g}"
    return KernelTiming(name, ms, max_error, problem)


def _preferred(measurements: tuple[KernelTiming, ...], clearly_faster: float) -> AttentionName:
    timed = [(found.name, found.ms) for found in measurements if not found.problem and found.ms]
    if not timed:
        problems = "; ".join(f"{found.name}: {found.problem}" for found in measurements)
        raise StartupError(f"no attention gives the right result on this device: {problems}")
    fastest_ms = min(ms for _name, ms in timed)
    return next(name for name, ms in timed if ms <= fastest_ms * clearly_faster)


def _known_problem(name: AttentionName, device: torch.device, dtype: torch.dtype) -> str | None:
    if name not in CANDIDATES[device.type] and (name, device.type) != ("blocked", "cpu"):
        return f"it does not exist on a {device.type} device"
    if name == "cudnn":
        version = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
        if version < CUDNN_MIN_VERSION:
            return (
                f"cuDNN {version} gives wrong results for sequences that are no multiple of 128; "
                f"needed is {CUDNN_MIN_VERSION} or later"
            )
    if name == "flash_attn" and dtype == torch.float32:
        return "the flash-attn package computes fp16 and bf16 only"
    return None


def _attend(name: AttentionName) -> Attend:
    if name == "blocked":
        return blocked_attention
    return flash_attn_package() if name == "flash_attn" else attention_by(_BACKENDS[name])


def _queries_keys_values(
    dims: AstDims, n_windows: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (n_windows, dims.n_tokens, 3, dims.n_heads, dims.head_dim)
    qkv = torch.randn(shape, generator=generator)
    qkv[:, :, 0] *= _SPREAD
    q, k, v = (part.transpose(1, 2) for part in qkv.to(device, dtype).unbind(2))
    return q, k, v


def _fastest_ms(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        return _mean_ms_on_device(run, device)
    fastest_s = float("inf")
    for _repeat in range(_REPEATS[device.type]):
        start = time.perf_counter()
        run()
        fastest_s = min(fastest_s, time.perf_counter() - start)
    return fastest_s * 1000


def _mean_ms_on_device(run: Callable[[], object], device: torch.device) -> float:
    """Return the device's own time of calls back to back, without what their launches take."""
    with torch.cuda.device(device):
        new_event: Any = torch.cuda.Event
        begin, end = new_event(enable_timing=True), new_event(enable_timing=True)
        begin.record()
        for _repeat in range(_REPEATS["cuda"]):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / _REPEATS["cuda"]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
