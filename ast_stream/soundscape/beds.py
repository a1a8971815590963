"""What lies below the sounds of a strip: backgrounds at stated levels, their steps and dropouts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ast_stream.audio.activity import Waveform
from ast_stream.soundscape.scene import Planted
from ast_stream.soundscape.synthesis import ACTIVE_DBFS, Random, Signal
from ast_stream.units import samples_to_seconds, seconds_to_samples

EDGE_S = 0.01  # fade where a take was cut and where backgrounds meet
DISTURBANCE_MARGIN_S = 0.1  # steps and dropouts stay this far from the next sound

Range = tuple[float, float]
PartKind = Literal["background", "step", "dropout"]


@dataclass(frozen=True)
class Disturbances:
    """What happens to the background between the sounds.

    Attributes:
        dropout_s: length of a silence of the background, in front of `dropout_share` of the sounds.
        step_db: jump of the background's level in front of `step_share` of the sounds, up or down.
    """

    dropout_s: Range = (0.2, 1.0)
    dropout_share: float = 0.0
    step_db: Range = (3.0, 12.0)
    step_share: float = 0.0


@dataclass(frozen=True)
class BedPart:
    """A stretch of background: another one, the same at another level, or silence."""

    kind: PartKind
    start_s: float
    stop_s: float
    level_dbfs: float | None  # None: digital silence


def part(kind: PartKind, start: int, stop: int, level_dbfs: float | None) -> BedPart:
    """Return the part of samples [start, stop)."""
    return BedPart(kind, samples_to_seconds(start), samples_to_seconds(stop), level_dbfs)


def faded(waveform: Waveform) -> Signal:
    """Return the waveform with short fades at both ends, shape unchanged, float64."""
    samples = waveform.astype(np.float64)
    n_fade = min(seconds_to_samples(EDGE_S), len(samples) // 2)
    ramp = np.linspace(0, 1, n_fade)
    samples[:n_fade] *= ramp
    samples[len(samples) - n_fade :] *= ramp[::-1]
    return samples


def background_gain(dbfs: float) -> float:
    """Return the factor that brings a generated background to `dbfs`."""
    return float(10 ** ((dbfs - ACTIVE_DBFS) / 20))


def lay_bed(
    rng: Random,
    n_samples: int,
    backgrounds: Sequence[Waveform],
    truth: Sequence[Planted],
    disturbances: Disturbances,
) -> tuple[Signal, list[BedPart]]:
    """Return backgrounds that lie below each sound by its SNR; they change between the sounds.

    Returns:
        Samples of shape (n_samples,), float64, and what was laid, in order.
    """
    mix = np.zeros(n_samples)
    bed: list[BedPart] = []
    middles = [
        seconds_to_samples((before.offset_s + after.onset_s) / 2)
        for before, after in itertools.pairwise(truth)
    ]
    for start, stop, planted in zip([0, *middles], [*middles, n_samples], truth, strict=True):
        background = backgrounds[int(rng.integers(len(backgrounds)))]
        level_dbfs = planted.level_dbfs - planted.snr_db
        mix[start:stop] = faded(np.resize(background, stop - start)) * background_gain(level_dbfs)
        bed.append(part("background", start, stop, level_dbfs))
        free = start, seconds_to_samples(planted.onset_s - DISTURBANCE_MARGIN_S)
        if disturbances.step_share and rng.random() < disturbances.step_share:
            bed += _step(rng, mix, free, level_dbfs, disturbances.step_db)
        if disturbances.dropout_share and rng.random() < disturbances.dropout_share:
            bed += _dropout(rng, mix, free, disturbances.dropout_s)
    return mix, bed


def _step(
    rng: Random, mix: Signal, free: tuple[int, int], level_dbfs: float, step_db: Range
) -> list[BedPart]:
    """Make the start of a stretch louder or quieter, up to a random sample within `free`."""
    change_db = float(rng.uniform(*step_db) * rng.choice([-1.0, 1.0]))
    if free[0] >= free[1]:
        return []
    stop = int(rng.integers(free[0], free[1])) + 1
    mix[free[0] : stop] *= 10 ** (change_db / 20)
    return [part("step", free[0], stop, level_dbfs + change_db)]


def _dropout(rng: Random, mix: Signal, free: tuple[int, int], dropout_s: Range) -> list[BedPart]:
    """Silence a random stretch within `free`, if there is room."""
    length = seconds_to_samples(rng.uniform(*dropout_s))
    if free[1] - free[0] <= length:
        return []
    start = int(rng.integers(free[0], free[1] - length))
    mix[start : start + length] = 0
    return [part("dropout", start, start + length, None)]
