"""Presets say what the AST repository's run scripts say, step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import TINY_DIMS, save_tiny

from ast_stream.cli.train_plan import Overrides, choose_preset, plan_of
from ast_stream.dataset.tables import Columns
from ast_stream.errors import UsageError
from ast_stream.training.initialize import new_model
from ast_stream.training.optimizers import optimizers_of, set_rate
from ast_stream.training.plan import Plan
from ast_stream.training.presets import PRESETS, PresetName, fine_tuning
from ast_stream.training.recipe import Recipe
from ast_stream.training.windows import ClipMixing

EPOCH = 100  # steps


def _rates(name: PresetName, n_epochs: int) -> list[float]:
    recipe = replace(PRESETS[name].recipe, epoch_steps=EPOCH, warmup_steps=0)
    return [recipe.rate(epoch * EPOCH + EPOCH // 2) for epoch in range(n_epochs)]


def _plan(preset: str | None = None, start: str | None = None, **overrides: float) -> Plan:
    return plan_of(
        choose_preset(preset, start, keep_classes=False),  # type: ignore[arg-type]
        Overrides(**overrides),  # type: ignore[arg-type]
        data=Path("data"),
        start=start,
        columns=Columns(),
        test_folds=(),
        seed=0,
        precision="auto",
        teacher_weight=0.5,
    )


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
    assert rates == pytest.approx([PRESETS[name].recipe.learning_rate * one for one in expected])


def test_audioset_warms_up_in_steps_of_fifty() -> None:
    recipe = replace(PRESETS["audioset"].recipe, epoch_steps=10_000)
    assert [recipe.rate(step) for step in (0, 49, 50, 99, 500, 999, 1000)] == pytest.approx(
        [0.0, 0.0, 5e-7, 5e-7, 5e-6, 9.5e-6, 1e-5]
    )


def test_weights_are_averaged_over_the_ends_of_the_last_epochs() -> None:
    recipe = replace(PRESETS["audioset-balanced"].recipe, epoch_steps=3)
    value, average = 0.0, 0.0
    values = []
    for step in range(8 * 3):
        value += 1
        average += recipe.average_share(step) * (value - average)
        if step % 3 == 2:
            values.append(value)
    assert average == pytest.approx(sum(values[5:]) / 3)  # of epochs 6, 7 and 8


def test_without_averaging_the_last_weights_are_the_result() -> None:
    assert {PRESETS["esc50"].recipe.average_share(step) for step in range(50)} == {1.0}


def test_the_classifier_learns_faster_where_the_recipe_says_so() -> None:
    recipe = Recipe(optimizer="adam", head_rate=10.0, adam_betas=(0.95, 0.999))
    model = new_model(TINY_DIMS, recipe)
    (adam,) = optimizers_of(model, recipe)
    set_rate([adam], 1e-4)
    rates = {id(one): group["lr"] for group in adam.param_groups for one in group["params"]}
    assert rates.keys() == {id(one) for one in model.parameters()}
    assert rates[id(model.head.weight)] == pytest.approx(1e-3)
    assert rates[id(model.blocks[0].mlp.fc1.weight)] == pytest.approx(1e-4)
    assert adam.defaults["betas"] == (0.95, 0.999)
    assert isinstance(adam, torch.optim.Adam)


def test_without_a_start_the_default_is_the_small_recipe() -> None:
    plan = _plan()
    assert (plan.recipe, plan.mixing) == (Recipe(), Plan(Path("data")).mixing)
    assert (plan.n_generated, plan.n_backgrounds, plan.held_out_share) == (300, 1000, 0.0)
    assert (plan.window_s, plan.max_frames, plan.width, plan.n_layers) == (2.56, 256, 192, 6)


def test_a_start_without_a_preset_is_fine_tuned_slowly(tmp_path: Path) -> None:
    plan = _plan(start=str(save_tiny(tmp_path)))
    assert plan.recipe.learning_rate == pytest.approx(5e-5 * 768 / 64)
    assert plan.recipe.head_rate == pytest.approx(10.0)
    assert plan.window_s is None  # the start's
    assert plan.n_generated == 0
    wide = replace(TINY_DIMS, hidden_size=768)
    assert fine_tuning(wide, keep_classes=False).recipe.learning_rate == pytest.approx(5e-5)


def test_where_classes_are_kept_what_they_were_learnt_by_moves_less(tmp_path: Path) -> None:
    recipe = fine_tuning(replace(TINY_DIMS, hidden_size=192), keep_classes=True).recipe
    assert recipe.learning_rate == pytest.approx(5e-5)
    assert recipe.learning_rate * recipe.head_rate == pytest.approx(5e-4 * 768 / 192)


def test_a_preset_goes_on_slower_from_a_start_and_with_its_windows(tmp_path: Path) -> None:
    plan = _plan("esc50", str(save_tiny(tmp_path)))
    assert plan.recipe.learning_rate == pytest.approx(1e-5)
    assert plan.window_s is None
    assert _plan("esc50").recipe.learning_rate == pytest.approx(1e-4)
    assert (_plan("esc50").window_s, _plan("esc50").max_frames) == (5.0, 512)


def test_options_override_the_preset() -> None:
    plan = _plan("speechcommands", steps=7, batch_size=3, learning_rate=0.5, window=2.0, width=128)
    assert (plan.recipe.steps, plan.recipe.epochs) == (7, None)
    assert (plan.recipe.batch_size, plan.recipe.learning_rate) == (3, 0.5)
    assert (plan.window_s, plan.max_frames, plan.width) == (2.0, None, 128)
    assert plan.mixing == ClipMixing(mixup_prob=0.6)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a multiple of 64, got 100"):
        _plan(width=100)
    with pytest.raises(UsageError, match="the sizes are those of --start"):
        _plan(start=str(save_tiny(tmp_path)), layers=2)
