"""Sizes of the signal path, and conversions of samples, frames, seconds, dBFS and wall time."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

SAMPLE_RATE = 16_000  # Hz, everywhere after capture
FRAME_LENGTH = 400  # samples, 25 ms Kaldi analysis frame
FRAME_SHIFT = 160  # samples, 10 ms between frame starts
FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_SHIFT
N_MELS = 128
FULL_SCALE = 32_768  # int16 value that stands for 1.0
SILENCE_DBFS = -120.0  # reported for digital silence: dBFS of zero would be minus infinity
NS_PER_SECOND = 1_000_000_000
MAX_TIME_NS = 230 * 366 * 86_400 * NS_PER_SECOND  # about the year 2200: far from any overflow

_EPOCH_1970 = datetime(1970, 1, 1, tzinfo=UTC)


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, whose plural ends in s."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def frame_count(n_samples: int) -> int:
    """Return how many whole frames `n_samples` hold: 1 + (n - 400) // 160, or 0 below 400."""
    return 0 if n_samples < FRAME_LENGTH else 1 + (n_samples - FRAME_LENGTH) // FRAME_SHIFT


def samples_for_frames(n_frames: int) -> int:
    """Return the minimum number of samples that hold `n_frames` frames (0 for none)."""
    return 0 if n_frames <= 0 else FRAME_LENGTH + (n_frames - 1) * FRAME_SHIFT


def seconds_to_samples(seconds: float) -> int:
    """Return `seconds` as the nearest whole number of samples."""
    return round(seconds * SAMPLE_RATE)


def samples_to_seconds(n_samples: int) -> float:
    """Return `n_samples` in seconds."""
    return n_samples / SAMPLE_RATE


def samples_to_ns(n_samples: int) -> int:
    """Return `n_samples` in nanoseconds, exact to the nanosecond for any length."""
    return n_samples * NS_PER_SECOND // SAMPLE_RATE


def ns_to_samples(time_ns: int) -> int:
    """Return `time_ns` nanoseconds as whole samples, rounded down."""
    return time_ns * SAMPLE_RATE // NS_PER_SECOND


def seconds_to_ns(seconds: float) -> int:
    """Return `seconds` as the nearest nanosecond."""
    return round(seconds * NS_PER_SECOND)


def whole_frames(seconds: float, what: str = "") -> int:
    """Return `seconds` in frames of 10 ms; `what` names the value in the error.

    Raises:
        ValueError: if `seconds` is not a positive multiple of 10 ms.
    """
    n_frames = round(seconds * FRAMES_PER_SECOND)
    if n_frames < 1 or abs(n_frames - seconds * FRAMES_PER_SECOND) > 1e-6:
        name = f"{what}: " if what else ""
        raise ValueError(f"{name}expected a positive multiple of 0.01 s, got {seconds:g}")
    return n_frames


def amplitude_to_dbfs(rms: float) -> float:
    """Return the level of an RMS amplitude in [0, 1] in dBFS, at least `SILENCE_DBFS`."""
    return SILENCE_DBFS if rms <= 0 else max(SILENCE_DBFS, 20 * math.log10(rms))


def format_time(time_ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339 UTC with microseconds, e.g. `…T10:00:30.200000Z`.

    >>> format_time(1_500_000_000)
    '1970-01-01T00:00:01.500000Z'
    """
    moment = _EPOCH_1970 + timedelta(microseconds=round(time_ns / 1000))
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_time(text: str) -> int:
    """Return an RFC 3339 time with offset as nanoseconds since 1970.

    Raises:
        ValueError: if `text` is not such a time.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no offset from UTC; expected e.g. a final 'Z'")
    return (moment - _EPOCH_1970) // timedelta(microseconds=1) * 1000
