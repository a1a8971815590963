"""AudioSet's segment lists: clips of videos with lists of class ids, wherever downloads put them.

Source: the CSV files of AudioSet (research.google.com/audioset/download.html).
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ast_stream.audio.containers import FFMPEG_SUFFIXES, recordings_in
from ast_stream.audio.recording import RecordingError, recording_duration_s
from ast_stream.dataset.annotations import ClipSection, LabelledClip, refusal, section_of
from ast_stream.dataset.tables import read_lines
from ast_stream.errors import ConfigError, Problem

logger = logging.getLogger(__name__)

LABELS_CSV = "class_labels_indices.csv"
TOLERANCE_S = 0.5  # by which a file may be longer than its segment and still be the segment
N_FIELDS = 4  # id, start, end, classes between quotes
NAMED = 5  # missing clips, in the notice that counts them


def is_segment_list(table: Path) -> bool:
    """Return whether `table` begins with comments that name YTID, as AudioSet's lists do."""
    for line in read_lines(table):
        if not line.startswith(("#", '"#')):
            return False
        if "YTID" in line:
            return True
    return False


def read_segments(table: Path) -> list[LabelledClip]:
    """Return the existing clips of a segment list; missing ones are logged.

    Files are looked for in the folder of the list and below it, by the names that downloaders
    give: the id, with a `Y` before it or the times after it. Of a file longer than its segment
    only the segment is taken.

    Raises:
        ConfigError: lines that are no segments, times that make no sense, ids that the class list
            does not have, no class list, or none of the clips.
    """
    names = _class_names(table)
    files = {path.stem: path for path in sorted(recordings_in(table.parent), key=_rank)}
    clips: list[LabelledClip] = []
    missing: list[str] = []
    problems: list[Problem] = []
    for line, fields in _segments(table):
        try:
            video, section, labels = _segment(fields, names)
        except ValueError as error:
            problems.append(Problem(str(table), line, "", str(error)))
            continue
        path = next((files[stem] for stem in _stems(video, section) if stem in files), None)
        if path is None:
            missing.append(video)
        else:
            clips.append(
                LabelledClip(path, labels, None, str(table), line, section=_within(path, section))
            )
    if not problems and not clips:
        problems.append(
            Problem(
                str(table), None, "",
                f"expected clips named after their id beside it, got none of {len(missing)}",
            )
        )  # fmt: skip
    if problems:
        raise ConfigError(problems)
    _warn_missing(table, missing, len(clips))
    return clips


def _segments(table: Path) -> Iterator[tuple[int, list[str]]]:
    lines = read_lines(table)
    named = next((line for line in lines if "YTID" in line), "")
    delimiter = ";" if named.count(";") > named.count(",") else ","  # as Excel saves it
    reader = csv.reader(lines, skipinitialspace=True, delimiter=delimiter)
    for fields in reader:
        if any(fields) and not fields[0].startswith("#"):
            yield reader.line_num, [field.strip() for field in fields]


def _segment(
    fields: Sequence[str], names: Mapping[str, str]
) -> tuple[str, ClipSection, tuple[str, ...]]:
    if len(fields) != N_FIELDS:
        raise ValueError("expected YTID, start, end and a list of classes")
    video, onset, offset, mids = fields
    try:
        labels = tuple(names[mid.strip()] for mid in mids.split(","))
    except KeyError as error:
        raise ValueError(f"{LABELS_CSV} has no class {error}") from error
    return video, section_of(onset, offset), labels


def _class_names(table: Path) -> Mapping[str, str]:
    places = [folder / LABELS_CSV for folder in (table.parent, table.parent.parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise refusal(
            table, f"expected {LABELS_CSV} beside it, for the names of the classes, got none"
        )
    lines = read_lines(path)
    delimiter = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    try:
        rows = csv.DictReader(lines, delimiter=delimiter)
        names = {row["mid"]: row["display_name"] for row in rows}
        if None in names.values():
            raise ValueError("a row without a name")
        return names
    except (KeyError, ValueError, csv.Error) as error:
        raise refusal(path, f"expected columns index, mid, display_name ({error!r})") from error


def _stems(video: str, section: ClipSection) -> Iterator[str]:
    """Yield the names that a clip may have without its suffix, the most specific first."""
    onsets, offsets = _times(section.onset_s), _times(section.offset_s)
    for name in (video, f"Y{video}"):
        for onset, offset in zip(onsets, offsets, strict=True):
            yield f"{name}_{onset}_{offset}"
            yield f"{name}_{onset}"
        yield name


def _times(seconds: float) -> tuple[str, ...]:
    return f"{seconds:.3f}", f"{seconds:.1f}", f"{seconds:g}", f"{round(seconds * 1000)}"


def _within(path: Path, section: ClipSection) -> ClipSection | None:
    """Return the segment within the file; None if the file is the segment, or unreadable."""
    try:
        duration_s = recording_duration_s(path)
    except RecordingError:
        return None  # reported with all other problems when it is decoded
    return section if duration_s > section.offset_s - section.onset_s + TOLERANCE_S else None


def _rank(path: Path) -> bool:
    """Order recordings of one name so that the last is the one to take: the converted one."""
    return path.suffix.lower() not in FFMPEG_SUFFIXES


def _warn_missing(table: Path, missing: list[str], n_found: int) -> None:
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        logger.warning(
            "%s: %d of %d clips are missing and are skipped: %s%s",
            table, len(missing), len(missing) + n_found, ", ".join(missing[:NAMED]), more,
        )  # fmt: skip
