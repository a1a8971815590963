"""Everything that `evaluate` measures: models, each on sounds it was not trained on, pooled.

With several models (one for each fold) every clip is judged by the model that has not seen it, so
that all of the data counts as unseen. Generated sounds and negative audio are shared out among the
models: each is heard by one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np

from ast_stream.audio.recording import read_mono
from ast_stream.detect.detector import Detector
from ast_stream.evaluation.clips import clip_scores
from ast_stream.evaluation.plan import (
    Heard,
    Settings,
    Subject,
    gap_of,
    laying_apart,
    laying_around,
    repeats_of,
    sounding_s,
    strip_s,
)
from ast_stream.evaluation.scoring import ScoredSoundscape, score_blocks, score_soundscape
from ast_stream.messages.event import Scores
from ast_stream.model.tagger import Tagger
from ast_stream.soundscape.backgrounds import BACKGROUND_S, generated_backgrounds
from ast_stream.soundscape.mixing import (
    Soundscape,
    SoundscapeSpec,
    mix_backgrounds,
    mix_soundscape,
    write_soundscape,
)
from ast_stream.soundscape.soundbank import Foreground, generated_foregrounds
from ast_stream.units import seconds_to_samples

SEED_BASE = 2_000_000  # generated material that no training and no calibration uses
SEEDS_APART = 10_000  # between two seeds of a user: room for the strips of one run
TAKES_PER_STRIP = 80  # about ten minutes: enough strips to resample
PIECE_S = 600.0  # of generated negative audio
BACKGROUNDS_PER_TAKE = 1.5  # made anew for every strip

OnHeard = Callable[[str, float], None]
"""Called with what is being heard and how many seconds of it were."""


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
