"""Backgrounds: household noise and speech that are generated, and recordings without any event.

Rain and surf are not among the generated ones: they are classes.
"""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ast_stream.audio.activity import Waveform, active_rms
from ast_stream.audio.containers import recordings_in
from ast_stream.audio.pcm import Resampler
from ast_stream.audio.recording import RecordingError, RecordingReader, recording_duration_s
from ast_stream.dataset.clips import to_waveform
from ast_stream.errors import ConfigError, Problem, UsageError
from ast_stream.soundscape.synthesis import Random, Signal, in_a_room, smooth_gain, to_active_level
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

SPEECH, MUSIC = "Speech", "Music"  # AudioSet display names
BACKGROUND_S = 6.0  # length of a generated background
SPEECH_RATIO, BABBLE_RATIO = 0.35, 0.05  # of the backgrounds, where espeak-ng is installed

PIECE_S = 10.0  # of a recording
MIN_PIECE_S = 1.0  # at the end of a file
MAX_RECORDED_S = 4 * 3600.0  # kept, evenly spread over all files: 0.9 GB
MIN_DBFS = -85.0  # quieter pieces are a switched-off input; amplified they would be nonsense

LANGUAGES = ("en-gb", "en-us", "de", "fr-fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "ru")
VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5", "+croak")
SUBJECTS = ("the neighbour", "my sister", "a taxi", "nobody", "the old teacher", "our boat")
VERBS = ("carried", "forgot", "noticed", "repaired", "never liked", "talked about", "painted")
OBJECTS = ("the garden wall", "seven letters", "a quiet song", "breakfast", "his coat", "maths")
PLACES = ("at the station", "in June", "before lunch", "on the ferry", "all evening", "again")
TIMEOUT_S = 20.0


def generated_backgrounds(
    seed: int, count: int, with_speech: bool = True, labels: Collection[str] = ()
) -> list[Waveform]:
    """Return `count` backgrounds of 6 s or more at one active level: noise, hum, music, speech.

    Without espeak-ng (or with `with_speech` false) there is no speech among them.

    Args:
        labels: classes to tell from backgrounds: with Speech or Music among them, speech or
            music is no background.
    """
    with_speech = with_speech and SPEECH not in labels
    n_speech = round(count * SPEECH_RATIO) if with_speech and speech_is_available() else 0
    voices = [speak(np.random.default_rng((seed, 0, number))) for number in range(n_speech)]
    n_babble = round(count * BABBLE_RATIO) if voices else 0
    n_samples = round(BACKGROUND_S * SAMPLE_RATE)
    signals: list[Signal | Waveform] = [
        babble(np.random.default_rng((seed, 1, number)), n_samples, voices)
        for number in range(n_babble)
    ]
    generators = [
        generate for name, generate in BACKGROUNDS.items() if name != "music" or MUSIC not in labels
    ]
    for number in range(count - n_speech - n_babble):
        generate = generators[number % len(generators)]
        signals.append(generate(np.random.default_rng((seed, 2, number)), n_samples))
    return [to_active_level(signal) for signal in signals + voices]


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


def speech_is_available() -> bool:
    """Return whether espeak-ng is installed."""
    return shutil.which("espeak-ng") is not None


def sentence(rng: Random) -> str:
    """Return a sentence made from the word lists, sometimes with a number."""
    words = [str(rng.choice(part)) for part in (SUBJECTS, VERBS, OBJECTS, PLACES)]
    number = [f"and {rng.integers(2, 9000)}"] if rng.random() < 0.3 else []
    return " ".join(words + number)


def speak(rng: Random) -> Waveform:
    """Return one or two sentences in a random voice, shape (n_samples,), float32, at 16 kHz.

    Raises:
        UsageError: espeak-ng is not installed or failed.
    """
    voice = str(rng.choice(LANGUAGES)) + str(rng.choice(VARIANTS))
    text = ". ".join(sentence(rng) for _ in range(int(rng.integers(1, 3))))
    speed, pitch = str(rng.integers(110, 260)), str(rng.integers(15, 90))
    command = ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "--stdout", text]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
        # espeak-ng writes the header before it knows the length; soundfile reads to the end
        samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    except FileNotFoundError as error:
        raise UsageError("speech needs the program espeak-ng, which is not installed") from error
    except (subprocess.SubprocessError, soundfile.SoundFileError) as error:
        raise UsageError(f"espeak-ng failed with the voice {voice!r} ({error})") from error
    resampled = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(resampled, dtype=np.float32)


def read_backgrounds(paths: Sequence[Path]) -> list[Waveform]:
    """Return recordings without any event as pieces of up to 10 s, each at one active level.

    Files and folders are read once, front to back. Pieces that are all but silent are left out; of
    more than four hours evenly spread pieces are kept.

    Raises:
        ConfigError: every file that is missing, empty or no audio, together.
    """
    problems: list[Problem] = []
    files = _files(paths, problems)
    total_s = sum(_duration_s(file) for file in files)
    every = max(1, -(-round(total_s) // round(MAX_RECORDED_S)))
    pieces: list[Waveform] = []
    for file in files:
        try:
            pieces += _kept_pieces(file, every)
        except RecordingError as error:
            problems.append(Problem(str(file), None, "", error.text))
    if problems:
        raise ConfigError(problems)
    if paths and not pieces:
        raise ConfigError(
            [Problem(str(paths[0]), None, "", "expected sound in the backgrounds, got silence")]
        )
    return pieces


def background_pieces(waveform: Waveform) -> list[Waveform]:
    """Return the sounding pieces of a decoded recording, each at one active level."""
    step = seconds_to_samples(PIECE_S)
    cuts = (waveform[start : start + step] for start in range(0, len(waveform), step))
    return [to_active_level(cut) for cut in cuts if _is_of_use(cut)]


def background_recordings(paths: Sequence[Path]) -> list[tuple[Path, float]]:
    """Return the recordings without any event in files and folders, each with its seconds.

    Raises:
        ConfigError: everything that is missing, empty or no audio, together.
    """
    problems: list[Problem] = []
    found: list[tuple[Path, float]] = []
    for file in _files(paths, problems):
        try:
            found.append((file, recording_duration_s(file)))
        except RecordingError as error:
            problems.append(Problem(str(file), None, "", error.text))
    if problems:
        raise ConfigError(problems)
    return found


def _files(paths: Sequence[Path], problems: list[Problem]) -> list[Path]:
    """Return the recordings that `paths` name, files and folders."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            problems.append(Problem(str(path), None, "", "file is missing"))
            continue
        inside = recordings_in(path) if path.is_dir() else [path]
        if not inside:
            problems.append(Problem(str(path), None, "", "expected recordings in it, got none"))
        files += inside
    return files


def _duration_s(file: Path) -> float:
    try:
        return recording_duration_s(file)
    except RecordingError:
        return 0.0  # reported when it is read


def _kept_pieces(file: Path, every: int) -> Iterator[Waveform]:
    with RecordingReader(file) as recording:
        n_wanted = round(PIECE_S * recording.rate)
        for number in itertools.count():
            samples = recording.read(n_wanted)
            if not len(samples):
                break
            if number % every:
                continue
            resampler = Resampler(recording.rate)
            piece = to_waveform(np.concatenate([resampler.push(samples), resampler.flush()]))
            if _is_of_use(piece):
                yield to_active_level(piece)
        if recording.position_s == 0:
            raise RecordingError(file, "expected sound, got an empty file")
        recording.check()


def _is_of_use(piece: Waveform) -> bool:
    is_long = len(piece) >= MIN_PIECE_S * SAMPLE_RATE
    return is_long and active_rms(piece) > 10 ** (MIN_DBFS / 20)
