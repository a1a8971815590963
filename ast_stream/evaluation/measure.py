"""What an evaluation runs on: models, each on sounds it was not trained on, scored and pooled.

With several models (one for each fold) every clip is scored by the model that has not seen it, so
that all of the data counts as unseen. Generated sounds and negative audio are divided among the
models: each is scored by one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ast_stream.audio.recording import read_mono
from ast_stream.detect.detector import Detector
from ast_stream.evaluation.clips import clip_scores
from ast_stream.evaluation.scoring import ScoredSoundscape, score_blocks, score_soundscape
from ast_stream.messages.event import Scores
from ast_stream.model.tagger import Tagger
from ast_stream.soundscape.backgrounds import BACKGROUND_S, generated_backgrounds
from ast_stream.soundscape.mixing import (
    MAX_FOREGROUND_S,
    Disturbances,
    Soundscape,
    SoundscapeSpec,
    mix_backgrounds,
    mix_soundscape,
    write_soundscape,
)
from ast_stream.soundscape.soundbank import Foreground, generated_foregrounds
from ast_stream.units import samples_to_seconds, seconds_to_samples

CLOSE_SHARE, NEIGHBOUR_SHARE = 0.25, 0.1
DISTURBANCES = Disturbances(dropout_prob=0.1, level_step_prob=0.15)


SEED_BASE = 2_000_000  # generated material that no training and no calibration uses
SEEDS_APART = 10_000  # between two seeds of a user: room for the strips of one run
TAKES_PER_STRIP = 80  # about ten minutes: enough strips to resample
PIECE_S = 600.0  # of generated negative audio
BACKGROUNDS_PER_TAKE = 1.5  # made anew for every strip
OnHeard = Callable[[str, float], None]
"""Called with what is being heard and how many seconds of it were."""


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


def hear(subjects: Sequence[Subject], settings: Settings, on_heard: OnHeard) -> Heard:
    """Score all clips and streams. All subjects have the same labels."""
    labels = tuple(subjects[0].tagger.labels)
    base = SEED_BASE + SEEDS_APART * settings.seed
    generated = generated_foregrounds(base, labels, settings.n_generated)
    heard = Heard(labels)
    for number, subject in enumerate(subjects):
        if subject.takes:
            n_samples = seconds_to_samples(subject.tagger.window_s)
            heard.clip_takes.append(subject.takes)
            heard.clip_scores.append(clip_scores(subject.takes, subject.tagger.scores, n_samples))
            on_heard("clips", sounding_s(subject.takes))
        share = generated[number :: len(subjects)]
        takes = [*subject.takes, *share]
        window_s = subject.tagger.window_s
        one_s = strip_s(takes, gap_of(settings, window_s))
        for repeat in range(repeats_of(settings, one_s, len(subjects))):
            laying = laying_around(window_s, settings)
            seeds = base, 1, number, repeat
            heard.mixed += _laid(subject, "mixed", takes, laying, settings, seeds, on_heard)
        if settings.alarm_snr_db is not None and share:
            laying = laying_apart(window_s, settings.alarm_snr_db)
            seeds = base, 2, number, 0
            heard.alarms += _laid(subject, "alarms", share, laying, settings, seeds, on_heard)
    heard.negatives += _negatives(subjects, settings, base, on_heard)
    return heard


def check_hop(subjects: Sequence[Subject], hop_s: float | None) -> None:
    """Make sure that every model can be run at this hop, before anything is scored.

    Raises:
        UsageError: it is no multiple of 0.01 s, or longer than a window.
    """
    for subject in subjects:
        detector_of(subject.tagger, hop_s)(lambda scores: None)


def detector_of(
    tagger: Tagger, hop_s: float | None
) -> Callable[[Callable[[Scores], None]], Detector]:
    """Return what builds the detector that a checkpoint would run with."""
    return lambda on_scores: Detector(tagger, hop_s=hop_s, max_streams=1, on_scores=on_scores)


def _laid(
    subject: Subject,
    kind: str,
    takes: Sequence[Foreground],
    laying: SoundscapeSpec,
    settings: Settings,
    seeds: tuple[int, ...],
    on_heard: OnHeard,
) -> Iterator[ScoredSoundscape]:
    """Yield scored strips with every take once, about ten minutes each."""
    rng = np.random.default_rng(seeds)
    order = rng.permutation(len(takes))
    for part in np.array_split(order, math.ceil(len(takes) / TAKES_PER_STRIP)) if takes else ():
        seed = seeds[0] + int(rng.integers(SEEDS_APART // 2))
        backgrounds = generated_backgrounds(seed, math.ceil(BACKGROUNDS_PER_TAKE * len(part)))
        chosen = [takes[int(index)] for index in part]
        strip = mix_soundscape(rng, chosen, backgrounds, subject.tagger.labels, laying)
        _keep(strip, f"{kind}-{'-'.join(map(str, seeds[2:]))}-{part[0]:03d}", laying, settings)
        yield score_soundscape(detector_of(subject.tagger, settings.hop_s), strip)
        on_heard(f"{kind} streams", strip.duration_s)


def _negatives(
    subjects: Sequence[Subject], settings: Settings, base: int, on_heard: OnHeard
) -> Iterator[ScoredSoundscape]:
    taggers = itertools.cycle([subject.tagger for subject in subjects])
    for (path, seconds), tagger in zip(settings.negatives, taggers, strict=False):
        yield score_blocks(detector_of(tagger, settings.hop_s), read_mono(path), [])
        on_heard("negatives", seconds)
    if settings.negatives:
        return
    left_s = settings.negative_hours * 3600
    for number, tagger in enumerate(taggers):
        if left_s <= 0:
            return
        piece_s = min(PIECE_S, left_s)
        backgrounds = generated_backgrounds(
            base + SEEDS_APART // 2 + number, math.ceil(piece_s / BACKGROUND_S)
        )
        strip = mix_backgrounds(np.random.default_rng((base, 3, number)), backgrounds, piece_s)
        _keep(strip, f"negatives-{number:03d}", None, settings)
        yield score_soundscape(detector_of(tagger, settings.hop_s), strip)
        on_heard("negatives", piece_s)
        left_s -= piece_s


def _keep(strip: Soundscape, name: str, laying: SoundscapeSpec | None, settings: Settings) -> None:
    if settings.write_to is not None:
        details = {"seed": settings.seed} | ({} if laying is None else {"laying": asdict(laying)})
        write_soundscape(settings.write_to, name, strip, details)
