"""The words of labelled data: a clip, the columns of a table, a decoded recording."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import soundfile

from ast_stream.audio.activity import Waveform
from ast_stream.errors import Problem

# libsndfile names most formats by their suffix; raw samples have no header to read them by
AUDIO_SUFFIXES = frozenset(
    f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"
) | {".aif", ".aifc", ".oga", ".opus", ".snd"}
UNREADABLE_SUFFIXES = frozenset(
    {".3gp", ".aac", ".ac3", ".amr", ".ape", ".m4a", ".mka", ".mp4", ".webm", ".wma", ".wv"}
)
RECORDING_SUFFIXES = AUDIO_SUFFIXES | UNREADABLE_SUFFIXES
LABEL_SEPARATOR = ";"


class Span(NamedTuple):
    """A stretch of a recording, in seconds from its beginning."""

    onset_s: float
    offset_s: float


@dataclass(frozen=True)
class Clip:
    """One labelled file or stretch of it, where its label was read, and its row of the table.

    Attributes:
        labels: none for a recording, or stretch of one, that holds no event.
        span: the stretch that the labels hold for; None: the whole file.
    """

    path: Path
    labels: tuple[str, ...]
    fold: str | None = None
    table: str = ""
    line: int | None = None
    row: Mapping[str, str] = field(default_factory=dict, compare=False)
    span: Span | None = None

    def problem(self, text: str) -> Problem:
        """Return a problem with this clip, at its line of the table or at the file itself."""
        if self.table:
            return Problem(self.table, self.line, self.path.name, text)
        return Problem(str(self.path), None, "", text)


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns, and which rows to take.

    Attributes:
        fold, onset, offset: None: the column of that name, if there is one.
        onset, offset: seconds; a table with both labels strips of long recordings.
        where: accepted values by column; None: all rows.
    """

    file: str = "file"
    label: str = "label"
    fold: str | None = None
    where: Mapping[str, Collection[str]] | None = None
    onset: str | None = None
    offset: str | None = None


@dataclass(frozen=True, eq=False)
class Recording:
    """A decoded clip: mono, shape (n_samples,), float32 in [-1, 1], at 16 kHz."""

    clip: Clip
    waveform: Waveform


def recordings_in(folder: Path) -> list[Path]:
    """Return the recordings in a folder and its sub-folders, by name.

    Those in formats that cannot be read are among them: that is told when they are opened.
    """
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in RECORDING_SUFFIXES]


def is_readable(path: Path) -> bool:
    """Tell whether a recording is in a format that can be read, by its suffix."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def what_failed(path: Path, error: Exception) -> str:
    """Return why a recording cannot be used; a ValueError says it in its own words."""
    if not path.is_file():
        return "file is missing"
    if path.suffix.lower() in UNREADABLE_SUFFIXES:
        return f"cannot be read as audio: expected another format than {path.suffix}, such as .flac"
    if isinstance(error, ValueError):
        return str(error)
    return f"cannot be read as audio ({error})"
