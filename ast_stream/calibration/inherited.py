"""Thresholds that a fine-tuned checkpoint took over from its start, checked against false alarms.

Training moves the scores of classes that it has no new examples of, too. What they find cannot be
measured without examples; what they alarm at for nothing can.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ast_stream.calibration.budget import Budgets
from ast_stream.calibration.curve import class_curve
from ast_stream.calibration.grouping import grouping_rule
from ast_stream.calibration.streams import LogitStream
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import ScoreMap
from ast_stream.settings.schema import DEFAULT_CONFIRM_S


def raised_thresholds(
    checkpoint: Checkpoint,
    labels: Collection[str],
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
) -> dict[str, float]:
    """Return higher thresholds for those of `labels` that alarm too often at the one they have.

    Args:
        with_sounds: of other classes; whatever one of `labels` hears in them is false.
    """
    metadata, hop_s = checkpoint.metadata, checkpoint.metadata.hop_s
    assert hop_s is not None, "thresholds that were chosen know their hop"
    raised = {}
    for index, label in enumerate(checkpoint.labels):
        if label not in labels:
            continue
        confirm_s = metadata.confirm_s.get(label, DEFAULT_CONFIRM_S)
        smoothing_s = metadata.smoothing_s.get(label, 0.0)
        curve = class_curve(
            index,
            label,
            with_sounds,
            negatives,
            metadata.score_maps.get(label, ScoreMap()),
            grouping_rule(checkpoint.window_s, hop_s, confirm_s, smoothing_s),
        )
        needed = curve.choose(budgets.of(label), budgets.among_of(label)).threshold
        if needed > metadata.onset_threshold(label):
            raised[label] = needed
    return raised
