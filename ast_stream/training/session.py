"""One training from data to checkpoint: material, loop, export, thresholds, provenance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ast_stream.errors import UsageError
from ast_stream.model.ast import AstDims, AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.metadata import Metadata
from ast_stream.training.calibration.checkpoint import calibrate_checkpoint
from ast_stream.training.evaluation.clips import report_clips
from ast_stream.training.fit import Metrics, Recipe, Trainer, measure_normalization, new_model
from ast_stream.training.material.clips import (
    Clip,
    Columns,
    load_recordings,
    read_clips,
    write_attributions,
)
from ast_stream.training.material.held_out import HeldOut, held_out
from ast_stream.training.material.takes import (
    Material,
    generated_backgrounds,
    recorded_takes,
    synthesised_labels,
    synthesised_takes,
)
from ast_stream.training.mixing import Mixing, WindowMaker
from ast_stream.training.score import score_with
from ast_stream.units import FRAMES_PER_SECOND, seconds_to_samples

HELD_OUT_SEED = 1_000_000  # generated material for thresholds differs from that for training
HELD_OUT_SHARE = 0.08  # so much again is generated to choose thresholds
HOP_S = 0.5  # that thresholds are chosen for
EPS = 1e-6  # of LayerNorm: survives fp16, unlike transformers' default


@dataclass(frozen=True)
class Plan:
    """What to train on and what to make.

    Attributes:
        start: checkpoint to fine-tune, as `load_checkpoint` takes it; None: from scratch. Its sizes
            and statistics are kept; its classifier only where the classes are the same.
        test_folds: recordings of these folds are held out: they are not trained on, and choose
            the thresholds.
        n_generated: takes of each generated class; 0: recordings only.
        n_backgrounds: generated backgrounds without any event.
        negatives_s: length of the streams without events that bound the false alarms.
        budget_per_h: false alarms of one class in an hour of them.
    """

    data: Path
    start: str | None = None
    columns: Columns = field(default_factory=Columns)
    test_folds: tuple[str, ...] = ()
    n_generated: int = 300
    n_backgrounds: int = 1000
    window_s: float = 2.56
    width: int = 192
    n_layers: int = 6
    stride: int = 16
    recipe: Recipe = field(default_factory=Recipe)
    mixing: Mixing = field(default_factory=Mixing)
    negatives_s: float = 3600.0
    budget_per_h: float = 2.0
    licence: str | None = None  # of the weights


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that is read, checked and generated before the first step."""

    material: Material
    held_out: HeldOut
    clips: list[Clip]  # those trained on


def prepare(plan: Plan) -> Prepared:
    """Read and check all data and generate the rest.

    Raises:
        ConfigError: every problem of the data, together.
        UsageError: a test fold that no recording has.
    """
    recordings = load_recordings(read_clips(plan.data, plan.columns))
    folds = {one.clip.fold for one in recordings}
    for fold in plan.test_folds:
        if fold not in folds:
            known = ", ".join(sorted(str(fold) for fold in folds))
            raise UsageError(f"test fold: expected one of {known}, got {fold!r}")
    recorded = {label for one in recordings for label in one.clip.labels}
    generated = set(synthesised_labels()) if plan.n_generated else set()
    labels = tuple(sorted(recorded | generated))
    training = [one for one in recordings if one.clip.fold not in plan.test_folds]
    tested = [one for one in recordings if one.clip.fold in plan.test_folds]
    seed = plan.recipe.seed
    return Prepared(
        material=Material(
            labels,
            (
                *recorded_takes(training, labels),
                *synthesised_takes(seed, labels, plan.n_generated),
            ),
            tuple(generated_backgrounds(seed, plan.n_backgrounds)),
        ),
        held_out=held_out(
            labels,
            tested,
            seed + HELD_OUT_SEED,
            n_generated=math.ceil(plan.n_generated * HELD_OUT_SHARE),
            n_backgrounds=math.ceil(plan.n_backgrounds * 3 * HELD_OUT_SHARE),
        ),
        clips=[one.clip for one in training],
    )


def train(plan: Plan, folder: Path, on_report: Callable[[Metrics], None]) -> Checkpoint:
    """Train (or go on training) in `folder` and return the calibrated checkpoint.

    The checkpoint is also written to `folder/checkpoint`, with its attributions.

    Args:
        on_report: called with the metrics of every report.
    """
    prepared = prepare(plan)
    labels = list(prepared.material.labels)
    maker = WindowMaker(prepared.material, seconds_to_samples(plan.window_s), plan.mixing)
    if plan.start is None:
        normalization = measure_normalization(maker, plan.recipe.seed)
        model = new_model(_dims(plan, len(labels)), plan.recipe)
    else:
        checkpoint = load_checkpoint(plan.start)
        normalization = checkpoint.normalization
        model = started_model(checkpoint, labels, plan)
    trainer = Trainer(model, maker, plan.recipe, folder, normalization)
    tested = prepared.held_out.recordings

    def measure(model: AudioSpectrogramTransformer) -> Metrics:
        if not tested:
            return {}
        report = report_clips(tested, score_with(model, normalization), plan.window_s, maker.labels)
        return {"clip_accuracy": report.accuracy, "map": report.mean_average_precision}

    for report in trainer.run(measure):
        on_report(report)
    # what is measured are the weights as they will be stored
    stored = {name: one.half().float() for name, one in trainer.average.state_dict().items()}
    checkpoint = Checkpoint(
        dims=model.dims,
        state_dict=stored,
        labels=labels,
        normalization=normalization,
        metadata=Metadata(
            window_s=plan.window_s, hop_s=HOP_S, licence=plan.licence, provenance=_provenance(plan)
        ),
        origin=str(folder / "checkpoint"),
    )
    calibrated = calibrate_checkpoint(
        checkpoint, prepared.held_out, plan.negatives_s, plan.budget_per_h
    )
    save_checkpoint(folder / "checkpoint", calibrated, "fp16")
    write_attributions(prepared.clips, folder / "checkpoint" / "ATTRIBUTIONS.csv")
    return calibrated


def started_model(
    checkpoint: Checkpoint, labels: list[str], plan: Plan
) -> AudioSpectrogramTransformer:
    """Return the checkpoint's model for training on `labels`.

    Raises:
        UsageError: its windows are of another length than the plan's.
    """
    if checkpoint.window_s != plan.window_s:
        raise UsageError(
            f"{checkpoint.origin}: expected windows of {plan.window_s:g} s, "
            f"got a checkpoint with {checkpoint.window_s:g} s"
        )
    model = new_model(replace(checkpoint.dims, n_classes=len(labels)), plan.recipe)
    same_classes = checkpoint.labels == labels
    kept = {
        name: tensor
        for name, tensor in checkpoint.state_dict.items()
        if same_classes or name not in ("head.weight", "head.bias")
    }
    model.load_state_dict(kept, strict=same_classes)
    return model


def _dims(plan: Plan, n_classes: int) -> AstDims:
    return AstDims(
        n_classes=n_classes,
        hidden_size=plan.width,
        n_layers=plan.n_layers,
        n_heads=plan.width // 64,
        intermediate_size=4 * plan.width,
        frequency_stride=plan.stride,
        time_stride=plan.stride,
        max_frames=round(plan.window_s * FRAMES_PER_SECOND),
        layer_norm_eps=EPS,
        head_layer_norm_eps=EPS,
    )


def _provenance(plan: Plan) -> dict[str, Any]:
    return {
        "start": plan.start and load_checkpoint(plan.start).hash,
        "test_folds": list(plan.test_folds),
        "generated_takes": plan.n_generated,
        "generated_backgrounds": plan.n_backgrounds,
        "recipe": asdict(plan.recipe),
        "mixing": asdict(plan.mixing),
    }
