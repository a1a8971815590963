"""The architecture equals transformers', for random weights and random position embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ast_stream.model import key_schemas
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import AstDims
from ast_stream.model.torchaudio_guard import import_torchaudio

PARITY = 1e-4  # absolute, on logits of order 1, in fp32
SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
SMALL |= {"intermediate_size": 96, "num_labels": 7}
BASE: dict[str, Any] = {"num_labels": 527}


def _reference(seed: int, **config: Any) -> Any:
    """Return a transformers model of which every parameter is random."""
    import_torchaudio()
    from transformers import ASTConfig, ASTForAudioClassification

    model: Any = ASTForAudioClassification(ASTConfig(**config))
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers leaves tokens and position embeddings at zero, which would hide mistakes
            spread = 0.5 if "embeddings" in name or "classifier" in name else 0.08
            parameter.normal_(0, spread, generator=generator)
            if "layernorm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def _ours(reference: Any) -> AudioSpectrogramTransformer:
    config = reference.config
    dims = AstDims(
        n_classes=config.num_labels,
        hidden_size=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        frequency_stride=config.frequency_stride,
        time_stride=config.time_stride,
        max_frames=config.max_length,
        qkv_bias=config.qkv_bias,
    )
    tensors = reference.state_dict()
    own = key_schemas.to_own(tensors, key_schemas.detect(tensors, "test"), "test")
    model = AudioSpectrogramTransformer(dims).eval()
    model.load_state_dict(own)
    return model


def _windows(n_windows: int, max_frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_windows, max_frames, 128, generator=generator) * 0.5


@pytest.mark.parametrize(
    "config",
    [
        SMALL | {"frequency_stride": 10, "time_stride": 10},
        SMALL | {"frequency_stride": 12, "time_stride": 12},
        SMALL | {"frequency_stride": 14, "time_stride": 14},
        SMALL | {"frequency_stride": 16, "time_stride": 16},
        SMALL | {"frequency_stride": 16, "time_stride": 8, "max_length": 256},
        SMALL | {"max_length": 128, "num_labels": 35},
        SMALL | {"max_length": 128, "qkv_bias": False},
        SMALL | {"max_length": 128, "layer_norm_eps": 1e-5},
    ],
    ids=lambda config: "-".join(str(value) for value in config.values()),
)
@torch.inference_mode()
def test_logits_equal_those_of_transformers(config: dict[str, Any]) -> None:
    reference = _reference(0, **config)
    ours = _ours(reference)
    if "layer_norm_eps" in config:
        for module in ours.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = config["layer_norm_eps"]
    windows = _windows(2, reference.config.max_length)
    expected = reference(windows).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(windows), expected, atol=PARITY, rtol=0)


@torch.inference_mode()
def test_base_size_logits_equal_those_of_transformers() -> None:
    reference = _reference(1, **BASE)
    ours = _ours(reference)
    assert ours.dims == AstDims(n_classes=527)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 86_594_063
    windows = _windows(1, 1024)
    torch.testing.assert_close(ours(windows), reference(windows).logits, atol=PARITY, rtol=0)


@pytest.mark.parametrize(
    ("stride", "max_frames", "n_tokens"),
    [(10, 1024, 1214), (12, 1024, 852), (14, 1024, 659), (16, 1024, 514), (10, 128, 146)],
)
def test_token_counts_are_those_of_the_published_models(
    stride: int, max_frames: int, n_tokens: int
) -> None:
    dims = AstDims(n_classes=2, frequency_stride=stride, time_stride=stride, max_frames=max_frames)
    assert dims.n_tokens == n_tokens


@pytest.mark.parametrize(("stride", "gflop"), [(10, 260.5), (16, 97.0)])
def test_work_per_window_is_that_of_the_published_models(stride: int, gflop: float) -> None:
    dims = AstDims(n_classes=527, frequency_stride=stride, time_stride=stride)
    assert dims.gflop == pytest.approx(gflop, abs=0.5)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of n_heads=5"):
        AstDims(n_classes=3, hidden_size=8, n_heads=5)
    with pytest.raises(ValueError, match="n_layers: expected 1 to"):
        AstDims(n_classes=3, n_layers=0)
    with pytest.raises(ValueError, match="patch_size"):
        AstDims(n_classes=3, max_frames=10)


def _small_model(drop_path: float) -> AudioSpectrogramTransformer:
    torch.manual_seed(3)
    dims = AstDims(
        n_classes=4, hidden_size=16, n_heads=2, n_layers=3, intermediate_size=32, max_frames=64
    )
    return AudioSpectrogramTransformer(dims, drop_path)


def test_stochastic_depth_acts_in_training_only() -> None:
    plain, dropping = _small_model(0.0), _small_model(0.5)
    windows = _windows(8, 64)
    assert torch.equal(plain.eval()(windows), dropping.eval()(windows))
    assert torch.equal(plain.train()(windows), plain.eval()(windows))
    torch.manual_seed(4)
    assert not torch.equal(dropping.train()(windows), plain(windows))


def test_a_new_model_has_varied_tokens_and_positions() -> None:
    model = _small_model(0.0)
    for parameter in (model.cls_token, model.dist_token, model.pos_embed, model.head.weight):
        assert 0.01 < parameter.std() < 0.03


def test_the_attention_function_can_be_replaced() -> None:
    model = _small_model(0.0).eval()
    calls: list[tuple[int, ...]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(tuple(query.shape))
        return torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, dim=-1) @ value

    windows = _windows(2, 64)
    expected = model(windows)
    model.use_attention(attend)
    torch.testing.assert_close(model(windows), expected, atol=1e-5, rtol=0)
    assert calls == [(2, 2, model.dims.n_tokens, 8)] * 3
