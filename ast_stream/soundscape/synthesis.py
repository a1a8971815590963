"""Seeded generators of sounds that can honestly be synthesised, with exact onset and offset.

Signals made by electronics or simple mechanics: smoke and CO alarms in their standard patterns
(ISO 8201: three and four pulses), sirens, telephones, DTMF, clocks. Every call varies pitch,
tempo, harmonics and room; the same generator state gives the same samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import Waveform, active_rms
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

Signal = npt.NDArray[np.float64]
Random = np.random.Generator

ACTIVE_DBFS = -20.0  # level of the sounding part of every generated sound

DTMF_ROWS_HZ = (697.0, 770.0, 852.0, 941.0)
DTMF_COLUMNS_HZ = (1209.0, 1336.0, 1477.0)


@dataclass(frozen=True, eq=False)
class Sound:
    """One generated sound.

    Attributes:
        label: AudioSet display name.
        kind: which generator made it; distinguishes alarms of one label family.
        waveform: shape (n_samples,), float32, active level `ACTIVE_DBFS`, peaks may pass 1.0;
            ends after its echo.
        onset_sample, offset_sample: first sample of the sound, and just after its last.
    """

    label: str
    kind: str
    waveform: Waveform
    onset_sample: int
    offset_sample: int

    @property
    def duration_s(self) -> float:
        """Seconds from onset to offset."""
        return (self.offset_sample - self.onset_sample) / SAMPLE_RATE


def smoke_alarm(rng: Random, n_cycles: int = 2) -> Sound:
    """Return a smoke alarm in the three-pulse pattern (T3): 3 x 0.5 s, then 1.5 s of pause.

    Three in four are ~3.1 kHz piezo sounders, the others the 520 Hz low-frequency variant.
    """
    pulse_s, pause_s, rest_s = (length * rng.uniform(0.92, 1.08) for length in (0.5, 0.5, 1.5))
    beep = _alarm_beep(rng, seconds_to_samples(pulse_s))
    starts = [
        cycle * (3 * (pulse_s + pause_s) - pause_s + rest_s) + pulse * (pulse_s + pause_s)
        for cycle in range(n_cycles)
        for pulse in range(3)
    ]
    return _finish(rng, "Smoke detector, smoke alarm", "smoke_alarm_t3", _repeat(beep, starts))


def co_alarm(rng: Random) -> Sound:
    """Return one group of a CO alarm (T4): 4 x 0.1 s, 0.1 s apart; groups come every 5 s or so."""
    pulse_s, pause_s = 0.1 * rng.uniform(0.9, 1.1), 0.1 * rng.uniform(0.9, 1.1)
    beep = _alarm_beep(rng, seconds_to_samples(pulse_s), low_share=0.0)
    starts = [pulse * (pulse_s + pause_s) for pulse in range(4)]
    return _finish(rng, "Alarm", "co_alarm_t4", _repeat(beep, starts))


def siren(rng: Random, duration_s: float | None = None) -> Sound:
    """Return a vehicle siren: wail, yelp or the two-tone hi-lo, 3 to 5 s by default."""
    n_samples = seconds_to_samples(duration_s or rng.uniform(3.0, 5.0))
    t = np.arange(n_samples) / SAMPLE_RATE
    form = rng.choice(["wail", "yelp", "hi_lo"])
    if form == "hi_lo":
        low_hz = rng.uniform(400, 700)
        high_hz = low_hz * rng.uniform(1.2, 1.45)
        is_high = np.floor(t / rng.uniform(0.4, 0.7) + rng.uniform(0, 2)) % 2
        frequency_hz = np.where(is_high > 0, high_hz, low_hz)
    else:
        period_s = rng.uniform(2.5, 6.0) if form == "wail" else rng.uniform(0.2, 0.45)
        low_hz, high_hz = rng.uniform(450, 800), rng.uniform(1200, 1800)
        sweep = 0.5 - 0.5 * np.cos(2 * np.pi * (t / period_s + rng.uniform()))
        frequency_hz = low_hz * (high_hz / low_hz) ** sweep
    tone = _tone(frequency_hz, _falling_harmonics(rng, 8, rng.uniform(0.8, 1.8)))
    return _finish(rng, "Siren", f"siren_{form}", tone * _envelope(n_samples, 0.03, 0.05))


def telephone_ring(rng: Random) -> Sound:
    """Return one ring of a telephone, struck bell or electronic, single or double, 0.8 to 2 s."""
    is_bell = rng.random() < 0.5
    is_double = rng.random() < 0.3
    length_s = rng.uniform(0.35, 0.5) if is_double else rng.uniform(0.9, 2.0)
    n_samples = seconds_to_samples(length_s)
    ring = _bell_ring(rng, n_samples) if is_bell else _electronic_ring(rng, n_samples)
    starts = [0.0, length_s + rng.uniform(0.18, 0.25)] if is_double else [0.0]
    kind = "telephone_bell" if is_bell else "telephone_electronic"
    return _finish(rng, "Telephone bell ringing", kind, _repeat(ring, starts))


def dtmf_dialling(rng: Random) -> Sound:
    """Return four to nine digits dialled by DTMF, at most about 2 s."""
    tone_s, pause_s = rng.uniform(0.07, 0.13), rng.uniform(0.05, 0.1)
    n_digits = int(rng.integers(4, 10))
    step = seconds_to_samples(tone_s + pause_s)
    n_tone = seconds_to_samples(tone_s)
    dialled = np.zeros((n_digits - 1) * step + n_tone)
    twist = 10 ** (rng.uniform(-3, 3) / 20)  # level of the upper tone against the lower
    for digit in range(n_digits):
        low = _tone(np.full(n_tone, rng.choice(DTMF_ROWS_HZ)), [1.0])
        high = _tone(np.full(n_tone, rng.choice(DTMF_COLUMNS_HZ)), [1.0])
        beep = (low + twist * high) * _envelope(n_tone, 0.003, 0.003)
        dialled[digit * step : digit * step + n_tone] = beep
    return _finish(rng, "Telephone dialing, DTMF", "dtmf", dialled)


def clock_ticks(rng: Random, duration_s: float | None = None) -> Sound:
    """Return a ticking clock, 2 to 5 ticks a second for 3 to 5 s by default."""
    period_s = 1 / rng.choice([2.0, 2.5, 3.0, 4.0, 5.0]) * rng.uniform(0.97, 1.03)
    n_ticks = max(3, int((duration_s or rng.uniform(3.0, 5.0)) / period_s))
    tick, tock = _click(rng), _click(rng)
    tock *= rng.uniform(0.4, 1.0)
    if rng.random() < 0.3:
        tock = tick
    lopsided_s = rng.uniform(-0.08, 0.08) * period_s
    ticks = np.zeros(seconds_to_samples(n_ticks * period_s) + len(tick))
    for index in range(n_ticks):
        at = seconds_to_samples(index * period_s + (lopsided_s if index % 2 else 0.0))
        ticks[at : at + len(tick)] += (tock if index % 2 else tick) * rng.uniform(0.85, 1.0)
    return _finish(rng, "Tick-tock", "clock_ticks", ticks)


SOUNDS: dict[str, Callable[[Random], Sound]] = {
    "smoke_alarm": smoke_alarm,
    "co_alarm": co_alarm,
    "siren": siren,
    "telephone_ring": telephone_ring,
    "dtmf_dialling": dtmf_dialling,
    "clock_ticks": clock_ticks,
}


def in_a_room(rng: Random, dry: Signal) -> Signal:
    """Return `dry` as heard in a room: a smooth random filter and a short decaying echo.

    Shape (n_samples,) in, (n_samples + echo,) out; the direct sound is not delayed.
    """
    decay_s = rng.uniform(0.08, 0.4)  # time to fall by 60 dB
    n_echo = seconds_to_samples(decay_s)
    t = np.arange(n_echo) / SAMPLE_RATE
    response = rng.standard_normal(n_echo) * 10 ** (-3 * t / decay_s)
    response *= 10 ** (rng.uniform(-25, -6) / 20) / np.sqrt(np.sum(np.square(response)))
    response[0] = 1.0
    n_fft = 1 << int(np.ceil(np.log2(len(dry) + n_echo)))
    spectrum = np.fft.rfft(dry, n_fft) * np.fft.rfft(response, n_fft)
    wet = np.fft.irfft(spectrum * smooth_gain(rng, n_fft), n_fft)
    return wet[: len(dry) + n_echo]


def band_limited(waveform: Waveform, low_hz: float, high_hz: float) -> Waveform:
    """Return `waveform` band-passed between two frequencies, like a telephone."""
    spectrum = np.fft.rfft(waveform)
    frequency_hz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    spectrum[(frequency_hz < low_hz) | (frequency_hz > high_hz)] = 0
    return np.fft.irfft(spectrum, len(waveform)).astype(np.float32)


def smooth_gain(rng: Random, n_fft: int, spread_db: float = 4.0) -> Signal:
    """Return a random smooth zero-phase gain for an rfft of `n_fft` points, about 1.0."""
    knots_hz = np.array([0.0, 125, 250, 500, 1000, 2000, 4000, 8000])
    gain_db = rng.normal(0.0, spread_db, len(knots_hz))
    frequency_hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
    mel_knots, mel = np.log1p(knots_hz / 700), np.log1p(frequency_hz / 700)
    gain: Signal = 10 ** (np.interp(mel, mel_knots, gain_db) / 20)
    return gain


def to_active_level(waveform: Signal | Waveform, dbfs: float = ACTIVE_DBFS) -> Waveform:
    """Return `waveform` with its active part at `dbfs` RMS, float32; silence stays silence."""
    rms = active_rms(waveform.astype(np.float32))
    return (waveform * (10 ** (dbfs / 20) / rms if rms > 0 else 1.0)).astype(np.float32)


def _finish(rng: Random, label: str, kind: str, dry: Signal) -> Sound:
    loud = np.flatnonzero(np.abs(dry) > 1e-3 * np.max(np.abs(dry)))
    wet = in_a_room(rng, dry)
    return Sound(label, kind, to_active_level(wet), int(loud[0]), int(loud[-1]) + 1)


def _tone(frequency_hz: Signal, harmonics: list[float] | Signal) -> Signal:
    """Return a tone that follows `frequency_hz`; overtones above Nyquist are left out."""
    phase = 2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE
    tone = np.zeros(len(frequency_hz))
    for number, amplitude in enumerate(harmonics, start=1):
        audible = number * frequency_hz < 0.48 * SAMPLE_RATE
        if audible.any():
            tone += amplitude * np.sin(number * phase) * audible
    return tone


def _falling_harmonics(rng: Random, count: int, slope: float) -> Signal:
    amplitudes: Signal = np.arange(1, count + 1) ** -slope * rng.uniform(0.5, 1.0, count)
    return amplitudes


def _envelope(n_samples: int, attack_s: float, release_s: float) -> Signal:
    envelope = np.ones(n_samples)
    n_attack = min(n_samples // 2, seconds_to_samples(attack_s))
    n_release = min(n_samples // 2, seconds_to_samples(release_s))
    envelope[:n_attack] = np.linspace(0, 1, n_attack, endpoint=False)
    envelope[n_samples - n_release :] = np.linspace(1, 0, n_release)
    return envelope


def _repeat(pulse: Signal, starts_s: list[float]) -> Signal:
    """Return `pulse` at each of the ascending `starts_s`, ending with the last pulse."""
    train = np.zeros(seconds_to_samples(starts_s[-1]) + len(pulse))
    for start_s in starts_s:
        at = seconds_to_samples(start_s)
        train[at : at + len(pulse)] += pulse
    return train


def _alarm_beep(rng: Random, n_samples: int, low_share: float = 0.25) -> Signal:
    if rng.random() < low_share:
        frequency_hz, harmonics = rng.uniform(500, 540), [1.0, 0.0, 0.33, 0.0, 0.2, 0.0, 0.14]
    else:
        frequency_hz = rng.uniform(2800, 3500)
        harmonics = [1.0, rng.uniform(0.02, 0.4)]
    t = np.arange(n_samples) / SAMPLE_RATE
    drift = 1 + rng.uniform(0, 0.01) * np.sin(2 * np.pi * rng.uniform(3, 20) * t)
    beep = _tone(frequency_hz * drift, harmonics)
    return beep * _envelope(n_samples, rng.uniform(0.002, 0.01), rng.uniform(0.002, 0.015))


def _bell_ring(rng: Random, n_samples: int) -> Signal:
    """Two gongs struck in turn, 18 to 26 strokes a second, with inharmonic partials."""
    stroke = SAMPLE_RATE / rng.uniform(18, 26)
    n_decay = seconds_to_samples(0.25)
    t = np.arange(n_decay) / SAMPLE_RATE
    gongs = []
    for base_hz in (rng.uniform(900, 1600), rng.uniform(1000, 1900)):
        partials = base_hz * np.array([1.0, 1.51, 2.24, 2.83, 4.0]) * rng.uniform(0.98, 1.02, 5)
        weights = rng.uniform(0.3, 1.0, 5) * (partials < 7500)
        decay = np.exp(-t * rng.uniform(8, 25))
        gongs.append(np.sin(2 * np.pi * partials[:, None] * t).T @ weights * decay)
    ring = np.zeros(n_samples + n_decay)
    for index in range(max(1, int(n_samples / stroke))):
        at = round(index * stroke)
        ring[at : at + n_decay] += gongs[index % 2]
    return ring[:n_samples] * _envelope(n_samples, 0.001, 0.05)


def _electronic_ring(rng: Random, n_samples: int) -> Signal:
    """Two tones in quick alternation, as telephones of the eighties and later warble."""
    t = np.arange(n_samples) / SAMPLE_RATE
    low_hz = rng.uniform(700, 1800)
    high_hz = low_hz * rng.uniform(1.15, 1.4)
    is_high = np.floor(t * rng.uniform(20, 40)) % 2
    tone = _tone(np.where(is_high > 0, high_hz, low_hz), _falling_harmonics(rng, 4, 1.2))
    return tone * _envelope(n_samples, 0.005, 0.02)


def _click(rng: Random) -> Signal:
    """A tick: a few strongly damped resonances and a burst of noise, 60 ms."""
    t = np.arange(seconds_to_samples(0.06)) / SAMPLE_RATE
    click = rng.standard_normal(len(t)) * np.exp(-t * rng.uniform(600, 2000)) * 0.6
    for _ in range(3):
        resonance = np.sin(2 * np.pi * rng.uniform(900, 6500) * t + rng.uniform(0, 6))
        click += resonance * np.exp(-t * rng.uniform(80, 500)) * rng.uniform(0.2, 1.0)
    return click
