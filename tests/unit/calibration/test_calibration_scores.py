"""Score maps stored with a checkpoint: they move scores, and never logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import TINY_LABELS, save_tiny, tiny_checkpoint

from ast_stream.calibration.budgets import Budgets, per_hour
from ast_stream.calibration.scores import LogitStream
from ast_stream.calibration.thresholds import raised_thresholds
from ast_stream.errors import CheckpointError
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.metadata import Metadata, PlattScaling
from ast_stream.model.selfcheck import golden_for, self_check
from ast_stream.model.tagger import Tagger

MAPS = {"Bark": PlattScaling(scale=1.7, bias=-0.8), "Background": PlattScaling(scale=0.4)}
SCALE, BIAS = np.array([1.7, 1.0, 0.4]), np.array([-0.8, 0.0, 0.0])


def _tagger(checkpoint: Checkpoint) -> Tagger:
    return Tagger(checkpoint, "cpu", "fp32", "math")


@pytest.fixture
def clips() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.1, (4, 20_000)).astype(np.float32)


def test_score_maps_move_scores_and_not_logits(clips: np.ndarray) -> None:
    plain, mapped = _tagger(tiny_checkpoint()), _tagger(tiny_checkpoint(score_maps=MAPS))
    logits = plain.logits(clips)
    np.testing.assert_array_equal(mapped.logits(clips), logits)
    expected = 1 / (1 + np.exp(-(SCALE * logits.astype(np.float64) + BIAS)))
    np.testing.assert_allclose(mapped.scores(clips), expected, atol=1e-6)
    np.testing.assert_allclose(mapped.scores(torch.from_numpy(clips)), expected, atol=1e-6)


def test_window_scores_are_mapped_as_scores_are(clips: np.ndarray) -> None:
    plain, mapped = _tagger(tiny_checkpoint()), _tagger(tiny_checkpoint(score_maps=MAPS))
    shape = (3, mapped.n_input_frames, mapped.dims.n_mels)
    windows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = plain.window_scores(windows).astype(np.float64)
    expected = 1 / (1 + np.exp(-(SCALE * np.log(before / (1 - before)) + BIAS)))
    np.testing.assert_allclose(mapped.window_scores(windows), expected, atol=1e-5)


def test_without_score_maps_scores_are_the_plain_sigmoid(clips: np.ndarray) -> None:
    tagger = _tagger(tiny_checkpoint())
    plain = torch.sigmoid(torch.from_numpy(tagger.logits(clips))).numpy()
    np.testing.assert_allclose(tagger.scores(clips), plain, rtol=3e-7)


def test_golden_scores_agree_with_score_maps(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(score_maps=MAPS)
    golden = golden_for(checkpoint)
    metadata = checkpoint.metadata.model_copy(update={"golden": golden})
    save_checkpoint(tmp_path, replace(checkpoint, metadata=metadata))
    loaded = load_checkpoint(str(tmp_path))
    assert loaded.metadata.score_maps == MAPS
    checked = self_check(_tagger(loaded))
    assert checked.against == "golden"
    assert checked.max_error < 1e-4
    without_golden = replace(loaded, metadata=metadata.model_copy(update={"golden": None}))
    assert self_check(_tagger(without_golden)).against == "reference"


@pytest.mark.slow
def test_transformers_gives_the_same_logits_beside_score_maps(tmp_path: Path) -> None:
    save_tiny(tmp_path, score_maps=MAPS)
    tagger = _tagger(load_checkpoint(str(tmp_path)))
    shape = (2, tagger.n_input_frames, tagger.dims.n_mels)
    windows = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    from transformers import ASTForAudioClassification  # after torchaudio, which it imports

    theirs = ASTForAudioClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = theirs(windows).logits
        ours = tagger.checkpoint.build_model()(windows)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_map_that_would_turn_scores_around_is_refused(tmp_path: Path, scale: float) -> None:
    save_tiny(tmp_path, score_maps=MAPS)
    path = tmp_path / "ast_stream.json"
    path.write_text(path.read_text().replace("1.7", str(scale)))
    with pytest.raises(CheckpointError, match=r"score_maps\.Bark\.scale: .*greater than 0"):
        load_checkpoint(str(tmp_path))


def test_a_map_of_an_unknown_label_is_refused(tmp_path: Path) -> None:
    assert "Glass" not in TINY_LABELS
    with pytest.raises(CheckpointError, match="'Glass' is no label of this model"):
        save_tiny(tmp_path, score_maps={"Glass": PlattScaling()})


def test_rise_times_of_another_window_length_are_assumed() -> None:
    metadata = Metadata(window_s=2.0, rise_on_s={"Bark": 0.8}, rise_off_s={"Bark": 0.3})
    assert metadata.rise("Bark", 2.0) == (0.8, 0.3, False, 0.2)
    assert metadata.rise("Bark", 1.0) == (0.5, 0.3, True, 0.125)


def test_measured_spread_of_a_rise_time_is_used_for_the_windows_it_was_measured_with() -> None:
    metadata = Metadata(
        window_s=2.0, rise_on_s={"Bark": 0.8}, rise_off_s={"Bark": 0.3},
        rise_on_spread_s={"Bark": 0.35},
    )  # fmt: skip
    assert metadata.rise("Bark", 2.0).on_spread_s == 0.35
    assert metadata.rise("Bark", 1.0).on_spread_s == 0.125  # a quarter of the capped rise


def test_thresholds_of_kept_classes_rise_where_they_alarm_too_often() -> None:
    n_windows = 7200  # an hour
    logits = np.full((n_windows, len(TINY_LABELS)), -6.0, np.float32)
    loud, quiet = TINY_LABELS[:2]
    logits[100:110, 0] = 1.5  # a score of 0.8176
    logits[100:110, 1] = -1.0  # 0.27
    times = np.arange(1.0, n_windows + 1) * 0.5
    metadata = Metadata(window_s=2.56, hop_s=0.5, onset_thresholds={loud: 0.6, quiet: 0.4})
    checkpoint = replace(tiny_checkpoint(), metadata=metadata)
    negatives = LogitStream(times, logits, (), n_windows / 2)
    raised = raised_thresholds(checkpoint, {loud, quiet}, [], [negatives], Budgets(per_hour(0.5)))
    assert list(raised) == [loud]
    assert 0.8176 < raised[loud] < 0.88  # where one was heard, louder ones are to be expected
    assert raised_thresholds(checkpoint, {quiet}, [], [negatives], Budgets(per_hour(0.5))) == {}
