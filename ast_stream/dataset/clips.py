"""Labelled recordings, wherever they are listed, decoded to 16 kHz.

All problems of a data set are reported together: a user with 400 files must not meet each of them
in a run of its own.
"""

from __future__ import annotations

import csv
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_stream.audio.activity import Waveform, active_rms
from ast_stream.audio.containers import FFMPEG_SUFFIXES, is_recording
from ast_stream.audio.recording import RecordingError, RecordingReader, read_mono
from ast_stream.dataset.annotations import LabelledClip, refusal, section_clips
from ast_stream.dataset.audioset_tables import is_segment_list, read_segments
from ast_stream.dataset.tables import (
    AUDACITY_SUFFIX,
    LABEL_SEPARATOR,
    Columns,
    audacity_rows,
    read_folder,
    read_table,
)
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean
from ast_stream.messages.audio import Pcm16
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, samples_to_seconds, seconds_to_samples

logger = logging.getLogger(__name__)

MIN_CLIPS = 2  # of a class to train on: one to learn from and one to test on
BEYOND_END_S = 0.1  # by which an offset may exceed the end: people and tools round


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """A decoded clip: mono, shape (n_samples,), float32 in [-1, 1], at 16 kHz."""

    clip: LabelledClip
    waveform: Waveform


def read_clips(source: Path, columns: Columns | None = None) -> list[LabelledClip]:
    """Return the labelled files and sections of `source`; see `read_data`."""
    return [clip for clip in read_data(source, columns) if clip.labels]


def read_data(source: Path, columns: Columns | None = None) -> list[LabelledClip]:
    """Return the clips of `source`, with the sections of long recordings that have no label.

    Args:
        source: a folder with a sub-folder per class, or recordings with Audacity label tracks
            beside them; a table (CSV, TSV) of files and labels, or of sections with onsets and
            offsets in seconds; a segment list of AudioSet; one Audacity label track. File names
            of a table are relative to it, or to the folder `clips`, `audio` or `wav` beside it;
            several labels of one file are separated by `;`, or stand in rows of their own.

    Raises:
        ConfigError: the source is missing or without labels, or cannot be understood.
    """
    if source.is_dir():
        clips = read_folder(source)
    elif not source.is_file():
        raise refusal(source, "expected a folder or a CSV file, got neither")
    elif source.suffix.lower() == AUDACITY_SUFFIX and not is_segment_list(source):
        clips = section_clips(audacity_rows(source, _recording_of(source)))
    elif is_segment_list(source):
        clips = read_segments(source)
    else:
        clips = read_table(source, columns or Columns())
    if not any(clip.labels for clip in clips):
        raise refusal(source, "expected labelled recordings, got none")
    problems = _inseparable(clips)
    if problems:
        raise ConfigError(problems)
    return clips


def write_clips(clips: Sequence[tuple[LabelledClip, str]], path: Path) -> None:
    """Write labelled clips, each with a fold, as a table that `read_clips` reads."""
    has_sections = any(clip.section for clip, _ in clips)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", "fold", *(["onset", "offset"] if has_sections else [])])
        for clip, fold in clips:
            times = [f"{time:.3f}" for time in clip.section] if clip.section else ["", ""]
            cells = [clip.path.resolve(), LABEL_SEPARATOR.join(clip.labels), fold]
            writer.writerow([*cells, *(times if has_sections else [])])


def load_recordings(
    clips: Sequence[LabelledClip],
    known_labels: Collection[str] | None = None,
    min_clips: int = MIN_CLIPS,
) -> list[DecodedClip]:
    """Decode all clips, mixed down and resampled to 16 kHz, in the order given.

    A section without labels that turns out to be empty is left out. Different sample rates are
    logged once.

    Args:
        clips: what `read_clips` returned.
        known_labels: the only labels allowed; None: any.
        min_clips: clips of each class, at least.

    Raises:
        ConfigError: every problem of every clip, labelled silence among them, and classes with
            fewer than `min_clips` clips.
    """
    problems = list(_unknown_labels(clips, known_labels))
    by_file: dict[Path, list[int]] = defaultdict(list)
    for number, clip in enumerate(clips):
        by_file[clip.path].append(number)
    recordings: dict[int, DecodedClip] = {}
    rates: Counter[int] = Counter()
    for path, numbers in by_file.items():
        try:
            waveform, rate = _decode(path)
        except RecordingError as error:
            problems.append(clips[numbers[0]].problem(error.text))
            continue
        rates[rate] += 1
        for number in numbers:
            try:
                section = _section(waveform, clips[number])
            except ValueError as error:
                problems.append(clips[number].problem(str(error)))
                continue
            if clips[number].labels and active_rms(section) == 0:
                problems.append(clips[number].problem(_silence_text(clips[number])))
            elif len(section):
                recordings[number] = DecodedClip(clips[number], section)
    problems += _too_few(clips, min_clips)
    if problems:
        raise ConfigError(problems)
    if len(rates) > 1:
        logger.warning(
            "the recordings have several sample rates (%s Hz); all are resampled to %d Hz",
            ", ".join(map(str, sorted(rates))), SAMPLE_RATE,
        )  # fmt: skip
    return [recordings[number] for number in sorted(recordings)]


def read_waveform(path: Path) -> Waveform:
    """Return a file as the detector gets it: mono float32 at 16 kHz, shape (n_samples,).

    Raises:
        RecordingError: it cannot be read, is damaged or cut off, or holds no samples.
    """
    return _decode(path)[0]


def to_waveform(pcm: Pcm16) -> Waveform:
    """Return int16 samples as float32 in [-1, 1)."""
    return pcm.astype(np.float32) / np.float32(FULL_SCALE)


def _decode(path: Path) -> tuple[Waveform, int]:
    """Return a file as `read_waveform` does, with the sample rate it has."""
    rates: list[int] = []

    def note_rate(reader: RecordingReader) -> None:
        rates[:] = [reader.rate]

    blocks = list(read_mono(path, note_rate))
    if not rates:
        raise RecordingError(path, "expected sound, got an empty file")
    return to_waveform(np.concatenate(blocks)), rates[0]


def _section(waveform: Waveform, clip: LabelledClip) -> Waveform:
    """Return the samples of the clip's section.

    Raises:
        ValueError: its labels begin or end after the end of the file.
    """
    if clip.section is None:
        return waveform
    duration_s = samples_to_seconds(len(waveform))
    if clip.labels and seconds_to_samples(clip.section.onset_s) >= len(waveform):
        raise ValueError(
            f"onset: expected less than {duration_s:.2f} s, where the file ends, "
            f"got {clip.section.onset_s:g} s"
        )
    if clip.labels and clip.section.offset_s > duration_s + BEYOND_END_S:
        raise ValueError(
            f"offset: expected at most {duration_s:.2f} s, where the file ends, "
            f"got {clip.section.offset_s:g} s"
        )
    end = None if math.isinf(clip.section.offset_s) else seconds_to_samples(clip.section.offset_s)
    # a copy: a view would keep the whole recording in memory for one bark
    return waveform[seconds_to_samples(clip.section.onset_s) : end].copy()


def _unknown_labels(
    clips: Iterable[LabelledClip], known_labels: Collection[str] | None
) -> Iterator[Problem]:
    if known_labels is None:
        return
    for clip in clips:
        for label in clip.labels:
            if label not in known_labels:
                yield clip.problem(f"unknown label {label!r}{did_you_mean(label, known_labels)}")


def _too_few(clips: Sequence[LabelledClip], min_clips: int) -> list[Problem]:
    """Return a problem for each class with fewer than `min_clips` files or rows of a table."""
    sources: dict[str, set[tuple[Path, int | None]]] = defaultdict(set)
    for clip in clips:
        for label in clip.labels:
            sources[label].add((clip.path, clip.line))
    return [
        _of_class(clips, label, f"expected at least {min_clips} clips of a class, got {len(of)}")
        for label, of in sorted(sources.items())
        if len(of) < min_clips
    ]


def _of_class(clips: Sequence[LabelledClip], label: str, text: str) -> Problem:
    return Problem(clips[0].table or str(clips[0].path.parent.parent), None, label, text)


def _silence_text(clip: LabelledClip) -> str:
    where = (
        f" from {clip.section.onset_s:g} s to {clip.section.offset_s:g} s" if clip.section else ""
    )
    return f"expected sound, got silence only{where}"


def _inseparable(clips: Sequence[LabelledClip]) -> list[Problem]:
    """Return a problem for each label that a table would give back as two."""
    first = {label: clip for clip in reversed(clips) for label in clip.labels}
    return [
        clip.problem(
            f"expected a label without {LABEL_SEPARATOR!r}, which parts labels, got {label!r}"
        )
        for label, clip in sorted(first.items())
        if LABEL_SEPARATOR in label
    ]


def _recording_of(track: Path) -> Path:
    """Return the recording beside a label track, by its name."""
    audio = [
        path
        for path in sorted(track.parent.iterdir())
        if path.stem == track.stem and is_recording(path)
    ]
    if not audio:
        raise refusal(
            track, f"expected a recording named {track.stem}.wav (or .flac, .ogg, …) beside it"
        )
    return max(audio, key=lambda path: path.suffix.lower() not in FFMPEG_SUFFIXES)
