"""The architecture equals transformers', and its position embeddings move to other grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ast_stream.model import ast
from ast_stream.model.ast import (
    AudioSpectrogramTransformer,
    blocked_attention,
    change_stride,
    cut_time,
)
from ast_stream.model.dims import AstDims
from ast_stream.model.torchaudio_guard import import_torchaudio
from ast_stream.model.weights import detect_key_map, to_own

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
    own = to_own(tensors, detect_key_map(tensors, "test"), "test")
    model = AudioSpectrogramTransformer(dims).eval()
    model.load_state_dict(own)
    return model


def _windows(n_windows: int, max_frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n_windows, max_frames, 128, generator=generator) * 0.5


def test_frames_follow_from_their_own_patches_and_the_clip_logits_stay() -> None:
    dims = AstDims(
        n_classes=5, hidden_size=48, n_layers=1, n_heads=3, intermediate_size=96,
        frequency_stride=16, time_stride=10, max_frames=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer(dims, has_frames=True).eval()
    windows = _windows(2, dims.max_frames)
    with torch.inference_mode():
        clip_logits, frame_logits = model.forward_frames(windows)
        torch.testing.assert_close(clip_logits, model(windows), atol=1e-6, rtol=0)
    assert frame_logits.shape == (2, dims.n_time_patches, 5)
    # without layers a time patch knows nothing but its own frames
    model.blocks = torch.nn.ModuleList()
    changed = windows.clone()
    changed[:, 40:56] += 1.0
    with torch.inference_mode():
        before, after = (model.forward_frames(each)[1] for each in (windows, changed))
    is_same = torch.isclose(before, after, atol=1e-6).all(dim=2)[0]
    starts = torch.arange(dims.n_time_patches) * dims.time_stride
    assert torch.equal(is_same, (starts + dims.patch_size <= 40) | (starts >= 56))


def test_a_model_without_a_frame_head_refuses_frames() -> None:
    dims = AstDims(n_classes=5, hidden_size=48, n_layers=1, n_heads=3, max_frames=128)
    model = AudioSpectrogramTransformer(dims)
    assert not any("frame_head" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="expected a model with a frame head"):
        model.forward_frames(_windows(1, dims.max_frames))


@pytest.mark.slow
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


@pytest.mark.slow
@torch.inference_mode()
def test_base_size_logits_equal_those_of_transformers() -> None:
    reference = _reference(1, **BASE, max_length=128)  # eight times as long, it only takes longer
    ours = _ours(reference)
    assert ours.dims == AstDims(n_classes=527, max_frames=128)
    windows = _windows(1, 128)
    torch.testing.assert_close(ours(windows), reference(windows).logits, atol=PARITY, rtol=0)


def test_there_are_as_many_parameters_as_in_the_published_models() -> None:
    with torch.device("meta"):
        base = AudioSpectrogramTransformer(AstDims(n_classes=527))
    assert sum(parameter.numel() for parameter in base.parameters()) == 86_594_063


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
    # the last block has two queries, for which no kernel is chosen
    assert calls == [(2, 2, model.dims.n_tokens, 8)] * (model.dims.n_layers - 1)


def test_only_the_tokens_that_are_read_leave_the_last_block() -> None:
    model = _small_model(0.0).eval()
    windows = _windows(2, 64)
    whole = model._clip_logits(model._encode(windows))
    torch.testing.assert_close(model(windows), whole, atol=1e-6, rtol=0)
    seen: list[tuple[int, ...]] = []
    last: Any = model.blocks[-1]
    last.mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    model(windows)
    assert seen == [(2, 2, model.dims.hidden_size)]


def test_blocked_attention_is_attention_whatever_fits_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = torch.randn(3, 2, 4, 50, 16, generator=torch.Generator().manual_seed(0)).unbind()
    expected = torch.softmax(q @ k.mT / 4, dim=-1) @ v
    for n_scores in (1, 3 * 50 * 50, 10**6):
        monkeypatch.setattr(ast, "BLOCK_SCORES", n_scores)
        torch.testing.assert_close(blocked_attention(q, k, v), expected, atol=1e-5, rtol=0)
        few = blocked_attention(q[:, :, :2], k, v)
        torch.testing.assert_close(few, expected[:, :, :2], atol=1e-5, rtol=0)


SMALL_DIMS = AstDims(n_classes=3, hidden_size=4, n_heads=2, n_layers=1, max_frames=256)


@pytest.mark.parametrize("n_frames", [128, 500, 998, 1024, 16])
def test_shorter_windows_cut_the_centre_as_the_original_code_does(n_frames: int) -> None:
    dims = AstDims(n_classes=3, hidden_size=8, n_heads=2, n_layers=1)
    pos_embed = torch.randn(1, dims.n_tokens, 8, generator=torch.Generator().manual_seed(2))
    short, state = cut_time(dims, {"pos_embed": pos_embed, "norm": pos_embed[0]}, n_frames)
    # as in ast_models.py: (1, tokens, width) -> (1, width, 12, 101) -> centre of the last axis
    t_dim = short.n_time_patches
    grid = pos_embed[:, 2:].transpose(1, 2).reshape(1, 8, 12, 101)
    if t_dim < 101:
        grid = grid[:, :, :, 50 - int(t_dim / 2) : 50 - int(t_dim / 2) + t_dim]
    expected = torch.cat((pos_embed[:, :2], grid.reshape(1, 8, -1).transpose(1, 2)), dim=1)
    assert short == replace(dims, max_frames=n_frames)
    assert torch.equal(state["pos_embed"], expected)
    assert state["pos_embed"].shape[1] == short.n_tokens
    assert torch.equal(state["norm"], pos_embed[0])


@pytest.mark.parametrize("n_frames", [15, 1025])
def test_a_cut_beyond_the_trained_length_is_refused(n_frames: int) -> None:
    dims = AstDims(n_classes=3, hidden_size=8, n_heads=2, n_layers=1)
    with pytest.raises(ValueError, match="expected 16 to 1024"):
        cut_time(dims, {"pos_embed": torch.zeros(1, dims.n_tokens, 8)}, n_frames)


def _on_a_slope(dims: AstDims) -> torch.Tensor:
    """Position embeddings that say where a patch begins: (row, column, row, column)."""
    rows = torch.arange(dims.n_frequency_patches) * dims.frequency_stride
    columns = torch.arange(dims.n_time_patches) * dims.time_stride
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij") * 2, dim=-1).float()
    return torch.cat((torch.full((1, 2, 4), -1.0), grid.reshape(1, -1, 4)), dim=1)


@pytest.mark.parametrize("stride", [16, 10, 8, 5])
def test_patches_of_another_grid_are_placed_where_they_lie(stride: int) -> None:
    coarse = replace(SMALL_DIMS, frequency_stride=16, time_stride=16)
    dims, state = change_stride(
        coarse, {"pos_embed": _on_a_slope(coarse), "norm": torch.ones(4)}, stride
    )
    assert dims == replace(SMALL_DIMS, frequency_stride=stride, time_stride=stride)
    last = torch.tensor([(coarse.n_frequency_patches - 1) * 16, (coarse.n_time_patches - 1) * 16])
    expected = _on_a_slope(dims)
    expected[:, 2:] = torch.minimum(expected[:, 2:], last.repeat(2).float())
    assert torch.allclose(state["pos_embed"], expected, atol=1e-3)
    assert torch.equal(state["norm"], torch.ones(4))


def test_a_grid_of_one_patch_and_half_precision_can_be_changed() -> None:
    one = AstDims(
        n_classes=3, hidden_size=4, n_heads=2, n_layers=1, max_frames=16, frequency_stride=16,
        n_mels=16,
    )  # fmt: skip
    embeddings = torch.ones(1, one.n_tokens, 4, dtype=torch.float16)
    dims, state = change_stride(one, {"pos_embed": embeddings}, 8)
    assert dims.n_tokens == 3
    assert torch.equal(state["pos_embed"], embeddings)


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_leaves_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 16"):
        change_stride(SMALL_DIMS, {"pos_embed": torch.zeros(1, SMALL_DIMS.n_tokens, 4)}, stride)
