"""Products in fp8: as exact ones of what was rounded, near the plain ones, or refused.

The operator of GPUs exists on CPUs as well, so that all but its speed is looked at here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_model import tiny_checkpoint

from ast_stream.errors import StartupError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import AstDims
from ast_stream.model.float8 import LARGEST, Float8Linear, emulated, rounded, use_float8
from ast_stream.model.runners import dtype_of, resolve_precision
from ast_stream.model.tagger import Tagger

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALF_A_STEP = 1 / 16  # of e4m3, relative, where numbers are normal
DIMS = AstDims(n_classes=5, hidden_size=48, n_layers=2, n_heads=3, max_frames=128)


def _linear(dtype: torch.dtype, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(192, 48, bias=bias).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_rounded_by_their_own_largest_value(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokens = (torch.randn(5, 64) * torch.tensor([[1e-4], [1.0], [30.0], [1e3], [0.0]])).to(dtype)
    numbers, scales = rounded(tokens)
    assert (numbers.dtype, scales.dtype) == (torch.float8_e4m3fn, torch.float32)
    restored, exact = numbers.float() * scales, tokens.float()
    smallest_normal = 2.0**-6 * scales
    is_normal = exact.abs() >= smallest_normal
    error = (restored - exact).abs()
    assert (error[is_normal] <= 1.01 * HALF_A_STEP * exact.abs()[is_normal]).all()
    assert (error <= 1.01 * HALF_A_STEP * exact.abs().maximum(smallest_normal)).all()
    assert torch.equal(numbers.float().abs().amax(dim=1)[:4], torch.full((4,), LARGEST))
    assert not restored[4].any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_gives_the_exact_product_of_what_was_rounded(
    dtype: torch.dtype, bias: bool
) -> None:
    linear = _linear(dtype, bias)
    tokens = torch.randn(3, 7, 192).to(dtype)
    with torch.inference_mode():
        found, plain = Float8Linear(linear)(tokens), linear(tokens)
        expected = emulated(linear, tokens.view(-1, 192)).view(3, 7, 48)
    assert (found.shape, found.dtype) == (plain.shape, dtype)
    spread = expected.abs().max()
    assert (found - expected).abs().max() / spread < torch.finfo(dtype).eps + 1e-6
    assert 1e-3 < (found - plain).abs().max() / spread < HALF_A_STEP


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_becomes_the_same_whatever_is_beside_it(dtype: torch.dtype) -> None:
    layer = Float8Linear(_linear(dtype))
    tokens = torch.randn(37, 192).to(dtype)
    tokens[5] *= 1e3
    tokens[6] = torch.nan
    tokens[7, 3] = torch.inf
    numbers, scales = rounded(tokens)
    with torch.inference_mode():
        together = layer(tokens)
        for index in (0, 4, 5, 36):
            one = tokens[index : index + 1]
            for alone, beside in zip(rounded(one), (numbers, scales), strict=True):
                assert torch.equal(alone[0].float(), beside[index].float())
            # all but the order of the sums, which a CPU's product chooses by the number of rows
            error = (layer(one)[0] - together[index]).abs().max() / together[index].abs().max()
            assert error <= torch.finfo(dtype).eps + 1e-6
    assert together[6].isnan().all()
    assert not together[7].isfinite().any()
    assert together[:6].isfinite().all()
    assert together[8:].isfinite().all()


def _model(dims: AstDims = DIMS) -> AudioSpectrogramTransformer:
    torch.manual_seed(0)
    return AudioSpectrogramTransformer(dims, has_frames=True).eval()


def test_the_products_of_all_blocks_but_the_first_are_in_fp8_and_no_others() -> None:
    model = _model()
    windows = torch.randn((2, 128, 128))
    with torch.inference_mode():
        expected = model.forward_frames(windows)
        use_float8(model)
        found = model.forward_frames(windows)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Float8Linear) == 4
    assert kinds.count(torch.nn.Linear) == 4 + 2  # of the first block, and the heads
    for one, other in zip(found, expected, strict=True):
        error = (one - other).abs().max().item()
        assert 0 < error < 0.05


def test_the_scores_of_a_model_in_fp16_and_fp8_are_near_those_in_fp32() -> None:
    windows = torch.randn((3, 128, 128))
    with torch.inference_mode():
        expected = _model()(windows).sigmoid()
        model = _model().to(dtype_of("fp8"))
        use_float8(model)
        found = model(windows.half()).float().sigmoid()
    assert 0 < (found - expected).abs().max() < 0.05


def test_operators_that_are_missing_or_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Float8Linear.forward
    with monkeypatch.context() as patch:
        patch.setattr(Float8Linear, "forward", lambda self, x: 1.1 * right(self, x))
        with pytest.raises(StartupError, match=r"fp8: products differ from exact ones by 0\.1"):
            use_float8(_model())

    def missing(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("Only bf16 output types are supported\nand a trace")

    monkeypatch.setattr(torch, "_scaled_mm", missing)
    with pytest.raises(StartupError, match=r"fp8: no such products in torch .*: Only bf16 .*d$"):
        use_float8(_model())


def test_a_model_of_other_widths_is_refused() -> None:
    with pytest.raises(StartupError, match=r"fp8: expected a model whose widths are .* 16, got 24"):
        use_float8(_model(replace(DIMS, hidden_size=24)))


def test_the_start_leaves_the_random_numbers_of_others_as_they_were() -> None:
    model = _model()
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    use_float8(model)
    assert torch.equal(torch.randn(3), expected)


def test_a_cpu_and_an_older_gpu_are_refused_and_hopper_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StartupError, match="fp8 needs a CUDA device; on a CPU use int8, bf16"):
        Tagger(tiny_checkpoint(), "cpu", "fp8")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    with pytest.raises(StartupError, match=r"9\.0 or later \(Hopper\), got NVIDIA A100 with 8\.0"):
        resolve_precision("fp8", CUDA)
    assert resolve_precision("auto", CUDA) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert resolve_precision("fp8", CUDA) == "fp8"
    assert resolve_precision("auto", CUDA) == "fp16"
