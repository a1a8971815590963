"""What training windows are cut from: takes of each class, and backgrounds without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import Waveform, active_frames, active_rms
from ast_stream.dataset.clips import Recording
from ast_stream.soundscape.backgrounds import BACKGROUNDS, babble
from ast_stream.soundscape.speech import speak, speech_is_available
from ast_stream.soundscape.synthesis import SOUNDS, to_active_level
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE

BACKGROUND_S = 6.0  # length of a generated background
SPEECH_SHARE, BABBLE_SHARE = 0.35, 0.05  # of the backgrounds, where espeak-ng is installed


@dataclass(frozen=True, eq=False)
class Take:
    """One recording or generated example of some classes.

    Attributes:
        waveform: shape (n_samples,), float32.
        classes: indices of its labels.
        is_generated: made by a generator that already varies pitch and tempo.
        name: file it was read from, or the generator's seeds: says which sound was missed.
    """

    waveform: Waveform
    classes: tuple[int, ...]
    is_generated: bool
    name: str = ""
    rms: float = field(init=False)
    _active_until: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        is_active = active_frames(self.waveform)
        object.__setattr__(self, "rms", active_rms(self.waveform))
        object.__setattr__(self, "_active_until", np.concatenate(([0], np.cumsum(is_active))))

    @property
    def active_span(self) -> tuple[int, int]:
        """First and last sample of the sound, half-open; (0, n_samples) if nothing is active."""
        grown = np.flatnonzero(np.diff(self._active_until))
        if not grown.size:
            return 0, len(self.waveform)
        return int(grown[0]) * FRAME_SHIFT, (int(grown[-1]) + 1) * FRAME_SHIFT

    def active_s(self, start: int, stop: int) -> float:
        """Return how many seconds of sound lie in samples [start, stop), which may exceed it."""
        last = len(self._active_until) - 1
        first_frame, last_frame = (
            min(max(0, round(at / FRAME_SHIFT)), last) for at in (start, stop)
        )
        n_active = self._active_until[last_frame] - self._active_until[first_frame]
        return float(n_active) * FRAME_SHIFT / SAMPLE_RATE

    def most_active_s(self, n_samples: int) -> float:
        """Return the most seconds of sound that any window of `n_samples` holds."""
        width = min(n_samples // FRAME_SHIFT, len(self._active_until) - 1)
        most = self._active_until[width:] - self._active_until[: len(self._active_until) - width]
        return float(most.max(initial=0)) * FRAME_SHIFT / SAMPLE_RATE


@dataclass(frozen=True, eq=False)
class Material:
    """Everything windows are made of; `labels[i]` names class i."""

    labels: tuple[str, ...]
    takes: tuple[Take, ...]
    backgrounds: tuple[Waveform, ...]

    def takes_of(self, index: int) -> list[Take]:
        """Return the takes of one class."""
        return [take for take in self.takes if index in take.classes]


def recorded_takes(recordings: Sequence[Recording], labels: Sequence[str]) -> list[Take]:
    """Return the recordings as takes of `labels`."""
    index = {label: number for number, label in enumerate(labels)}
    return [
        Take(
            one.waveform,
            tuple(index[label] for label in one.clip.labels),
            is_generated=False,
            name=str(one.clip.path),  # a bare name may be another clip's in another folder
        )
        for one in recordings
    ]


def synthesised_takes(seed: int, labels: Sequence[str], n_each: int) -> list[Take]:
    """Return `n_each` generated takes of every class that has a generator and is in `labels`."""
    takes = []
    for number, (name, make) in enumerate(SOUNDS.items()):
        for take in range(n_each):
            sound = make(np.random.default_rng((seed, number, take)))
            if sound.label not in labels:
                break
            takes.append(
                Take(
                    sound.waveform,
                    (labels.index(sound.label),),
                    is_generated=True,
                    name=f"{name}-{seed}-{take}",
                )
            )
    return takes


def synthesised_labels() -> list[str]:
    """Return the labels of all generators."""
    return [make(np.random.default_rng(0)).label for make in SOUNDS.values()]


def generated_backgrounds(seed: int, count: int, with_speech: bool = True) -> list[Waveform]:
    """Return `count` backgrounds of 6 s or more at one active level: noise, hum, music, speech.

    Without espeak-ng (or with `with_speech` false) there is no speech among them.
    """
    n_speech = round(count * SPEECH_SHARE) if with_speech and speech_is_available() else 0
    voices = [speak(np.random.default_rng((seed, 0, number))) for number in range(n_speech)]
    n_babble = round(count * BABBLE_SHARE) if voices else 0
    n_samples = round(BACKGROUND_S * SAMPLE_RATE)
    signals = [
        babble(np.random.default_rng((seed, 1, number)), n_samples, voices)
        for number in range(n_babble)
    ]
    makers = list(BACKGROUNDS.values())
    for number in range(count - n_speech - n_babble):
        signals.append(
            makers[number % len(makers)](np.random.default_rng((seed, 2, number)), n_samples)
        )
    return [to_active_level(np.asarray(signal)) for signal in [*signals, *voices]]
