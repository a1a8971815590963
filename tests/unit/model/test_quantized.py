"""Products in int8: near the plain ones, the same for a token whatever is beside it, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_model import tiny_checkpoint

from ast_stream.errors import StartupError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import AstDims
from ast_stream.model.quantized import (
    LARGEST,
    ZERO_POINT,
    QuantizedLinear,
    quantize,
    quantized,
)
from ast_stream.model.runners import (
    PackedLinear,
    cpu_has_bf16,
    cpu_has_int8,
    dtype_of,
    pack,
    resolve_precision,
)
from ast_stream.model.tagger import Tagger

needs_int8 = pytest.mark.skipif(not cpu_has_int8(), reason="this CPU does not multiply int8")
DTYPES = [torch.float32, torch.bfloat16]
STEP = 1 / LARGEST


def _linear(dtype: torch.dtype, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(192, 48, bias=bias).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_rounded_to_steps_of_their_own_largest_value(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tokens = (torch.randn(5, 64) * torch.tensor([[1e-6], [1.0], [30.0], [1e4], [0.0]])).to(dtype)
    numbers, scales = quantized(tokens)
    assert (numbers.dtype, scales.dtype) == (torch.uint8, dtype)
    restored = (numbers.float() - ZERO_POINT) * scales.float()
    error = (restored - tokens.float()).abs().amax(dim=1)
    assert (error <= 0.51 * scales.float().squeeze(1)).all()
    assert not restored[4].any()
    assert numbers.min() >= 1


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_in_int8_is_near_the_plain_one(dtype: torch.dtype, bias: bool) -> None:
    linear = _linear(dtype, bias)
    tokens = torch.randn(3, 7, 192, dtype=dtype)
    with torch.inference_mode():
        found, expected = QuantizedLinear(linear, 7)(tokens), linear(tokens)
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    error = (found - expected).abs().max() / expected.abs().max()
    assert 0 < error < 2 * STEP


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_becomes_the_same_whatever_is_beside_it(dtype: torch.dtype) -> None:
    layer = QuantizedLinear(_linear(dtype), 7)
    tokens = torch.randn(37, 192, dtype=dtype)
    tokens[5] *= 1e4
    tokens[6] = torch.nan
    tokens[7, 3] = torch.inf
    with torch.inference_mode():
        together = layer(tokens)
        for index in (0, 4, 5, 36):
            assert torch.equal(layer(tokens[index : index + 1])[0], together[index])
    assert together[6].isnan().all()
    assert not together[7].isfinite().any()
    assert together[:6].isfinite().all()
    assert together[8:].isfinite().all()


def _model() -> AudioSpectrogramTransformer:
    torch.manual_seed(0)
    dims = AstDims(n_classes=5, hidden_size=48, n_layers=2, n_heads=3, max_frames=128)
    return AudioSpectrogramTransformer(dims, has_frames=True).eval()


@needs_int8
def test_the_products_of_all_blocks_but_the_first_are_in_int8_and_others_packed() -> None:
    model = _model()
    windows = torch.randn((2, 128, 128))
    with torch.inference_mode():
        expected = model.forward_frames(windows)
        quantize(model)
        assert pack(model) is None
        found = model.forward_frames(windows)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(QuantizedLinear) == 4
    assert kinds.count(PackedLinear) == 4 + 2
    for one, other in zip(found, expected, strict=True):
        error = (one - other).abs().max().item()
        assert 0 < error < 0.02


@needs_int8
def test_scores_in_int8_are_near_those_in_fp32_and_the_rest_is_computed_in_bf16() -> None:
    windows = torch.randn((9, 128, 128))
    plain = Tagger(tiny_checkpoint(), "cpu", "fp32").window_scores(windows)
    tagger = Tagger(tiny_checkpoint(), "cpu", "int8")
    assert tagger.precision == "int8"
    assert dtype_of("int8") == (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    assert 0 < abs(tagger.window_scores(windows) - plain).max() < 0.05


@needs_int8
def test_operators_that_are_missing_or_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = QuantizedLinear.forward
    with monkeypatch.context() as patch:
        patch.setattr(QuantizedLinear, "forward", lambda self, x: 1.001 * right(self, x))
        with pytest.raises(StartupError, match=r"int8: products differ from exact ones by 0\.001"):
            quantize(_model())

    def missing(*_args: Any) -> None:
        raise AttributeError("no qlinear_prepack")

    monkeypatch.setattr(QuantizedLinear, "__init__", missing)
    with pytest.raises(StartupError, match=r"int8: no such products in torch .*no qlinear_prepack"):
        quantize(_model())


def test_a_cpu_without_instructions_and_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match="int8 is for CPUs"):
        resolve_precision("int8", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert dtype_of("int8") == torch.float32
    with pytest.raises(StartupError, match="int8: this CPU has no instructions for it"):
        Tagger(tiny_checkpoint(), "cpu", "int8")
