"""The table of a centre against the files of its boxes: every kind of row, by content.

What a box keeps is read here without the forwarder: events and gaps from its log as it grew, alerts
from their database, coverage from the ledger, health from the spool. A message that is missing is
explained only where the box itself has said that it no longer had it, by a row of kind `lost`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet_box import SITE, Body, FleetBox, alert_identity

from ast_stream.coverage.ledger import read_all_spans
from ast_stream.coverage.spans import Span
from ast_stream.coverage.timeline import Coverage
from ast_stream.labels import stable_id
from ast_stream.settings.load import load_settings
from ast_stream.settings.storage import coverage_ledger, unwritten_coverage
from ast_stream.units import NS_PER_SECOND, format_time

TYPES = "org.ast-stream."
INTERVAL_NS = 300 * NS_PER_SECOND
SET_BACK_NS = 600 * NS_PER_SECOND
Row = tuple[str, str, str, Any]  # source, id, type, data
Key = tuple[str, ...]  # of a box, whose name comes first
Kept = tuple[str, list[Body], bool]  # kind, versions, and whether it may be missing


@dataclass
class Comparison:
    """What is not as it should be; all lists must be empty.

    Attributes:
        expected: what the files have, by kind.
        rows: of the table, by kind.
        missing, different, surplus: rows.
        unexplained: missing messages of sources of which no row says that they are lost, and rows
            that say so without reason.
        lost: missing messages of which the box has said that they are lost.
        gap_reasons: how often each occurred.
    """

    expected: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    lost: int = 0
    gap_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def is_right(self) -> bool:
        """Whether the table is what the boxes have."""
        wrong = self.missing or self.different or self.surplus or self.unexplained
        return not wrong and not self.rows["refused"]


def compare(boxes: Sequence[FleetBox], rows: Sequence[Row]) -> Comparison:
    """Compare the whole table with all files."""
    found = Comparison()
    table: dict[Key, tuple[str, Any]] = {}
    lost: dict[tuple[str, str], list[Any]] = {}
    for source, id, type_, data in rows:
        kind = type_.removeprefix(TYPES).partition(".")[0]
        found.rows[kind] += 1
        if kind == "refused":
            continue
        box = source.split("/")[2]
        if kind == "lost":
            lost.setdefault((box, data["from"].partition(".")[0]), []).append(data)
            continue
        key = (box, *_identity(kind, data, id))
        if key in table:
            found.surplus.append(f"twice: {source} {id}")
        table[key] = (kind, data)
    kept = {key: item for box in boxes for key, item in _kept(box)}
    for key, (kind, versions, is_optional) in kept.items():
        found.expected[kind] += not is_optional
        if key in table:
            if _canonical(table[key][1]) not in map(_canonical, versions):
                found.different.append(f"{key}: {table[key][1]} where the box has {versions}")
        elif (key[0], _source(kind)) in lost:
            found.lost += 1
        elif not is_optional:
            found.missing.append(str(key))
    found.surplus += [str(key) for key in table if key not in kept]
    found.gap_reasons.update(data["reason"] for kind, data in table.values() if kind == "gap")
    found.unexplained = list(_unexplained(boxes, lost, table, kept))
    return found


def _kept(box: FleetBox) -> Iterator[tuple[Key, Kept]]:
    """Yield what a box has: kind, content, and whether it may not have been sent yet.

    Where a log was lost an event may have been published a second time, and either be sent.
    """
    for identity, versions in box.recorded.items():
        bodies = [logged.body for logged in versions]
        is_twice = "feed" in box.lost_sources
        yield (box.name, *identity), (versions[0].kind, bodies if is_twice else bodies[:1], False)
    for data, is_optional in coverage_of(box):
        yield (
            (box.name, "coverage", data["stream"], data["from"]),
            ("coverage", [data], is_optional),
        )
    for key, data in health_of(box).items():
        yield (box.name, "health", key), ("health", [data], False)


def _unexplained(
    boxes: Sequence[FleetBox],
    lost: dict[tuple[str, str], list[Any]],
    table: dict[Key, tuple[str, Any]],
    kept: dict[Key, Kept],
) -> Iterator[str]:
    """Yield what is said to be lost of sources of which no file was."""
    for (name, source), said in lost.items():
        box = next(box for box in boxes if box.name == name)
        if source not in box.lost_sources:
            yield f"{name} says that {source} is lost: {said}"
        for data in said:
            if not data["reason"] or data["upto"] is None:
                yield f"{name}: {data} does not say what is lost"
    for box in boxes:
        counted = json.loads((box.folder / "state/forward/centre.json").read_bytes())["lost"]
        own = [data for (name, _), said in lost.items() if name == box.name for data in said]
        expected = sum(1 if data["count"] is None else data["count"] for data in own)
        if counted != expected:
            yield f"{box.name} has counted {counted} lost messages, its rows say {expected}"
        is_missing = {
            _source(kind) for key, (kind, *_) in kept.items()
            if key[0] == box.name and key not in table and _source(kind) in box.lost_sources
        }  # fmt: skip
        for source in is_missing - {source for name, source in lost if name == box.name}:
            yield f"{box.name} does not say that {source} is lost"


def coverage_of(box: FleetBox) -> Iterator[tuple[Body, bool]]:
    """Yield what the ledger says of each interval that is over, and whether it may be unsent.

    What was recorded by a clock that was ahead is sent when it was read in time.
    """
    settings = load_settings(box.config)
    ledger = (coverage_ledger(settings).folder, unwritten_coverage(settings).path)
    for stream, spans in read_all_spans([ledger]).items():
        eras = list(_eras(spans))
        known: list[Span] = []
        for era in eras:
            known = known + era  # what came later changes nothing that was sent
            start_ns = min(span.time_ns for span in era) // INTERVAL_NS * INTERVAL_NS
            while start_ns + INTERVAL_NS <= era[-1].stop_ns:
                stop_ns = start_ns + INTERVAL_NS
                found = Coverage.of(
                    stream, known, stop_ns, is_expected=True, since_ns=start_ns, until_ns=stop_ns
                ).to_json()
                data = {
                    "stream": stream,
                    "from": format_time(start_ns),
                    "to": format_time(stop_ns),
                    "seconds": {kind: value for kind, value in found["seconds"].items() if value},
                    "heard": found["heard"],
                    "reasons": found["reasons"],
                }
                if found["samples"]["total"]:
                    yield data, era is not eras[-1]
                start_ns = stop_ns


def _eras(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Yield the spans between two moments at which a clock was set back."""
    era: list[Span] = []
    for span in spans:
        if era and span.time_ns < era[-1].stop_ns - SET_BACK_NS:
            yield era
            era = []
        era.append(span)
    if era:
        yield era


def health_of(box: FleetBox) -> dict[str, Body]:
    """Return the summaries of the spool by the ids that their messages have."""
    found = {}
    for file in sorted((box.folder / "state/forward/health").glob("health-*.jsonl")):
        for line in file.read_bytes().splitlines():
            summary = json.loads(line)
            id = stable_id(SITE, box.name, summary["key"], "health")
            found[f"{id}.health"] = summary["data"]
    return found


def _identity(kind: str, data: Body, id: str) -> Key:
    """Return what tells a message from others of its box, as the files do."""
    match kind:
        case "event":
            return data["id"], data["type"], str(data["at_sample"])
        case "alert":
            return tuple(map(str, alert_identity(data)))
        case "gap":
            return "gap", data["stream"], data["epoch"], str(data["start"])
        case "coverage":
            return "coverage", data["stream"], data["from"]
    return kind, id


def _source(kind: str) -> str:
    return {"event": "feed", "gap": "feed", "alert": "alerts"}.get(kind, kind)


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True)
