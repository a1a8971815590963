"""Thresholds by a budget of false alarms, with the timing, calibration and onsets they go with.

False alarms, as events of the decision stage, must stay within the budget on sound-free audio and,
separately, among other sounds. F1 is no guide here: it depends on how often the class occurs, which
in a real stream is next to never.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ast_stream.calibration.budgets import LADDER, Budget, Budgets, claim, hours_text
from ast_stream.calibration.onsets import (
    DecidedStream,
    FittedOnset,
    Rises,
    RiseTime,
    choose_hold,
    fit_onset,
    measure_rises,
)
from ast_stream.calibration.platt import fit_platt, platt_scores
from ast_stream.calibration.scores import LogitStream, frame_steps, hours_of, with_label
from ast_stream.detect.parameters import (
    DecisionParameters,
    FrameSteps,
    model_facts,
    resolve_parameters,
)
from ast_stream.detect.stream_events import StreamEvents, WindowScores, decide_streams, smooth
from ast_stream.evaluation.curves import found_and_false, touches
from ast_stream.evaluation.intervals import poisson_upper_bound
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import FrameDecisions, Metadata, PlattScaling
from ast_stream.settings.detection import (
    DEFAULT_CONFIRM_S,
    DEFAULT_FRAME_CONFIRM_S,
    MAX_CONFIRM_HOPS,
    DetectionDefaults,
    DetectionSettings,
)
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

LOWEST, HIGHEST = 0.2, 0.99  # thresholds outside say more about the few examples than the class
_LOGIT_STEP = 0.05  # candidates are even on the logits: near 1 they must lie closer

CONFIRM_S = (0.5, DEFAULT_CONFIRM_S, 2.0, 3.0, 4.0)
MAX_CONFIRM_S = CONFIRM_S[-1]
FRAME_CONFIRM_S = (0.16, DEFAULT_FRAME_CONFIRM_S, 0.48, DEFAULT_CONFIRM_S, 2.0, 3.0, 4.0)
SMOOTHING_S = (0.0, 0.25, 0.5, 1.0)
MAX_SMOOTHING_S = SMOOTHING_S[-1]
WORTH_OF_A_SECOND = 0.2  # a sound that is known a second later counts so much less
TAIL_PEAKS = 10  # false alarms that the tail of their rate is fitted to
TAIL_PRIOR, TAIL_PRIOR_PEAKS = 0.5, 2.0  # their mean excess on the logits before any is heard
TAIL_REACH = 10  # the tail is followed down to one alarm in so many times the hours heard
ENOUGH_SOUNDS = 20  # fewer cannot show whether a timing finds more
RECALL_FLOOR = 0.5  # a class that finds fewer of its sounds is not worth its alarms: a remark

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def _candidates() -> Values:
    low, high = (float(np.log(at / (1 - at))) for at in (LOWEST, HIGHEST))
    logits = np.linspace(low, high, round((high - low) / _LOGIT_STEP) + 1)
    return np.unique(np.round(1 / (1 + np.exp(-logits)), 4))


CANDIDATES = _candidates()


class Timing(NamedTuple):
    """How scores of a class are followed in time before an event begins.

    Attributes:
        confirm_s: span in which windows must agree.
        smoothing_s: time constant over which scores are averaged.
    """

    confirm_s: float
    smoothing_s: float


DEFAULT_TIMING = Timing(DEFAULT_CONFIRM_S, 0.0)
DEFAULT_FRAME_TIMING = Timing(DEFAULT_FRAME_CONFIRM_S, 0.0)


def timing_parameters(
    window_s: float, hop_s: float, timing: Timing, frames: FrameSteps | None = None
) -> DecisionParameters:
    """Return how one class is decided with a timing, the defaults, and rise times yet unmeasured.

    Args:
        frames: what decides; None: windows.

    Raises:
        UsageError: a hop at which no event can be confirmed.
    """
    defaults = DetectionDefaults(confirm_s=timing.confirm_s, smoothing_s=timing.smoothing_s)
    facts = model_facts([""], window_s, Metadata())
    if frames is not None:
        of_frames = Metadata(frames=FrameDecisions(delay_s=frames.delay_s))
        facts = model_facts([""], window_s, of_frames, frames.frame_s)
    return resolve_parameters(DetectionSettings(defaults=defaults), facts, hop_s)


def timings(
    window_s: float,
    hop_s: float,
    max_confirm_s: float = MAX_CONFIRM_S,
    max_smoothing_s: float = MAX_SMOOTHING_S,
    frames: FrameSteps | None = None,
) -> dict[Timing, DecisionParameters]:
    """Return the timings to choose among, shortest first.

    Frames are not smoothed: windows are averaged already, and smoothing would shift the edges that
    are the times of events.

    Args:
        frames: what decides; None: windows.
        max_confirm_s: no longer span is tried; one shorter than all is the only one.
        max_smoothing_s: no longer time constant is tried.

    Raises:
        UsageError: a hop at which no event can be confirmed.
    """
    step_s, choices_s = (frames.frame_s, FRAME_CONFIRM_S) if frames else (hop_s, CONFIRM_S)
    possible_s = min(max_confirm_s, MAX_CONFIRM_HOPS * step_s)
    spans = [span for span in choices_s if span <= possible_s] or [max_confirm_s]
    smoothing_s = (0.0,) if frames else SMOOTHING_S
    constants = [constant for constant in smoothing_s if constant <= max_smoothing_s]
    possible = [Timing(span, constant) for span in spans for constant in constants]
    return {timing: timing_parameters(window_s, hop_s, timing, frames) for timing in possible}


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """A threshold with its recall and its false alarms; see `ThresholdSweep`."""

    budget: Budget
    is_met: bool
    threshold: float
    is_found: Flags
    snr_db: Values
    false_among: int
    false_negatives: int
    hours_among: float
    hours_negative: float

    @property
    def n_sounds(self) -> int:
        """How many reference events of the class there are."""
        return len(self.is_found)

    @property
    def n_found(self) -> int:
        """How many of them are found."""
        return int(self.is_found.sum())

    @property
    def recall(self) -> float:
        """Ratio of the two, NaN without reference events."""
        return self.n_found / self.n_sounds if self.n_sounds else float("nan")

    def found_between(self, low_db: float, high_db: float) -> tuple[int, int]:
        """Return how many reference events of a band of SNR are found, and how many there are."""
        is_in_band = (self.snr_db >= low_db) & (self.snr_db < high_db)
        return int((self.is_found & is_in_band).sum()), int(is_in_band.sum())


@dataclass(frozen=True, eq=False)
class ThresholdSweep:
    """What happens to one class at each threshold, with one timing.

    Attributes:
        thresholds: ascending, shape (n,).
        streams: those with sounds, as the class decides them; indices of events are those of the
            thresholds.
        is_found: whether an event has a window with some of the sound, shape (n, n_sounds).
        snr_db: of the sounds, shape (n_sounds,).
        false_among: events without a sound of the class, in streams with sounds, shape (n,).
        false_negatives: events in audio without any sound, shape (n,).
        hours_among, hours_negative: length of both.
    """

    thresholds: Values
    streams: tuple[DecidedStream, ...]
    is_found: Flags
    snr_db: Values
    false_among: Counts
    false_negatives: Counts
    hours_among: float
    hours_negative: float

    def choose(self, budget: Budget, among: Budget | None = None) -> OperatingPoint:
        """Return the lowest threshold from which on no higher one exceeds the budget either.

        Where the budget allows few alarms in the audio that was heard, chance decides how many
        there were: then the threshold must keep the budget by the tail of the rate, too.

        Args:
            among: the budget among other sounds; None: the same.

        Where even the highest exceeds it, that one is chosen and `is_met` is false.
        """
        among = among or budget
        number = max(
            first_within(self.thresholds, self.false_among, among, self.hours_among),
            first_within(self.thresholds, self.false_negatives, budget, self.hours_negative),
        )
        is_met = number < len(self.thresholds)
        number = min(number, len(self.thresholds) - 1)
        return OperatingPoint(
            budget=budget,
            is_met=is_met,
            threshold=float(self.thresholds[number]),
            is_found=self.is_found[number],
            snr_db=self.snr_db,
            false_among=int(self.false_among[number]),
            false_negatives=int(self.false_negatives[number]),
            hours_among=self.hours_among,
            hours_negative=self.hours_negative,
        )

    def at(self, threshold: float) -> list[DecidedStream]:
        """Return the streams with sounds and their events at one of the thresholds."""
        number = int(np.flatnonzero(self.thresholds == threshold)[0])
        return [stream.of_threshold(number) for stream in self.streams]

    def delays_s(self, threshold: float) -> Values:
        """Return how long after its onset each sound is known, of those that are found."""
        delays: list[float] = []
        for stream in self.at(threshold):
            for sound in stream.sounds:
                touching = np.flatnonzero(touches(stream.events, sound, stream.geometry.window))
                if len(touching):
                    known_s = stream.events.known_at[touching[0]] / SAMPLE_RATE
                    delays.append(max(0.0, float(known_s) - sound.onset_s))
        return np.array(delays, np.float64)


def sweep_thresholds(
    index: int,
    label: str,
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    score_map: PlattScaling,
    by_timing: Mapping[Timing, DecisionParameters],
    thresholds: Values = CANDIDATES,
) -> dict[Timing, ThresholdSweep]:
    """Return recall and false alarms of class `index`, named `label`, for every timing.

    All timings and thresholds are classes of one run of the decision stage for each kind of stream.
    """
    constants = sorted({timing.smoothing_s for timing in by_timing})
    alpha = {
        timing.smoothing_s: parameters.ema_alpha[0] for timing, parameters in by_timing.items()
    }
    alphas = np.array([alpha[constant] for constant in constants], np.float32)
    n = len(thresholds)
    joined = DecisionParameters.joined(
        [parameters.at_thresholds(0, thresholds) for parameters in by_timing.values()]
    )
    column = np.repeat([constants.index(timing.smoothing_s) for timing in by_timing], n)

    def decide(streams: Sequence[LogitStream]) -> tuple[list[WindowScores], list[StreamEvents]]:
        scored = [_window_scores(stream, index, score_map, alphas) for stream in streams]
        return scored, decide_streams(joined, scored, column)

    scored, among = decide(with_sounds)
    negatives = [stream for stream in negatives if stream.expected_label != label]
    _, elsewhere = decide(negatives)
    window = joined.geometry.window
    truth = [with_label(stream.truth, label) for stream in with_sounds]
    counted = [
        found_and_false(events, sounds, len(joined.labels), window)
        for events, sounds in zip(among, truth, strict=True)
    ]
    n_classes = len(joined.labels)
    no_sounds = np.zeros((n_classes, 0), np.bool_)
    is_found = np.concatenate([*(found for found, _ in counted), no_sounds], axis=1)
    false_among = sum((false for _, false in counted), np.zeros(n_classes, np.int64))
    false_negatives = sum(
        (np.bincount(events.index, minlength=n_classes) for events in elsewhere),
        np.zeros(n_classes, np.int64),
    )
    snr_db = np.array([sound.snr_db for sounds in truth for sound in sounds], np.float64)
    return {
        timing: ThresholdSweep(
            thresholds=thresholds,
            streams=tuple(
                DecidedStream(
                    parameters.geometry,
                    sounds,
                    stream.ends,
                    stream.scores[:, constants.index(timing.smoothing_s)],
                    events.of_classes(number * n, n),
                )
                for sounds, stream, events in zip(truth, scored, among, strict=True)
            ),
            is_found=is_found[number * n : (number + 1) * n],
            snr_db=snr_db,
            false_among=false_among[number * n : (number + 1) * n],
            false_negatives=false_negatives[number * n : (number + 1) * n],
            hours_among=hours_of(with_sounds),
            hours_negative=hours_of(negatives),
        )
        for number, (timing, parameters) in enumerate(by_timing.items())
    }


def first_within(thresholds: Values, counts: Counts, budget: Budget, hours: float) -> int:
    """Return the index of the first threshold that keeps the budget, their number if none does.

    Scores of what is falsely heard have a tail that falls exponentially over the logits, so few
    alarms of a class at lower thresholds say how rare they are at higher ones (peaks over a
    threshold). A prior keeps one or two of them from saying much.

    Args:
        thresholds: ascending, shape (n,).
        counts: false alarms at each, shape (n,).

    Source: Pickands, "Statistical inference using extreme order statistics", Annals of Statistics
    3 (1975).
    """
    if not hours:
        return 0
    exceeds = counts > budget.allowed(hours)
    seen = int(np.flatnonzero(exceeds)[-1]) + 1 if exceeds.any() else 0
    expected = max(budget.per_h * hours, 1 / TAIL_REACH)
    if expected >= TAIL_PEAKS:
        return seen
    falling = np.maximum.accumulate(counts[::-1])[::-1].astype(np.float64)
    if falling[-1] > TAIL_PEAKS:
        return len(thresholds)
    n_peaks = float(falling[falling <= TAIL_PEAKS][0])
    if n_peaks <= expected:
        return seen
    first = int(np.flatnonzero(falling >= n_peaks)[-1])  # the highest that all of them are above
    logits = np.log(thresholds / (1 - thresholds))
    # of all peaks over the first threshold, summed
    excess = float((falling[first:-1] * np.diff(logits[first:])).sum())
    mean = (excess + TAIL_PRIOR * TAIL_PRIOR_PEAKS) / (n_peaks + TAIL_PRIOR_PEAKS)
    needed = logits[first] + mean * np.log(n_peaks / expected)
    return max(seen, int(np.searchsorted(logits, needed)))


@dataclass(frozen=True)
class ClassCalibration:
    """All that is found out about one class.

    Attributes:
        choice: the threshold for its budget.
        ladder: what other budgets would choose.
        rise_on, rise_off: None: too few sounds to measure, so it stays assumed.
        onset: what makes onsets finer than `rise_on`; None: nothing does.
        hold_s: quiet time after which an event has ended; None: as for any class.
        by_frames: frames decide, which need no rise times.
        is_raised_only: without examples, a threshold that it had was not lowered, and all else is
            as it was.
    """

    label: str
    score_map: PlattScaling
    timing: Timing
    choice: OperatingPoint
    ladder: tuple[OperatingPoint, ...]
    rise_on: RiseTime | None
    rise_off: RiseTime | None
    onset: FittedOnset | None = None
    hold_s: float | None = None
    by_frames: bool = False
    is_raised_only: bool = False

    @property
    def bound_per_h(self) -> float | None:
        """The rate of false alarms in negative audio is below this with 95 %; None: none heard."""
        choice = self.choice
        if not choice.hours_negative:
            return None
        return poisson_upper_bound(choice.false_negatives) / choice.hours_negative

    def is_off(self, recall_floor: float) -> bool:
        """Return whether recall at the budget is too low for the class to be on by default."""
        return not self.choice.is_met or self.choice.recall < recall_floor

    def remarks(self, recall_floor: float = RECALL_FLOOR) -> list[str]:
        """Return the caveats of the threshold, one sentence each."""
        choice, said = self.choice, []
        if not choice.is_met:
            said.append(
                f"the budget of {choice.budget.text} cannot be met at any threshold: at "
                f"{choice.threshold:g} there are {choice.false_negatives} false alarms in "
                f"{hours_text(choice.hours_negative)} of negative audio and "
                f"{choice.false_among} in {hours_text(choice.hours_among)} among other sounds"
            )
        if self.is_raised_only:
            said.append("there are no examples of it: its threshold is no lower than it was")
        elif not choice.n_sounds:
            said.append("there are no examples of it: the threshold comes from false alarms alone")
        elif choice.recall < recall_floor:
            said.append(
                f"finds {choice.n_found} of {choice.n_sounds} sounds ({choice.recall:.0%}), "
                f"fewer than {recall_floor:.0%}"
            )
        elif not self.by_frames and (self.rise_on is None or self.rise_off is None):
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
    by_timing: Mapping[Timing, DecisionParameters],
    known: Checkpoint | None = None,
) -> list[ClassCalibration]:
    """Return the calibration of each class of `chosen`, in the order of `labels`.

    Args:
        labels: all classes, in the order of the logits.
        with_sounds, negatives: what the model said about streams with sounds, and without any.
        by_timing: what to choose among, shortest first; see `timings`.
        known: its thresholds of classes without sounds here are raised where needed, and never
            lowered: nothing was heard that lower ones would find.
    """
    heard = {sound.label for stream in with_sounds for sound in stream.truth}
    decided_by = known and (known.metadata.frames if _are_frames(by_timing) else known.metadata)
    calibrated = []
    for index, label in enumerate(labels):
        if label not in chosen:
            continue
        if decided_by and label not in heard and label in decided_by.onset_thresholds:
            result = _raise(index, label, with_sounds, negatives, budgets, by_timing, decided_by)
        else:
            result = _calibrate(index, label, with_sounds, negatives, budgets, by_timing)
        calibrated.append(result)
    return calibrated


def _are_frames(by_timing: Mapping[Timing, DecisionParameters]) -> bool:
    return next(iter(by_timing.values())).geometry.is_of_frames


def _raise(
    index: int,
    label: str,
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
    by_timing: Mapping[Timing, DecisionParameters],
    known: Metadata | FrameDecisions,
) -> ClassCalibration:
    """Return a class as it was, but for a threshold that keeps the budget."""
    geometry, by_frames = next(iter(by_timing.values())).geometry, _are_frames(by_timing)
    usual = DEFAULT_FRAME_TIMING if by_frames else DEFAULT_TIMING
    timing = Timing(
        known.confirm_s.get(label, usual.confirm_s), known.smoothing_s.get(label, usual.smoothing_s)
    )
    score_map, lowest = known.score_maps.get(label, PlattScaling()), known.onset_threshold(label)
    window_s, hop_s = geometry.window / SAMPLE_RATE, geometry.hop / SAMPLE_RATE
    frames = None
    if by_frames:
        frames = FrameSteps(window_s, geometry.delay / SAMPLE_RATE)
        hop_s = geometry.window_hop / SAMPLE_RATE
    parameters = by_timing.get(timing) or timing_parameters(window_s, hop_s, timing, frames)
    thresholds = np.array([lowest, *(candidate for candidate in CANDIDATES if candidate > lowest)])
    sweep = sweep_thresholds(
        index, label, with_sounds, negatives, score_map, {timing: parameters}, thresholds
    )[timing]
    return ClassCalibration(
        label=label,
        score_map=score_map,
        timing=timing,
        choice=sweep.choose(budgets.of(label), budgets.among_of(label)),
        ladder=tuple(sweep.choose(budget, budgets.among) for budget in LADDER),
        rise_on=None,
        rise_off=None,
        by_frames=by_frames,
        is_raised_only=True,
    )


def _calibrate(
    index: int,
    label: str,
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
    by_timing: Mapping[Timing, DecisionParameters],
) -> ClassCalibration:
    window_s = next(iter(by_timing.values())).geometry.window / SAMPLE_RATE
    by_frames = _are_frames(by_timing)
    timing = _usual_timing(by_timing, DEFAULT_FRAME_TIMING if by_frames else DEFAULT_TIMING)
    n_sounds = sum(len(with_label(stream.truth, label)) for stream in with_sounds)
    if n_sounds < ENOUGH_SOUNDS:  # nothing to choose by, and of 527 classes a night takes its time
        by_timing = {timing: by_timing[timing]}
    score_map = fit_platt(index, label, with_sounds, window_s)
    sweeps = sweep_thresholds(index, label, with_sounds, negatives, score_map, by_timing)
    choices = {
        timing: sweep.choose(budgets.of(label), budgets.among_of(label))
        for timing, sweep in sweeps.items()
    }

    def worth(timing: Timing) -> tuple[bool, float]:
        choice = choices[timing]
        late_s = sweeps[timing].delays_s(choice.threshold)
        return choice.is_met, float(np.maximum(0.0, 1.0 - WORTH_OF_A_SECOND * late_s).sum())

    # chance sends one window above a threshold more easily than several or their average, so
    # these bear a lower threshold and find more; but not always sooner
    timing = max(by_timing, key=worth)  # of equals the shortest
    choice, sweep = choices[timing], sweeps[timing]
    decided = sweep.at(choice.threshold)
    # a frame says itself when it is, and windows bridge pauses
    rises = Rises(None, None, []) if by_frames else measure_rises(decided, choice.threshold)
    return ClassCalibration(
        label=label,
        score_map=score_map,
        timing=timing,
        choice=choice,
        ladder=tuple(sweep.choose(budget, budgets.among) for budget in LADDER),
        rise_on=rises.on,
        rise_off=rises.off,
        onset=fit_onset(rises.crossings, choice.threshold, window_s),
        hold_s=choose_hold(decided) if by_frames else None,
        by_frames=by_frames,
    )


def raised_thresholds(
    checkpoint: Checkpoint,
    labels: Collection[str],
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    budgets: Budgets,
) -> dict[str, float]:
    """Return higher thresholds for those of `labels` that alarm too often at the one they have.

    Fine-tuning moves the scores of classes that it has no new examples of, too. What they find
    cannot be measured without examples; their false alarms can.

    Args:
        with_sounds: of other classes; any event of one of `labels` in them is false.
    """
    frames, hop_s = frame_steps(checkpoint), checkpoint.metadata.hop_s
    known = checkpoint.metadata.frames or checkpoint.metadata
    default_s = DEFAULT_FRAME_CONFIRM_S if frames else DEFAULT_CONFIRM_S
    assert hop_s is not None, "thresholds that were chosen know their hop"
    raised = {}
    for index, label in enumerate(checkpoint.labels):
        if label not in labels:
            continue
        timing = Timing(known.confirm_s.get(label, default_s), known.smoothing_s.get(label, 0.0))
        score_map = known.score_maps.get(label, PlattScaling())
        by_timing = {timing: timing_parameters(checkpoint.window_s, hop_s, timing, frames)}
        sweeps = sweep_thresholds(index, label, with_sounds, negatives, score_map, by_timing)
        needed = sweeps[timing].choose(budgets.of(label), budgets.among_of(label)).threshold
        if needed > known.onset_threshold(label):
            raised[label] = needed
    return raised


def _usual_timing(possible: Iterable[Timing], default: Timing) -> Timing:
    """Return the default, or the nearest timing: the longest span with the least smoothing."""
    known = set(possible)
    if default in known:
        return default
    return max(known, key=lambda timing: (timing.confirm_s, -timing.smoothing_s))


def _window_scores(
    stream: LogitStream, index: int, score_map: PlattScaling, alphas: npt.NDArray[np.float32]
) -> WindowScores:
    """Return the scores of a class with every smoothing, a column each."""
    scores = np.repeat(platt_scores(stream.logits[:, [index]], score_map), len(alphas), axis=1)
    return WindowScores(stream.ends, smooth(scores, alphas), seconds_to_samples(stream.duration_s))
