"""Everything a training is made of, ready for its first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ast_stream.evaluation.clips import report_clips
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint
from ast_stream.model.dims import Normalization
from ast_stream.training.distill import Teacher
from ast_stream.training.plan import Plan
from ast_stream.training.prepare import Prepared, prepare
from ast_stream.training.recipe import Recipe
from ast_stream.training.score import score_with
from ast_stream.training.start import first_dims, window_of
from ast_stream.training.state import Metrics
from ast_stream.training.windows import (
    ClipMixing,
    ClipSampler,
    WindowSampler,
    measure_normalization,
    published_normalization,
)
from ast_stream.units import seconds_to_samples


@dataclass(frozen=True, eq=False)
class Session:
    """What a training is made of, ready for its first step."""

    plan: Plan
    start: Checkpoint | None
    teacher: Checkpoint | None
    prepared: Prepared
    recipe: Recipe
    maker: WindowSampler | ClipSampler
    normalization: Normalization
    window_s: float

    def identity(self) -> dict[str, Any]:
        """Return what must be the same to go on with a training."""
        return {
            "mixing": asdict(self.plan.mixing),
            "data": self.prepared.facts,
            "generated": [self.plan.n_generated, self.plan.n_backgrounds],
            "start": self.start and self.start.hash,
            "teacher": self.teacher and self.teacher.hash,
        }

    def kept_rows(self) -> list[int]:
        """Return the classes of the start that stay as they are: those without examples."""
        if not self.plan.keep_classes:
            return []
        return [row for row, has in enumerate(self.maker.has_examples) if not has]

    def new_teacher(self, device: torch.device) -> Teacher | None:
        """Return the teacher on a device, None without one."""
        if self.teacher is None:
            return None
        return Teacher(self.teacher, self.maker.labels, self.window_s, device)

    def measure(self, model: AudioSpectrogramTransformer) -> Metrics:
        """Return the figures of the held-out clips; none without any."""
        tested = self.prepared.held_out.recorded
        if not tested:
            return {}
        score = score_with(model, self.normalization)
        report = report_clips(tested, score, self.window_s, self.maker.labels)
        return {"clip_accuracy": report.accuracy, "map": report.mean_average_precision}


def begin(plan: Plan) -> Session:
    """Read, check and generate all that the plan asks for.

    Raises:
        ConfigError, UsageError, CheckpointError: see `prepare`, `window_of`, `load_checkpoint`.
    """
    start = None if plan.start is None else load_checkpoint(plan.start)
    teacher = start if plan.keep_classes else None
    if plan.teacher is not None:
        teacher = load_checkpoint(plan.teacher)
    window_s = window_of(plan, start)
    prepared = prepare(plan, start)
    recipe, mixing, material = plan.recipe, plan.mixing, prepared.material
    maker: WindowSampler | ClipSampler
    if isinstance(mixing, ClipMixing):
        max_frames = first_dims(plan, start, len(material.labels)).max_frames
        maker = ClipSampler(material, max_frames, mixing)
        epoch_steps = maker.epoch_steps(recipe.batch_size)
        steps = recipe.steps if recipe.epochs is None else recipe.epochs * epoch_steps
        recipe = replace(recipe, epoch_steps=epoch_steps, steps=steps)
        normalization = published_normalization(material, max_frames, recipe.seed)
    else:
        maker = WindowSampler(material, seconds_to_samples(window_s), mixing)
        normalization = (
            start.normalization
            if start is not None and not plan.measure_normalization
            else measure_normalization(maker, recipe.seed)
        )
    return Session(plan, start, teacher, prepared, recipe, maker, normalization, window_s)
