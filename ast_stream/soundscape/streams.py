"""Streams with known truth: takes laid over backgrounds at given levels, and backgrounds alone.

Truth is the sound and not the file: takes are trimmed by energy before they are laid. The signal
to noise ratio is that of the active level of the sound to the active level of its background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ast_stream.audio.activity import Waveform
from ast_stream.messages.event import Pcm16
from ast_stream.soundscape.beds import (
    BedPart,
    Disturbances,
    Range,
    background_gain,
    faded,
    lay_bed,
    part,
)
from ast_stream.soundscape.scene import Planted
from ast_stream.soundscape.synthesis import Random, Signal
from ast_stream.soundscape.takes import Take
from ast_stream.units import FULL_SCALE, samples_to_seconds, seconds_to_samples

LONGEST_TAKE_S = 5.0


@dataclass(frozen=True)
class Laying:
    """How takes are laid: ranges to draw from, and shares of the sounds something happens to.

    Attributes:
        snr_db: of the sound over its background.
        level_dbfs: active level of the sound.
        gap_s: from the end of one sound to the start of the next.
        same_class_gap_s: added to it where the next sound is of the same class.
        close_gap_s: drawn instead, nothing added, for `close_share` of the sounds: shorter than a
            window, so that one window holds two sounds.
        neighbour_share: sounds that are followed by another one of their class, if there is one.
        disturbances: what happens to the background between the sounds.
    """

    snr_db: Range = (6.0, 20.0)
    level_dbfs: Range = (-35.0, -15.0)
    gap_s: Range = (3.0, 5.0)
    same_class_gap_s: float = 4.0
    close_gap_s: Range = (0.3, 2.0)
    close_share: float = 0.0
    neighbour_share: float = 0.0
    disturbances: Disturbances = field(default_factory=Disturbances)


@dataclass(frozen=True, eq=False)
class Strip:
    """A stretch of stream, int16 at 16 kHz, the sounds in it, in order, and what lies below."""

    pcm: Pcm16
    truth: list[Planted]
    bed: tuple[BedPart, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return samples_to_seconds(len(self.pcm))


def lay_takes(
    rng: Random,
    takes: Sequence[Take],
    backgrounds: Sequence[Waveform],
    labels: Sequence[str],
    laying: Laying,
) -> Strip:
    """Return a strip with every take once, in random order, over random backgrounds.

    A take of several classes is as many sounds of the truth, at the same place.
    """
    at_s, last_classes = rng.uniform(*laying.gap_s), set[int]()
    placed: list[tuple[int, Signal, Planted]] = []
    truth: list[Planted] = []
    for index in _order(rng, takes, laying.neighbour_share):
        take = takes[index]
        classes = set(take.classes)
        is_close = bool(placed) and bool(laying.close_share) and rng.random() < laying.close_share
        if is_close:
            at_s = placed[-1][2].offset_s + rng.uniform(*laying.close_gap_s)
        elif classes & last_classes:
            at_s += laying.same_class_gap_s
        sound = _trimmed(take)
        level_dbfs, snr_db = rng.uniform(*laying.level_dbfs), rng.uniform(*laying.snr_db)
        gain = 10 ** (level_dbfs / 20) / max(take.rms, 1e-6)
        onset = seconds_to_samples(at_s)
        planted = Planted(
            label=labels[take.classes[0]],
            kind="generated" if take.is_generated else "recorded",
            onset_s=samples_to_seconds(onset),
            offset_s=samples_to_seconds(onset + len(sound)),
            level_dbfs=level_dbfs,
            snr_db=snr_db,
            clip=take.name,
        )
        placed.append((onset, gain * sound, planted))
        truth += [replace(planted, label=labels[one]) for one in dict.fromkeys(take.classes)]
        at_s = planted.offset_s + rng.uniform(*laying.gap_s)
        last_classes = classes
    above = [planted for _, _, planted in placed]
    mix, bed = lay_bed(rng, seconds_to_samples(at_s), backgrounds, above, laying.disturbances)
    for onset, sound, _ in placed:
        mix[onset : onset + len(sound)] += sound
    return Strip(_to_pcm(mix), truth, tuple(bed))


def lay_backgrounds(
    rng: Random,
    backgrounds: Sequence[Waveform],
    duration_s: float,
    level_dbfs: tuple[float, float] = (-60.0, -15.0),
) -> Strip:
    """Return a strip without any event: one background after another at random levels."""
    n_samples = seconds_to_samples(duration_s)
    mix = np.zeros(n_samples)
    bed: list[BedPart] = []
    at = 0
    while at < n_samples:
        piece = faded(backgrounds[int(rng.integers(len(backgrounds)))][: n_samples - at])
        level = rng.uniform(*level_dbfs)
        mix[at : at + len(piece)] = piece * background_gain(level)
        bed.append(part("background", at, at + len(piece), level))
        at += len(piece)
    return Strip(_to_pcm(mix), [], tuple(bed))


def _order(rng: Random, takes: Sequence[Take], neighbour_share: float) -> list[int]:
    """Return a random order, in which some takes are followed by one of their class."""
    waiting = [int(index) for index in rng.permutation(len(takes))]
    if not neighbour_share:
        return waiting
    order: list[int] = []
    while waiting:
        chosen = 0
        if order and rng.random() < neighbour_share:
            last = set(takes[order[-1]].classes)
            same = (at for at, index in enumerate(waiting) if last & set(takes[index].classes))
            chosen = next(same, 0)
        order.append(waiting.pop(chosen))
    return order


def _trimmed(take: Take) -> Signal:
    begin, end = take.active_span
    end = min(end, begin + seconds_to_samples(LONGEST_TAKE_S))
    return faded(take.waveform[begin:end])


def _to_pcm(mix: Signal) -> Pcm16:
    return np.clip(np.round(mix * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
