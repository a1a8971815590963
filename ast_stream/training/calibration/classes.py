"""Score map, threshold and rise times of every class, from streams that were scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ast_stream.model.metadata import ScoreMap
from ast_stream.training.calibration.budget import (
    LADDER,
    Budgets,
    claim,
    hours_text,
)
from ast_stream.training.calibration.curve import Choice, class_curve
from ast_stream.training.calibration.grouping import GroupingRule
from ast_stream.training.calibration.rises import RiseTime, measure_rises
from ast_stream.training.calibration.score_map import fit_score_map
from ast_stream.training.calibration.streams import LogitStream
from ast_stream.training.evaluation.intervals import poisson_upper_bound
from ast_stream.units import SAMPLE_RATE

RECALL_FLOOR = 0.5  # a class that finds fewer of its sounds is not worth its alarms, and is said


@dataclass(frozen=True, eq=False)
class ClassCalibration:
    """What was chosen and measured for one class.

    Attributes:
        choice: the threshold for its budget.
        ladder: what other budgets would choose.
        rise_on, rise_off: None: too few sounds to measure, so it stays assumed.
    """

    label: str
    score_map: ScoreMap
    choice: Choice
    ladder: tuple[Choice, ...]
    rise_on: RiseTime | None
    rise_off: RiseTime | None

    @property
    def bound_per_h(self) -> float | None:
        """The rate of false alarms in negative audio is below this with 95 %; None: none heard."""
        choice = self.choice
        if not choice.hours_negative:
            return None
        return poisson_upper_bound(choice.false_negatives) / choice.hours_negative

    def remarks(self, recall_floor: float = RECALL_FLOOR) -> list[str]:
        """Return what a person must know before trusting the threshold, one sentence each."""
        choice, said = self.choice, []
        if not choice.is_met:
            said.append(
                f"the budget of {choice.budget.text} cannot be met at any threshold: at "
                f"{choice.threshold:g} there are {choice.false_negatives} false alarms in "
                f"{hours_text(choice.hours_negative)} of negative audio and "
                f"{choice.false_among} in {hours_text(choice.hours_among)} among other sounds"
            )
        if not choice.n_sounds:
            said.append("no sound of it was planted: the threshold comes from false alarms alone")
        elif choice.recall < recall_floor:
            said.append(
                f"finds {choice.n_found} of {choice.n_sounds} sounds ({choice.recall:.0%}), "
                f"fewer than {recall_floor:.0%}"
            )
        elif self.rise_on is None or self.rise_off is None:
            said.append("too few clear sounds to measure rise times: they stay assumed")
        unproven = claim(choice.false_negatives, choice.hours_negative, choice.budget)
        if choice.is_met and unproven:
            said.append(unproven)
        return said


def calibrate_classes(
    labels: Sequence[str],
    chosen: Sequence[str],
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
    rule: GroupingRule,
) -> list[ClassCalibration]:
    """Return the calibration of each class of `chosen`, in the order of `labels`.

    Args:
        labels: all classes, in the order of the logits.
        with_sounds, negatives: what the model said about streams with sounds, and without any.
    """
    return [
        _calibrate(index, label, with_sounds, negatives, budgets, rule)
        for index, label in enumerate(labels)
        if label in chosen
    ]


def _calibrate(
    index: int,
    label: str,
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
    rule: GroupingRule,
) -> ClassCalibration:
    window_s = rule.geometry.window / SAMPLE_RATE
    score_map = fit_score_map(index, label, with_sounds, window_s)
    curve = class_curve(index, label, with_sounds, negatives, score_map, rule)
    choice = curve.choose(budgets.of(label), budgets.among_of(label))
    rise_on, rise_off = measure_rises(index, label, with_sounds, score_map, choice.threshold, rule)
    return ClassCalibration(
        label=label,
        score_map=score_map,
        choice=choice,
        ladder=tuple(curve.choose(budget, budgets.among) for budget in LADDER),
        rise_on=rise_on,
        rise_off=rise_off,
    )
