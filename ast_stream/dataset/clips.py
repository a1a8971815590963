"""Labelled recordings from wherever they are: folders, tables, strips, AudioSet's lists.

The front door of this room: what is read is in `tables`, `strips` and `audioset`, how it is
decoded and checked in `decode`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ast_stream.audio.recording import FFMPEG_SUFFIXES, is_recording
from ast_stream.dataset.audioset import is_segment_list, read_segments
from ast_stream.dataset.clip import (
    LABEL_SEPARATOR,
    Clip,
    Columns,
    Recording,
    Span,
)
from ast_stream.dataset.decode import load_recordings, read_waveform
from ast_stream.dataset.strong_labels import AUDACITY_SUFFIX, audacity_rows, strip_clips
from ast_stream.dataset.tables import read_folder, read_table
from ast_stream.errors import ConfigError, Problem

__all__ = [
    "Clip",
    "Columns",
    "Recording",
    "Span",
    "load_recordings",
    "read_clips",
    "read_data",
    "read_waveform",
    "write_clips",
]


def read_clips(source: Path, columns: Columns | None = None) -> list[Clip]:
    """Return the labelled files and strips of `source`; see `read_data`."""
    return [clip for clip in read_data(source, columns) if clip.labels]


def read_data(source: Path, columns: Columns | None = None) -> list[Clip]:
    """Return the clips of `source`, with the stretches of long recordings that have no label.

    Args:
        source: a folder with a sub-folder per class, or recordings with Audacity label tracks
            beside them; a table (CSV, TSV) of files and labels, or of strips with onsets and
            offsets in seconds; a segment list of AudioSet; one Audacity label track. File names
            of a table are relative to it, or to the folder `clips`, `audio` or `wav` beside it;
            several labels of one file are separated by `;`, or stand in rows of their own.

    Raises:
        ConfigError: the source is missing or without labels, or cannot be understood.
    """
    if source.is_dir():
        clips = read_folder(source)
    elif not source.is_file():
        text = "expected a folder or a CSV file, got neither"
        raise ConfigError([Problem(str(source), None, "", text)])
    elif source.suffix.lower() == AUDACITY_SUFFIX and not is_segment_list(source):
        clips = strip_clips(audacity_rows(source, _recording_of(source)))
    elif is_segment_list(source):
        clips = read_segments(source)
    else:
        clips = read_table(source, columns or Columns())
    if not any(clip.labels for clip in clips):
        text = "expected labelled recordings, got none"
        raise ConfigError([Problem(str(source), None, "", text)])
    problems = _inseparable(clips)
    if problems:
        raise ConfigError(problems)
    return clips


def write_clips(clips: Sequence[tuple[Clip, str]], path: Path) -> None:
    """Write labelled clips, each with a fold, as a table that `read_clips` reads."""
    has_spans = any(clip.span for clip, _ in clips)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", "fold", *(["onset", "offset"] if has_spans else [])])
        for clip, fold in clips:
            times = [f"{time:.3f}" for time in clip.span] if clip.span else ["", ""]
            cells = [clip.path.resolve(), LABEL_SEPARATOR.join(clip.labels), fold]
            writer.writerow([*cells, *(times if has_spans else [])])


def _inseparable(clips: Sequence[Clip]) -> list[Problem]:
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
        text = f"expected a recording named {track.stem}.wav (or .flac, .ogg, …) beside it"
        raise ConfigError([Problem(str(track), None, "", text)])
    return max(audio, key=lambda path: path.suffix.lower() not in FFMPEG_SUFFIXES)
