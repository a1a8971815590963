"""Annotations: labels of a recording, for all of it or from onset to offset.

What one label says of a section that another one overlaps is only true for both together, so a
recording is cut wherever a label begins or ends. The sections between labels hold none of the
classes: they are backgrounds as real as the sounds.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ast_stream.errors import ConfigError, Problem

MIN_SECTION_S = 0.1  # of a label; a shorter section that several leave or share teaches nothing
MARGIN_S = 0.25  # around a label, since people mark neither the first nor the last of a sound


class ClipSection(NamedTuple):
    """A section of a recording, in seconds from its beginning."""

    onset_s: float
    offset_s: float


@dataclass(frozen=True)
class LabelledClip:
    """One labelled file or section, the place of its label, and its row of the table.

    Attributes:
        labels: none for a recording, or section of one, that holds no event.
        section: the section that the labels hold for; None: the whole file.
    """

    path: Path
    labels: tuple[str, ...]
    fold: str | None = None
    table: str = ""
    line: int | None = None
    row: Mapping[str, str] = field(default_factory=dict, compare=False)
    section: ClipSection | None = None

    def problem(self, text: str) -> Problem:
        """Return a problem with this clip, at its line of the table or at the file itself."""
        if self.table:
            return Problem(self.table, self.line, self.path.name, text)
        return Problem(str(self.path), None, "", text)


def refusal(path: Path, text: str, line: int | None = None) -> ConfigError:
    """Return the error about a whole file, or about one of its lines."""
    return ConfigError([Problem(str(path), line, "", text)])


class LabelRow(NamedTuple):
    """One label from a table: times as text, empty if it applies to the whole file."""

    clip: LabelledClip
    onset: str
    offset: str


def section_clips(rows: Sequence[LabelRow]) -> list[LabelledClip]:
    """Return the sections of each recording with one set of labels each, and those without.

    A row without times labels its whole recording: several of them are one clip with the labels
    of all. A row without label and times says that its recording holds no event at all. The last
    section of a recording without labels ends at infinity: its length is not known yet.

    Raises:
        ConfigError: every time that is no number, negative, or not clearly after its onset; rows
            of one whole recording that say the same, or that other rows contradict.
    """
    problems: list[Problem] = []
    by_file: dict[Path, list[LabelledClip]] = defaultdict(list)
    for row in rows:
        try:
            by_file[row.clip.path].append(replace(row.clip, section=_section(row)))
        except ValueError as error:
            problems.append(row.clip.problem(str(error)))
    for labelled in by_file.values():
        problems += _contradictions(labelled)
    if problems:
        raise ConfigError(problems)
    return [
        clip
        for labelled in by_file.values()
        for clip in (_together(_whole(labelled)) or _sections(labelled))
    ]


def section_of(onset: str, offset: str) -> ClipSection:
    """Return the section between two times as they stand in a table.

    Raises:
        ValueError: a time that is no number or negative, or a section shorter than `MIN_SECTION_S`.
    """
    section = ClipSection(_seconds("onset", onset), _seconds("offset", offset))
    if section.onset_s >= section.offset_s:
        raise ValueError(
            "expected an onset before the offset, "
            f"got {section.onset_s:g} s and {section.offset_s:g} s"
        )
    if not _is_long_enough(section):
        raise ValueError(
            f"expected at least {MIN_SECTION_S:g} s from onset to offset, "
            f"got {section.offset_s - section.onset_s:.3g} s"
        )
    return section


def _section(row: LabelRow) -> ClipSection | None:
    if not row.onset.strip() and not row.offset.strip():
        return None
    if not row.clip.labels:
        raise ValueError("expected a label for these times, got none")
    return section_of(row.onset, row.offset)


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected seconds from the beginning, got {text.strip()!r}")
    return value


def _contradictions(labelled: Sequence[LabelledClip]) -> Iterator[Problem]:
    """Yield contradictions among the rows that label one recording as a whole."""
    whole = _whole(labelled)
    if 0 < len(whole) < len(labelled):
        other = next(clip for clip in labelled if clip not in whole)
        yield whole[0].problem(
            f"expected times, since line {other.line} is of the same file, got none"
        )
    listed: dict[frozenset[str], LabelledClip] = {}
    for clip in whole:
        first = listed.setdefault(frozenset(clip.labels), clip)
        if first is not clip:
            yield clip.problem(f"expected each file once with a label, got it in line {first.line}")
        if clip.fold != whole[0].fold:
            yield clip.problem(
                f"expected one fold for a file, got {whole[0].fold} in line {whole[0].line} "
                f"and {clip.fold}"
            )


def _whole(labelled: Sequence[LabelledClip]) -> list[LabelledClip]:
    """Return what is said of the whole recording; without any section, also that it is no event."""
    if all(clip.section is None for clip in labelled):
        return list(labelled)
    return [clip for clip in labelled if clip.labels and clip.section is None]


def _together(whole: Sequence[LabelledClip]) -> list[LabelledClip]:
    """Return one clip with the labels of all, or none of none."""
    labels = dict.fromkeys(label for clip in whole for label in clip.labels)
    return [replace(clip, labels=tuple(labels)) for clip in whole[:1]]


def _is_long_enough(section: ClipSection) -> bool:
    return (
        round(section.offset_s - section.onset_s, 6) >= MIN_SECTION_S
    )  # 4.1 - 4.0 is a little less


def _sections(labelled: Sequence[LabelledClip]) -> list[LabelledClip]:
    """Return the sections of one recording, in order: with labels, then without."""
    labelled_sections = [(clip, clip.section) for clip in labelled if clip.section is not None]
    edges = sorted({edge for _, section in labelled_sections for edge in section})
    sections = []
    for piece in itertools.starmap(ClipSection, itertools.pairwise(edges)):
        labelled_here = [
            clip
            for clip, section in labelled_sections
            if section.onset_s <= piece.onset_s and piece.offset_s <= section.offset_s
        ]
        if labelled_here and _is_long_enough(piece):
            labels = dict.fromkeys(label for clip in labelled_here for label in clip.labels)
            sections.append(replace(labelled_here[0], labels=tuple(labels), section=piece))
    return sections + _without_labels(labelled[0], [section for _, section in labelled_sections])


def _without_labels(
    first: LabelledClip, labelled_sections: Sequence[ClipSection]
) -> list[LabelledClip]:
    free, end_s = [], 0.0
    for section in sorted(labelled_sections):
        free.append(ClipSection(end_s, section.onset_s - MARGIN_S))
        end_s = max(end_s, section.offset_s + MARGIN_S)
    free.append(ClipSection(end_s, math.inf))
    return [
        replace(first, labels=(), row={}, section=section)
        for section in free
        if _is_long_enough(section)
    ]
