"""Generated scenes with known truth: synthesised alarms over household noise, any length, seeded.

The same seed gives the same samples whatever the block size. Sounds are made one at a time as the
scene is read, so that a day-long scene needs no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ast_stream.messages.audio import Pcm16
from ast_stream.soundscape.backgrounds import coloured_noise, fan, hum
from ast_stream.soundscape.mixing import ReferenceEvent, Soundscape, to_pcm
from ast_stream.soundscape.synthesis import (
    ACTIVE_DBFS,
    SOUNDS,
    Random,
    Signal,
    Sound,
    smooth_gain,
)
from ast_stream.units import (
    SAMPLE_RATE,
    samples_to_seconds,
    seconds_to_samples,
)

FIRST_ONSET_S = 1.5
MIN_GAP_S, MAX_GAP_S = 1.8, 3.0  # between two sounds of different classes
END_MARGIN_S = 0.5
BACKGROUND_DBFS = (-60.0, -45.0)
LEVEL_DBFS = (-32.0, -18.0)  # of the sounding part
MIN_SNR_DB = 15.0  # over the background
BACKGROUND_CHUNK = 10 * SAMPLE_RATE  # the background is generated in chunks of this length,
BACKGROUND_FADE = SAMPLE_RATE // 2  # cross-faded over this length

_BACKGROUND, _EVENTS = 0, 1  # independent random streams of one seed


def generate_scene(seed: int, duration_s: float) -> Soundscape:
    """Return the scene of `seed`; 40 s hold every class once, 6 to 8 sounds in all."""
    renderer = SceneRenderer(seed, duration_s)
    return Soundscape(renderer.render(renderer.n_samples), renderer.truth)


class SceneRenderer:
    """Renders one scene from start to end, in pieces of any size.

    Attributes:
        n_samples: length of the scene.
        truth: the sounds rendered so far, in order; complete when all samples are rendered.
    """

    def __init__(self, seed: int, duration_s: float) -> None:
        self.n_samples = seconds_to_samples(duration_s)
        self.truth: list[ReferenceEvent] = []
        self._background = _Background(seed)
        self._events = _events(seed, duration_s, self._background.level_dbfs)
        self._next = next(self._events, None)
        self._sounding: list[tuple[int, Signal]] = []
        self._position = 0

    def render(self, n_samples: int) -> Pcm16:
        """Return the next samples, fewer than `n_samples` (none at last) at the end, int16."""
        start = self._position
        stop = min(start + n_samples, self.n_samples)
        mix = self._background.read(start, stop)
        self._begin_sounds(stop)
        for begin, waveform in self._sounding:
            first, last = max(start, begin), min(stop, begin + len(waveform))
            if first < last:
                mix[first - start : last - start] += waveform[first - begin : last - begin]
        self._sounding = [
            (begin, wave) for begin, wave in self._sounding if begin + len(wave) > stop
        ]
        self._position = stop
        return to_pcm(mix)

    def _begin_sounds(self, stop: int) -> None:
        while self._next is not None and self._next[0] < stop:
            begin, waveform, event = self._next
            self._sounding.append((begin, waveform))
            self.truth.append(event)
            self._next = next(self._events, None)


class _Background:
    """Endless room noise at a steady level: pink to brown noise, with hum or a fan."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng((seed, _BACKGROUND))
        self.level_dbfs = float(rng.uniform(*BACKGROUND_DBFS))
        self._seed = seed
        self._slope = rng.uniform(0.8, 1.8)
        self._machine = (hum, fan)[int(rng.integers(2))]
        self._machine_ratio = rng.uniform(0.0, 0.6)
        self._gain = smooth_gain(rng, BACKGROUND_CHUNK + BACKGROUND_FADE)
        self._made: tuple[int, Signal, Signal] | None = None  # chunk index, its body, its tail

    def read(self, start: int, stop: int) -> Signal:
        """Return samples [start, stop), float64; `start` must not go back by a chunk."""
        background = np.empty(stop - start)
        for index in range(start // BACKGROUND_CHUNK, -(-stop // BACKGROUND_CHUNK)):
            chunk_start = index * BACKGROUND_CHUNK
            first, last = max(start, chunk_start), min(stop, chunk_start + BACKGROUND_CHUNK)
            chunk = self._chunk(index)
            background[first - start : last - start] = chunk[
                first - chunk_start : last - chunk_start
            ]
        return background

    def _chunk(self, index: int) -> Signal:
        if self._made is None or self._made[0] != index:
            before = (
                self._made[2]
                if self._made
                else self._generate(max(0, index - 1))[BACKGROUND_CHUNK:]
            )
            piece = self._generate(index)
            fade = np.sin(np.linspace(0, np.pi / 2, BACKGROUND_FADE))
            body = piece[:BACKGROUND_CHUNK].copy()
            body[:BACKGROUND_FADE] = fade * body[:BACKGROUND_FADE] + fade[::-1] * before
            self._made = (index, body, piece[BACKGROUND_CHUNK:])
        return self._made[1]

    def _generate(self, index: int) -> Signal:
        n_samples = BACKGROUND_CHUNK + BACKGROUND_FADE
        rng = np.random.default_rng((self._seed, _BACKGROUND, index))
        noise = coloured_noise(rng, n_samples, self._slope)
        noise += self._machine_ratio * self._machine(rng, n_samples)
        filtered = np.fft.irfft(np.fft.rfft(noise) * self._gain, n_samples)
        rms = float(np.sqrt(np.mean(np.square(filtered))))
        background: Signal = filtered * (10 ** (self.level_dbfs / 20) / rms)
        return background


def _events(
    seed: int, duration_s: float, background_dbfs: float
) -> Iterator[tuple[int, Signal, ReferenceEvent]]:
    """Yield the sounds of a scene in order: first sample, samples, truth."""
    rng = np.random.default_rng((seed, _EVENTS))
    onset_s = FIRST_ONSET_S
    for name in _class_order(rng):
        sound = SOUNDS[name](rng)
        if onset_s + sound.duration_s > duration_s - END_MARGIN_S:
            return
        lowest = max(LEVEL_DBFS[0], background_dbfs + MIN_SNR_DB)
        level_dbfs = float(rng.uniform(lowest, max(lowest, LEVEL_DBFS[1])))
        yield _placed(sound, onset_s, level_dbfs, background_dbfs)
        onset_s += sound.duration_s + rng.uniform(MIN_GAP_S, MAX_GAP_S)


def _class_order(rng: Random) -> Iterator[str]:
    """Yield class names for ever: every class once a round, never one twice in a row."""
    last = ""
    while True:
        order = [str(name) for name in rng.permutation(list(SOUNDS))]
        if order[0] == last:
            order.append(order.pop(0))
        yield from order
        last = order[-1]


def _placed(
    sound: Sound, onset_s: float, level_dbfs: float, background_dbfs: float
) -> tuple[int, Signal, ReferenceEvent]:
    onset = seconds_to_samples(onset_s)
    event = ReferenceEvent(
        label=sound.label,
        kind=sound.kind,
        onset_s=samples_to_seconds(onset),
        offset_s=samples_to_seconds(onset + sound.offset_sample - sound.onset_sample),
        level_dbfs=round(level_dbfs, 1),
        snr_db=round(level_dbfs - background_dbfs, 1),
    )
    waveform = sound.waveform * 10 ** ((level_dbfs - ACTIVE_DBFS) / 20)
    return onset - sound.onset_sample, waveform.astype(np.float64), event
