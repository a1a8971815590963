"""Reviewed clips as a training set: a table that `train` and `calibrate` read, and its sounds.

Events that follow each other within minutes are one group, which nothing splits: a dog that barks
ten times is one example of a dog, not ten.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_stream.audio.encoder import encode_pcm
from ast_stream.audio.recording import RecordingError, read_mono
from ast_stream.dataset.tables import LABEL_SEPARATOR, NO_CLASS
from ast_stream.history.database import History
from ast_stream.history.records import EventQuery, EventRecord
from ast_stream.messages.audio import Pcm16
from ast_stream.runtime.files import make_folder, replace_file
from ast_stream.units import format_time, seconds_to_ns, seconds_to_samples
from ast_stream.verdicts.reviewed_events import ReviewedEvent

TABLE = "clips.csv"
SOUNDS = "clips"
GROUP_GAP_S = 600.0
MARGIN_S = 0.5  # around the event: people and detectors mark neither the first nor the last of it
_LONGEST_S = 600.0  # an event that begins longer before another one does not overlap it
COLUMNS = ("file", "label", "fold", "group", "stream", "time", "event", "class", "verdict", "by")


@dataclass(frozen=True)
class Exported:
    """What became of reviewed events.

    Attributes:
        n_right, n_other, n_wrong: clips written, by verdict.
        without_clip: events whose sound was not kept.
        ambiguous: wrong ones beside an event that nobody has judged, whose clip may hold a class.
        unreadable: what is wrong with clips that cannot be read.
    """

    n_right: int
    n_other: int
    n_wrong: int
    without_clip: int
    ambiguous: int
    unreadable: list[str]


def export(reviewed: Sequence[ReviewedEvent], history: History, clips: Path, out: Path) -> Exported:
    """Write the sounds of reviewed events and their table to a folder.

    Args:
        clips: the folder of the clips.
    """
    make_folder(out / SOUNDS)
    groups = groups_of([reviewed_event.event for reviewed_event in reviewed])
    rows, counts = [], {"right": 0, "other": 0, "wrong": 0}
    without_clip = ambiguous = 0
    unreadable: list[str] = []
    right = {reviewed_event.event.id for reviewed_event in reviewed if reviewed_event.is_right}
    for reviewed_event in reviewed:
        verdict, event = reviewed_event.verdict, reviewed_event.event
        if verdict.verdict == "unsure":
            continue
        if reviewed_event.clip is None:
            without_clip += 1
            continue
        others = list(_beside(history, event))
        if verdict.verdict == "wrong" and any(other.id not in right for other in others):
            ambiguous += 1
            continue
        labels = {other.label for other in others if other.id in right}
        if verdict.verdict != "wrong":
            labels.add(verdict.label or event.label)
        try:
            pcm = cut_of(reviewed_event, clips)
        except RecordingError as error:
            unreadable.append(f"{reviewed_event.clip.path}: {error.text}")
            continue
        file = f"{event.id}.flac"
        replace_file(out / SOUNDS / file, _flac(pcm))
        counts[verdict.verdict] += 1
        label = LABEL_SEPARATOR.join(sorted(labels)) or NO_CLASS
        rows.append(
            (
                file, label, reviewed_event.day, groups[event.id], event.stream,
                format_time(event.onset_ns), event.id, event.label, verdict.verdict, verdict.by,
            )
        )  # fmt: skip
    replace_file(out / TABLE, _table(rows))
    return Exported(
        counts["right"], counts["other"], counts["wrong"], without_clip, ambiguous, unreadable
    )


def groups_of(events: Iterable[EventRecord]) -> dict[str, str]:
    """Return the group of each event, by its id: those of a stream that follow each other."""
    groups: dict[str, str] = {}
    last: dict[str, tuple[int, str]] = {}
    for event in sorted(events, key=lambda event: event.key):
        before = last.get(event.stream)
        group = f"{event.stream} {format_time(event.onset_ns)}"
        if before is not None and event.onset_ns - before[0] <= seconds_to_ns(GROUP_GAP_S):
            group = before[1]
        end_ns = event.onset_ns if event.offset_ns is None else event.offset_ns
        last[event.stream] = (max(end_ns, before[0] if before else end_ns), group)
        groups[event.id] = group
    return groups


def cut_of(reviewed: ReviewedEvent, clips: Path) -> Pcm16:
    """Return the sound of an event out of its clip, with a margin.

    Raises:
        RecordingError: the clip cannot be read, or holds nothing of the event.
    """
    assert reviewed.clip is not None
    path = clips / reviewed.clip.path
    if not path.is_file():
        raise RecordingError(path, "the clip is not there")
    pcm = np.concatenate([np.zeros(0, np.int16), *read_mono(path)])
    start, stop = 0, len(pcm)
    if reviewed.event.onset_sample is not None:
        margin = seconds_to_samples(MARGIN_S)
        start = max(0, reviewed.event.onset_sample - margin - reviewed.clip.start_sample)
        if reviewed.event.offset_sample is not None:
            stop = min(stop, reviewed.event.offset_sample + margin - reviewed.clip.start_sample)
    if start >= stop:
        raise RecordingError(path, "the clip holds nothing of the event")
    return pcm[start:stop]


def _beside(history: History, event: EventRecord) -> Iterable[EventRecord]:
    """Yield other events of the stream that may be heard in the cut of an event."""
    margin_ns = seconds_to_ns(MARGIN_S)
    end_ns = (event.onset_ns if event.offset_ns is None else event.offset_ns) + margin_ns
    query = EventQuery(
        streams=(event.stream,),
        since_ns=event.onset_ns - seconds_to_ns(_LONGEST_S),
        until_ns=end_ns,
        newest_first=False,
    )
    for other in history.all_events(query):
        last_ns = end_ns if other.offset_ns is None else other.offset_ns
        if other.id != event.id and last_ns >= event.onset_ns - margin_ns:
            yield other


def _flac(pcm: Pcm16) -> bytes:
    return encode_pcm(pcm, "FLAC", "PCM_16")


def _table(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()
