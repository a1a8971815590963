"""From recordings to a checkpoint that loads, is calibrated, and carries its attributions."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import save_tiny

from ast_stream.errors import UsageError
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.model.tagger import Tagger
from ast_stream.runtime.selfcheck import self_check
from ast_stream.training.material.clips import Columns
from ast_stream.training.plan import Plan
from ast_stream.training.recipe import Recipe
from ast_stream.training.session import train
from ast_stream.training.state import Metrics
from ast_stream.units import SAMPLE_RATE

N_CLIPS = 4


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two classes of four clips each, tones and noise, in two folds; a model of a few weights."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(N_CLIPS):
        tone = 0.2 * np.sin(np.arange(SAMPLE_RATE) * (0.3 + 0.01 * number))
        for label, sound in (("Whistle", tone), ("Hiss", 0.1 * rng.standard_normal(SAMPLE_RATE))):
            name = f"{label}-{number}.wav"
            soundfile.write(tmp_path / name, sound, SAMPLE_RATE)
            rows.append([name, label, number % 2, "someone", "CC-BY"])
    with (tmp_path / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["file", "label", "fold", "author", "licence"], *rows])
    recipe = Recipe(steps=3, batch_size=4, report_every=1, evaluate_every=2, precision="fp32")
    return Plan(
        data=tmp_path / "labels.csv",
        columns=Columns(),
        test_folds=("1",),
        n_generated=2,
        n_backgrounds=5,
        width=64,
        n_layers=1,
        recipe=recipe,
        negatives_s=60.0,
        licence="CC0-1.0",
    )


def test_training_ends_in_a_calibrated_checkpoint(plan: Plan, tmp_path: Path) -> None:
    reports: list[Metrics] = []
    trained = train(plan, tmp_path / "out", reports.append)
    loaded = load_checkpoint(str(tmp_path / "out" / "checkpoint"))
    assert loaded.hash == trained.hash
    assert {"Hiss", "Whistle", "Siren", "Alarm"} < set(loaded.labels)
    metadata = loaded.metadata
    assert set(metadata.onset_thresholds) == set(loaded.labels)
    assert metadata.licence == "CC0-1.0"
    assert metadata.provenance["test_folds"] == ["1"]
    assert metadata.provenance["recipe"]["steps"] == 3
    assert self_check(Tagger(loaded, "cpu", "fp32", "math")).against == "golden"
    assert "clip_accuracy" in reports[1]
    assert "clip_accuracy" not in reports[0]


def test_attributions_name_the_clips_that_were_trained_on(plan: Plan, tmp_path: Path) -> None:
    train(replace(plan, n_generated=0), tmp_path / "out", lambda report: None)
    with (tmp_path / "out" / "checkpoint" / "ATTRIBUTIONS.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N_CLIPS
    assert {row["fold"] for row in rows} == {"0"}
    assert {row["author"] for row in rows} == {"someone"}


def test_a_test_fold_that_does_not_exist_is_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="test fold: expected one of 0, 1, got '7'"):
        train(replace(plan, test_folds=("7",)), tmp_path / "out", lambda report: None)


def test_a_checkpoint_of_the_same_classes_is_trained_on(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, n_generated=0)
    first = train(plan, tmp_path / "first", lambda report: None)
    still = replace(
        plan,
        start=str(tmp_path / "first" / "checkpoint"),
        recipe=replace(plan.recipe, learning_rate=0.0),
    )
    second = train(still, tmp_path / "second", lambda report: None)
    for name, tensor in first.state_dict.items():
        assert torch.equal(second.state_dict[name], tensor)  # nothing learnt, nothing lost


def test_a_start_with_shorter_windows_is_refused(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, start=str(save_tiny(tmp_path / "tiny")), window_s=1.6)
    with pytest.raises(UsageError, match=r"expected windows of 1.6 s or more, got .* 1 s"):
        train(plan, tmp_path / "second", lambda report: None)
