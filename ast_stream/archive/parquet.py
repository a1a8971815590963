"""Rows as Parquet: the schemas of events, coverage and scores, and deterministic writing.

With the same version of pyarrow, the same rows give the same bytes, so that a part that is written
again after a kill is identical.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ast_stream.archive.listing import shown_name
from ast_stream.archive.stores import arrow
from ast_stream.units import SAMPLE_RATE

if TYPE_CHECKING:
    from ast_stream.archive.recording_rows import RecordingRows

EVENTS, COVERAGE, SCORES = "events", "coverage", "scores"
_COMPRESSION = "zstd"
# as in 20260501_213000.WAV, SITE_2026-05-01T21-30-00Z.flac and 20260501T213000+0200
_RECORDED = re.compile(
    r"(?<!\d)(\d{4})-?(\d{2})-?(\d{2})[T_ -](\d{2})[-:]?(\d{2})[-:]?(\d{2})(?!\d)"
)


def schema_of(table: str) -> Any:
    """Return the schema of a table."""
    pa = arrow()
    texts = pa.dictionary(pa.int32(), pa.string())
    fields: dict[str, list[tuple[str, Any]]] = {
        EVENTS: [
            ("file", texts),
            ("class", texts),
            ("label", texts),
            ("onset_s", pa.float64()),
            ("offset_s", pa.float64()),
            ("score", pa.float64()),
            ("peak", pa.float64()),
            ("mean", pa.float64()),
            ("uncertainty_s", pa.float64()),
            ("watcher_score", pa.float64()),
            ("verifier_score", pa.float64()),
            ("onset", pa.timestamp("ms")),
        ],
        COVERAGE: [
            ("file", pa.string()),
            ("bytes", pa.int64()),
            ("duration_s", pa.float64()),
            ("status", texts),
            ("sentence", pa.string()),
            ("model", texts),
            ("settings", texts),
            ("channel", texts),
            ("windows", pa.int64()),
            ("gated_s", pa.float64()),
            ("events", pa.int64()),
            ("recorded", pa.timestamp("ms")),
        ],
        SCORES: [
            ("file", texts),
            ("time_s", pa.float64()),
            ("scores", pa.list_(pa.float16())),
        ],
    }
    return pa.schema([pa.field(name, kind) for name, kind in fields[table]])


def event_rows(recording: RecordingRows) -> Iterator[dict[str, Any]]:
    """Yield the rows of a recording's events."""
    began = recorded_at(recording.name)
    for event in recording.events:
        yield {
            "file": shown_name(recording.name),
            "class": event.slug,
            "label": event.label,
            "onset_s": event.onset_s,
            "offset_s": event.offset_s,
            "score": event.score,
            "peak": event.peak,
            "mean": event.mean,
            "uncertainty_s": event.uncertainty_s,
            "watcher_score": event.watcher_score,
            "verifier_score": event.verifier_score,
            "onset": None if began is None else began + timedelta(seconds=event.onset_s),
        }


def coverage_row(recording: RecordingRows, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the coverage row of a recording.

    Args:
        facts: the columns model, settings and channel.
    """
    return {
        "file": shown_name(recording.name),
        "bytes": recording.n_bytes,
        "duration_s": recording.duration_s,
        "status": recording.status,
        "sentence": recording.sentence,
        "windows": recording.n_windows,
        "gated_s": recording.gated_s,
        "events": len(recording.events),
        "recorded": recorded_at(recording.name),
        **facts,
    }


def recorded_at(name: str) -> datetime | None:
    """Return the start time in a recording's file name, by the recorder's clock; None: no time.

    >>> recorded_at("site-4/AM17_20260501_213000.WAV")
    datetime.datetime(2026, 5, 1, 21, 30)
    >>> recorded_at("night.flac")
    """
    found = _RECORDED.search(name.rsplit("/", 1)[-1])
    if found is None:
        return None
    try:
        return datetime(*(int(part) for part in found.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None


def write_rows(path: Path, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a Parquet file.

    Raises:
        OSError: it cannot be written.
    """
    content = arrow().Table.from_pylist(list(rows), schema_of(table))
    with arrow("pyarrow.parquet").ParquetWriter(
        str(path), content.schema, compression=_COMPRESSION
    ) as writer:
        writer.write_table(content)


def write_scores(path: Path, recordings: Iterable[RecordingRows]) -> None:
    """Write the scores of recordings as a Parquet file; memory does not grow with their length.

    Raises:
        OSError: it cannot be written.
    """
    pa, schema = arrow(), schema_of(SCORES)
    with arrow("pyarrow.parquet").ParquetWriter(
        str(path), schema, compression=_COMPRESSION
    ) as writer:
        for recording in recordings:
            if recording.scores is None:
                continue
            name = shown_name(recording.name)
            for ends, scores in recording.scores.blocks():
                starts = np.arange(len(ends) + 1, dtype=np.int32) * scores.shape[1]
                columns = [
                    pa.DictionaryArray.from_arrays(np.zeros(len(ends), np.int32), pa.array([name])),
                    pa.array(ends / SAMPLE_RATE),
                    pa.ListArray.from_arrays(pa.array(starts), pa.array(scores.ravel())),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
