"""Presets say what the AST repository's run scripts say, step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import pytest
import torch
from tiny_model import TINY_DIMS, save_tiny

from ast_stream.errors import UsageError
from ast_stream.training.config import (
    PRESETS,
    Optimization,
    Overrides,
    PresetName,
    TrainingConfig,
    configure,
    fine_tuning,
)
from ast_stream.training.finetune import new_model
from ast_stream.training.student import Student
from ast_stream.training.trainer import RATE_SCALE, averaged_model, make_optimizers, update_average
from ast_stream.training.windows import ClipMixing, WindowMixing

EPOCH = 100  # steps


DATA = Path("data")


def _published(name: PresetName) -> Optimization:
    return PRESETS[name](DATA, None).optimization


def _rates(name: PresetName, n_epochs: int) -> list[float]:
    optimization = replace(_published(name), epoch_steps=EPOCH, warmup_steps=0)
    return [optimization.rate(epoch * EPOCH + EPOCH // 2) for epoch in range(n_epochs)]


def _config(
    preset: PresetName | None = None, start: str | None = None, **overrides: Unpack[Overrides]
) -> TrainingConfig:
    return configure(DATA, preset, start, **overrides)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("esc50", [1, 1, 1, 1, 1, 0.85, 0.85**2, 0.85**3]),
        ("speechcommands", [1, 1, 1, 1, 1, 0.85, 0.85**2, 0.85**3]),
        ("audioset", [1, 1, 0.5, 0.25, 0.125]),
        ("audioset-balanced", [1] * 10 + [0.5] * 5 + [0.25] * 5 + [0.125] * 5),
    ],
)
def test_the_rate_falls_in_the_stairs_of_the_paper(name: PresetName, expected: list[float]) -> None:
    rates = _rates(name, len(expected))
    assert rates == pytest.approx([_published(name).learning_rate * factor for factor in expected])


def test_audioset_warms_up_in_steps_of_fifty() -> None:
    optimization = replace(_published("audioset"), epoch_steps=10_000)
    assert [optimization.rate(step) for step in (0, 49, 50, 99, 500, 999, 1000)] == pytest.approx(
        [0.0, 0.0, 5e-7, 5e-7, 5e-6, 9.5e-6, 1e-5]
    )


def _average(optimization: Optimization, n_steps: int) -> list[float]:
    """Return the average after each step of a weight that grows by 1 in each."""
    weight = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(weight.weight)
    averaged = averaged_model(weight, optimization)
    averages = []
    for step in range(n_steps):
        with torch.no_grad():
            weight.weight += 1
        update_average(averaged, weight, optimization, step)
        averages.append(float(averaged.state_dict()["module.weight"]))
    return averages


def test_weights_are_averaged_over_the_ends_of_the_last_epochs() -> None:
    optimization = replace(_published("audioset-balanced"), epoch_steps=3)
    averages = _average(optimization, 8 * 3)
    assert averages[:18] == list(range(1, 19))  # the weights as they are
    assert averages[-1] == pytest.approx((18 + 21 + 24) / 3)  # of epochs 6, 7 and 8


def test_a_moving_average_forgets_the_start_quickly() -> None:
    averages = _average(Optimization(ema_decay=0.9), 200)
    assert averages[0] == pytest.approx(0.9)
    assert averages[-1] == pytest.approx(200 - 0.9 / 0.1, abs=0.01)


def test_without_averaging_the_last_weights_are_the_result() -> None:
    assert _average(_published("esc50"), 50) == list(range(1, 51))


def test_the_classifier_learns_faster_where_the_recipe_says_so() -> None:
    optimization = Optimization(
        learning_rate=1e-4, optimizer="adam", head_rate=10.0, adam_betas=(0.95, 0.999)
    )
    model = new_model(TINY_DIMS, optimization)
    (adam,) = make_optimizers(Student(model), optimization)
    rates = {
        id(parameter): group["lr"] * group.get(RATE_SCALE, 1.0)
        for group in adam.param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == {id(parameter) for parameter in model.parameters()}
    parameters = dict(model.named_parameters())
    assert rates[id(parameters["head.weight"])] == pytest.approx(1e-3)
    assert rates[id(parameters["blocks.0.mlp.fc1.weight"])] == pytest.approx(1e-4)
    assert adam.defaults["betas"] == (0.95, 0.999)
    assert isinstance(adam, torch.optim.Adam)


def test_without_a_start_the_default_is_the_small_recipe() -> None:
    config = _config()
    assert (config.optimization, config.mixing) == (Optimization(), WindowMixing())
    assert (config.n_generated, config.n_backgrounds, config.held_out_ratio) == (300, 1000, 0.0)
    assert (config.window_s, config.max_frames, config.width, config.n_layers) == (
        2.56,
        256,
        192,
        6,
    )


def test_a_start_without_a_preset_is_fine_tuned_slowly(tmp_path: Path) -> None:
    config = _config(start=str(save_tiny(tmp_path)))
    assert config.optimization.learning_rate == pytest.approx(5e-5 * 768 / 64)
    assert config.optimization.head_rate == pytest.approx(10.0)
    assert config.window_s is None  # the start's
    assert config.n_generated == 0
    wide = replace(TINY_DIMS, hidden_size=768)
    assert fine_tuning(
        DATA, "start", wide, keep_classes=False
    ).optimization.learning_rate == pytest.approx(5e-5)


def test_where_classes_are_kept_what_they_were_learnt_by_moves_less(tmp_path: Path) -> None:
    dims = replace(TINY_DIMS, hidden_size=192)
    optimization = fine_tuning(DATA, "start", dims, keep_classes=True).optimization
    assert optimization.learning_rate == pytest.approx(5e-5)
    assert optimization.learning_rate * optimization.head_rate == pytest.approx(5e-4 * 768 / 192)


def test_a_preset_goes_on_slower_from_a_start_and_with_its_windows(tmp_path: Path) -> None:
    config = _config("esc50", str(save_tiny(tmp_path)))
    assert config.optimization.learning_rate == pytest.approx(1e-5)
    assert config.window_s is None
    assert _config("esc50").optimization.learning_rate == pytest.approx(1e-4)
    assert (_config("esc50").window_s, _config("esc50").max_frames) == (5.0, 512)


def test_options_override_the_preset() -> None:
    config = _config(
        "speechcommands", steps=7, batch_size=3, learning_rate=0.5, window_s=2.0, width=128
    )
    assert (config.optimization.steps, config.optimization.epochs) == (7, None)
    assert (config.optimization.batch_size, config.optimization.learning_rate) == (3, 0.5)
    assert (config.window_s, config.max_frames, config.width) == (2.0, None, 128)
    assert config.mixing == ClipMixing(mixup_prob=0.6)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a multiple of 64, got 100"):
        _config(width=100)
    with pytest.raises(UsageError, match="the sizes are those of --start"):
        _config(start=str(save_tiny(tmp_path)), n_layers=2)
