"""Lists of labelled recordings: a folder per class, CSV and TSV tables, Audacity label tracks."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ast_stream.audio.containers import is_recording, recordings_in
from ast_stream.dataset.annotations import LabelledClip, LabelRow, refusal, section_clips
from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import did_you_mean

logger = logging.getLogger(__name__)

LABEL_SEPARATOR = ";"
NO_CLASS = "-"  # label of a file with a sound that belongs to none of the classes
AUDACITY_SUFFIX = ".txt"
FOLD, ONSET, OFFSET = "fold", "onset", "offset"  # columns that a table need not have
SIBLING_FOLDERS = ("clips", "audio", "wav")  # beside a table, where its files may lie
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[,;\t\s]*$', re.IGNORECASE)
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods, .xls


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns, and which rows count.

    Attributes:
        fold, onset, offset: None: the column of that name, if there is one.
        onset, offset: seconds; a table with both labels sections of long recordings.
        where: accepted values by column; None: all rows.
    """

    file: str = "file"
    label: str = "label"
    fold: str | None = None
    where: Mapping[str, Collection[str]] | None = None
    onset: str | None = None
    offset: str | None = None


class Table(NamedTuple):
    """The rows of a table with the line that each ends on, and the problems with them.

    Attributes:
        delimiter: what separates the cells.
    """

    header: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[Problem]
    delimiter: str


def read_folder(folder: Path) -> list[LabelledClip]:
    """Return the files of each sub-folder, labelled by its name, and labelled recordings.

    A recording in `folder` itself counts if an Audacity label track lies beside it. Recordings in
    formats that cannot be read are among the files: the decoder says so.
    """
    clips = [
        LabelledClip(path, (sub_folder.name,))
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
    return clips + section_clips(rows)


def read_table(table: Path, columns: Columns) -> list[LabelledClip]:
    """Return the labelled files of a table, and the sections of one with onsets and offsets.

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
    clips: list[LabelledClip] = []
    for line, row in rows:
        if any(row[name] not in values for name, values in accepted.items()):
            continue
        labels = tuple(_labels(row[columns.label]))
        if labels == (NO_CLASS,):
            labels = ()
        elif not labels and not has_times:
            text = f"expected a label, got none; {NO_CLASS} stands for a sound of no class"
            problems.append(Problem(str(table), line, columns.label, text))
        if not row[columns.file].strip():
            problems.append(Problem(str(table), line, columns.file, "expected a file, got none"))
        path = find_beside(table, row[columns.file])
        clips.append(LabelledClip(path, labels, row.get(fold) or None, str(table), line, row))
    if problems:
        raise ConfigError(problems)
    times = [[clip.row.get(name, "") for name in (onset, offset)] for clip in clips]
    if delimiter != ",":  # where spreadsheets have ; or tabs, numbers may have a decimal comma
        times = [[time.replace(",", ".") for time in pair] for pair in times]
    return section_clips([LabelRow(clip, *pair) for clip, pair in zip(clips, times, strict=True)])


def audacity_rows(track: Path, recording: Path) -> list[LabelRow]:
    """Return the labels of an Audacity label track: onset, offset and label between tabs.

    Raises:
        ConfigError: a line that is none of these.
    """
    rows, problems = [], []
    lines = read_lines(track)
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):  # frequencies of the label above
            continue
        parts = line.rstrip("\r\n").split("\t")
        if len(parts) < 3 or not all(part.strip() for part in parts[:3]):
            problems.append(
                Problem(str(track), number, "", "expected onset, offset and label between tabs")
            )
            continue
        clip = LabelledClip(recording, (parts[2].strip(),), table=str(track), line=number)
        onset, offset = (part.replace(",", ".") for part in parts[:2])
        rows.append(LabelRow(clip, onset, offset))
    if problems:
        raise ConfigError(problems)
    return rows


def read_rows(table: Path) -> Table:
    """Return header and rows of a table with commas, semicolons or tabs, as its header has them.

    Raises:
        ConfigError: it is no table of text.
    """
    lines = read_lines(table)
    n_before = 0
    delimiter = _delimiter(lines[0] if lines else "")
    if lines and (separator := _SEPARATOR_LINE.match(lines[0])):  # for Excel
        delimiter, n_before = separator[1], 1
    try:
        reader = csv.DictReader(lines[n_before:], delimiter=delimiter)
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        read = [(reader.line_num + n_before, row) for row in reader]
    except csv.Error as error:
        raise refusal(table, f"cannot be read as a table ({error})") from error
    problems = [
        Problem(str(table), n_before + 1, name, "expected each column once, got it twice")
        for name, times in Counter(filter(None, header)).items()
        if times > 1
    ]
    problems += [
        Problem(str(table), line, "", _surplus_cells(len(header), row[None], delimiter))
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
    folders = (table.parent, *(table.parent / sub for sub in SIBLING_FOLDERS))
    places = [folder / spelling for spelling in names for folder in folders]
    return next((place for place in places if _is_file(place)), places[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _delimiter(header: str) -> str:
    """Return the separator of the cells of a header."""
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


def _surplus_cells(n_columns: int, surplus: Sequence[str], delimiter: str) -> str:
    what = {",": "commas", ";": "semicolons"}.get(delimiter, "tabs")
    return (
        f"expected {n_columns} cells as in the header, got {n_columns + len(surplus)}; "
        f"a label with {what} needs quotes"
    )


def _complete(row: dict[str | None, Any]) -> dict[str, str]:
    """Return a row with text in every column, even if the line was too short."""
    return {name: value or "" for name, value in row.items() if name is not None}


def _labels(text: str) -> Iterator[str]:
    return (label.strip() for label in text.split(LABEL_SEPARATOR) if label.strip())


def read_lines(path: Path) -> list[str]:
    """Return the lines, with their ends, of a table or list in UTF-8 or UTF-16.

    Raises:
        ConfigError: it cannot be read, or is a workbook or in another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror or error})") from error
    if data.startswith(_WORKBOOKS):
        raise refusal(path, "expected a table of text, got a workbook; save it as CSV UTF-8")
    try:
        return list(io.StringIO(data.decode(_encoding(data)), newline=""))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise refusal(
            path,
            f"expected UTF-8, got {data[error.start : error.start + 1]!r}; save it as CSV UTF-8",
            line,
        ) from error


def _encoding(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    zeros = [data[first:1_000:2].count(0) for first in (0, 1)]
    if max(zeros) > len(data[:1_000]) / 4:  # letters of UTF-16 without its mark
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8-sig"
