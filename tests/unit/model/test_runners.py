"""Packed layers compute what plain ones do, and are left out where they cannot be trusted."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import Activation, AstDims
from ast_stream.model.runners import MAX_PACKED_ERROR, CpuRunner, PackedLinear, pack

DIMS = AstDims(n_classes=5, hidden_size=48, n_layers=2, n_heads=3, max_frames=128)


def _model(dims: AstDims = DIMS, dtype: torch.dtype = torch.float32) -> AudioSpectrogramTransformer:
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer(dims, has_frames=True).eval().to(dtype)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # biases, too
    return model


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"])
def test_a_packed_model_gives_the_logits_of_the_plain_one(activation: Activation) -> None:
    dims = replace(DIMS, activation=activation)
    model = _model(dims)
    windows = torch.randn((3, dims.max_frames, dims.n_mels))
    with torch.inference_mode():
        expected = model.forward_frames(windows)
        assert pack(model) is None
        found = model.forward_frames(windows)
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_packed_model_in_bf16_is_as_near_to_fp32_as_the_plain_one() -> None:
    windows = torch.randn((3, DIMS.max_frames, DIMS.n_mels))
    with torch.inference_mode():
        expected = _model()(windows)
        plain, packed = _model(dtype=torch.bfloat16), _model(dtype=torch.bfloat16)
        assert pack(packed) is None
        errors = [
            (model(windows.bfloat16()).float() - expected).abs().max().item()
            for model in (plain, packed)
        ]
    assert errors[1] < 2 * errors[0]


def test_torch_without_the_operators_leaves_the_model_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_args: Any) -> None:
        raise AttributeError("no _reorder_linear_weight")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    model = _model()
    assert "no packed layers in torch" in str(pack(model))
    assert isinstance(model.head, torch.nn.Linear)


def test_packed_layers_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: 1.1 * right(self, x))
    assert "packed layers differ from plain ones" in str(pack(_model()))


def test_packing_leaves_the_random_numbers_of_others_as_they_were() -> None:
    model = _model()
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    pack(model)
    assert torch.equal(torch.randn(3), expected)


def test_the_activation_of_the_model_is_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedLinear.forward

    def wrong_with_relu(self: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        return right(self, x) + (self._post == "relu")

    monkeypatch.setattr(PackedLinear, "forward", wrong_with_relu)
    assert "differ from plain ones" in str(pack(_model(replace(DIMS, activation="relu"))))
    assert pack(_model()) is None


def test_other_precisions_are_not_packed() -> None:
    assert "no packed layers in torch.float16" in str(pack(_model(dtype=torch.float16)))
    assert MAX_PACKED_ERROR.keys() == {torch.float32, torch.bfloat16}


def test_when_a_batch_fails_no_thread_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = _model()
    runner = CpuRunner(model, torch.float32)
    windows = torch.randn((40, DIMS.max_frames, DIMS.n_mels))
    expected = runner.logits(windows)
    has_failed = threading.Event()
    begun: list[int] = []
    done: list[int] = []

    def fails_once(part: torch.Tensor) -> torch.Tensor:
        if not has_failed.is_set():
            has_failed.set()
            raise RuntimeError("no memory")
        begun.append(len(part))
        time.sleep(0.1)
        done.append(len(part))
        return model.forward(part)

    with pytest.raises(RuntimeError, match="no memory"):
        runner._run(windows, torch.empty_like(expected), fails_once)
    n_begun = len(begun)
    assert n_begun == len(done)
    time.sleep(0.3)
    assert len(begun) == n_begun
    assert torch.equal(runner.logits(windows), expected)
