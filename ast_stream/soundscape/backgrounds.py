"""Seeded backgrounds: noises, hum, fans, music-like tones, household knocks and beeps.

What a microphone hears when nothing of interest happens. Used as the bed of generated scenes and
as negative material in training. Rain and surf are left out on purpose: they are classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ast_stream.audio.activity import Waveform
from ast_stream.soundscape.synthesis import Random, Signal, in_a_room, smooth_gain
from ast_stream.units import SAMPLE_RATE, seconds_to_samples


def coloured_noise(rng: Random, n_samples: int, slope: float) -> Signal:
    """Return noise whose power falls as 1/f^slope above 20 Hz, RMS 1 (0 white, 1 pink, 2 brown)."""
    n_fft = n_samples + n_samples % 2
    spectrum = np.fft.rfft(rng.standard_normal(n_fft))
    frequency_hz = np.maximum(np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE), 20.0)
    return _unit(np.fft.irfft(spectrum * frequency_hz ** (-slope / 2), n_fft)[:n_samples])


def noise(rng: Random, n_samples: int) -> Signal:
    """Return steady noise of a random colour and a random smooth filter, RMS 1."""
    coloured = coloured_noise(rng, n_samples, rng.choice([0.0, 1.0, 1.0, 2.0]) + rng.normal(0, 0.2))
    n_fft = n_samples + n_samples % 2
    spectrum = np.fft.rfft(coloured, n_fft) * smooth_gain(rng, n_fft, spread_db=6.0)
    return _unit(np.fft.irfft(spectrum, n_fft)[:n_samples])


def hum(rng: Random, n_samples: int) -> Signal:
    """Return mains hum at 50 or 60 Hz with overtones, over a little noise, RMS 1."""
    t = np.arange(n_samples) / SAMPLE_RATE
    base_hz = rng.choice([50.0, 60.0])
    tone = np.zeros(n_samples)
    for number in range(1, 12):
        weight = rng.uniform(0, 1) / number ** rng.uniform(0.3, 1.2)
        tone += weight * np.sin(2 * np.pi * number * base_hz * t + rng.uniform(0, 6))
    return _unit(_unit(tone) + rng.uniform(0.05, 0.4) * coloured_noise(rng, n_samples, 1.0))


def fan(rng: Random, n_samples: int) -> Signal:
    """Return a fan: low broadband rush with a faint, steady blade tone, RMS 1."""
    t = np.arange(n_samples) / SAMPLE_RATE
    blade_hz = rng.uniform(60, 240)
    rush = coloured_noise(rng, n_samples, rng.uniform(1.0, 1.8))
    blades = sum(
        rng.uniform(0, 1) / number * np.sin(2 * np.pi * number * blade_hz * t + rng.uniform(0, 6))
        for number in range(1, 5)
    )
    return _unit(rush + rng.uniform(0.1, 0.6) * blades)


def music(rng: Random, n_samples: int) -> Signal:
    """Return chords, an arpeggio or a melody on a scale, with a random timbre, RMS 1."""
    scale = rng.choice([[0, 2, 4, 5, 7, 9, 11], [0, 2, 3, 5, 7, 8, 10], [0, 2, 4, 7, 9]][:2])
    root = rng.uniform(40, 64)  # MIDI note number
    beat_s = 60 / rng.uniform(60, 160)
    partials = np.arange(1, 9) ** -rng.uniform(0.8, 2.5) * rng.uniform(0.3, 1, 8)
    form = rng.choice(["chords", "arpeggio", "melody"])
    track = np.zeros(n_samples)
    at_s, degree = 0.0, int(rng.integers(0, 7))
    while at_s * SAMPLE_RATE < n_samples:
        length_s = beat_s * (rng.choice([2, 4]) if form == "chords" else rng.choice([0.5, 1, 1, 2]))
        degree = int(np.clip(degree + rng.integers(-3, 4), -3, 12))
        steps = (0, 2, 4) if form == "chords" else (0,)
        if form == "arpeggio":
            degree = int(rng.choice([0, 2, 4, 7, 9]))
        for step in steps:
            octave, tone = divmod(degree + step, len(scale))
            _add_note(track, at_s, length_s, root + 12 * octave + scale[tone], partials, rng)
        at_s += length_s
    return _unit(in_a_room(rng, track)[:n_samples])


def knocks(rng: Random, n_samples: int) -> Signal:
    """Return irregular dull knocks and steps over faint noise, RMS 1."""
    track = np.zeros(n_samples)
    n_knock = seconds_to_samples(0.15)
    t = np.arange(n_knock) / SAMPLE_RATE
    at = int(rng.exponential(0.4) * SAMPLE_RATE)
    while at + n_knock < n_samples:
        knock = np.cumsum(rng.standard_normal(n_knock)) * 0.1 * np.exp(-t * rng.uniform(60, 200))
        knock += np.sin(2 * np.pi * rng.uniform(70, 600) * t) * np.exp(-t * rng.uniform(30, 120))
        track[at : at + n_knock] += knock * rng.uniform(0.2, 1.0)
        at += int((0.15 + rng.exponential(0.5)) * SAMPLE_RATE)
    wet = in_a_room(rng, track)[:n_samples]
    return _unit(wet + 0.01 * coloured_noise(rng, n_samples, 1.0))


def appliance_beeps(rng: Random, n_samples: int) -> Signal:
    """Return lone beeps of household appliances: another pitch and rhythm than alarms, RMS 1."""
    track = np.zeros(n_samples)
    frequency_hz, length_s = rng.uniform(700, 2200), rng.uniform(0.08, 0.9)
    t = np.arange(seconds_to_samples(length_s)) / SAMPLE_RATE
    beep = np.sin(2 * np.pi * frequency_hz * t) * np.minimum(1, 200 * np.minimum(t, t[::-1]))
    at = int(rng.uniform(0.0, 1.0) * SAMPLE_RATE)
    while at + len(beep) < n_samples:
        track[at : at + len(beep)] = beep
        at += len(beep) + int(rng.uniform(1.2, 4.0) * SAMPLE_RATE)
    wet = in_a_room(rng, track)[:n_samples]
    return _unit(wet + 0.01 * coloured_noise(rng, n_samples, 1.0))


def babble(rng: Random, n_samples: int, voices: Sequence[Waveform]) -> Signal:
    """Return several of the given `voices` talking at once, each looped from a random place.

    Args:
        voices: speech at 16 kHz, each of shape (n,), n > 0; at least one.
    """
    track = np.zeros(n_samples)
    for _ in range(int(rng.integers(3, 7))):
        voice = voices[int(rng.integers(len(voices)))].astype(np.float64)
        looped = np.resize(np.roll(voice, int(rng.integers(len(voice)))), n_samples)
        track += looped * rng.uniform(0.3, 1.0)
    return _unit(track)


BACKGROUNDS: dict[str, Callable[[Random, int], Signal]] = {
    "noise": noise,
    "hum": hum,
    "fan": fan,
    "music": music,
    "knocks": knocks,
    "appliance_beeps": appliance_beeps,
}


def _add_note(
    track: Signal, at_s: float, length_s: float, midi: float, partials: Signal, rng: Random
) -> None:
    """Add one plucked or sustained note of pitch `midi` to `track`, cut at its end."""
    start = seconds_to_samples(at_s)
    n_samples = min(len(track) - start, seconds_to_samples(length_s * rng.uniform(0.7, 1.1)))
    if n_samples <= 0:
        return
    t = np.arange(n_samples) / SAMPLE_RATE
    base_hz = 440 * 2 ** ((midi - 69) / 12)
    envelope = (
        np.minimum(1, t / 0.01) * np.exp(-t * rng.uniform(0.3, 5)) * np.minimum(1, t[::-1] / 0.02)
    )
    for number, weight in enumerate(partials, start=1):
        if number * base_hz < 0.48 * SAMPLE_RATE:
            note = weight * np.sin(2 * np.pi * number * base_hz * t) * envelope
            track[start : start + n_samples] += note


def _unit(signal: Signal) -> Signal:
    rms = float(np.sqrt(np.mean(np.square(signal))))
    return signal / rms if rms > 0 else signal
