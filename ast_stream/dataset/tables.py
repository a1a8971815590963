"""A folder per class, or a CSV or TSV table of files and labels, as clips."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ast_stream.audio.recording import is_recording, recordings_in
from ast_stream.dataset.clip import (
    LABEL_SEPARATOR,
    Clip,
    Columns,
    read_lines,
)
from ast_stream.dataset.strong_labels import AUDACITY_SUFFIX, Row, audacity_rows, strip_clips
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean

logger = logging.getLogger(__name__)

FOLD, ONSET, OFFSET = "fold", "onset", "offset"  # columns that a table need not have
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[,;\t\s]*$', re.IGNORECASE)
BESIDE = ("clips", "audio", "wav")  # folders beside a table where its files may lie


class Table(NamedTuple):
    """The rows of a table with the line each one ends on, and what is wrong with them.

    Attributes:
        delimiter: what separates the cells.
    """

    header: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[Problem]
    delimiter: str


def read_folder(folder: Path) -> list[Clip]:
    """Return the files of each sub-folder, labelled by its name, and labelled recordings.

    A recording in `folder` itself counts if an Audacity label track lies beside it. Recordings in
    formats that cannot be read are among the files: that is told when they are decoded.
    """
    clips = [
        Clip(path, (sub_folder.name,))
        for sub_folder in sorted(folder.iterdir())
        if sub_folder.is_dir() and not sub_folder.name.startswith(".")
        for path in recordings_in(sub_folder)
    ]
    rows = [
        row
        for path in sorted(folder.iterdir())
        if is_recording(path) and (track := path.with_suffix(AUDACITY_SUFFIX)).is_file()
        for row in audacity_rows(track, path)
    ]
    return clips + strip_clips(rows)


def read_table(table: Path, columns: Columns) -> list[Clip]:
    """Return the labelled files of a table, and the strips of one with onsets and offsets.

    Raises:
        ConfigError: columns or labels are missing, or rows make no sense or contradict each other.
    """
    header, rows, problems, delimiter = read_rows(table)
    missing = _missing_columns(table, header, columns)
    if missing:
        raise ConfigError(missing)
    accepted = _accepted(table, rows, columns.where or {})
    fold, onset, offset = columns.fold or FOLD, columns.onset or ONSET, columns.offset or OFFSET
    has_times = onset in header
    clips: list[Clip] = []
    for line, row in rows:
        if any(row[name] not in values for name, values in accepted.items()):
            continue
        labels = tuple(_labels(row[columns.label]))
        if not labels and not has_times:
            problems.append(Problem(str(table), line, columns.label, "expected a label, got none"))
        if not row[columns.file].strip():
            problems.append(Problem(str(table), line, columns.file, "expected a file, got none"))
        path = find_beside(table, row[columns.file])
        clips.append(Clip(path, labels, row.get(fold) or None, str(table), line, row))
    if problems:
        raise ConfigError(problems)
    times = [[clip.row.get(name, "") for name in (onset, offset)] for clip in clips]
    if delimiter != ",":  # where spreadsheets have ; or tabs, numbers may have a decimal comma
        times = [[time.replace(",", ".") for time in pair] for pair in times]
    return strip_clips([Row(clip, *pair) for clip, pair in zip(clips, times, strict=True)])


def read_rows(table: Path) -> Table:
    """Return header and rows of a table with commas, semicolons or tabs, as its header has them.

    Raises:
        ConfigError: it is no table of text.
    """
    lines = read_lines(table)
    n_before = 0
    delimiter = _delimiter(lines[0] if lines else "")
    if lines and (told := _SEPARATOR_LINE.match(lines[0])):  # for Excel: what separates cells
        delimiter, n_before = told[1], 1
    try:
        reader = csv.DictReader(lines[n_before:], delimiter=delimiter)
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        read = [(reader.line_num + n_before, row) for row in reader]
    except csv.Error as error:
        text = f"cannot be read as a table ({error})"
        raise ConfigError([Problem(str(table), None, "", text)]) from error
    problems = [
        Problem(str(table), n_before + 1, name, "expected each column once, got it twice")
        for name, times in Counter(filter(None, header)).items()
        if times > 1
    ]
    problems += [
        Problem(str(table), line, "", _what_is_too_much(len(header), row[None], delimiter))
        for line, row in read
        if any(cell.strip() for cell in row.get(None, []))
    ]
    rows = [(line, _complete(row)) for line, row in read]
    filled = [(line, row) for line, row in rows if any(cell.strip() for cell in row.values())]
    return Table(header, filled, problems, delimiter)


def find_beside(table: Path, name: str) -> Path:
    """Return the file `name` of a table: relative to it, or in a folder beside it.

    Folders may be separated as on Windows.
    """
    names = [name, name.replace("\\", "/")] if "\\" in name else [name]
    folders = (table.parent, *(table.parent / sub for sub in BESIDE))
    places = [folder / one for one in names for folder in folders]
    return next((place for place in places if _is_file(place)), places[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _delimiter(header: str) -> str:
    """Return what separates the cells of a header."""
    bare = re.sub(r'"[^"]*"', "", header)
    if "\t" in bare:
        return "\t"
    return ";" if bare.count(";") > bare.count(",") else ","


def _missing_columns(table: Path, header: Sequence[str], columns: Columns) -> list[Problem]:
    """Return a problem for each column that was asked for, or that one of a pair asks for."""
    named = [name for name in (columns.fold, columns.onset, columns.offset) if name is not None]
    wanted = [columns.file, columns.label, *(columns.where or {}), *named]
    times = [columns.onset or ONSET, columns.offset or OFFSET]
    if {name.casefold() for name in times} & {name.casefold() for name in header}:
        wanted += times
    others = [name for name in header if name not in wanted]
    there = f", got {', '.join(header) or 'none'}"
    return [
        Problem(str(table), 1, name, f"column is missing{did_you_mean(name, others) or there}")
        for name in dict.fromkeys(wanted)
        if name not in header
    ]


def _accepted(
    table: Path, rows: Sequence[tuple[int, dict[str, str]]], where: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    """Return the accepted values of each column; those of which it has none are logged.

    Values that were split at commas are one value, if the column has it.

    Raises:
        ConfigError: a column has none of its values.
    """
    accepted: dict[str, set[str]] = {}
    problems: list[Problem] = []
    for column, values in where.items():
        there = {row[column] for _, row in rows}
        whole = ",".join(values)
        accepted[column] = {whole} if whole in there else set(values)
        absent = [
            Problem(str(table), 1, column, f"no row has {value!r}{did_you_mean(value, there)}")
            for value in sorted(accepted[column] - there)
        ]
        if len(absent) == len(accepted[column]):
            problems += absent
        else:
            for problem in absent:
                logger.warning("%s", problem)
    if problems:
        raise ConfigError(problems)
    return accepted


def _what_is_too_much(n_columns: int, surplus: Sequence[str], delimiter: str) -> str:
    what = {",": "commas", ";": "semicolons"}.get(delimiter, "tabs")
    return (
        f"expected {n_columns} cells as in the header, got {n_columns + len(surplus)}; "
        f"a label with {what} needs quotes"
    )


def _complete(row: dict[str | None, Any]) -> dict[str, str]:
    """Return a row with text in every column, also where the line was too short."""
    return {name: value or "" for name, value in row.items() if name is not None}


def _labels(text: str) -> Iterator[str]:
    return (label.strip() for label in text.split(LABEL_SEPARATOR) if label.strip())
