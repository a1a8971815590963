"""Thresholds and rise times per class, from scores of streams with known truth.

The threshold balances found and false events on streams with sounds, and is raised until streams
without any stay within a budget of false alarms. Rise times are what the boundary formula of
`detect.boundaries` needs: how much of a sound a window must hold to cross the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.audio.scene import Planted
from ast_stream.detect.parameters import OFFSET_DROP, OFFSET_SHARE
from ast_stream.training.material.streams import ScoredStrip

LOWEST, HIGHEST = 0.2, 0.95  # thresholds outside say more about the few examples than the class
CONFIRMING_WINDOWS = 2  # consecutive ones: what confirm_s asks for at the default hop
ALARM_BLOCK_S = 4.0  # crossings within one block are one false alarm
FEWEST_MEASURED = 5  # found sounds needed for a rise time; else it stays assumed

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClassCalibration:
    """What was chosen and measured for one class.

    Attributes:
        n_sounds, n_found: planted sounds of the class, and those above the threshold.
        n_false: blocks of 4 s above it without the class, in streams with other sounds.
        background_per_h: the same per hour of streams without sounds.
        rise_on_s, rise_off_s: None where too few sounds were found to measure.
    """

    threshold: float
    n_sounds: int
    n_found: int
    n_false: int
    background_per_h: float
    rise_on_s: float | None
    rise_off_s: float | None


def calibrate_class(
    index: int,
    label: str,
    with_sounds: Sequence[ScoredStrip],
    without: Sequence[ScoredStrip],
    window_s: float,
    budget_per_h: float,
) -> ClassCalibration:
    """Return threshold and rise times of class `index`, named `label`."""
    positives = np.array(
        [peak for strip in with_sounds for peak in _sound_peaks(strip, index, label, window_s)]
    )
    negatives = np.concatenate([_false_peaks(one, index, label, window_s) for one in with_sounds])
    quiet = np.concatenate([_false_peaks(one, index, label, window_s) for one in without])
    quiet_h = sum(one.strip.duration_s for one in without) / 3600
    threshold = choose_threshold(positives, negatives, quiet, budget_per_h * quiet_h)
    rises_on, rises_off = [], []
    for strip in with_sounds:
        for sound in _of_label(strip, label):
            on_s, off_s = _rise(strip, index, sound, threshold, window_s)
            rises_on += [on_s] if on_s is not None else []
            rises_off += [off_s] if off_s is not None else []
    return ClassCalibration(
        threshold=threshold,
        n_sounds=len(positives),
        n_found=int(np.sum(positives >= threshold)),
        n_false=int(np.sum(negatives >= threshold)),
        background_per_h=float(np.sum(quiet >= threshold) / quiet_h) if quiet_h else 0.0,
        rise_on_s=_median(rises_on, window_s),
        rise_off_s=_median(rises_off, window_s),
    )


def choose_threshold(
    positives: npt.NDArray[np.float64],
    negatives: npt.NDArray[np.float64],
    quiet: npt.NDArray[np.float64],
    most_quiet_alarms: float,
) -> float:
    """Return the threshold with the best F1 of `positives` against `negatives` and `quiet`.

    Only thresholds that leave at most `most_quiet_alarms` of `quiet` above are considered; of
    equally good ones the middle is taken. Always within `LOWEST` and `HIGHEST`.
    """
    candidates = np.round(np.arange(LOWEST, HIGHEST + 0.005, 0.01), 2)
    found = (positives[None, :] >= candidates[:, None]).sum(axis=1)
    false = (negatives[None, :] >= candidates[:, None]).sum(axis=1)
    alarms = (quiet[None, :] >= candidates[:, None]).sum(axis=1)
    f1 = 2 * found / np.maximum(1, found + false + alarms + len(positives))
    f1 = np.where(alarms <= most_quiet_alarms, f1, -1.0)
    if f1.max() < 0:
        return HIGHEST
    best = np.flatnonzero(f1 >= f1.max() - 1e-9)
    return float(candidates[best[len(best) // 2]])


def _of_label(scored: ScoredStrip, label: str) -> list[Planted]:
    return [sound for sound in scored.strip.truth if sound.label == label]


def _confirmed(scores: Scores) -> Scores:
    """Return the score that `CONFIRMING_WINDOWS` windows up to each one all reached."""
    padded = np.concatenate([np.zeros(CONFIRMING_WINDOWS - 1, scores.dtype), scores])
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONFIRMING_WINDOWS)
    lowest: Scores = windows.min(axis=1)
    return lowest


def _sound_peaks(scored: ScoredStrip, index: int, label: str, window_s: float) -> list[float]:
    confirmed = _confirmed(scored.scores[:, index])
    return [
        float(confirmed[_touching(scored, sound, window_s)].max(initial=0.0))
        for sound in _of_label(scored, label)
    ]


def _false_peaks(
    scored: ScoredStrip, index: int, label: str, window_s: float
) -> npt.NDArray[np.float64]:
    """Return the highest confirmed score of each block without the class."""
    is_free = np.ones(len(scored.times_s), np.bool_)
    for sound in _of_label(scored, label):
        is_free &= ~_touching(scored, sound, window_s)
    confirmed = np.where(is_free, _confirmed(scored.scores[:, index]), 0.0)
    blocks = (scored.times_s // ALARM_BLOCK_S).astype(int)
    peaks = np.zeros(blocks.max(initial=0) + 1)
    np.maximum.at(peaks, blocks, confirmed)
    return peaks


def _touching(scored: ScoredStrip, sound: Planted, window_s: float) -> npt.NDArray[np.bool_]:
    """Tell which windows hold some of `sound`."""
    times = scored.times_s
    touching: npt.NDArray[np.bool_] = (times > sound.onset_s) & (times < sound.offset_s + window_s)
    return touching


def _rise(
    scored: ScoredStrip, index: int, sound: Planted, threshold: float, window_s: float
) -> tuple[float | None, float | None]:
    """Return r_on and r_off of one sound, None where its score does not cross.

    r_on = t_up - onset - H/2 and r_off = W + H/2 - (t_down - offset), with t_up the first window
    above the onset threshold and t_down the first one below the offset threshold after the last
    one above it.
    """
    times = scored.times_s[_touching(scored, sound, window_s)]
    scores = scored.scores[_touching(scored, sound, window_s), index]
    if len(times) < 2 or not (scores >= threshold).any():
        return None, None
    hop_s = float(times[1] - times[0])
    first = int(np.argmax(scores >= threshold))
    off_threshold = max(threshold - OFFSET_DROP, OFFSET_SHARE * threshold)
    last = int(np.flatnonzero(scores >= off_threshold)[-1])
    on_s = float(times[first]) - sound.onset_s - hop_s / 2 if first > 0 else None
    off_s = window_s + hop_s / 2 - (float(times[last]) + hop_s - sound.offset_s)
    return on_s, off_s


def _median(rises: Sequence[float], window_s: float) -> float | None:
    if len(rises) < FEWEST_MEASURED:
        return None
    return round(float(np.clip(np.median(rises), 0.0, window_s / 2)), 3)
