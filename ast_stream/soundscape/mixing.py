"""Draws training windows as a live stream shows them: sounds entering, leaving, mixed, faint.

A label holds for the sound and not for the file: a window that caught little of the sound is no
example of its class, and one that caught some of it teaches nothing about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import soxr

from ast_stream.audio.activity import Waveform
from ast_stream.soundscape.synthesis import ACTIVE_DBFS, Random, in_a_room
from ast_stream.soundscape.takes import Material, Take
from ast_stream.units import SAMPLE_RATE, frame_count, seconds_to_samples

ENOUGH_SHARE = 0.4  # of the most sound a window of this take can hold, makes an example,
ENOUGH_S = 0.5  # and so does this much, whatever the share
NEEDED_SHARE = 0.6  # the same for classes of `Mixing.needed_s`
TOO_LITTLE_SHARE = 0.04  # below this the window counts as without the sound


@dataclass(frozen=True)
class Mixing:
    """How windows are drawn; shares are probabilities, levels are dBFS of the sounding part."""

    background_only_share: float = 0.25
    background_share: float = 0.6
    second_sound_share: float = 0.4
    generated_share: float = 0.5  # of a class that has recordings and a generator
    generated_class_weight: float = 0.7  # of a class that only has a generator
    speed: tuple[float, float] = (0.8, 1.25)
    room_share: float = 0.3  # of the recorded sounds are heard in another room, too
    level_dbfs: tuple[float, float] = (-50.0, -6.0)
    common_level_dbfs: tuple[float, float] = (-32.0, -14.0)  # of half of the sounds
    background_dbfs: tuple[float, float] = (-75.0, -10.0)
    snr_db: tuple[float, float] = (-3.0, 35.0)
    generated_snr_db: tuple[float, float] = (-9.0, 30.0)  # alarms carry through what drowns rain
    floor_dbfs: tuple[float, float] = (-100.0, -55.0)
    floor_share: float = 0.7
    silence_share: float = 0.04  # of background windows are digital silence
    edge_share: float = 0.25  # of sounds have only just begun, or are almost over
    partial_share: float = 0.15  # of windows were scored before a whole window had come
    min_context_s: float = 1.0
    # classes that take longer to recognise than ENOUGH_S: one tick is no clock
    needed_s: Mapping[str, float] = field(default_factory=lambda: {"Tick-tock": 1.25})


@dataclass(frozen=True, eq=False)
class Window:
    """One example.

    Attributes:
        waveform: shape (n_samples,), float32 in [-1, 1].
        n_real_frames: frames of real sound; what follows is padding.
        target: shape (n_classes,), float32 in [0, 1].
        weight: shape (n_classes,), 0 where the window says nothing about the class.
    """

    waveform: Waveform
    n_real_frames: int
    target: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]


class WindowMaker:
    """Draws windows of `n_samples` from some material; the generator passed in decides all.

    Each class is drawn equally often, however many takes it has; one without any never is.

    Raises:
        ValueError: no class has any take.
    """

    def __init__(self, material: Material, n_samples: int, mixing: Mixing) -> None:
        self._material = material
        self.labels = list(material.labels)
        self._mixing = mixing
        self._n_samples = n_samples
        self._recorded: list[list[Take]] = []
        self._generated: list[list[Take]] = []
        for index in range(len(material.labels)):
            takes = material.takes_of(index)
            self._recorded.append([take for take in takes if not take.is_generated])
            self._generated.append([take for take in takes if take.is_generated])
        self.has_examples = [
            bool(recorded or generated)
            for recorded, generated in zip(self._recorded, self._generated, strict=True)
        ]
        weights = np.where(
            [bool(recorded) for recorded in self._recorded], 1.0, mixing.generated_class_weight
        )
        weights = weights * self.has_examples
        if not weights.any():
            raise ValueError("material: expected takes of at least one class, got none")
        self._class_share = weights / weights.sum()

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        """Return the windows of one training step."""
        rng = np.random.default_rng((seed, step))
        return [self.draw(rng) for _ in range(size)]

    def draw(self, rng: Random) -> Window:
        """Return one window."""
        n_real = self._n_samples
        if rng.random() < self._mixing.partial_share:
            least = min(seconds_to_samples(self._mixing.min_context_s), n_real)
            n_real = int(rng.integers(least, n_real + 1))
        n_classes = len(self._material.labels)
        target, weight = np.zeros(n_classes, np.float32), np.ones(n_classes, np.float32)
        if rng.random() < self._mixing.background_only_share:
            mix = self._background_window(rng, n_real)
        else:
            mix = self._sound_window(rng, n_real, target, weight)
        if rng.random() < self._mixing.floor_share:
            floor = 10 ** (rng.uniform(*self._mixing.floor_dbfs) / 20)
            mix += floor * rng.standard_normal(n_real, np.float32)
        waveform = np.zeros(self._n_samples, np.float32)
        waveform[:n_real] = np.clip(mix, -1.0, 1.0)
        return Window(waveform, frame_count(n_real), target, weight)

    def _sound_window(
        self,
        rng: Random,
        n_samples: int,
        target: npt.NDArray[np.float32],
        weight: npt.NDArray[np.float32],
    ) -> Waveform:
        is_common = rng.random() < 0.5
        level_dbfs = rng.uniform(
            *(self._mixing.common_level_dbfs if is_common else self._mixing.level_dbfs)
        )
        mix = np.zeros(n_samples, np.float32)
        shares, all_generated = [1.0], True
        if rng.random() < self._mixing.second_sound_share:
            first = rng.beta(1.0, 1.0)
            shares = [max(first, 1 - first), min(first, 1 - first)]
        for share in shares:
            sound, take, presence = self._crop(rng, n_samples)
            # equal parts are both fully there; the fainter part fades out of the label too
            _label(target, weight, take.classes, presence, min(1.0, 2 * share))
            gain = 10 ** (level_dbfs / 20) / max(take.rms, 1e-5)
            mix += share / shares[0] * gain * sound
            all_generated = all_generated and take.is_generated
        if rng.random() < self._mixing.background_share:
            snr_db = self._mixing.generated_snr_db if all_generated else self._mixing.snr_db
            noise_dbfs = level_dbfs - rng.uniform(*snr_db)
            mix += self._background(rng, n_samples, noise_dbfs)
        return mix

    def _background_window(self, rng: Random, n_samples: int) -> Waveform:
        if rng.random() < self._mixing.silence_share:
            return np.zeros(n_samples, np.float32)
        mix = self._background(rng, n_samples, rng.uniform(*self._mixing.background_dbfs))
        if rng.random() < 0.5:
            mix += self._background(rng, n_samples, rng.uniform(*self._mixing.background_dbfs))
        return mix

    def _background(self, rng: Random, n_samples: int, dbfs: float) -> Waveform:
        backgrounds = self._material.backgrounds
        if not backgrounds:
            return np.zeros(n_samples, np.float32)
        whole = backgrounds[int(rng.integers(len(backgrounds)))]
        start = int(rng.integers(max(1, len(whole) - n_samples)))
        cut = whole[start : start + n_samples]
        if len(cut) < n_samples:
            cut = np.pad(cut, (0, n_samples - len(cut)))
        return (cut * 10 ** ((dbfs - ACTIVE_DBFS) / 20)).astype(np.float32)

    def _crop(self, rng: Random, n_samples: int) -> tuple[Waveform, Take, float]:
        """Return a window over a random take, the take, and how far it is an example (or NaN)."""
        take = self._take(rng)
        speed = (
            1.0 if take.is_generated else float(np.exp(rng.uniform(*np.log(self._mixing.speed))))
        )
        n_wanted = round(n_samples * speed)
        start = self._start(rng, *take.active_span, n_wanted)
        presence = self._presence(take, start, n_wanted)
        cut = _cut(take.waveform, start, n_wanted)
        if speed != 1.0:
            cut = soxr.resample(cut, round(SAMPLE_RATE * speed), SAMPLE_RATE, quality="QQ")
            cut = _cut(cut, 0, n_samples)
        if not take.is_generated and rng.random() < self._mixing.room_share:
            cut = in_a_room(rng, cut.astype(np.float64))[:n_samples].astype(np.float32)
        return cut, take, presence

    def _start(self, rng: Random, begin: int, end: int, n_samples: int) -> int:
        """Return where a window begins that catches some of the sound in [begin, end)."""
        margin = n_samples // 4  # at least this much of most windows lies within the sound
        if rng.random() < self._mixing.edge_share:
            # too little to tell the sound by, enough to take it for another: a stream is full of it
            caught = int(rng.integers(1, margin))
            return begin + caught - n_samples if rng.random() < 0.5 else end - caught
        low, high = begin - n_samples + margin, end - margin
        return int(rng.integers(low, high)) if low < high else (begin + end - n_samples) // 2

    def _presence(self, take: Take, start: int, n_samples: int) -> float:
        """Return 1.0 for an example, 0.0 for a window without the sound, NaN in between."""
        active_s = take.active_s(start, start + n_samples)
        most_s = take.most_active_s(n_samples)
        if most_s == 0:  # of silence any share would be enough
            return float("nan")
        needed_s = [self._mixing.needed_s.get(self.labels[index]) for index in take.classes]
        longest = max((needed for needed in needed_s if needed is not None), default=None)
        enough_s = (
            min(ENOUGH_SHARE * most_s, ENOUGH_S)
            if longest is None
            else min(NEEDED_SHARE * most_s, longest)
        )
        if active_s >= enough_s:
            return 1.0
        return 0.0 if active_s < TOO_LITTLE_SHARE * most_s else float("nan")

    def _take(self, rng: Random) -> Take:
        index = int(rng.choice(len(self._class_share), p=self._class_share))
        recorded, generated = self._recorded[index], self._generated[index]
        wants_generated = rng.random() < self._mixing.generated_share
        pool = generated if not recorded or (generated and wants_generated) else recorded
        return pool[int(rng.integers(len(pool)))]


def _label(
    target: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    classes: Sequence[int],
    presence: float,
    share: float,
) -> None:
    for index in classes:
        if np.isnan(presence):
            weight[index] = 0.0
        else:
            target[index] = max(target[index], np.float32(presence * share))


def _cut(waveform: Waveform, start: int, n_samples: int) -> Waveform:
    """Return samples [start, start + n_samples), zeros where there are none."""
    first, last = max(0, start), min(len(waveform), start + n_samples)
    cut = np.zeros(n_samples, np.float32)
    if first < last:
        cut[first - start : last - start] = waveform[first:last]
    return cut
