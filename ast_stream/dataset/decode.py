"""Clips decoded to 16 kHz, each file once, and everything that is wrong with them told together.

A user with 400 files must not meet their problems one by one.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from ast_stream.audio.activity import Waveform, active_rms
from ast_stream.audio.recording import RecordingError, RecordingReader
from ast_stream.audio.source import Pcm
from ast_stream.dataset.clip import Clip, Recording
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, samples_to_seconds, seconds_to_samples

logger = logging.getLogger(__name__)

FEWEST_CLIPS = 2  # of a class to train on: one to learn from and one to test on
BEYOND_END_S = 0.1  # that an offset may lie behind the end: people and tools round


class Decoded(NamedTuple):
    """A whole file: mono samples at 16 kHz, and the rate they were stored with."""

    waveform: Waveform
    rate: int


def load_recordings(
    clips: Sequence[Clip],
    known_labels: Collection[str] | None = None,
    fewest: int = FEWEST_CLIPS,
) -> list[Recording]:
    """Decode all clips, mixed down and resampled to 16 kHz, in the order given.

    A stretch without labels that turns out to be empty is left out. Different sample rates are
    logged once.

    Args:
        clips: what `read_clips` returned.
        known_labels: the only labels allowed; None: any.
        fewest: clips of each class, at least.

    Raises:
        ConfigError: every problem of every clip, labelled silence among them, and classes with
            fewer than `fewest` clips.
    """
    problems = list(_unknown_labels(clips, known_labels))
    by_file: dict[Path, list[int]] = defaultdict(list)
    for number, clip in enumerate(clips):
        by_file[clip.path].append(number)
    recordings: dict[int, Recording] = {}
    rates: Counter[int] = Counter()
    for path, numbers in by_file.items():
        try:
            decoded = decode(path)
        except RecordingError as error:
            problems.append(clips[numbers[0]].problem(error.text))
            continue
        rates[decoded.rate] += 1
        for number in numbers:
            try:
                waveform = _stretch(decoded.waveform, clips[number])
            except ValueError as error:
                problems.append(clips[number].problem(str(error)))
                continue
            if clips[number].labels and active_rms(waveform) == 0:
                problems.append(clips[number].problem(_what_is_silent(clips[number])))
            elif len(waveform):
                recordings[number] = Recording(clips[number], waveform)
    problems += _too_few(clips, fewest)
    if problems:
        raise ConfigError(problems)
    if len(rates) > 1:
        logger.warning(
            "the recordings have several sample rates (%s Hz); all are resampled to %d Hz",
            ", ".join(map(str, sorted(rates))), SAMPLE_RATE,
        )  # fmt: skip
    return [recordings[number] for number in sorted(recordings)]


def read_waveform(path: Path) -> Waveform:
    """Return a file as mono float32 at 16 kHz, shape (n_samples,).

    Raises:
        RecordingError: it cannot be read, is damaged or cut off, or holds no samples.
    """
    return decode(path).waveform


def decode(path: Path) -> Decoded:
    """Return a file as `read_waveform` does, with the sample rate it has."""
    with RecordingReader(path) as reader:
        converter = Mono16k(reader.rate)
        parts = [np.zeros(0, np.float32)]
        while len(pcm := reader.read(reader.rate)):
            parts.append(converter.push(pcm))
        parts.append(converter.flush())
        if reader.position_s == 0:
            raise RecordingError(path, "expected sound, got an empty file")
        reader.check()
        return Decoded(np.concatenate(parts), reader.rate)


class Mono16k:
    """Blocks of any rate and channel count to mono float32 at 16 kHz."""

    def __init__(self, rate: int) -> None:
        self._stream = None
        if rate != SAMPLE_RATE:
            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32", quality="HQ")

    def push(self, pcm: Pcm) -> Waveform:
        """Return what is ready of samples of shape (n, channels)."""
        scale = np.float32(1 / FULL_SCALE if pcm.dtype == np.int16 else 1)
        mono: Waveform = pcm.mean(axis=1, dtype=np.float32) * scale
        return mono if self._stream is None else self._stream.resample_chunk(mono)

    def flush(self) -> Waveform:
        """Return what is still inside."""
        rest = np.zeros(0, np.float32)
        return rest if self._stream is None else self._stream.resample_chunk(rest, last=True)


def _stretch(waveform: Waveform, clip: Clip) -> Waveform:
    """Return the samples of the clip's span.

    Raises:
        ValueError: its labels begin or end behind the end of the file.
    """
    if clip.span is None:
        return waveform
    duration_s = samples_to_seconds(len(waveform))
    if clip.labels and seconds_to_samples(clip.span.onset_s) >= len(waveform):
        raise ValueError(
            f"onset: expected less than {duration_s:.2f} s, where the file ends, "
            f"got {clip.span.onset_s:g} s"
        )
    if clip.labels and clip.span.offset_s > duration_s + BEYOND_END_S:
        raise ValueError(
            f"offset: expected at most {duration_s:.2f} s, where the file ends, "
            f"got {clip.span.offset_s:g} s"
        )
    end = None if math.isinf(clip.span.offset_s) else seconds_to_samples(clip.span.offset_s)
    # a copy: a view would keep the whole recording in memory for one bark
    return waveform[seconds_to_samples(clip.span.onset_s) : end].copy()


def _unknown_labels(
    clips: Iterable[Clip], known_labels: Collection[str] | None
) -> Iterator[Problem]:
    if known_labels is None:
        return
    for clip in clips:
        for label in clip.labels:
            if label not in known_labels:
                yield clip.problem(f"unknown label {label!r}{did_you_mean(label, known_labels)}")


def _too_few(clips: Sequence[Clip], fewest: int) -> list[Problem]:
    """Return a problem for each class with fewer than `fewest` files or rows of a table."""
    sources: dict[str, set[tuple[Path, int | None]]] = defaultdict(set)
    for clip in clips:
        for label in clip.labels:
            sources[label].add((clip.path, clip.line))
    return [
        _of_class(clips, label, f"expected at least {fewest} clips of a class, got {len(of)}")
        for label, of in sorted(sources.items())
        if len(of) < fewest
    ]


def _of_class(clips: Sequence[Clip], label: str, text: str) -> Problem:
    return Problem(clips[0].table or str(clips[0].path.parent.parent), None, label, text)


def _what_is_silent(clip: Clip) -> str:
    where = f" from {clip.span.onset_s:g} s to {clip.span.offset_s:g} s" if clip.span else ""
    return f"expected sound, got silence only{where}"
