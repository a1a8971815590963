"""Soundscapes: foregrounds mixed into backgrounds at given levels, with their reference events.

The reference is the sound and not the file: foregrounds are trimmed by energy before they are
mixed. The signal-to-noise ratio is that of the active level of a foreground to that of its
background. The words are those of Scaper (Salamon et al., WASPAA 2017) and of DCASE.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile

from ast_stream.audio.activity import Waveform
from ast_stream.errors import AstStreamError
from ast_stream.messages.audio import Pcm16
from ast_stream.runtime.files import replace_file
from ast_stream.soundscape.soundbank import Foreground
from ast_stream.soundscape.synthesis import ACTIVE_DBFS, Random, Signal
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, samples_to_seconds, seconds_to_samples

MAX_FOREGROUND_S = 5.0  # longer foregrounds are cut
EDGE_S = 0.01  # fade where a foreground was cut and where backgrounds meet
DISTURBANCE_MARGIN_S = 0.1  # level steps and dropouts stay this far from the next foreground
REFERENCE_COLUMNS = ("filename", "onset", "offset", "event_label")  # as DCASE's tools read them

Range = tuple[float, float]
SegmentKind = Literal["background", "step", "dropout"]


@dataclass(frozen=True)
class ReferenceEvent:
    """One sound of a soundscape: what, when (seconds from the start), how loud, from which file.

    Attributes:
        kind: which generator made it, or `recorded`.
        level_dbfs: active level.
        snr_db: over the background.
        clip: file or seeds of the generator; empty where it does not matter.
    """

    label: str
    kind: str
    onset_s: float
    offset_s: float
    level_dbfs: float
    snr_db: float
    clip: str = ""


@dataclass(frozen=True)
class BackgroundSegment:
    """A stretch of background: another one, the same at another level, or silence."""

    kind: SegmentKind
    start_s: float
    stop_s: float
    level_dbfs: float | None  # None: digital silence


@dataclass(frozen=True, eq=False)
class Soundscape:
    """A mixture, int16 at 16 kHz, with its reference events in order and its backgrounds."""

    pcm: Pcm16
    truth: list[ReferenceEvent]
    backgrounds: tuple[BackgroundSegment, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return samples_to_seconds(len(self.pcm))


@dataclass(frozen=True)
class Disturbances:
    """What happens to the background between the foregrounds.

    Attributes:
        dropout_s: length of a silence of the background.
        dropout_prob: of a dropout in front of a foreground.
        step_db: jump of the background's level, up or down.
        level_step_prob: of such a jump in front of a foreground.
    """

    dropout_s: Range = (0.2, 1.0)
    dropout_prob: float = 0.0
    step_db: Range = (3.0, 12.0)
    level_step_prob: float = 0.0


@dataclass(frozen=True)
class SoundscapeSpec:
    """How a soundscape is mixed: ranges to draw from, and probabilities.

    Attributes:
        snr_db: of a foreground over its background.
        level_dbfs: active level of a foreground.
        gap_s: from the end of one foreground to the start of the next.
        same_class_gap_s: added to it where the next one is of the same class.
        close_gap_s: drawn instead with `close_prob`, nothing added: shorter than a window, so that
            one window holds two sounds.
        same_class_prob: that a foreground is followed by another one of its class, if there is one.
        disturbances: what happens to the background in the gaps.
    """

    snr_db: Range = (6.0, 20.0)
    level_dbfs: Range = (-35.0, -15.0)
    gap_s: Range = (3.0, 5.0)
    same_class_gap_s: float = 4.0
    close_gap_s: Range = (0.3, 2.0)
    close_prob: float = 0.0
    same_class_prob: float = 0.0
    disturbances: Disturbances = field(default_factory=Disturbances)


def mix_soundscape(
    rng: Random,
    foregrounds: Sequence[Foreground],
    backgrounds: Sequence[Waveform],
    labels: Sequence[str],
    spec: SoundscapeSpec,
) -> Soundscape:
    """Return a soundscape with every foreground once, in random order, over random backgrounds.

    A foreground of several classes is as many reference events, at the same place; one of none
    sounds and is no event.
    """
    onset_s, last_classes = rng.uniform(*spec.gap_s), set[int]()
    placed: list[tuple[int, Signal, ReferenceEvent]] = []
    truth: list[ReferenceEvent] = []
    for index in _order(rng, foregrounds, spec.same_class_prob):
        foreground = foregrounds[index]
        classes = set(foreground.classes)
        if placed and spec.close_prob and rng.random() < spec.close_prob:
            onset_s = placed[-1][2].offset_s + rng.uniform(*spec.close_gap_s)
        elif classes & last_classes:
            onset_s += spec.same_class_gap_s
        sound = _trimmed(foreground)
        level_dbfs, snr_db = rng.uniform(*spec.level_dbfs), rng.uniform(*spec.snr_db)
        gain = 10 ** (level_dbfs / 20) / max(foreground.rms, 1e-6)
        onset = seconds_to_samples(onset_s)
        event = ReferenceEvent(
            label=labels[foreground.classes[0]] if foreground.classes else "",
            kind="generated" if foreground.is_generated else "recorded",
            onset_s=samples_to_seconds(onset),
            offset_s=samples_to_seconds(onset + len(sound)),
            level_dbfs=level_dbfs,
            snr_db=snr_db,
            clip=foreground.name,
        )
        placed.append((onset, gain * sound, event))
        truth += [replace(event, label=labels[i]) for i in dict.fromkeys(foreground.classes)]
        onset_s = event.offset_s + rng.uniform(*spec.gap_s)
        last_classes = classes
    events = [event for _, _, event in placed]
    mix, segments = _background_below(
        rng, seconds_to_samples(onset_s), backgrounds, events, spec.disturbances
    )
    for onset, sound, _ in placed:
        mix[onset : onset + len(sound)] += sound
    return Soundscape(to_pcm(mix), truth, tuple(segments))


def mix_backgrounds(
    rng: Random,
    backgrounds: Sequence[Waveform],
    duration_s: float,
    level_dbfs: Range = (-60.0, -15.0),
) -> Soundscape:
    """Return a soundscape without any event: one background after another at random levels."""
    n_samples = seconds_to_samples(duration_s)
    mix = np.zeros(n_samples)
    segments: list[BackgroundSegment] = []
    start = 0
    while start < n_samples:
        piece = _faded(backgrounds[int(rng.integers(len(backgrounds)))][: n_samples - start])
        level = rng.uniform(*level_dbfs)
        mix[start : start + len(piece)] = piece * _background_gain(level)
        segments.append(_segment("background", start, start + len(piece), level))
        start += len(piece)
    return Soundscape(to_pcm(mix), [], tuple(segments))


def write_soundscape(
    folder: Path, name: str, soundscape: Soundscape, settings: Mapping[str, Any]
) -> None:
    """Write `name`.wav, its reference events as `name`.tsv, and how it was made as `name`.json.

    Args:
        folder: made where it is missing.
        settings: goes into the JSON: seed and ranges that made the soundscape.

    Raises:
        AstStreamError: the folder or a file cannot be written.
    """
    path = wav = folder / f"{name}.wav"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, soundscape.pcm, SAMPLE_RATE, subtype="PCM_16")
        path = folder / f"{name}.tsv"
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, delimiter="\t", lineterminator="\n")
            rows.writerow(REFERENCE_COLUMNS)
            for event in soundscape.truth:
                rows.writerow(
                    [wav.name, f"{event.onset_s:.4f}", f"{event.offset_s:.4f}", event.label]
                )
        path = folder / f"{name}.json"
        description = {
            "settings": dict(settings),
            "duration_s": soundscape.duration_s,
            "sounds": [asdict(event) for event in soundscape.truth],
            "background": [asdict(segment) for segment in soundscape.backgrounds],
        }
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        replace_file(path, text.encode())
    except (OSError, soundfile.SoundFileError) as error:
        raise AstStreamError(f"{path}: cannot be written: {error}") from error


def _order(rng: Random, foregrounds: Sequence[Foreground], same_class_prob: float) -> list[int]:
    """Return a random order, in which some foregrounds are followed by one of their class."""
    waiting = [int(index) for index in rng.permutation(len(foregrounds))]
    if not same_class_prob:
        return waiting
    order: list[int] = []
    while waiting:
        place = 0
        if order and rng.random() < same_class_prob:
            last = set(foregrounds[order[-1]].classes)
            same = (i for i, index in enumerate(waiting) if last & set(foregrounds[index].classes))
            place = next(same, 0)
        order.append(waiting.pop(place))
    return order


def _background_below(
    rng: Random,
    n_samples: int,
    backgrounds: Sequence[Waveform],
    events: Sequence[ReferenceEvent],
    disturbances: Disturbances,
) -> tuple[Signal, list[BackgroundSegment]]:
    """Return backgrounds that lie below each event by its SNR; they change between the events.

    Returns:
        Samples of shape (n_samples,), float64, and the segments in order.
    """
    mix = np.zeros(n_samples)
    segments: list[BackgroundSegment] = []
    middles = [
        seconds_to_samples((before.offset_s + after.onset_s) / 2)
        for before, after in itertools.pairwise(events)
    ]
    for start, stop, event in zip([0, *middles], [*middles, n_samples], events, strict=True):
        background = backgrounds[int(rng.integers(len(backgrounds)))]
        level_dbfs = event.level_dbfs - event.snr_db
        mix[start:stop] = _faded(np.resize(background, stop - start)) * _background_gain(level_dbfs)
        segments.append(_segment("background", start, stop, level_dbfs))
        gap = start, seconds_to_samples(event.onset_s - DISTURBANCE_MARGIN_S)
        if disturbances.level_step_prob and rng.random() < disturbances.level_step_prob:
            segments += _step_level(rng, mix, gap, level_dbfs, disturbances.step_db)
        if disturbances.dropout_prob and rng.random() < disturbances.dropout_prob:
            segments += _drop_out(rng, mix, gap, disturbances.dropout_s)
    return mix, segments


def _step_level(
    rng: Random, mix: Signal, gap: tuple[int, int], level_dbfs: float, step_db: Range
) -> list[BackgroundSegment]:
    """Make the start of a segment louder or quieter, up to a random sample within `gap`."""
    change_db = float(rng.uniform(*step_db) * rng.choice([-1.0, 1.0]))
    if gap[0] >= gap[1]:
        return []
    stop = int(rng.integers(gap[0], gap[1])) + 1
    mix[gap[0] : stop] *= 10 ** (change_db / 20)
    return [_segment("step", gap[0], stop, level_dbfs + change_db)]


def _drop_out(
    rng: Random, mix: Signal, gap: tuple[int, int], dropout_s: Range
) -> list[BackgroundSegment]:
    """Silence a random stretch within `gap`, if there is room."""
    length = seconds_to_samples(rng.uniform(*dropout_s))
    if gap[1] - gap[0] <= length:
        return []
    start = int(rng.integers(gap[0], gap[1] - length))
    mix[start : start + length] = 0
    return [_segment("dropout", start, start + length, None)]


def _segment(
    kind: SegmentKind, start: int, stop: int, level_dbfs: float | None
) -> BackgroundSegment:
    return BackgroundSegment(kind, samples_to_seconds(start), samples_to_seconds(stop), level_dbfs)


def _trimmed(foreground: Foreground) -> Signal:
    begin, end = foreground.active_span
    end = min(end, begin + seconds_to_samples(MAX_FOREGROUND_S))
    return _faded(foreground.waveform[begin:end])


def _faded(waveform: Waveform) -> Signal:
    """Return the waveform with short fades at both ends, shape unchanged, float64."""
    samples = waveform.astype(np.float64)
    n_fade = min(seconds_to_samples(EDGE_S), len(samples) // 2)
    ramp = np.linspace(0, 1, n_fade)
    samples[:n_fade] *= ramp
    samples[len(samples) - n_fade :] *= ramp[::-1]
    return samples


def _background_gain(dbfs: float) -> float:
    """Return the factor that brings a generated background to `dbfs`."""
    return float(10 ** ((dbfs - ACTIVE_DBFS) / 20))


def to_pcm(mix: Signal) -> Pcm16:
    """Return samples in [-1, 1] as int16; values beyond are clipped."""
    return np.clip(np.round(mix * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
