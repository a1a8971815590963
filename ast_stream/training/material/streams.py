"""Streams with known truth: takes laid over backgrounds at given levels, and backgrounds alone.

Truth is the sound and not the file: takes are trimmed by energy before they are laid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import Waveform
from ast_stream.audio.scene import Planted
from ast_stream.audio.synthesis import ACTIVE_DBFS, Random, Signal
from ast_stream.detect.detector import Detector
from ast_stream.messages import Event, Pcm16, Scores
from ast_stream.training.material.takes import Take
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, samples_to_seconds, seconds_to_samples

EDGE_S = 0.01  # fade where a take was cut and where backgrounds meet
LONGEST_TAKE_S = 5.0


@dataclass(frozen=True)
class Laying:
    """How takes are laid: ranges to draw from."""

    snr_db: tuple[float, float] = (6.0, 20.0)
    level_dbfs: tuple[float, float] = (-35.0, -15.0)
    gap_s: tuple[float, float] = (3.0, 5.0)
    same_class_gap_s: float = 4.0


@dataclass(frozen=True, eq=False)
class Strip:
    """A stretch of stream, int16 at 16 kHz, and the sounds in it, in order."""

    pcm: Pcm16
    truth: list[Planted]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return samples_to_seconds(len(self.pcm))


@dataclass(frozen=True, eq=False)
class ScoredStrip:
    """What the detector made of a strip.

    Attributes:
        times_s: end of each window, shape (n_windows,).
        scores: shape (n_windows, n_classes).
        events: begins and ends, in order.
    """

    strip: Strip
    times_s: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    events: list[Event]


def lay_takes(
    rng: Random,
    takes: Sequence[Take],
    backgrounds: Sequence[Waveform],
    labels: Sequence[str],
    laying: Laying,
) -> Strip:
    """Return a strip with every take once, in random order, over random backgrounds."""
    at_s, last_label = rng.uniform(*laying.gap_s), ""
    placed: list[tuple[int, Signal, Planted]] = []
    for index in rng.permutation(len(takes)):
        take = takes[int(index)]
        label = labels[take.classes[0]]
        if label == last_label:
            at_s += laying.same_class_gap_s
        sound = _trimmed(take)
        level_dbfs, snr_db = rng.uniform(*laying.level_dbfs), rng.uniform(*laying.snr_db)
        gain = 10 ** (level_dbfs / 20) / max(take.rms, 1e-6)
        onset = seconds_to_samples(at_s)
        planted = Planted(
            label=label,
            kind="generated" if take.is_generated else "recorded",
            onset_s=samples_to_seconds(onset),
            offset_s=samples_to_seconds(onset + len(sound)),
            level_dbfs=level_dbfs,
            snr_db=snr_db,
            clip=take.name,
        )
        placed.append((onset, gain * sound, planted))
        at_s = planted.offset_s + rng.uniform(*laying.gap_s)
        last_label = label
    mix = _bed(rng, seconds_to_samples(at_s), backgrounds, [planted for _, _, planted in placed])
    for onset, sound, _ in placed:
        mix[onset : onset + len(sound)] += sound
    return Strip(_to_pcm(mix), [planted for _, _, planted in placed])


def lay_backgrounds(
    rng: Random,
    backgrounds: Sequence[Waveform],
    duration_s: float,
    level_dbfs: tuple[float, float] = (-60.0, -15.0),
) -> Strip:
    """Return a strip without any event: one background after another at random levels."""
    n_samples = seconds_to_samples(duration_s)
    mix = np.zeros(n_samples)
    at = 0
    while at < n_samples:
        piece = _faded(backgrounds[int(rng.integers(len(backgrounds)))][: n_samples - at])
        mix[at : at + len(piece)] = piece * _gain(rng.uniform(*level_dbfs))
        at += len(piece)
    return Strip(_to_pcm(mix), [])


def score_strip(
    make_detector: Callable[[Callable[[Scores], None]], Detector], strip: Strip
) -> ScoredStrip:
    """Return scores and events of one strip, through the same core as live.

    Args:
        make_detector: builds a detector that calls its argument with every window's scores.
    """
    windows: list[Scores] = []
    detector = make_detector(windows.append)
    detector.open("strip", "evaluation")
    events: list[Event] = []
    for start in range(0, len(strip.pcm), SAMPLE_RATE):
        detector.push("strip", start, strip.pcm[start : start + SAMPLE_RATE])
        events += detector.run()
    events += detector.flush("strip", "quiet")
    return ScoredStrip(
        strip=strip,
        times_s=np.array([samples_to_seconds(window.end_sample) for window in windows]),
        scores=np.stack([window.scores for window in windows]),
        events=events,
    )


def _trimmed(take: Take) -> Signal:
    begin, end = take.active_span
    end = min(end, begin + seconds_to_samples(LONGEST_TAKE_S))
    return _faded(take.waveform[begin:end])


def _faded(waveform: Waveform) -> Signal:
    faded = waveform.astype(np.float64)
    n_fade = min(seconds_to_samples(EDGE_S), len(faded) // 2)
    ramp = np.linspace(0, 1, n_fade)
    faded[:n_fade] *= ramp
    faded[len(faded) - n_fade :] *= ramp[::-1]
    return faded


def _bed(
    rng: Random, n_samples: int, backgrounds: Sequence[Waveform], truth: Sequence[Planted]
) -> Signal:
    """Return backgrounds that lie below each sound by its SNR; they change between the sounds."""
    bed = np.zeros(n_samples)
    middles = [
        seconds_to_samples((before.offset_s + after.onset_s) / 2)
        for before, after in itertools.pairwise(truth)
    ]
    for start, stop, planted in zip([0, *middles], [*middles, n_samples], truth, strict=True):
        background = backgrounds[int(rng.integers(len(backgrounds)))]
        piece = _faded(np.resize(background, stop - start))
        bed[start:stop] = piece * _gain(planted.level_dbfs - planted.snr_db)
    return bed


def _gain(dbfs: float) -> float:
    """Return the factor that brings a generated background to `dbfs`."""
    return float(10 ** ((dbfs - ACTIVE_DBFS) / 20))


def _to_pcm(mix: Signal) -> Pcm16:
    return np.clip(np.round(mix * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
