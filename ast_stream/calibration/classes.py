"""Score map, timing, threshold and rise times of every class, from scored streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ast_stream.calibration.budget import (
    LADDER,
    Budgets,
    claim,
    hours_text,
)
from ast_stream.calibration.curve import Choice, class_curve, delays_s
from ast_stream.calibration.grouping import GroupingRule, grouping_rule
from ast_stream.calibration.onset_fits import FittedOnset, fit_onset
from ast_stream.calibration.rises import RiseTime, measure_rises
from ast_stream.calibration.score_map import fit_score_map
from ast_stream.calibration.streams import LogitStream
from ast_stream.evaluation.intervals import poisson_upper_bound
from ast_stream.model.metadata import ScoreMap
from ast_stream.settings.schema import DEFAULT_CONFIRM_S, MAX_CONFIRM_HOPS
from ast_stream.units import SAMPLE_RATE

CONFIRM_S = (0.5, DEFAULT_CONFIRM_S, 2.0, 3.0, 4.0)
LONGEST_CONFIRM_S = CONFIRM_S[-1]
SMOOTHING_S = (0.0, 0.25, 0.5, 1.0)
LONGEST_SMOOTHING_S = SMOOTHING_S[-1]
WORTH_OF_A_SECOND = 0.2  # a sound that is known a second later counts so much less
ENOUGH_SOUNDS = 20  # fewer cannot tell whether it finds more
RECALL_FLOOR = 0.5  # a class that finds fewer of its sounds is not worth its alarms, and is said


class Timing(NamedTuple):
    """How scores of a class are followed in time before an event begins.

    Attributes:
        confirm_s: span in which windows must agree.
        smoothing_s: time constant over which scores are averaged.
    """

    confirm_s: float
    smoothing_s: float


DEFAULT_TIMING = Timing(DEFAULT_CONFIRM_S, 0.0)


@dataclass(frozen=True, eq=False)
class ClassCalibration:
    """What was chosen and measured for one class.

    Attributes:
        timing: what finds most, its delay weighed in.
        choice: the threshold for its budget.
        ladder: what other budgets would choose.
        rise_on, rise_off: None: too few sounds to measure, so it stays assumed.
        onset: what makes onsets finer than `rise_on`; None: nothing does.
    """

    label: str
    score_map: ScoreMap
    timing: Timing
    choice: Choice
    ladder: tuple[Choice, ...]
    rise_on: RiseTime | None
    rise_off: RiseTime | None
    onset: FittedOnset | None = None

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


def timing_rules(
    window_s: float,
    hop_s: float,
    longest_confirm_s: float = LONGEST_CONFIRM_S,
    longest_smoothing_s: float = LONGEST_SMOOTHING_S,
) -> dict[Timing, GroupingRule]:
    """Return the rules to choose among, shortest first.

    Args:
        longest_confirm_s: no longer span is tried; one shorter than all is the only one.
        longest_smoothing_s: no longer time constant is tried.

    Raises:
        UsageError: a hop at which no event can be confirmed.
    """
    possible_s = min(longest_confirm_s, MAX_CONFIRM_HOPS * hop_s)
    spans = [span for span in CONFIRM_S if span <= possible_s] or [longest_confirm_s]
    constants = [constant for constant in SMOOTHING_S if constant <= longest_smoothing_s]
    timings = [Timing(span, constant) for span in spans for constant in constants]
    return {timing: grouping_rule(window_s, hop_s, *timing) for timing in timings}


def calibrate_classes(
    labels: Sequence[str],
    chosen: Sequence[str],
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
    rules: Mapping[Timing, GroupingRule],
) -> list[ClassCalibration]:
    """Return the calibration of each class of `chosen`, in the order of `labels`.

    Args:
        labels: all classes, in the order of the logits.
        with_sounds, negatives: what the model said about streams with sounds, and without any.
        rules: what to choose among, shortest first; see `timing_rules`.
    """
    return [
        _calibrate(index, label, with_sounds, negatives, budgets, rules)
        for index, label in enumerate(labels)
        if label in chosen
    ]


def _calibrate(
    index: int,
    label: str,
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
    rules: Mapping[Timing, GroupingRule],
) -> ClassCalibration:
    geometry = next(iter(rules.values())).geometry
    score_map = fit_score_map(index, label, with_sounds, geometry.window / SAMPLE_RATE)
    curves = {
        timing: class_curve(index, label, with_sounds, negatives, score_map, rule)
        for timing, rule in rules.items()
    }
    choices = {
        timing: curve.choose(budgets.of(label), budgets.among_of(label))
        for timing, curve in curves.items()
    }

    def worth(timing: Timing) -> tuple[bool, float]:
        choice, rule = choices[timing], rules[timing]
        late_s = delays_s(index, label, with_sounds, score_map, rule, choice.threshold)
        return choice.is_met, float(np.maximum(0.0, 1.0 - WORTH_OF_A_SECOND * late_s).sum())

    timing = _usual_timing(rules)
    if choices[timing].n_sounds >= ENOUGH_SOUNDS:
        # chance sends one window above a threshold more easily than several or their average, so
        # these bear a lower threshold and find more; but not always sooner
        timing = max(rules, key=worth)  # of equals the shortest
    choice, curve, rule = choices[timing], curves[timing], rules[timing]
    rises = measure_rises(index, label, with_sounds, score_map, choice.threshold, rule)
    return ClassCalibration(
        label=label,
        score_map=score_map,
        timing=timing,
        choice=choice,
        ladder=tuple(curve.choose(budget, budgets.among) for budget in LADDER),
        rise_on=rises.on,
        rise_off=rises.off,
        onset=fit_onset(rises.crossings, choice.threshold, geometry.window / SAMPLE_RATE),
    )


def _usual_timing(timings: Iterable[Timing]) -> Timing:
    """Return the default, or what comes nearest: the longest span, smoothed the least."""
    possible = set(timings)
    if DEFAULT_TIMING in possible:
        return DEFAULT_TIMING
    return max(possible, key=lambda timing: (timing.confirm_s, -timing.smoothing_s))
