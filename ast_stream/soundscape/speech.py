"""Synthetic speech as negative material: many voices, rates and sentences, by espeak-ng."""

from __future__ import annotations

import io
import shutil
import subprocess

import numpy as np
import soundfile
import soxr

from ast_stream.audio.activity import Waveform
from ast_stream.errors import UsageError
from ast_stream.soundscape.synthesis import Random
from ast_stream.units import SAMPLE_RATE

LANGUAGES = ("en-gb", "en-us", "de", "fr-fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "ru")
VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5", "+croak")
SUBJECTS = ("the neighbour", "my sister", "a taxi", "nobody", "the old teacher", "our boat")
VERBS = ("carried", "forgot", "noticed", "repaired", "never liked", "talked about", "painted")
OBJECTS = ("the garden wall", "seven letters", "a quiet song", "breakfast", "his coat", "maths")
PLACES = ("at the station", "in June", "before lunch", "on the ferry", "all evening", "again")
TIMEOUT_S = 20.0


def speech_is_available() -> bool:
    """Tell whether espeak-ng is installed."""
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
