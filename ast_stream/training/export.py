"""What a training leaves: the checkpoint with its thresholds and provenance, and its clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ast_stream.calibration.checkpoint import calibrate_checkpoint
from ast_stream.dataset.annotations import Clip
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.golden import golden_for
from ast_stream.training.begin import Session
from ast_stream.training.inherit import inherited

HOP_S = 0.5  # that thresholds are chosen for
TRAINED, HELD_OUT = "trained", "held-out"  # folds, where the data have none


def calibrated_checkpoint(
    session: Session,
    model: AudioSpectrogramTransformer,
    origin: str,
    on_share: Callable[[float], None] = lambda share: None,
) -> Checkpoint:
    """Return the trained model as a checkpoint with thresholds.

    Args:
        on_share: called with the share of the measurement that is done, 0 to 1.
    """
    plan, held = session.plan, session.prepared.held_out
    # what is measured are the weights as they will be stored
    stored = {name: one.cpu().half().float() for name, one in model.state_dict().items()}
    metadata = inherited(session.start, session.maker.labels, held).model_copy(
        update={
            "window_s": session.window_s,
            "hop_s": HOP_S,
            "licence": plan.licence,
            "provenance": _provenance(session),
        }
    )
    checkpoint = Checkpoint(
        dims=model.dims,
        state_dict=stored,
        labels=session.maker.labels,
        normalization=session.normalization,
        metadata=metadata,
        origin=origin,
    )
    if not plan.negatives_s:
        golden = golden_for(checkpoint)
        return replace(checkpoint, metadata=metadata.model_copy(update={"golden": golden}))
    return calibrate_checkpoint(checkpoint, held, plan.negatives_s, plan.budget_per_h, on_share)


def clips_with_folds(session: Session) -> list[tuple[Clip, str]]:
    """Return all clips with the folds that tell `evaluate` and `calibrate` which ones are new."""
    prepared, has_folds = session.prepared, bool(session.plan.test_folds)
    return [
        (clip, clip.fold if has_folds and clip.fold else fold)
        for fold, clips in ((TRAINED, prepared.clips), (HELD_OUT, prepared.held_out_clips))
        for clip in clips
    ]


def _provenance(session: Session) -> dict[str, Any]:
    plan, prepared = session.plan, session.prepared
    return {
        "start": session.start and session.start.hash,
        "teacher": session.teacher and session.teacher.hash,
        "kept_classes": plan.keep_classes,
        "test_folds": list(plan.test_folds) or [HELD_OUT] * bool(prepared.held_out_clips),
        "data": prepared.facts,
        "generated_takes": plan.n_generated,
        "generated_backgrounds": plan.n_backgrounds,
        "recipe": asdict(session.recipe),
        "mixing": asdict(plan.mixing),
    }
