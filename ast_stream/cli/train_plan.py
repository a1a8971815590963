"""From the options of `ast-stream train` to a plan: a preset, a start, and what overrides them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ast_stream.dataset.tables import Columns
from ast_stream.errors import UsageError
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.training.plan import Plan
from ast_stream.training.presets import PRESETS, Preset, PresetName, fine_tuning
from ast_stream.training.recipe import Recipe, TrainingPrecision

Value = TypeVar("Value")


@dataclass(frozen=True)
class Overrides:
    """Options that change what a preset says; None: they do not."""

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    save_every: int | None = None
    generated: int | None = None
    generated_backgrounds: int | None = None
    window: float | None = None
    width: int | None = None
    layers: int | None = None
    hold_out: float | None = None
    stride: int | None = None
    patch_share: float | None = None


def choose_preset(name: PresetName | None, start: str | None, keep_classes: bool) -> Preset:
    """Return the preset of that name; without one that for fine-tuning a start, or `small`.

    Raises:
        CheckpointError: the start cannot be loaded.
    """
    if name is None and start is not None:
        return fine_tuning(load_checkpoint(start).dims, keep_classes)
    return PRESETS[name or "small"]


def plan_of(
    preset: Preset,
    overrides: Overrides,
    *,
    data: Path,
    start: str | None,
    columns: Columns,
    test_folds: tuple[str, ...],
    seed: int,
    precision: TrainingPrecision,
    teacher_weight: float,
    **others: Any,
) -> Plan:
    """Return the plan that preset and options make together.

    Args:
        others: fields of `Plan` that no preset sets.

    Raises:
        UsageError: sizes that no model has, or both test folds and a share to hold out.
    """
    if overrides.width is not None and overrides.width % 64:
        raise UsageError(f"--width: expected a multiple of 64, got {overrides.width}")
    if overrides.hold_out and test_folds:
        raise UsageError("--hold-out: expected either a share or --test-fold, got both")
    is_from_scratch = start is None
    if not is_from_scratch and (overrides.width or overrides.layers):
        raise UsageError("--width, --layers: the sizes are those of --start; expected none of both")
    window_s = overrides.window or (preset.window_s if is_from_scratch else None)
    return Plan(
        data=data,
        start=start,
        columns=columns,
        test_folds=test_folds,
        held_out_share=_either(overrides.hold_out, preset.held_out_share),
        n_generated=_either(overrides.generated, preset.n_generated),
        n_backgrounds=_either(overrides.generated_backgrounds, preset.n_backgrounds),
        window_s=window_s,
        # the paper's inputs are a little longer than the clips
        max_frames=preset.max_frames if window_s == preset.window_s else None,
        width=_either(overrides.width, preset.width),
        n_layers=_either(overrides.layers, preset.n_layers),
        stride=overrides.stride or (preset.stride if is_from_scratch else None),
        mixing=preset.mixing,
        recipe=replace(
            _recipe(preset, overrides, is_from_scratch),
            seed=seed,
            precision=precision,
            teacher_weight=teacher_weight,
        ),
        **others,
    )


def _recipe(preset: Preset, overrides: Overrides, is_from_scratch: bool) -> Recipe:
    recipe = preset.recipe
    if not is_from_scratch and preset.rate_from_start is not None:
        recipe = replace(recipe, learning_rate=preset.rate_from_start)
    if overrides.steps is not None:
        recipe = replace(recipe, steps=overrides.steps, epochs=None)
    if overrides.save_every is not None:
        recipe = replace(
            recipe,
            save_every=overrides.save_every,
            report_every=min(recipe.report_every, overrides.save_every),
        )
    return replace(
        recipe,
        batch_size=_either(overrides.batch_size, recipe.batch_size),
        learning_rate=_either(overrides.learning_rate, recipe.learning_rate),
        patch_share=_either(overrides.patch_share, recipe.patch_share),
    )


def _either(chosen: Value | None, default: Value) -> Value:
    return default if chosen is None else chosen
