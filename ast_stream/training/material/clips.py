"""Labelled recordings: a folder per class or a CSV table, every problem found before training.

All problems (missing, unreadable, empty and mislabelled files, classes with one clip) are collected
and raised together, because a user with 400 files must not meet them one by one.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ast_stream.audio.activity import Waveform
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean
from ast_stream.units import SAMPLE_RATE

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})
LABEL_SEPARATOR = ";"
FEWEST_CLIPS = 2  # of a class: one to learn from and one to test on


@dataclass(frozen=True)
class Clip:
    """One labelled file, where its label was read (for messages), and its row of the table."""

    path: Path
    labels: tuple[str, ...]
    fold: str | None = None
    table: str = ""
    line: int | None = None
    row: Mapping[str, str] = field(default_factory=dict, compare=False)

    def problem(self, text: str) -> Problem:
        """Return a problem with this clip, at its line of the table or at the file itself."""
        if self.table:
            return Problem(self.table, self.line, self.path.name, text)
        return Problem(str(self.path), None, "", text)


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns, and which rows to take."""

    file: str = "file"
    label: str = "label"
    fold: str = "fold"
    where: Mapping[str, Collection[str]] | None = None  # column -> accepted values


@dataclass(frozen=True, eq=False)
class Recording:
    """A decoded clip: mono, shape (n_samples,), float32 in [-1, 1], at 16 kHz."""

    clip: Clip
    waveform: Waveform


def read_clips(source: Path, columns: Columns | None = None) -> list[Clip]:
    """Return the labelled files of a folder (one sub-folder per class) or of a CSV table.

    File names of a table are relative to it, or to the folder `clips` or `audio` beside it.
    Several labels of one file are separated by `;`.

    Raises:
        ConfigError: the source is missing or empty, or the table cannot be understood.
    """
    if source.is_dir():
        clips = _read_folder(source)
    elif source.is_file():
        clips = _read_table(source, columns or Columns())
    else:
        raise ConfigError(
            [Problem(str(source), None, "", "expected a folder or a CSV file, got neither")]
        )
    if not clips:
        raise ConfigError(
            [Problem(str(source), None, "", "expected labelled recordings, got none")]
        )
    return clips


def load_recordings(
    clips: Sequence[Clip], known_labels: Collection[str] | None = None
) -> list[Recording]:
    """Decode all clips, mixed down and resampled to 16 kHz.

    Args:
        clips: what `read_clips` returned.
        known_labels: the only labels allowed; None: any.

    Raises:
        ConfigError: every problem of every clip, and classes with fewer than two clips.
    """
    problems: list[Problem] = []
    recordings: list[Recording] = []
    for clip in clips:
        problems += [
            clip.problem(f"unknown label {label!r}{did_you_mean(label, known_labels or ())}")
            for label in clip.labels
            if known_labels is not None and label not in known_labels
        ]
        try:
            recordings.append(Recording(clip, read_waveform(clip.path)))
        except (OSError, ValueError, soundfile.SoundFileError) as error:
            problems.append(clip.problem(_what_failed(clip.path, error)))
    counts = Counter(label for clip in clips for label in clip.labels)
    problems += [
        Problem(clips[0].table or str(clips[0].path.parent.parent), None, label, text)
        for label, count in sorted(counts.items())
        if count < FEWEST_CLIPS
        for text in [f"expected at least {FEWEST_CLIPS} clips of a class, got {count}"]
    ]
    if problems:
        raise ConfigError(problems)
    return recordings


def read_waveform(path: Path) -> Waveform:
    """Return a file as mono float32 at 16 kHz, shape (n_samples,).

    Raises:
        OSError, soundfile.SoundFileError: missing or unreadable.
        ValueError: no samples, or samples that are not finite.
    """
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(samples):
        raise ValueError("expected sound, got an empty file")
    if not np.isfinite(samples).all():
        raise ValueError("expected finite samples, got NaN or infinity")
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(mono, dtype=np.float32)


def write_attributions(clips: Sequence[Clip], path: Path) -> None:
    """Write the rows of the clips' table: titles, authors, licences, sources as they were given."""
    rows = [clip.row for clip in clips if clip.row]
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read_folder(folder: Path) -> list[Clip]:
    return [
        Clip(path, (sub_folder.name,))
        for sub_folder in sorted(folder.iterdir())
        if sub_folder.is_dir()
        for path in sorted(sub_folder.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES
    ]


def _read_table(table: Path, columns: Columns) -> list[Clip]:
    with table.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        header = list(reader.fieldnames or [])
        wanted = [columns.file, columns.label, *(columns.where or {})]
        problems = [
            Problem(str(table), 1, name, f"column is missing{did_you_mean(name, header)}")
            for name in wanted
            if name not in header
        ]
        if problems:
            raise ConfigError(problems)
        rows = [(reader.line_num, row) for row in reader]
    clips = []
    for line, row in rows:
        if any(row[name] not in accepted for name, accepted in (columns.where or {}).items()):
            continue
        labels = tuple(
            label.strip()
            for label in (row[columns.label] or "").split(LABEL_SEPARATOR)
            if label.strip()
        )
        if not labels:
            problems.append(Problem(str(table), line, columns.label, "expected a label, got none"))
        path = _find_beside(table, row[columns.file] or "")
        clips.append(Clip(path, labels, row.get(columns.fold), str(table), line, row))
    if problems:
        raise ConfigError(problems)
    return clips


def _find_beside(table: Path, name: str) -> Path:
    places = [table.parent / name, *(table.parent / sub / name for sub in ("clips", "audio"))]
    return next((place for place in places if place.is_file()), places[0])


def _what_failed(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "file is missing"
    if isinstance(error, ValueError):
        return str(error)
    return f"cannot be read as audio ({error})"
