"""Labelled strips of long recordings: where each sound begins and ends in them.

What one label says of a stretch that another one overlaps is only true for both together, so the
recording is cut wherever a label begins or ends. The stretches between labels hold none of the
classes: they are backgrounds as real as the sounds.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ast_stream.dataset.clip import Clip, Span, read_lines
from ast_stream.errors import ConfigError, Problem

AUDACITY_SUFFIX = ".txt"
SHORTEST_S = 0.1  # of a label; what several leave or share for less teaches nothing
MARGIN_S = 0.25  # around a label, since people mark neither the first nor the last of a sound


class Row(NamedTuple):
    """A label with its times, as they stand in the table; without them it is of the whole file."""

    clip: Clip
    onset: str
    offset: str


def audacity_rows(track: Path, recording: Path) -> list[Row]:
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
        clip = Clip(recording, (parts[2].strip(),), table=str(track), line=number)
        onset, offset = (part.replace(",", ".") for part in parts[:2])
        rows.append(Row(clip, onset, offset))
    if problems:
        raise ConfigError(problems)
    return rows


def strip_clips(rows: Sequence[Row]) -> list[Clip]:
    """Return the stretches of each recording with one set of labels each, and those without.

    A row without times labels its whole recording: several of them are one clip with the labels
    of all. A row without label and times says that its recording holds no event at all. The last
    stretch of a recording without labels ends at infinity: its length is not known yet.

    Raises:
        ConfigError: every time that is no number, negative, or not clearly after its onset; rows
            of one whole recording that say the same, or that other rows contradict.
    """
    problems: list[Problem] = []
    by_file: dict[Path, list[Clip]] = defaultdict(list)
    for row in rows:
        try:
            by_file[row.clip.path].append(replace(row.clip, span=_span(row)))
        except ValueError as error:
            problems.append(row.clip.problem(str(error)))
    for labelled in by_file.values():
        problems += _contradictions(labelled)
    if problems:
        raise ConfigError(problems)
    return [
        clip
        for labelled in by_file.values()
        for clip in (_together(_whole(labelled)) or _stretches(labelled))
    ]


def span_of(onset: str, offset: str) -> Span:
    """Return the stretch between two times as they stand in a table.

    Raises:
        ValueError: a time that is no number or negative, or a stretch shorter than `SHORTEST_S`.
    """
    span = Span(_seconds("onset", onset), _seconds("offset", offset))
    if span.onset_s >= span.offset_s:
        raise ValueError(
            f"expected an onset before the offset, got {span.onset_s:g} s and {span.offset_s:g} s"
        )
    if not _is_long_enough(span):
        raise ValueError(
            f"expected at least {SHORTEST_S:g} s from onset to offset, "
            f"got {span.offset_s - span.onset_s:.3g} s"
        )
    return span


def _span(row: Row) -> Span | None:
    if not row.onset.strip() and not row.offset.strip():
        return None
    if not row.clip.labels:
        raise ValueError("expected a label for these times, got none")
    return span_of(row.onset, row.offset)


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected seconds from the beginning, got {text.strip()!r}")
    return value


def _contradictions(labelled: Sequence[Clip]) -> Iterator[Problem]:
    """Yield what speaks against the rows that label one recording as a whole."""
    whole = _whole(labelled)
    if 0 < len(whole) < len(labelled):
        other = next(clip for clip in labelled if clip not in whole)
        yield whole[0].problem(
            f"expected times, since line {other.line} is of the same file, got none"
        )
    listed: dict[frozenset[str], Clip] = {}
    for clip in whole:
        first = listed.setdefault(frozenset(clip.labels), clip)
        if first is not clip:
            yield clip.problem(f"expected each file once with a label, got it in line {first.line}")
        if clip.fold != whole[0].fold:
            yield clip.problem(
                f"expected one fold for a file, got {whole[0].fold} in line {whole[0].line} "
                f"and {clip.fold}"
            )


def _whole(labelled: Sequence[Clip]) -> list[Clip]:
    return [clip for clip in labelled if clip.labels and clip.span is None]


def _together(whole: Sequence[Clip]) -> list[Clip]:
    """Return one clip with the labels of all, or none of none."""
    labels = dict.fromkeys(label for clip in whole for label in clip.labels)
    return [replace(clip, labels=tuple(labels)) for clip in whole[:1]]


def _is_long_enough(span: Span) -> bool:
    return round(span.offset_s - span.onset_s, 6) >= SHORTEST_S  # 4.1 - 4.0 is a little less


def _stretches(labelled: Sequence[Clip]) -> list[Clip]:
    """Return the stretches of one recording, in order: with labels, then without."""
    spans = [(clip, clip.span) for clip in labelled if clip.span is not None]
    edges = sorted({edge for _, span in spans for edge in span})
    stretches = []
    for piece in itertools.starmap(Span, itertools.pairwise(edges)):
        there = [
            clip
            for clip, span in spans
            if span.onset_s <= piece.onset_s and piece.offset_s <= span.offset_s
        ]
        if there and _is_long_enough(piece):
            labels = dict.fromkeys(label for clip in there for label in clip.labels)
            stretches.append(replace(there[0], labels=tuple(labels), span=piece))
    return stretches + _without_labels(labelled[0], [span for _, span in spans])


def _without_labels(first: Clip, spans: Sequence[Span]) -> list[Clip]:
    free, at_s = [], 0.0
    for span in sorted(spans):
        free.append(Span(at_s, span.onset_s - MARGIN_S))
        at_s = max(at_s, span.offset_s + MARGIN_S)
    free.append(Span(at_s, math.inf))
    return [replace(first, labels=(), row={}, span=span) for span in free if _is_long_enough(span)]
