"""Models scored on sounds that they were not trained on, and their scores pooled.

With several models (one for each fold) every clip is scored by the model that has not seen it, so
that all of the data counts as unseen. Generated sounds and negative audio are divided among the
models: each is scored by one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ast_stream.audio.recording import read_mono
from ast_stream.detect.cascade import Cascade
from ast_stream.detect.detector import Detector, hops_of_recording
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.evaluation.clip_figures import clip_scores
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Scores
from ast_stream.model.tagger import Tagger
from ast_stream.soundscape.backgrounds import BACKGROUND_S, generated_backgrounds
from ast_stream.soundscape.mixing import (
    MAX_FOREGROUND_S,
    Disturbances,
    ReferenceEvent,
    Soundscape,
    SoundscapeSpec,
    mix_backgrounds,
    mix_soundscape,
    write_soundscape,
)
from ast_stream.soundscape.soundbank import Foreground, generated_foregrounds
from ast_stream.units import SAMPLE_RATE, samples_to_seconds, seconds_to_samples

CLOSE_PROB, SAME_CLASS_PROB = 0.25, 0.1
DISTURBANCES = Disturbances(dropout_prob=0.1, level_step_prob=0.15)
SEED_BASE = 2_000_000  # generated material that no training and no calibration uses
SEEDS_APART = 10_000  # between two seeds of a user: room for the soundscapes of one run
FOREGROUNDS_PER_SOUNDSCAPE = 80  # about ten minutes: enough soundscapes to resample
PIECE_S = 600.0  # of generated negative audio
BACKGROUNDS_PER_FOREGROUND = 1.5  # made anew for every soundscape
OnProgress = Callable[[str, float], None]
"""Called with the name of what is being scored, and the seconds scored so far."""


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
        n_windows: that were scored; with a cascade, by its small model.
        n_asked: that its large model was asked about; None without a cascade.
    """

    layout: Soundscape | SoundscapeTruth
    times_s: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    events: list[Event]
    parameters: DecisionParameters | None = None
    expected_label: str | None = None
    n_windows: int = 0
    n_asked: int | None = None


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
    detector.open("soundscape", "evaluation")
    events: list[Event] = []
    n_samples = 0
    for block in blocks:
        detector.push("soundscape", n_samples, block)
        n_samples += len(block)
        if detector.windows_due("soundscape") >= detector.hops_at_once:
            events += detector.run()
    events += detector.flush("soundscape", "quiet")
    n_classes = len(detector.parameters.labels)
    return ScoredSoundscape(
        layout=SoundscapeTruth(samples_to_seconds(n_samples), truth),
        times_s=np.array([samples_to_seconds(window.end_sample) for window in windows]),
        scores=np.array([window.scores for window in windows], np.float32).reshape(-1, n_classes),
        events=[event for event in events if event.type != "update"],
        parameters=detector.parameters,
        n_windows=detector.n_scored,
        n_asked=detector.n_asked,
    )


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A model and the recordings it is measured on: none it was trained on.

    Attributes:
        folds: of the recordings; empty where they have none.
        cascade: through which the model hears streams; None: it hears all of them.
    """

    tagger: Tagger
    foregrounds: tuple[Foreground, ...]
    folds: tuple[str, ...] = ()
    cascade: Cascade | None = None

    def detector(self, hop_s: float | None) -> Callable[[Callable[[Scores], None]], Detector]:
        """Return a function that builds the detector of its streams."""
        return detector_of(self.tagger, hop_s, self.cascade)


class NegativeRecording(NamedTuple):
    """A recording without any event, but perhaps of one class.

    Attributes:
        expected_label: what may be heard in it and is no false alarm, e.g. Speech in an hour of
            talk; None: nothing.
    """

    path: Path
    duration_s: float
    expected_label: str | None = None


@dataclass(frozen=True)
class MeasureSettings:
    """What to measure on.

    Attributes:
        snr_db: of the sounds over their backgrounds, drawn between the two.
        gap_s: from the end of one sound to the start of the next; None: a little more than a
            window. Some lie closer than a window, whatever it says.
        alarm_snr_db: of generated alarms in soundscapes of their own; None: none.
        hop_s: between windows; None: each checkpoint's.
        repeats: how often each sound is placed, at other levels, in another order.
        hours: of streams with sounds, at least; more repeats where they give less.
        negative_hours: of generated streams without any event.
        negatives: own recordings without any event, instead.
        n_generated: foregrounds of each class that has a generator.
        write_to: folder for the soundscapes as files; None: they are not kept.
    """

    snr_db: tuple[float, float] = (12.0, 12.0)
    gap_s: tuple[float, float] | None = None
    alarm_snr_db: float | None = 0.0
    hop_s: float | None = None
    repeats: int = 2
    hours: float = 0.0
    negative_hours: float = 2.0
    negatives: tuple[NegativeRecording, ...] = ()
    n_generated: int = 24
    seed: int = 0
    write_to: Path | None = None


@dataclass(eq=False)
class ScoredMaterial:
    """Raw results, for figures of any kind.

    Attributes:
        clip_foregrounds, clip_scores: of each subject; the scores of shape
            (n_foregrounds, n_classes).
        mixed, alarms, negatives: scored soundscapes.
    """

    labels: tuple[str, ...]
    clip_foregrounds: list[tuple[Foreground, ...]] = field(default_factory=list)
    clip_scores: list[npt.NDArray[np.float64]] = field(default_factory=list)
    mixed: list[ScoredSoundscape] = field(default_factory=list)
    alarms: list[ScoredSoundscape] = field(default_factory=list)
    negatives: list[ScoredSoundscape] = field(default_factory=list)

    def asked(self) -> tuple[int, int] | None:
        """Return about how many windows the large model of a cascade was asked, and of how many.

        None without a cascade.
        """
        streams = [*self.mixed, *self.alarms, *self.negatives]
        asked = [stream.n_asked for stream in streams if stream.n_asked is not None]
        return (sum(asked), sum(stream.n_windows for stream in streams)) if asked else None


def total_s(subjects: Sequence[EvaluatedModel], settings: MeasureSettings) -> float:
    """Return about how many seconds `hear` will report, for a progress display."""
    labels = tuple(subjects[0].tagger.labels)
    generated = generated_foregrounds(0, labels, 1)
    first_gap_s = gap_of(settings, subjects[0].tagger.window_s)
    generated_s = settings.n_generated * soundscape_s(generated, first_gap_s)
    total = settings.negative_hours * 3600 if not settings.negatives else 0.0
    total += sum(recording.duration_s for recording in settings.negatives)
    total += generated_s if settings.alarm_snr_db is not None else 0.0
    for subject in subjects:
        recorded_s = soundscape_s(subject.foregrounds, gap_of(settings, subject.tagger.window_s))
        one_s = recorded_s + generated_s / len(subjects)
        total += sounding_s(subject.foregrounds) + one_s * repeats_of(
            settings, one_s, len(subjects)
        )
    return total


def gap_of(settings: MeasureSettings, window_s: float) -> tuple[float, float]:
    """Return the gaps between most sounds, in seconds."""
    return settings.gap_s or (window_s + 0.5, window_s + 2.5)


def isolated_spec(window_s: float, snr_db: float) -> SoundscapeSpec:
    """Return how sounds are placed so that each is alone in its windows, with no disturbances."""
    gap_s = gap_of(MeasureSettings(), window_s)
    return SoundscapeSpec(snr_db=(snr_db, snr_db), gap_s=gap_s, same_class_gap_s=0.0)


def mixed_spec(window_s: float, settings: MeasureSettings) -> SoundscapeSpec:
    """Return how sounds are placed around a window: most apart, some closer than one window."""
    return SoundscapeSpec(
        snr_db=settings.snr_db,
        gap_s=gap_of(settings, window_s),
        same_class_gap_s=0.0,
        close_gap_s=(0.1 * window_s, window_s),
        close_prob=CLOSE_PROB,
        same_class_prob=SAME_CLASS_PROB,
        disturbances=DISTURBANCES,
    )


def repeats_of(settings: MeasureSettings, one_s: float, n_subjects: int) -> int:
    """Return how often each sound is placed; one round takes `one_s` of each subject."""
    wanted_s = settings.hours * 3600 / n_subjects
    return max(settings.repeats, math.ceil(wanted_s / one_s) if one_s else 0)


def soundscape_s(foregrounds: Sequence[Foreground], gap_s: tuple[float, float]) -> float:
    """Return about how long a soundscape with these foregrounds is."""
    return sounding_s(foregrounds) + len(foregrounds) * sum(gap_s) / 2


def sounding_s(foregrounds: Sequence[Foreground]) -> float:
    """Return how many seconds of the foregrounds are placed."""
    spans = [foreground.active_span for foreground in foregrounds]
    return sum(min(MAX_FOREGROUND_S, samples_to_seconds(end - begin)) for begin, end in spans)


def score_material(
    subjects: Sequence[EvaluatedModel], settings: MeasureSettings, on_progress: OnProgress
) -> ScoredMaterial:
    """Score all clips and streams. All subjects have the same labels."""
    labels = tuple(subjects[0].tagger.labels)
    base = SEED_BASE + SEEDS_APART * settings.seed
    generated = generated_foregrounds(base, labels, settings.n_generated)
    material = ScoredMaterial(labels)
    for number, subject in enumerate(subjects):
        if subject.foregrounds:
            n_samples = seconds_to_samples(subject.tagger.window_s)
            material.clip_foregrounds.append(subject.foregrounds)
            material.clip_scores.append(
                clip_scores(subject.foregrounds, subject.tagger.scores, n_samples)
            )
            on_progress("clips", sounding_s(subject.foregrounds))
        own_generated = generated[number :: len(subjects)]
        foregrounds = [*subject.foregrounds, *own_generated]
        window_s = subject.tagger.window_s
        one_s = soundscape_s(foregrounds, gap_of(settings, window_s))
        for repeat in range(repeats_of(settings, one_s, len(subjects))):
            spec = mixed_spec(window_s, settings)
            seeds = base, 1, number, repeat
            material.mixed += _mixed(
                subject, "mixed", foregrounds, spec, settings, seeds, on_progress
            )
        if settings.alarm_snr_db is not None and own_generated:
            spec = isolated_spec(window_s, settings.alarm_snr_db)
            seeds = base, 2, number, 0
            material.alarms += _mixed(
                subject, "alarms", own_generated, spec, settings, seeds, on_progress
            )
    material.negatives += _negatives(subjects, settings, base, on_progress)
    return material


def check_hop(subjects: Sequence[EvaluatedModel], hop_s: float | None) -> None:
    """Make sure that every model can be run at this hop, before anything is scored.

    Raises:
        UsageError: it is no multiple of 0.01 s, or longer than a window.
    """
    for subject in subjects:
        subject.detector(hop_s)(lambda scores: None)


def detector_of(
    tagger: Tagger, hop_s: float | None, cascade: Cascade | None = None
) -> Callable[[Callable[[Scores], None]], Detector]:
    """Return a function that builds the detector as a checkpoint would run it."""
    return lambda on_scores: Detector(
        tagger,
        hop_s=hop_s,
        max_streams=1,
        hops_at_once=hops_of_recording(tagger),
        on_scores=on_scores,
        cascade=cascade,
    )


def _mixed(
    subject: EvaluatedModel,
    kind: str,
    foregrounds: Sequence[Foreground],
    spec: SoundscapeSpec,
    settings: MeasureSettings,
    seeds: tuple[int, ...],
    on_progress: OnProgress,
) -> Iterator[ScoredSoundscape]:
    """Yield scored soundscapes with every foreground once."""
    for soundscape in mixed_soundscapes(subject, kind, foregrounds, spec, settings, seeds):
        yield score_soundscape(subject.detector(settings.hop_s), soundscape)
        on_progress(f"{kind} streams", soundscape.duration_s)


def mixed_soundscapes(
    subject: EvaluatedModel,
    kind: str,
    foregrounds: Sequence[Foreground],
    spec: SoundscapeSpec,
    settings: MeasureSettings,
    seeds: tuple[int, ...],
) -> Iterator[Soundscape]:
    """Yield soundscapes with every foreground once, `FOREGROUNDS_PER_SOUNDSCAPE` in each."""
    rng = np.random.default_rng(seeds)
    order = rng.permutation(len(foregrounds))
    for part in (
        np.array_split(order, math.ceil(len(foregrounds) / FOREGROUNDS_PER_SOUNDSCAPE))
        if foregrounds
        else ()
    ):
        seed = seeds[0] + int(rng.integers(SEEDS_APART // 2))
        backgrounds = generated_backgrounds(
            seed, math.ceil(BACKGROUNDS_PER_FOREGROUND * len(part)), labels=subject.tagger.labels
        )
        chosen = [foregrounds[int(index)] for index in part]
        soundscape = mix_soundscape(rng, chosen, backgrounds, subject.tagger.labels, spec)
        _keep(soundscape, f"{kind}-{'-'.join(map(str, seeds[2:]))}-{part[0]:03d}", spec, settings)
        yield soundscape


def _negatives(
    subjects: Sequence[EvaluatedModel],
    settings: MeasureSettings,
    base: int,
    on_progress: OnProgress,
) -> Iterator[ScoredSoundscape]:
    turns = itertools.cycle(subjects)
    for recording, subject in zip(settings.negatives, turns, strict=False):
        scored = score_blocks(subject.detector(settings.hop_s), read_mono(recording.path), [])
        yield replace(scored, expected_label=recording.expected_label)
        on_progress("negatives", recording.duration_s)
    if settings.negatives:
        return
    left_s = settings.negative_hours * 3600
    for number, subject in enumerate(turns):
        if left_s <= 0:
            return
        piece_s = min(PIECE_S, left_s)
        backgrounds = generated_backgrounds(
            base + SEEDS_APART // 2 + number,
            math.ceil(piece_s / BACKGROUND_S),
            labels=subject.tagger.labels,
        )
        soundscape = mix_backgrounds(np.random.default_rng((base, 3, number)), backgrounds, piece_s)
        _keep(soundscape, f"negatives-{number:03d}", None, settings)
        yield score_soundscape(subject.detector(settings.hop_s), soundscape)
        on_progress("negatives", piece_s)
        left_s -= piece_s


def _keep(
    soundscape: Soundscape, name: str, spec: SoundscapeSpec | None, settings: MeasureSettings
) -> None:
    if settings.write_to is not None:
        details = {"seed": settings.seed} | ({} if spec is None else {"laying": asdict(spec)})
        write_soundscape(settings.write_to, name, soundscape, details)
