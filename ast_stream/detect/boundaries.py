"""Where a sound begins and ends, from when its windows' scores cross the thresholds.

A window ending at t covers [t - W, t] and is scored every H. A sound is seen once the window
holds `rise_on` of it, and no longer once it holds less than `rise_off`, hence (both crossings are
noticed H/2 late on average)

    onset  = t_up   - H/2 - rise_on
    offset = t_down - H/2 - (W - rise_off)

Everything is in samples. Checked against simulated windows in tests/test_boundaries.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from ast_stream.units import samples_to_seconds


@dataclass(frozen=True)
class WindowGeometry:
    """Window length and hop in samples."""

    window: int
    hop: int


@dataclass(frozen=True)
class Onset:
    """Estimated start of a sound and the half-width of the interval that holds it."""

    sample: int
    uncertainty_s: float


@dataclass(frozen=True)
class Offset:
    """Estimated end of a sound; unreliable where the estimate had to be clamped."""

    sample: int
    is_reliable: bool


def locate_onset(
    geometry: WindowGeometry,
    t_up: int,
    rise_on: int,
    *,
    uncertainty: int,
    earliest: int,
    first_scored: int | None,
    audio_end: int,
) -> Onset:
    """Return the onset of a sound first seen by the window ending at `t_up`.

    Args:
        rise_on: how much of the sound a window needs to be above the onset threshold.
        uncertainty: half-width of the interval around the estimate, for sounds seen to begin.
        earliest: no onset before this: start of the audio, or end of the event before.
        first_scored: end of the first window scored since start or gap. If that window already
            sees the sound, it may have begun anywhere since `earliest`.
        audio_end: end of the audio known, less than `t_up` while flushing.
    """
    earliest = max(earliest, t_up - geometry.window)
    latest = max(earliest, min(t_up, audio_end) - rise_on)
    if t_up == first_scored:
        middle = (earliest + latest) // 2
        return Onset(middle, samples_to_seconds((latest - earliest) // 2 + geometry.hop // 2))
    onset = min(max(t_up - geometry.hop // 2 - rise_on, earliest), latest)
    return Onset(onset, samples_to_seconds(uncertainty))


def locate_offset(
    geometry: WindowGeometry,
    onset: int,
    t_down: int | None,
    rise_on: int,
    rise_off: int,
    *,
    audio_end: int,
) -> Offset:
    """Return the offset of a sound no longer seen by the window ending at `t_down`.

    Args:
        t_down: None where the audio ended first: then the sound lasted as far as is known.
        audio_end: end of the audio known.
    """
    shortest = min(onset + rise_on, max(audio_end, onset))
    if t_down is None:
        return Offset(max(audio_end, shortest), is_reliable=False)
    offset = min(t_down - geometry.hop // 2 - (geometry.window - rise_off), audio_end)
    if offset < shortest:
        return Offset(shortest, is_reliable=False)
    return Offset(offset, is_reliable=True)
