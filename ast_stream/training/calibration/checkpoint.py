"""A checkpoint with thresholds, rise times, a golden vector and where they come from."""

from __future__ import annotations

from dataclasses import asdict, replace

from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.golden import golden_for
from ast_stream.model.tagger import Tagger
from ast_stream.training.calibration.thresholds import calibrate_class
from ast_stream.training.material.held_out import HeldOut, scored_streams


def calibrate_checkpoint(
    checkpoint: Checkpoint, held: HeldOut, negatives_s: float, budget_per_h: float
) -> Checkpoint:
    """Return the checkpoint with thresholds, rise times and provenance from held-out material.

    Args:
        negatives_s: length of the streams without events that bound the false alarms.
        budget_per_h: false alarms of one class in an hour of them.
    """
    tagger = Tagger(checkpoint, "cpu", "fp32", "math")
    with_sounds, without = scored_streams(tagger, held, negatives_s)
    chosen = {
        label: calibrate_class(
            index, label, with_sounds, without, checkpoint.window_s, budget_per_h
        )
        for index, label in enumerate(held.labels)
    }
    measured = {label: one for label, one in chosen.items() if one.n_sounds}
    thresholds = {
        "hours_without_sounds": negatives_s / 3600,
        "budget_per_h": budget_per_h,
        "classes": {label: asdict(one) for label, one in measured.items()},
    }
    provenance = checkpoint.metadata.provenance | {"thresholds": thresholds}
    return replace(
        checkpoint,
        metadata=checkpoint.metadata.model_copy(
            update={
                "onset_thresholds": {label: one.threshold for label, one in measured.items()},
                "rise_on_s": _known({label: one.rise_on_s for label, one in measured.items()}),
                "rise_off_s": _known({label: one.rise_off_s for label, one in measured.items()}),
                "golden": golden_for(checkpoint),
                "provenance": provenance,
            }
        ),
    )


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {label: value for label, value in values.items() if value is not None}
