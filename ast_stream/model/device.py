"""Where and how precisely to compute: settings in, what this machine really has out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from ast_stream.errors import StartupError

Precision = Literal["fp32", "fp16", "bf16"]
PrecisionSetting = Literal["auto", "fp32", "fp16", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
ONE_THREAD_GFLOP = 5.0  # about 100 ms on one core
_CPU_BF16_FEATURES = ("avx512_bf16", "amx_bf16")


def resolve_device(setting: str) -> torch.device:
    """Return the device that `setting` (auto, cpu, cuda, cuda:N) names.

    Raises:
        StartupError: it is not a device of this machine; another one is never taken instead.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "auto":
        return torch.device("cuda", 0) if n_gpus else torch.device("cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise StartupError(f"device: expected auto, cpu, cuda or cuda:N, got '{setting}'")
    if device.type == "cpu":
        return torch.device("cpu")
    if not n_gpus:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        raise StartupError(
            f"device {setting}: no CUDA device is available to torch {torch.__version__} ({built})"
        )
    index = device.index or 0
    if index >= n_gpus:
        raise StartupError(f"device {setting}: expected an index below {n_gpus}, the GPUs found")
    return torch.device("cuda", index)


def resolve_precision(setting: PrecisionSetting, device: torch.device) -> Precision:
    """Return the precision to compute in.

    `auto` is fp16 on CUDA, bf16 on CPUs with instructions for it, else fp32.

    Raises:
        StartupError: the device does not compute in the precision asked for.
    """
    if setting == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if cpu_has_bf16() else "fp32"
    if setting not in DTYPES:
        raise StartupError(f"precision: expected auto, fp32, fp16 or bf16, got '{setting}'")
    if setting == "fp16" and device.type == "cpu":
        raise StartupError("precision fp16 needs a CUDA device; on a CPU use bf16 or fp32")
    if setting == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise StartupError(f"precision bf16: {torch.cuda.get_device_name(device)} lacks it")
    return setting


def scoring_threads(gflop: float) -> int:
    """Return how many CPU threads to use for windows of that much work each."""
    return 1 if gflop <= ONE_THREAD_GFLOP else torch.get_num_threads()


@contextmanager
def at_most_threads(limit: int) -> Iterator[None]:
    """Let torch use at most `limit` CPU threads inside the block.

    Small work gains nothing from a second thread, and where the cores are busy each of its many
    parallel regions waits for a thread that is not scheduled: 15 ms become 500 ms.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, limit))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let fp32 be fp32 inside the block: cuDNN's convolutions use TF32 by default."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature) for feature in _CPU_BF16_FEATURES)
