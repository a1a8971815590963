"""A soundbank: what soundscapes and training windows are mixed from.

Foregrounds, recorded or generated, each of some classes, and backgrounds without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import Waveform, active_frames, active_rms
from ast_stream.dataset.clips import DecodedClip
from ast_stream.soundscape.synthesis import SOUNDS
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE


@dataclass(frozen=True, eq=False)
class Foreground:
    """One recorded or generated example of some classes.

    Attributes:
        waveform: shape (n_samples,), float32.
        classes: indices of its labels.
        is_generated: made by a generator that already varies pitch and tempo.
        name: file it was read from, or the generator's seeds: says which sound was missed.
        rms: of its active frames.
    """

    waveform: Waveform
    classes: tuple[int, ...]
    is_generated: bool
    name: str = ""
    rms: float = field(init=False)
    _n_active_before: npt.NDArray[np.int64] = field(init=False)  # frames, before each frame

    def __post_init__(self) -> None:
        is_active = active_frames(self.waveform)
        object.__setattr__(self, "rms", active_rms(self.waveform))
        object.__setattr__(self, "_n_active_before", np.concatenate(([0], np.cumsum(is_active))))

    @property
    def active_span(self) -> tuple[int, int]:
        """First and last sample of the sound, half-open; (0, n_samples) if nothing is active."""
        active = np.flatnonzero(np.diff(self._n_active_before))
        if not active.size:
            return 0, len(self.waveform)
        return int(active[0]) * FRAME_SHIFT, (int(active[-1]) + 1) * FRAME_SHIFT

    def active_s(self, start: int, stop: int) -> float:
        """Return how many seconds of sound lie in samples [start, stop), which may exceed it."""
        last = len(self._n_active_before) - 1
        first_frame, last_frame = (
            min(max(0, round(sample / FRAME_SHIFT)), last) for sample in (start, stop)
        )
        n_active = self._n_active_before[last_frame] - self._n_active_before[first_frame]
        return float(n_active) * FRAME_SHIFT / SAMPLE_RATE

    def activity_at(
        self, samples: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return whether sound is active at `samples`, which may exceed it, and whether they lie
        between its first and its last active sample."""
        is_active = np.diff(self._n_active_before) > 0
        if not len(is_active):
            return np.zeros(len(samples), np.bool_), np.zeros(len(samples), np.bool_)
        frames = np.floor(samples / FRAME_SHIFT).astype(np.int64)
        is_there = (frames >= 0) & (frames < len(is_active))
        begin, end = self.active_span
        return (
            is_there & is_active[frames.clip(0, len(is_active) - 1)],
            (samples >= begin) & (samples < end),
        )

    def max_active_s(self, n_samples: int) -> float:
        """Return the most seconds of sound that any window of `n_samples` holds."""
        counts = self._n_active_before
        width = min(n_samples // FRAME_SHIFT, len(counts) - 1)
        n_active = counts[width:] - counts[: len(counts) - width]
        return float(n_active.max(initial=0)) * FRAME_SHIFT / SAMPLE_RATE


@dataclass(frozen=True, eq=False)
class Soundbank:
    """Foregrounds and backgrounds; `labels[i]` names class i."""

    labels: tuple[str, ...]
    foregrounds: tuple[Foreground, ...]
    backgrounds: tuple[Waveform, ...]

    @property
    def recorded(self) -> tuple[Foreground, ...]:
        """The foregrounds that are recordings."""
        return tuple(sound for sound in self.foregrounds if not sound.is_generated)

    def foregrounds_of(self, index: int) -> list[Foreground]:
        """Return the foregrounds of one class."""
        return [sound for sound in self.foregrounds if index in sound.classes]


def recorded_foregrounds(
    recordings: Sequence[DecodedClip], labels: Sequence[str]
) -> list[Foreground]:
    """Return the recordings as foregrounds of `labels`."""
    indices = {label: index for index, label in enumerate(labels)}
    return [
        Foreground(
            recording.waveform,
            tuple(indices[label] for label in recording.clip.labels),
            is_generated=False,
            name=str(recording.clip.path),  # a bare name may be another clip's in another folder
        )
        for recording in recordings
    ]


def generated_foregrounds(seed: int, labels: Sequence[str], n_each: int) -> list[Foreground]:
    """Return `n_each` generated examples of every class with a generator that is in `labels`."""
    foregrounds = []
    for generator, (name, make) in enumerate(SOUNDS.items()):
        for number in range(n_each):
            sound = make(np.random.default_rng((seed, generator, number)))
            if sound.label not in labels:
                break
            foregrounds.append(
                Foreground(
                    sound.waveform,
                    (labels.index(sound.label),),
                    is_generated=True,
                    name=f"{name}-{seed}-{number}",
                )
            )
    return foregrounds


def generated_labels() -> list[str]:
    """Return the labels of all generators."""
    return [make(np.random.default_rng(0)).label for make in SOUNDS.values()]
