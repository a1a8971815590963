"""Training windows: mixed as a live stream shows sounds, or whole clips; and their statistics.

`WindowSampler` shows sounds as a stream does: entering, leaving, mixed, faint. A label holds for
the sound and not for the file: a window that caught little of the sound is no example of its class,
and one that caught some of it teaches nothing about it.

`ClipSampler` draws whole clips as the AST repository trains on them: epochs, balanced sampling,
mixup of waveforms. Source: YuanGongND/ast, src/dataloader.py and src/gen_weight_file.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import soxr
import torch

from ast_stream.audio.activity import Waveform
from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import Fbank, pad_frames
from ast_stream.soundscape.soundbank import Foreground, Soundbank
from ast_stream.soundscape.synthesis import ACTIVE_DBFS, Random, band_limited, in_a_room
from ast_stream.training.augment import Augment, SpectrogramAugmentation
from ast_stream.units import (
    FRAME_SHIFT,
    FRAMES_PER_SECOND,
    SAMPLE_RATE,
    frame_count,
    samples_for_frames,
    seconds_to_samples,
)

ENOUGH_RATIO = 0.4  # of the most sound a window of this foreground can hold, makes an example,
ENOUGH_S = 0.5  # and so does this much, whatever the ratio
NEEDED_RATIO = 0.6  # the same for classes of `WindowMixing.needed_s`
FRAME_ACTIVE_RATIO = 0.5  # a time patch with so much of the sound is an example of it,
FRAME_SILENT_RATIO = 0.1  # one with less is none
# a frame is scored before much of what follows it is heard: what it is worth then must be learnt
FRAMES_ENOUGH_S = 0.2
PATCH_FRAMES = 16
TOO_LITTLE_RATIO = 0.04  # below this the window counts as without the sound

NORMALIZATION_WINDOWS = 400
# Source: YuanGongND/ast, src/get_norm_stats.py
PUBLISHED_BATCH = 1000
PUBLISHED_MIXUP_PROB = 0.5
PUBLISHED_MASKS = SpectrogramAugmentation(filter_spread=0.0, frequency_mask=24, time_mask=192)
_UNCHANGED = Normalization(mean=0.0, std=0.5)

_EPOCH_ORDER, _MIXUP = 1, 2  # independent random streams of one seed


@dataclass(frozen=True)
class WindowMixing:
    """How windows are mixed; levels are dBFS of the sounding part."""

    background_only_prob: float = 0.12
    background_prob: float = 0.45
    second_sound_prob: float = 0.4
    by_recording_prob: float = 0.25  # of sounds are drawn by recording, the others by class
    unlabelled_prob: float = 0.1  # of sounds have no class: what the model must not name
    generated_prob: float = 0.5  # of a class that has recordings and a generator
    generated_class_weight: float = 0.7  # of a class that only has a generator
    speed: tuple[float, float] = (0.85, 1.18)
    room_prob: float = 0.2  # of the recorded sounds are heard in another room, too
    level_dbfs: tuple[float, float] = (-50.0, -6.0)
    common_level_dbfs: tuple[float, float] = (-32.0, -14.0)
    common_level_prob: float = 0.75
    background_dbfs: tuple[float, float] = (-75.0, -10.0)
    snr_db: tuple[float, float] = (-3.0, 35.0)
    generated_snr_db: tuple[float, float] = (-9.0, 30.0)  # alarms carry through what drowns rain
    floor_dbfs: tuple[float, float] = (-100.0, -55.0)
    floor_prob: float = 0.5
    silence_prob: float = 0.04  # of background windows are digital silence
    edge_prob: float = 0.2  # of sounds have only just begun, or are almost over
    begun_prob: float = 0.7  # of these have only just begun: how soon a sound is known
    telephone_prob: float = 0.1  # of the recorded sounds are heard through a narrow band
    telephone_hz: tuple[float, float] = (300.0, 3400.0)
    fragment_prob: float = 0.25  # of the sounds of classes of `fragmented` are a single word
    fragment_s: tuple[float, float] = (0.15, 0.9)
    fragmented: tuple[str, ...] = ("Speech",)
    partial_prob: float = 0.06  # of windows were scored before a whole window had come
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
        frame_target, frame_weight: the same for each time patch, shape (n_time_patches, n_classes);
            without a frame grid of shape (0, n_classes).
    """

    waveform: Waveform
    n_real_frames: int
    target: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    frame_target: npt.NDArray[np.float32]
    frame_weight: npt.NDArray[np.float32]


@dataclass(frozen=True)
class FrameGrid:
    """Time patches of a model: `n_patches` of them, one every `stride` frames of 10 ms."""

    n_patches: int
    stride: int

    def ratios(self, is_active: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Return how much of each time patch is active, shape (n_patches,), of frames of 10 ms.

        Overlapping patches count for the frames nearest to their centres.
        """
        first = (PATCH_FRAMES - self.stride) // 2
        n_frames = first + self.n_patches * self.stride
        padded = np.zeros(n_frames, np.float32)
        n_given = min(n_frames, len(is_active))
        padded[:n_given] = is_active[:n_given]
        ratios: npt.NDArray[np.float32] = padded[first:].reshape(-1, self.stride).mean(axis=1)
        return ratios


class Sampler(Protocol):
    """Draws windows: the same for the same seed and step.

    Attributes:
        labels: class names in the order of the targets.
        has_examples: for each class, whether anything it is drawn from holds it.
    """

    labels: list[str]
    has_examples: list[bool]

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        """Return the windows of one step."""
        ...


class WindowSampler:
    """Draws windows of `n_samples` from some soundbank; the generator passed in decides all.

    Each class is drawn equally often, however many foregrounds it has; one without any never is.

    Raises:
        ValueError: no class has any foreground.
    """

    def __init__(
        self,
        soundbank: Soundbank,
        n_samples: int,
        mixing: WindowMixing,
        grid: FrameGrid | None = None,
    ) -> None:
        self._soundbank = soundbank
        self._grid = grid or FrameGrid(0, PATCH_FRAMES)
        self.labels = list(soundbank.labels)
        self._mixing = mixing
        self._n_samples = n_samples
        self._recorded: list[list[Foreground]] = []
        self._generated: list[list[Foreground]] = []
        for index in range(len(soundbank.labels)):
            foregrounds = soundbank.foregrounds_of(index)
            self._recorded.append([sound for sound in foregrounds if not sound.is_generated])
            self._generated.append([sound for sound in foregrounds if sound.is_generated])
        self._all_recorded = [sound for sound in soundbank.recorded if sound.classes]
        self._unlabelled = [sound for sound in soundbank.recorded if not sound.classes]
        self.has_examples = [
            bool(recorded or generated)
            for recorded, generated in zip(self._recorded, self._generated, strict=True)
        ]
        weights = np.where(
            [bool(recorded) for recorded in self._recorded], 1.0, mixing.generated_class_weight
        )
        weights = weights * self.has_examples
        if not weights.any():
            raise ValueError("soundbank: expected foregrounds of at least one class, got none")
        self._class_prob = weights / weights.sum()

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        """Return the windows of one training step."""
        rng = np.random.default_rng((seed, step))
        return [self.draw(rng) for _ in range(size)]

    def draw(self, rng: Random) -> Window:
        """Return one window."""
        n_real = self._n_samples
        if rng.random() < self._mixing.partial_prob:
            least = min(seconds_to_samples(self._mixing.min_context_s), n_real)
            n_real = int(rng.integers(least, n_real + 1))
        n_classes = len(self._soundbank.labels)
        labels = _Labels(n_classes, self._grid, n_real)
        if rng.random() < self._mixing.background_only_prob:
            mix = self._background_window(rng, n_real)
        else:
            mix = self._sound_window(rng, n_real, labels)
        if rng.random() < self._mixing.floor_prob:
            floor = 10 ** (rng.uniform(*self._mixing.floor_dbfs) / 20)
            mix += floor * rng.standard_normal(n_real, np.float32)
        waveform = np.zeros(self._n_samples, np.float32)
        waveform[:n_real] = np.clip(mix, -1.0, 1.0)
        return Window(
            waveform,
            frame_count(n_real),
            labels.target,
            labels.weight,
            labels.frame_target,
            labels.frame_weight,
        )

    def _sound_window(self, rng: Random, n_samples: int, labels: _Labels) -> Waveform:
        is_common = rng.random() < self._mixing.common_level_prob
        level_dbfs = rng.uniform(
            *(self._mixing.common_level_dbfs if is_common else self._mixing.level_dbfs)
        )
        mix = np.zeros(n_samples, np.float32)
        weights, all_generated = [1.0], True
        if rng.random() < self._mixing.second_sound_prob:
            first = rng.beta(1.0, 1.0)
            weights = [max(first, 1 - first), min(first, 1 - first)]
        for mix_weight in weights:
            crop = self._crop(rng, n_samples)
            foreground = crop.foreground
            # equal parts are both fully there; the fainter part fades out of the label too
            labels.add(crop, min(1.0, 2 * mix_weight))
            gain = 10 ** (level_dbfs / 20) / max(foreground.rms, 1e-5)
            mix += mix_weight / weights[0] * gain * crop.waveform
            all_generated = all_generated and foreground.is_generated
        if rng.random() < self._mixing.background_prob:
            snr_db = self._mixing.generated_snr_db if all_generated else self._mixing.snr_db
            noise_dbfs = level_dbfs - rng.uniform(*snr_db)
            mix += self._background(rng, n_samples, noise_dbfs)
        return mix

    def _background_window(self, rng: Random, n_samples: int) -> Waveform:
        if rng.random() < self._mixing.silence_prob:
            return np.zeros(n_samples, np.float32)
        mix = self._background(rng, n_samples, rng.uniform(*self._mixing.background_dbfs))
        if rng.random() < 0.5:
            mix += self._background(rng, n_samples, rng.uniform(*self._mixing.background_dbfs))
        return mix

    def _background(self, rng: Random, n_samples: int, dbfs: float) -> Waveform:
        backgrounds = self._soundbank.backgrounds
        if not backgrounds:
            return np.zeros(n_samples, np.float32)
        whole = backgrounds[int(rng.integers(len(backgrounds)))]
        start = int(rng.integers(max(1, len(whole) - n_samples)))
        cut = whole[start : start + n_samples]
        if len(cut) < n_samples:
            cut = np.pad(cut, (0, n_samples - len(cut)))
        return (cut * 10 ** ((dbfs - ACTIVE_DBFS) / 20)).astype(np.float32)

    def _crop(self, rng: Random, n_samples: int) -> _Crop:
        """Return a window over a random foreground."""
        foreground = self._draw_foreground(rng)
        speed = 1.0
        if not foreground.is_generated:
            speed = float(np.exp(rng.uniform(*np.log(self._mixing.speed))))
        n_wanted = round(n_samples * speed)
        start = self._start(rng, *foreground.active_span, n_wanted)
        presence = self._presence(foreground, start, n_wanted)
        cut = _cut(foreground.waveform, start, n_wanted)
        if speed != 1.0:
            cut = soxr.resample(cut, round(SAMPLE_RATE * speed), SAMPLE_RATE, quality="QQ")
            cut = _cut(cut, 0, n_samples)
        frames = start + np.arange(n_samples // FRAME_SHIFT, dtype=np.float64) * (
            FRAME_SHIFT * speed
        )
        is_active, is_inside = foreground.activity_at(frames)
        needs_more = any(label in self._mixing.needed_s for label in self._labels_of(foreground))
        is_known = presence == 1.0 or (
            not needs_more and int(is_active.sum()) >= FRAMES_ENOUGH_S * FRAMES_PER_SECOND
        )
        if self._is_fragmented(foreground) and rng.random() < self._mixing.fragment_prob:
            cut, is_kept = self._fragment(rng, cut, is_active)
            is_active, is_inside = is_active & is_kept, is_inside & is_kept
            presence = 1.0 if is_active.any() else 0.0
            is_known = True
        if not foreground.is_generated and rng.random() < self._mixing.room_prob:
            cut = in_a_room(rng, cut.astype(np.float64))[:n_samples].astype(np.float32)
        if not foreground.is_generated and rng.random() < self._mixing.telephone_prob:
            cut = band_limited(cut, *self._mixing.telephone_hz)
        return _Crop(cut, foreground, presence, is_known, is_active, is_inside)

    def _labels_of(self, foreground: Foreground) -> list[str]:
        return [self.labels[index] for index in foreground.classes]

    def _is_fragmented(self, foreground: Foreground) -> bool:
        return any(label in self._mixing.fragmented for label in self._labels_of(foreground))

    def _fragment(
        self, rng: Random, cut: Waveform, is_active: npt.NDArray[np.bool_]
    ) -> tuple[Waveform, npt.NDArray[np.bool_]]:
        """Return a short piece of a window with silence around it, and which frames are kept."""
        active = np.flatnonzero(is_active)
        is_kept = np.zeros(len(is_active), np.bool_)
        if len(active):
            n_frames = round(rng.uniform(*self._mixing.fragment_s) * SAMPLE_RATE / FRAME_SHIFT)
            first = max(0, int(rng.choice(active)) - n_frames // 2)
            is_kept[first : first + n_frames] = True
        gain = np.repeat(is_kept.astype(np.float32), FRAME_SHIFT)
        gain = np.convolve(gain, np.full(FRAME_SHIFT, 1 / FRAME_SHIFT, np.float32), "same")
        return cut * np.pad(gain, (0, len(cut) - len(gain))), is_kept

    def _start(self, rng: Random, begin: int, end: int, n_samples: int) -> int:
        """Return the start of a window that contains part of the sound in [begin, end)."""
        margin = n_samples // 4  # at least this much of most windows lies within the sound
        if rng.random() < self._mixing.edge_prob:
            # too little to recognise the sound, enough to mistake it: a stream is full of that
            caught = int(rng.integers(1, margin))
            has_begun = rng.random() < self._mixing.begun_prob
            return begin + caught - n_samples if has_begun else end - caught
        low, high = begin - n_samples + margin, end - margin
        return int(rng.integers(low, high)) if low < high else (begin + end - n_samples) // 2

    def _presence(self, foreground: Foreground, start: int, n_samples: int) -> float:
        """Return 1.0 for an example, 0.0 for a window without the sound, NaN in between."""
        active_s = foreground.active_s(start, start + n_samples)
        max_s = foreground.max_active_s(n_samples)
        if max_s == 0:  # any part of silence would be enough
            return float("nan")
        needed_s = [
            self._mixing.needed_s[label]
            for label in self._labels_of(foreground)
            if label in self._mixing.needed_s
        ]
        enough_s = min(ENOUGH_RATIO * max_s, ENOUGH_S)
        if needed_s:
            enough_s = min(NEEDED_RATIO * max_s, max(needed_s))
        if active_s >= enough_s:
            return 1.0
        return 0.0 if active_s < TOO_LITTLE_RATIO * max_s else float("nan")

    def _draw_foreground(self, rng: Random) -> Foreground:
        if self._unlabelled and rng.random() < self._mixing.unlabelled_prob:
            return self._unlabelled[int(rng.integers(len(self._unlabelled)))]
        if self._all_recorded and rng.random() < self._mixing.by_recording_prob:
            return self._all_recorded[int(rng.integers(len(self._all_recorded)))]
        index = int(rng.choice(len(self._class_prob), p=self._class_prob))
        recorded, generated = self._recorded[index], self._generated[index]
        wants_generated = rng.random() < self._mixing.generated_prob
        pool = generated if not recorded or (generated and wants_generated) else recorded
        return pool[int(rng.integers(len(pool)))]


@dataclass(frozen=True, eq=False)
class _Crop:
    """A window over a foreground.

    Attributes:
        presence: 1.0 for an example, 0.0 for a window without the sound, NaN in between.
        is_known: so much of the sound is there that its frames are examples.
        is_active, is_inside: frames of 10 ms with sound, and from its first to its last.
    """

    waveform: Waveform
    foreground: Foreground
    presence: float
    is_known: bool
    is_active: npt.NDArray[np.bool_]
    is_inside: npt.NDArray[np.bool_]


class _Labels:
    """Targets and weights of one window, and of its time patches."""

    def __init__(self, n_classes: int, grid: FrameGrid, n_samples: int) -> None:
        self._grid = grid
        self.target = np.zeros(n_classes, np.float32)
        self.weight = np.ones(n_classes, np.float32)
        self.frame_target = np.zeros((grid.n_patches, n_classes), np.float32)
        is_real = grid.ratios(np.ones(frame_count(n_samples), np.bool_)) > FRAME_ACTIVE_RATIO
        self.frame_weight = np.repeat(is_real[:, None].astype(np.float32), n_classes, axis=1)

    def add(self, crop: _Crop, fading: float) -> None:
        """Set target and weight of the classes of one sound; `fading` is how much of it is left."""
        ratios, inside = self._grid.ratios(crop.is_active), self._grid.ratios(crop.is_inside)
        is_example = (ratios >= FRAME_ACTIVE_RATIO) & crop.is_known
        is_unclear = (inside > FRAME_SILENT_RATIO) & ~is_example
        for index in crop.foreground.classes:
            if np.isnan(crop.presence):
                self.weight[index] = 0.0
            else:
                self.target[index] = max(self.target[index], np.float32(crop.presence * fading))
            self.frame_target[is_example, index] = np.maximum(
                self.frame_target[is_example, index], np.float32(fading)
            )
            self.frame_weight[is_unclear, index] = 0.0


def _cut(waveform: Waveform, start: int, n_samples: int) -> Waveform:
    """Return samples [start, start + n_samples), zeros where there are none."""
    first, last = max(0, start), min(len(waveform), start + n_samples)
    cut = np.zeros(n_samples, np.float32)
    if first < last:
        cut[first - start : last - start] = waveform[first:last]
    return cut


@dataclass(frozen=True)
class ClipMixing:
    """How batches of clips are drawn.

    Attributes:
        mixup_prob: probability that a clip is mixed with another one.
        mixup_beta: both parameters of the beta distribution of the mixing ratio.
        is_balanced: draw clips with replacement, those of rare classes more often.
    """

    mixup_prob: float = 0.0
    mixup_beta: float = 10.0
    is_balanced: bool = False


class ClipSampler:
    """Draws batches of whole clips, cut to `max_frames`; each epoch sees every clip once."""

    def __init__(self, soundbank: Soundbank, max_frames: int, mixing: ClipMixing) -> None:
        self.labels = list(soundbank.labels)
        self.has_examples = [
            bool(soundbank.foregrounds_of(index)) for index in range(len(self.labels))
        ]
        self._foregrounds = soundbank.foregrounds
        self._n_samples = samples_for_frames(max_frames)
        self._mixing = mixing
        self._probs = _sampling_probs(soundbank)

    def epoch_steps(self, batch_size: int) -> int:
        """Return the steps of one pass over all clips; the last batch may be smaller."""
        return -(-len(self._foregrounds) // batch_size)

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        """Return the windows of one step."""
        epoch, place = divmod(step, self.epoch_steps(size))
        order = self._order(np.random.default_rng((seed, _EPOCH_ORDER, epoch)))
        rng = np.random.default_rng((seed, _MIXUP, step))
        return [
            self.window(rng, self._foregrounds[int(index)])
            for index in order[place * size : (place + 1) * size]
        ]

    def window(self, rng: Random, foreground: Foreground) -> Window:
        """Return one clip as a window, mixed with another one at times."""
        mixing = self._mixing
        waveform, target = self._cut(foreground), self._target(foreground)
        if rng.random() < mixing.mixup_prob:
            other = self._foregrounds[int(rng.integers(len(self._foregrounds)))]
            ratio = np.float32(rng.beta(mixing.mixup_beta, mixing.mixup_beta))
            second = self._cut(other)[: len(waveform)]
            waveform = ratio * waveform
            waveform[: len(second)] += (1 - ratio) * second
            target = ratio * target + (1 - ratio) * self._target(other)
        padded = np.zeros(self._n_samples, np.float32)
        padded[: len(waveform)] = waveform
        none = np.zeros((0, len(target)), np.float32)
        return Window(padded, frame_count(len(waveform)), target, np.ones_like(target), none, none)

    def _order(self, rng: Random) -> npt.NDArray[np.int64]:
        if self._mixing.is_balanced:
            return rng.choice(len(self._foregrounds), len(self._foregrounds), p=self._probs)
        return rng.permutation(len(self._foregrounds))

    def _cut(self, foreground: Foreground) -> Waveform:
        return foreground.waveform[: self._n_samples]

    def _target(self, foreground: Foreground) -> npt.NDArray[np.float32]:
        target = np.zeros(len(self.labels), np.float32)
        target[list(foreground.classes)] = 1.0
        return target


def _sampling_probs(soundbank: Soundbank) -> npt.NDArray[np.float64]:
    """Return the probability of each clip: in proportion to its classes' inverse frequencies."""
    counts = np.zeros(len(soundbank.labels))
    for foreground in soundbank.foregrounds:
        counts[list(foreground.classes)] += 1
    weights = np.array(
        [
            np.sum(1.0 / (counts[list(foreground.classes)] + 1e-5))
            for foreground in soundbank.foregrounds
        ]
    )
    probs: npt.NDArray[np.float64] = weights / weights.sum()
    return probs


def measure_normalization(sampler: WindowSampler, seed: int) -> Normalization:
    """Return mean and standard deviation of the log-mel energies of some training windows.

    Padding is left out: unlike in the AST repository's statistics, nothing but sound counts.
    """
    fbank = Fbank()
    parts = []
    for number in range(NORMALIZATION_WINDOWS):
        window = sampler.draw(np.random.default_rng((seed, 0, number)))
        frames = fbank.frames(torch.from_numpy(window.waveform))
        parts.append(frames[: window.n_real_frames])
    energies = torch.cat(parts)
    return Normalization(round(float(energies.mean()), 4), round(float(energies.std()), 4))


def published_normalization(soundbank: Soundbank, max_frames: int, seed: int) -> Normalization:
    """Return the statistics of all clips as the AST repository's get_norm_stats computes them.

    That is the mean of the means, and of the standard deviations, of batches of 1000 clips in
    order, mixed up and masked as in training, with masks and padding counted as the zeros they
    are. Zero lies above nearly all energies, so that the mean is higher than the clean one that
    `measure_normalization` returns, the more so the shorter the clips are.
    """
    sampler = ClipSampler(soundbank, max_frames, ClipMixing(mixup_prob=PUBLISHED_MIXUP_PROB))
    masks = replace(PUBLISHED_MASKS, time_mask=min(PUBLISHED_MASKS.time_mask, max_frames))
    augment = Augment(masks, _UNCHANGED)
    fbank, rng = Fbank(), np.random.default_rng(seed)
    torch.manual_seed(seed)
    means, stds = [], []
    for start in range(0, len(soundbank.foregrounds), PUBLISHED_BATCH):
        n_values, total, squares = 0, 0.0, 0.0
        for foreground in soundbank.foregrounds[start : start + PUBLISHED_BATCH]:
            window = sampler.window(rng, foreground)
            frames = pad_frames(fbank.frames(torch.from_numpy(window.waveform)), max_frames)
            masked = augment(frames[None], torch.tensor([window.n_real_frames])).double()
            n_values += masked.numel()
            total += float(masked.sum())
            squares += float(masked.square().sum())
        means.append(total / n_values)
        stds.append(math.sqrt((squares - total**2 / n_values) / (n_values - 1)))
    return Normalization(round(float(np.mean(means)), 4), round(float(np.mean(stds)), 4))
