"""Events for other programs: CSV, Parquet, Audacity label tracks, Raven selection tables.

Label tracks and selection tables count seconds from the beginning of a recording, so its start must
be given. In all formats an event that has not ended has no duration.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush, merge
from itertools import count, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, get_args

from ast_stream.history.records import EventRecord, GapRecord
from ast_stream.messages.event import EventMessage, Gap, GapMessage
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time

Format = Literal["csv", "parquet", "audacity", "raven"]
FORMATS: tuple[Format, ...] = get_args(Format)
COLUMNS = (
    "id", "stream", "class", "label", "onset", "offset", "duration_s", "score", "peak", "mean",
    "uncertainty_s", "duration_reliable", "reason", "captured", "scored", "published", "epoch",
    "onset_sample", "offset_sample", "model", "labels", "verdict", "has_clip",
)  # fmt: skip
_TIMES = ("onset", "offset", "captured", "scored", "published")
_RAVEN = (
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)",
    "High Freq (Hz)", "Class", "Score", "Stream", "Verdict", "Event",
)  # fmt: skip
_ROWS_AT_ONCE = 50_000
_Message = EventMessage | GapMessage


def fields_of(event: EventRecord) -> dict[str, Any]:
    """Return the fields of an event by `COLUMNS`, with times in nanoseconds."""
    return {
        "id": event.id,
        "stream": event.stream,
        "class": event.class_,
        "label": event.label,
        "onset": event.onset_ns,
        "offset": event.offset_ns,
        "duration_s": event.duration_s,
        "score": event.score,
        "peak": event.peak,
        "mean": event.mean,
        "uncertainty_s": event.uncertainty_s,
        "duration_reliable": event.duration_reliable,
        "reason": event.reason,
        "captured": event.captured_ns,
        "scored": event.scored_ns,
        "published": event.published_ns,
        "epoch": event.epoch,
        "onset_sample": event.onset_sample,
        "offset_sample": event.offset_sample,
        "model": event.model,
        "labels": event.labels,
        "verdict": event.verdict,
        "has_clip": event.has_clip,
    }


def as_json(event: EventRecord) -> dict[str, Any]:
    """Return an event as JSON values, with times as text."""
    fields = fields_of(event)
    for name in _TIMES:
        if fields[name] is not None:
            fields[name] = format_time(fields[name])
    return fields


def csv_lines(events: Iterable[EventRecord]) -> Iterator[str]:
    """Yield the header and the rows of a CSV file, each with its line terminator."""
    yield _csv_line(COLUMNS)
    for event in events:
        fields = as_json(event) | {"labels": json.dumps(event.labels, ensure_ascii=False)}
        yield _csv_line("" if value is None else value for value in fields.values())


def audacity_lines(events: Iterable[EventRecord], start_ns: int) -> Iterator[str]:
    """Yield a label track: onset, offset and label, in seconds since `start_ns`."""
    for event in events:
        onset_s, offset_s = _seconds(event, start_ns)
        yield f"{onset_s:.6f}\t{offset_s:.6f}\t{event.label}\n"


def raven_lines(events: Iterable[EventRecord], start_ns: int) -> Iterator[str]:
    """Yield a Raven selection table, in seconds since `start_ns`, spanning all frequencies."""
    yield "\t".join(_RAVEN) + "\n"
    for number, event in enumerate(events, start=1):
        onset_s, offset_s = _seconds(event, start_ns)
        cells = (
            number, "Spectrogram 1", 1, f"{onset_s:.6f}", f"{offset_s:.6f}", 0, SAMPLE_RATE // 2,
            event.label, f"{event.peak:.4f}", event.stream, event.verdict or "", event.id,
        )  # fmt: skip
        yield "\t".join(map(str, cells)) + "\n"


def write_parquet(events: Iterable[EventRecord], path: Path) -> None:
    """Write a Parquet file, with times as UTC timestamps; needs pyarrow.

    Raises:
        OSError: it cannot be written.
    """
    pa: Any = importlib.import_module("pyarrow")  # untyped
    parquet: Any = importlib.import_module("pyarrow.parquet")
    time = pa.timestamp("ns", tz="UTC")
    kinds = {
        **dict.fromkeys(COLUMNS, pa.string()),
        **dict.fromkeys(_TIMES, time),
        **dict.fromkeys(("duration_s", "score", "peak", "mean", "uncertainty_s"), pa.float64()),
        **dict.fromkeys(("onset_sample", "offset_sample"), pa.int64()),
        **dict.fromkeys(("duration_reliable", "has_clip"), pa.bool_()),
        "labels": pa.map_(pa.string(), pa.string()),
    }
    schema = pa.schema([pa.field(name, kinds[name]) for name in COLUMNS])
    remaining = iter(events)
    with parquet.ParquetWriter(str(path), schema, compression="zstd") as writer:
        while rows := list(islice(remaining, _ROWS_AT_ONCE)):
            fields = [fields_of(row) | {"labels": list(row.labels.items())} for row in rows]
            writer.write_table(pa.Table.from_pylist(fields, schema))


def messages_of(event: EventRecord) -> Iterator[EventMessage]:
    """Yield the `begin` and `end` of an event as messages of the feed, for rules.

    The updates in between are not stored, so the `begin` has the highest score of the whole event.
    """
    captured_ns = event.onset_ns if event.captured_ns is None else event.captured_ns
    begin = EventMessage(
        id=event.id, type="begin", stream=event.stream, labels=event.labels, class_=event.class_,
        label=event.label, index=event.index, score=event.score, peak=event.peak,
        onset_ns=event.onset_ns, uncertainty_s=event.uncertainty_s,
        onset_sample=event.onset_sample, epoch=event.epoch, captured_ns=captured_ns,
        scored_ns=event.scored_ns, model=event.model, watcher_score=event.watcher_score,
        verifier_score=event.verifier_score,
    )  # fmt: skip
    yield begin
    if event.offset_ns is not None:
        yield begin.model_copy(
            update={
                "type": "end",
                "mean": event.mean,
                "offset_ns": event.offset_ns,
                "duration_s": event.duration_s,
                "duration_reliable": event.duration_reliable,
                "offset_sample": event.offset_sample,
                "at_sample": event.at_sample,
                "reason": event.reason,
                "captured_ns": _end_captured_ns(event, captured_ns),
                "watcher_score": None,
            }
        )


def in_order(
    events: Iterable[EventRecord], gaps: Iterable[GapRecord] = ()
) -> Iterator[EventMessage | GapMessage]:
    """Yield the messages of events and gaps in the order of the audio; see `messages_of`.

    Args:
        events, gaps: oldest first.
    """
    numbers = count()
    waiting: list[tuple[int, int, _Message]] = []
    records: Iterator[tuple[int, list[_Message]]] = merge(
        ((event.onset_ns, [*messages_of(event)]) for event in events),
        ((gap.start_ns, [_gap_message(gap)]) for gap in gaps),
        key=itemgetter(0),
    )
    for at_ns, messages in records:
        while waiting and waiting[0][0] <= at_ns:  # everything that follows was captured later
            yield heappop(waiting)[2]
        for message in messages:
            captured_ns = message.captured_ns if isinstance(message, EventMessage) else at_ns
            heappush(waiting, (captured_ns, next(numbers), message))
    while waiting:
        yield heappop(waiting)[2]


def _gap_message(gap: GapRecord) -> GapMessage:
    lost = Gap(gap.stream, gap.epoch, gap.start_sample, gap.samples, gap.reason)
    return GapMessage.of(lost, gap.start_ns)


def _end_captured_ns(event: EventRecord, captured_ns: int) -> int:
    """Return when the audio that decided the end was captured; the message followed its scoring."""
    late_ns = 0
    if event.published_ns is not None:
        late_ns = max(0, event.published_ns - captured_ns)
    return max(captured_ns, event.offset_ns or 0, event.updated_ns - late_ns)


def _seconds(event: EventRecord, start_ns: int) -> tuple[float, float]:
    offset_ns = event.onset_ns if event.offset_ns is None else event.offset_ns
    return (event.onset_ns - start_ns) / NS_PER_SECOND, (offset_ns - start_ns) / NS_PER_SECOND


def _csv_line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
