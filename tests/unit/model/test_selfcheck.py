"""The self-check passes for a right model on any path, and stops a wrong one with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_checkpoint

from ast_stream.errors import StartupError
from ast_stream.model.attention import AttentionChoice
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.runners import cpu_has_int8
from ast_stream.model.selfcheck import TOLERANCE, golden_clip, golden_for, self_check
from ast_stream.model.tagger import Tagger

needs_int8 = pytest.mark.skipif(not cpu_has_int8(), reason="this CPU does not multiply int8")


def _with_golden(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    golden = golden_for(checkpoint, seed)
    return replace(checkpoint, metadata=checkpoint.metadata.model_copy(update={"golden": golden}))


def _tagger(checkpoint: Checkpoint, **choices: Any) -> Tagger:
    return Tagger(checkpoint, **{"device": "cpu", "precision": "fp32"} | choices)


def test_the_golden_clip_is_the_same_everywhere() -> None:
    clip = golden_clip(0, 16_000)
    assert clip.dtype == np.float32
    assert 0.3 < np.abs(clip).max() <= 1
    np.testing.assert_allclose(
        clip[1000::2000],
        [0.013405, -0.062311, 0.051709, 0.358462, -0.137714, -0.418175, 0.025395, 0.0003],
        atol=2e-6,
    )
    assert not np.array_equal(clip, golden_clip(1, 16_000))


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("attention", ["auto", "flash", "math"])
def test_a_right_model_passes_against_its_golden_scores(precision: Any, attention: Any) -> None:
    checkpoint = _with_golden(tiny_checkpoint())
    result = self_check(_tagger(checkpoint, precision=precision, attention=attention))
    assert result.against == "golden"
    assert result.max_error <= result.tolerance == TOLERANCE[precision]


def test_golden_scores_are_those_of_the_fp32_model() -> None:
    checkpoint = tiny_checkpoint()
    scores = _tagger(checkpoint, attention="math").scores(golden_clip(3, 16_000))[0]
    np.testing.assert_allclose(golden_for(checkpoint, seed=3).scores, scores, atol=1e-6)


def test_a_model_without_golden_scores_is_compared_with_fp32() -> None:
    result = self_check(_tagger(tiny_checkpoint(), precision="bf16"))
    assert result.against == "reference"
    assert 0 < result.max_error <= TOLERANCE["bf16"]


def test_another_window_than_the_trained_one_is_compared_with_fp32() -> None:
    checkpoint = _with_golden(tiny_checkpoint())
    for window_s in (0.5, 1.2):
        assert self_check(_tagger(checkpoint, window_s=window_s)).against == "reference"
    assert self_check(_tagger(checkpoint, window_s=1.0)).against == "golden"


def test_scores_that_say_nothing_more_are_still_compared() -> None:
    checkpoint = tiny_checkpoint()
    saturated = {**checkpoint.state_dict, "head.bias": torch.tensor([80.0, -80.0, 0.0])}
    checkpoint = _with_golden(replace(checkpoint, state_dict=saturated))
    assert checkpoint.metadata.golden is not None
    assert checkpoint.metadata.golden.scores[0] == 1.0
    assert self_check(_tagger(checkpoint)).max_error <= TOLERANCE["fp32"]


# --- what must stop a process --------------------------------------------------------------------


def test_a_changed_weight_is_found() -> None:
    checkpoint = _with_golden(tiny_checkpoint())
    weight = checkpoint.state_dict["blocks.1.mlp.fc2.weight"].clone()
    weight[:4] *= 1.5
    changed = replace(
        checkpoint, state_dict={**checkpoint.state_dict, "blocks.1.mlp.fc2.weight": weight}
    )
    with pytest.raises(StartupError, match=r"^self-check failed: tiny model, .* golden scores by"):
        self_check(_tagger(changed))


def test_wrong_normalisation_is_found() -> None:
    checkpoint = _with_golden(tiny_checkpoint())
    wrong = replace(checkpoint.normalization, mean=checkpoint.normalization.mean + 1)
    with pytest.raises(StartupError, match="self-check failed"):
        self_check(_tagger(replace(checkpoint, normalization=wrong)))


def test_samples_scaled_as_integers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _with_golden(tiny_checkpoint())
    tagger = _tagger(checkpoint)
    right = tagger.fbank.frames
    monkeypatch.setattr(tagger.fbank, "frames", lambda samples: right(samples * 32_768))
    with pytest.raises(StartupError, match="golden scores"):
        self_check(tagger)


def test_wrong_attention_is_found_without_golden_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = AttentionChoice("math", lambda q, k, v: v, ())
    with monkeypatch.context() as patch:  # the reference is built later, with the right one
        patch.setattr("ast_stream.model.tagger.choose_attention", lambda *_: wrong)
        tagger = _tagger(tiny_checkpoint())
    with pytest.raises(StartupError, match="reference scores by"):
        self_check(tagger)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_found(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    tagger = _tagger(_with_golden(tiny_checkpoint()))
    monkeypatch.setattr(tagger, "logits", lambda clips: np.full((len(clips), 3), bad))
    with pytest.raises(StartupError, match="not finite; try precision fp32"):
        self_check(tagger)


def test_a_frame_head_that_scores_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint(frames=FrameDecisions())
    golden = golden_for(checkpoint)
    metadata = checkpoint.metadata.model_copy(update={"golden": golden})
    tagger = Tagger(replace(checkpoint, metadata=metadata), "cpu", "fp32", "math")
    assert self_check(tagger).against == "golden"
    right = tagger.frame_logits
    monkeypatch.setattr(tagger, "frame_logits", lambda windows: right(windows) + 0.1)
    with pytest.raises(StartupError, match="differs from its golden scores"):
        self_check(tagger)
    monkeypatch.setattr(tagger, "frame_logits", lambda windows: right(windows) * np.nan)
    with pytest.raises(StartupError, match=r"frame head of .* gives scores that are not finite"):
        self_check(tagger)


def test_scores_that_change_by_themselves_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tagger = _tagger(_with_golden(tiny_checkpoint()))
    answers = iter(np.linspace(0, 1, 9).reshape(3, 3, 1).repeat(3, axis=2))
    monkeypatch.setattr(tagger, "logits", lambda clips: next(answers))
    with pytest.raises(StartupError, match="other scores when asked again"):
        self_check(tagger)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_a_right_model_passes_on_the_gpu(precision: Any) -> None:
    if precision == "fp8" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU does not multiply fp8 by rows")
    checkpoint = _with_golden(tiny_checkpoint())
    result = self_check(_tagger(checkpoint, device="cuda", precision=precision))
    assert result.max_error <= TOLERANCE[precision]
