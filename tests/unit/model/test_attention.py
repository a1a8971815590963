"""Attention kernels are measured, checked against math, and never silently replaced."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_model import TINY_DIMS
from torch import Tensor
from torch.nn import functional as F

from ast_stream.errors import StartupError
from ast_stream.model import attention
from ast_stream.model.attention import KernelTiming, choose_attention, measure, measure_all

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("name", ["flash", "math"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_the_cpu_are_right(name: Any, dtype: torch.dtype) -> None:
    found = measure(name, TINY_DIMS, 1, CPU, dtype)
    assert found.problem is None
    assert found.ms is not None
    assert found.max_error is not None
    assert found.max_error < attention.MAX_ERROR[dtype]


@pytest.mark.parametrize("name", ["flash_attn", "cudnn", "efficient"])
def test_an_explicit_choice_that_is_not_there_is_refused(name: Any) -> None:
    with pytest.raises(
        StartupError,
        match=f"attention {name} cannot be used on cpu in float32: it does not exist on a cpu",
    ):
        choose_attention(name, TINY_DIMS, 1, CPU, torch.float32)


@pytest.mark.parametrize("name", ["flash", "math"])
def test_an_explicit_choice_is_what_computes(name: Any) -> None:
    choice = choose_attention(name, TINY_DIMS, 1, CPU, torch.float32)
    assert choice.name == name
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 50, 16, generator=generator).unbind()
    expected = torch.softmax(q @ k.mT / 4, dim=-1) @ v
    torch.testing.assert_close(choice.attend(q, k, v), expected, atol=1e-5, rtol=0)


def test_auto_measures_all_and_logs_its_choice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        choice = choose_attention("auto", TINY_DIMS, 1, CPU, torch.float32)
    assert [found.name for found in choice.measurements] == ["flash", "math"]
    assert f"attention {choice.name} on cpu in float32 (auto)" in caplog.text


def _use_kernels(monkeypatch: pytest.MonkeyPatch, **kernels: Any) -> None:
    monkeypatch.setattr(attention, "_attend", kernels.__getitem__)


def _wrong(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v) * 1.01


def _not_a_number(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q * torch.nan


def test_a_kernel_that_is_wrong_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = F.scaled_dot_product_attention
    for wrong in (_wrong, _not_a_number):
        _use_kernels(monkeypatch, flash=wrong, math=right)
        choice = choose_attention("auto", TINY_DIMS, 1, CPU, torch.float32)
        assert choice.name == "math"
        assert "differs from math" in str(choice.measurements[0].problem)
        with pytest.raises(StartupError, match=r"flash cannot be used .* differs from math"):
            choose_attention("flash", TINY_DIMS, 1, CPU, torch.float32)


def test_no_right_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _use_kernels(monkeypatch, flash=_wrong, math=_wrong)
    with pytest.raises(StartupError, match="no attention gives the right result"):
        choose_attention("auto", TINY_DIMS, 1, CPU, torch.float32)


@pytest.mark.parametrize(
    ("flash_ms", "math_ms", "expected"),
    [(1.0, 3.0, "flash"), (3.0, 1.0, "math"), (1.1, 1.0, "flash")],
)
def test_on_cuda_auto_leaves_the_preferred_kernel_only_for_a_clearly_faster_one(
    monkeypatch: pytest.MonkeyPatch, flash_ms: float, math_ms: float, expected: str
) -> None:
    _measure(monkeypatch, flash=flash_ms, math=math_ms)
    monkeypatch.setitem(attention.CANDIDATES, "cuda", ("flash", "math"))
    assert choose_attention("auto", TINY_DIMS, 1, CUDA, torch.float32).name == expected


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, "flash"), (torch.bfloat16, "blocked")]
)
def test_on_cpus_auto_is_the_same_whatever_the_machine_is_busy_with(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, expected: str
) -> None:
    _measure(monkeypatch, blocked=9.0, flash=9.0, math=1.0)
    assert choose_attention("auto", TINY_DIMS, 1, CPU, dtype).name == expected


def _measure(monkeypatch: pytest.MonkeyPatch, **ms: float) -> None:
    monkeypatch.setattr(
        attention, "measure", lambda name, *_shape: KernelTiming(name, ms=ms[name], max_error=0.0)
    )


def test_an_old_cudnn_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_500)
    found = measure("cudnn", TINY_DIMS, 1, CUDA, torch.float16)
    assert found.problem is not None
    assert "cuDNN 91500 gives wrong results" in found.problem
    assert "91501 or later" in found.problem


def test_the_flash_attn_package_is_not_asked_for_fp32() -> None:
    found = measure("flash_attn", TINY_DIMS, 1, CUDA, torch.float32)
    assert found.problem == "the flash-attn package computes fp16 and bf16 only"


def test_the_flash_attn_package_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # (B, N, H, D), as documented
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    package = ModuleType("flash_attn")
    vars(package)["flash_attn_func"] = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(attention.CANDIDATES, "cpu", ("flash_attn", "math"))
    found = measure("flash_attn", TINY_DIMS, 2, CPU, torch.bfloat16)
    assert found.problem is None


def test_a_missing_flash_attn_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setitem(attention.CANDIDATES, "cpu", ("flash_attn", "math"))
    with pytest.raises(StartupError, match=r"not installed; see the extra ast-stream\[flash\]"):
        choose_attention("flash_attn", TINY_DIMS, 1, CPU, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_usable_kernel_of_the_gpu_is_right(dtype: torch.dtype) -> None:
    found = {entry.name: entry for entry in measure_all(TINY_DIMS, 8, CUDA, dtype)}
    assert found["math"].problem is None
    assert found["efficient"].problem is None
    for entry in found.values():
        assert entry.problem is None or "differs from math" not in entry.problem
