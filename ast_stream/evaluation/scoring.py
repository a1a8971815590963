"""Soundscapes through the detector: what it scored and which events it saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.detect.detector import Detector
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Scores
from ast_stream.soundscape.mixing import ReferenceEvent, Soundscape
from ast_stream.units import SAMPLE_RATE, samples_to_seconds


@dataclass(frozen=True, eq=False)
class SoundscapeTruth:
    """What is kept of a soundscape once it was scored: hours of samples would fill the memory."""

    duration_s: float
    truth: list[ReferenceEvent]


@dataclass(frozen=True, eq=False)
class ScoredSoundscape:
    """What the detector made of a soundscape.

    Attributes:
        times_s: end of each window, shape (n_windows,).
        scores: shape (n_windows, n_classes).
        events: begins and ends, in order.
        parameters: what events were decided by; None: not known.
        expected_label: the one class that a recording without reference events may hold.
    """

    layout: Soundscape | SoundscapeTruth
    times_s: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    events: list[Event]
    parameters: DecisionParameters | None = None
    expected_label: str | None = None


def score_soundscape(
    make_detector: Callable[[Callable[[Scores], None]], Detector], soundscape: Soundscape
) -> ScoredSoundscape:
    """Return scores and events of one soundscape, through the same core as live.

    Args:
        make_detector: builds a detector that calls its argument with every window's scores.
    """
    return score_blocks(make_detector, blocks_of(soundscape.pcm), soundscape.truth)


def blocks_of(pcm: Pcm16) -> Iterator[Pcm16]:
    """Return int16 samples at 16 kHz second by second."""
    return (pcm[start : start + SAMPLE_RATE] for start in range(0, len(pcm), SAMPLE_RATE))


def score_blocks(
    make_detector: Callable[[Callable[[Scores], None]], Detector],
    blocks: Iterable[Pcm16],
    truth: list[ReferenceEvent],
) -> ScoredSoundscape:
    """Return scores and events of consecutive blocks, freed as they are scored."""
    windows: list[Scores] = []
    detector = make_detector(windows.append)
    detector.open("strip", "evaluation")
    events: list[Event] = []
    n_samples = 0
    for block in blocks:
        detector.push("strip", n_samples, block)
        n_samples += len(block)
        events += detector.run()
    events += detector.flush("strip", "quiet")
    n_classes = len(detector.parameters.labels)
    return ScoredSoundscape(
        layout=SoundscapeTruth(samples_to_seconds(n_samples), truth),
        times_s=np.array([samples_to_seconds(window.end_sample) for window in windows]),
        scores=np.array([window.scores for window in windows], np.float32).reshape(-1, n_classes),
        events=[event for event in events if event.type != "update"],
        parameters=detector.parameters,
    )
