"""What is measured on: models, each with sounds it was not trained on, and streams laid of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ast_stream.evaluation.scoring import ScoredSoundscape
from ast_stream.model.tagger import Tagger
from ast_stream.soundscape.mixing import MAX_FOREGROUND_S, Disturbances, SoundscapeSpec
from ast_stream.soundscape.soundbank import Foreground, generated_foregrounds
from ast_stream.units import samples_to_seconds

CLOSE_SHARE, NEIGHBOUR_SHARE = 0.25, 0.1
DISTURBANCES = Disturbances(dropout_prob=0.1, level_step_prob=0.15)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the recordings it is judged by: none it was trained on.

    Attributes:
        folds: of the recordings; empty where they have none.
    """

    tagger: Tagger
    takes: tuple[Foreground, ...]
    folds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What to measure on.

    Attributes:
        snr_db: of the sounds over their backgrounds, drawn between the two.
        gap_s: from the end of one sound to the start of the next; None: a little more than a
            window. Some lie closer than a window, whatever it says.
        alarm_snr_db: of generated alarms in strips of their own; None: none.
        hop_s: between windows; None: each checkpoint's.
        repeats: how often each sound is laid, at other levels, in another order.
        hours: of streams with sounds, at least; more repeats where they give less.
        negative_hours: of generated streams without any event.
        negatives: own recordings without any event, and their seconds, instead.
        n_generated: takes of each class that has a generator.
        write_to: folder for the strips as files; None: they are not kept.
    """

    snr_db: tuple[float, float] = (12.0, 12.0)
    gap_s: tuple[float, float] | None = None
    alarm_snr_db: float | None = 0.0
    hop_s: float | None = None
    repeats: int = 2
    hours: float = 0.0
    negative_hours: float = 2.0
    negatives: tuple[tuple[Path, float], ...] = ()
    n_generated: int = 24
    seed: int = 0
    write_to: Path | None = None


@dataclass(eq=False)
class Heard:
    """Raw results, for figures of any kind.

    Attributes:
        clip_takes, clip_scores: of each subject: its takes and their scores (n_takes, n_classes).
        mixed, alarms, negatives: scored strips.
    """

    labels: tuple[str, ...]
    clip_takes: list[tuple[Foreground, ...]] = field(default_factory=list)
    clip_scores: list[npt.NDArray[np.float64]] = field(default_factory=list)
    mixed: list[ScoredSoundscape] = field(default_factory=list)
    alarms: list[ScoredSoundscape] = field(default_factory=list)
    negatives: list[ScoredSoundscape] = field(default_factory=list)


def total_s(subjects: Sequence[Subject], settings: Settings) -> float:
    """Return about how many seconds `hear` will report, for a progress display."""
    labels = tuple(subjects[0].tagger.labels)
    generated = generated_foregrounds(0, labels, 1)
    first_gap_s = gap_of(settings, subjects[0].tagger.window_s)
    generated_s = settings.n_generated * strip_s(generated, first_gap_s)
    total = settings.negative_hours * 3600 if not settings.negatives else 0.0
    total += sum(seconds for _, seconds in settings.negatives)
    total += generated_s if settings.alarm_snr_db is not None else 0.0
    for subject in subjects:
        recorded_s = strip_s(subject.takes, gap_of(settings, subject.tagger.window_s))
        one_s = recorded_s + generated_s / len(subjects)
        total += sounding_s(subject.takes) + one_s * repeats_of(settings, one_s, len(subjects))
    return total


def gap_of(settings: Settings, window_s: float) -> tuple[float, float]:
    """Return the gaps between most sounds, in seconds."""
    return settings.gap_s or (window_s + 0.5, window_s + 2.5)


def laying_apart(window_s: float, snr_db: float) -> SoundscapeSpec:
    """Return how sounds are laid so that each is alone in its windows, with no disturbances."""
    gap_s = gap_of(Settings(), window_s)
    return SoundscapeSpec(snr_db=(snr_db, snr_db), gap_s=gap_s, same_class_gap_s=0.0)


def laying_around(window_s: float, settings: Settings) -> SoundscapeSpec:
    """Return how sounds are laid around a window: most apart, some closer than one window."""
    return SoundscapeSpec(
        snr_db=settings.snr_db,
        gap_s=gap_of(settings, window_s),
        same_class_gap_s=0.0,
        close_gap_s=(0.1 * window_s, window_s),
        close_prob=CLOSE_SHARE,
        same_class_prob=NEIGHBOUR_SHARE,
        disturbances=DISTURBANCES,
    )


def repeats_of(settings: Settings, one_s: float, n_subjects: int) -> int:
    """Return how often each sound is laid; one round takes `one_s` of each subject."""
    wanted_s = settings.hours * 3600 / n_subjects
    return max(settings.repeats, math.ceil(wanted_s / one_s) if one_s else 0)


def strip_s(takes: Sequence[Foreground], gap_s: tuple[float, float]) -> float:
    """Return about how long a strip with these takes is."""
    return sounding_s(takes) + len(takes) * sum(gap_s) / 2


def sounding_s(takes: Sequence[Foreground]) -> float:
    """Return how many seconds of the takes are laid."""
    spans = [take.active_span for take in takes]
    return sum(min(MAX_FOREGROUND_S, samples_to_seconds(end - begin)) for begin, end in spans)
