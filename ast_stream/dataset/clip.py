"""The words of labelled data: a clip, the columns of a table, a decoded recording."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ast_stream.audio.activity import Waveform
from ast_stream.errors import ConfigError, Problem

LABEL_SEPARATOR = ";"
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods, .xls


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


def read_lines(path: Path) -> list[str]:
    """Return the lines, with their ends, of a table or list in UTF-8 or UTF-16.

    Raises:
        ConfigError: it cannot be read, or is a workbook or in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        text = f"cannot be read ({error.strerror or error})"
        raise ConfigError([Problem(str(path), None, "", text)]) from error
    if data.startswith(_WORKBOOKS):
        text = "expected a table of text, got a workbook; save it as CSV UTF-8"
        raise ConfigError([Problem(str(path), None, "", text)])
    try:
        return list(io.StringIO(data.decode(_encoding(data)), newline=""))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        text = f"expected UTF-8, got {data[error.start : error.start + 1]!r}; save it as CSV UTF-8"
        raise ConfigError([Problem(str(path), line, "", text)]) from error


def _encoding(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    zeros = [data[first:1_000:2].count(0) for first in (0, 1)]
    if max(zeros) > len(data[:1_000]) / 4:  # letters of UTF-16 without its mark
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8-sig"
