from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.coverage.spans import Kind, Span
from ast_stream.forward.coverage_source import INTERVAL_NS, CoverageSource, Watched
from ast_stream.forward.source import Cursor, Item
from ast_stream.messages.pool import StreamClaim
from ast_stream.pool.coverage import OwnPart
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time

ATTIC = BoxIdentity("home", "attic")
T0_NS = 5_000_000 * INTERVAL_NS


def span(
    kind: Kind, start_s: int, stop_s: int, stream: str = "porch", epoch: str = "e1", **more: Any
) -> Span:
    """Return what became of some seconds after T0."""
    return Span(
        stream=stream,
        epoch=epoch,
        kind=kind,
        start_sample=start_s * SAMPLE_RATE,
        samples=(stop_s - start_s) * SAMPLE_RATE,
        time_ns=T0_NS + start_s * NS_PER_SECOND,
        **more,
    )


class Box:
    """A ledger, and sources that read it at a time of the test's choice."""

    def __init__(self, folder: Path, lasting: tuple[str, ...] = ("porch", "yard")) -> None:
        self.now_s = 0
        self._folder = folder
        self._lasting = lasting
        self.ledger = CoverageLedger(folder / "coverage", folder / "unwritten.jsonl")

    def add(self, *spans: Span) -> None:
        for one in spans:
            self.ledger.add(one)
        self.ledger.save(at_once=True)

    def source(self, cursor: Cursor = None, part: OwnPart | None = None) -> CoverageSource:
        ledgers = ((self._folder / "coverage", self._folder / "unwritten.jsonl"),)
        return CoverageSource(
            lambda: Watched(ledgers, self._lasting),
            cursor,
            ATTIC,
            wall_ns=lambda: T0_NS + self.now_s * NS_PER_SECOND,
            every_s=0.0,
            part=part,
        )


def data_of(items: list[Item]) -> list[dict[str, Any]]:
    return [json.loads(item.outgoing.body)["data"] for item in items if item.outgoing is not None]


def test_an_interval_is_sent_once_it_is_behind_the_last_record(tmp_path: Path) -> None:
    box = Box(tmp_path)
    source = box.source()
    box.add(span("listened", 0, 299))
    assert list(source.read(10, 0)) == []
    box.add(span("gap", 299, 310, reason="overflow"))
    (item,) = source.read(10, 0)
    assert data_of([item]) == [
        {
            "stream": "porch",
            "from": format_time(T0_NS),
            "to": format_time(T0_NS + INTERVAL_NS),
            "seconds": {"listened": 299.0, "gap": 1.0, "total": 300.0},
            "heard": 299 / 300,
            "reasons": {"gap": {"overflow": SAMPLE_RATE}},
        }
    ]
    assert list(source.read(10, 0)) == []


def test_intervals_are_the_same_whenever_they_are_read(tmp_path: Path) -> None:
    box = Box(tmp_path)
    pieces = [span("listened" if n % 3 else "gated", 70 * n, 70 * n + 70) for n in range(30)]
    source = box.source()
    found: list[Item] = []
    for piece in pieces:
        box.add(piece)
        found += source.read(10, 0)
    again = list(box.source().read(100, 0))
    assert [item.outgoing for item in found] == [item.outgoing for item in again]
    assert len(found) == 7
    rest = box.source(found[3].cursor).read(100, 0)
    assert [item.outgoing for item in rest] == [item.outgoing for item in found[4:]]


def test_a_worker_that_comes_back_decides_what_is_said_of_the_time_it_was_away(
    tmp_path: Path,
) -> None:
    box = Box(tmp_path)
    box.add(span("listened", 0, 450))
    box.now_s = 5000
    source = box.source()
    assert len(source.read(10, 0)) == 1  # what is behind it may still come out of a ring
    box.add(span("gap", 450, 4000, reason="ring_overrun"), span("listened", 4000, 4210))
    found = data_of(list(source.read(100, 0)))
    assert len(found) == 13
    assert found[0]["seconds"] == {"listened": 150.0, "gap": 150.0, "total": 300.0}
    assert found[-1]["seconds"] == {"gap": 100.0, "listened": 200.0, "total": 300.0}


def test_a_stream_that_nobody_hears_holds_up_no_other(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.add(span("listened", 0, 100), span("listened", 0, 1000, stream="yard"))
    box.now_s = 9000
    found = data_of(list(box.source().read(100, 0)))
    assert [one["stream"] for one in found] == ["yard"] * 3


def test_the_end_of_a_recording_is_sent_when_nothing_has_followed(tmp_path: Path) -> None:
    box = Box(tmp_path, lasting=())
    box.add(span("listened", 0, 400))
    source = box.source()
    box.now_s = 600
    assert len(source.read(10, 0)) == 1
    box.now_s = 1500
    (last,) = data_of(list(source.read(10, 0)))
    assert last["seconds"] == {"listened": 100.0, "total": 100.0}
    assert list(source.read(10, 0)) == []


def test_time_out_of_the_configuration_is_not_sent(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.add(span("listened", 0, 330))
    box.ledger.note_removed("porch", T0_NS + 330 * NS_PER_SECOND)
    box.ledger.note_added("porch", T0_NS + 1600 * NS_PER_SECOND)
    box.add(span("listened", 1600, 2150, epoch="e2"))
    found = data_of(list(box.source().read(100, 0)))
    assert [round(one["seconds"]["total"]) for one in found] == [300, 30, 200, 300]


def test_what_the_ledger_no_longer_has_is_said_to_be_lost(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.add(span("listened", 3000, 3700))
    items = box.source({"porch": T0_NS}).read(10, 0)
    assert items[0].outgoing is not None
    assert items[0].outgoing.kind == "lost"
    assert items[0].lost == 10
    assert len(items) == 3


def test_a_clock_that_began_in_1970_makes_one_interval_of_the_years_that_it_leaps_over(
    tmp_path: Path,
) -> None:
    box = Box(tmp_path)
    early = span("listened", 0, 400, epoch="e0").model_copy(update={"time_ns": NS_PER_SECOND})
    box.add(early, span("listened", 0, 900))
    box.now_s = 1000
    source = box.source()
    items = list(source.read(100, 0))
    found = data_of(items)
    assert [one["from"] for one in found] == [
        format_time(moment)
        for moment in (
            0,
            INTERVAL_NS,
            2 * INTERVAL_NS,
            *(T0_NS + n * INTERVAL_NS for n in range(3)),
        )
    ]
    assert found[2]["to"] == found[3]["from"]
    assert found[2]["heard"] == 0.0
    again = box.source(items[1].cursor).read(100, 0)
    assert [item.outgoing for item in items[2:]] == [item.outgoing for item in again]


def test_a_clock_that_was_years_ahead_and_is_set_back_ends_no_coverage(tmp_path: Path) -> None:
    box = Box(tmp_path)
    years_s = 1000 * 86_400
    box.add(span("listened", 0, 900))
    source = box.source()
    box.now_s = 1000
    sent = list(source.read(100, 0))
    late = span("listened", years_s, years_s + 900, epoch="e2")
    box.add(late)
    box.now_s = years_s + 1000
    sent += source.read(100, 0)
    assert len(sent) == 3 + 1 + 3
    box.add(span("listened", 1800, 3000, epoch="e3"))
    box.now_s = 3100
    for one in (source, box.source(sent[-1].cursor)):
        found = list(one.read(100, 0))
        assert data_of(found)[-1]["to"] == format_time(T0_NS + 3000 * NS_PER_SECOND)
        ids = {item.outgoing.id for item in found if item.outgoing is not None}
        assert len(ids - {item.outgoing.id for item in sent if item.outgoing is not None}) == 7


def test_a_clock_that_was_an_hour_ahead_and_is_set_right_holds_up_no_coverage(
    tmp_path: Path,
) -> None:
    box = Box(tmp_path, lasting=("porch",))
    box.add(span("listened", 4200, 4800))  # an hour ahead
    box.now_s = 4900
    source = box.source()
    assert len(source.read(100, 0)) == 2
    after = span("listened", 4800, 6000).model_copy(
        update={"time_ns": T0_NS + 1200 * NS_PER_SECOND}
    )
    box.add(after)
    box.now_s = 2500
    found = list(source.read(100, 0))
    again = list(box.source({"porch": T0_NS + 4800 * NS_PER_SECOND}).read(100, 0))
    assert [one["from"] for one in data_of(found)] == [
        format_time(T0_NS + n * INTERVAL_NS) for n in (4, 5, 6, 7)
    ]
    assert all(one["seconds"] == {"listened": 300.0, "total": 300.0} for one in data_of(found))
    assert [item.outgoing for item in found] == [item.outgoing for item in again]
    assert list(source.read(100, 0)) == []


def pool_source(box: Box, worker: str, claims: list[StreamClaim] | None) -> CoverageSource:
    part = OwnPart(worker, lambda stream: claims, lambda: claims is not None)
    return box.source(None, part)


def claim(worker: str, term: int, start_s: int) -> StreamClaim:
    start = start_s * SAMPLE_RATE
    return StreamClaim(epoch="abcdefab", term=term, worker=worker, is_continued=True, start=start)


def heard_s(data: list[dict[str, Any]]) -> dict[str, float]:
    """Return what intervals say together, in seconds by kind."""
    total: Counter[str] = Counter()
    for one in data:
        total.update(one["seconds"])
    return dict(total)


def test_the_parts_that_workers_of_a_pool_send_have_each_second_once(tmp_path: Path) -> None:
    claims = [claim("one", 0, 0), claim("two", 1, 400), claim("one", 2, 1000)]
    one, two = Box(tmp_path / "one", ()), Box(tmp_path / "two", ())
    epoch = "abcdefab"
    # killed at 420 s, when its record was of 400 s; two began there, and gave the stream back
    one.add(span("listened", 0, 420, epoch=epoch), span("listened", 1000, 1500, epoch=epoch))
    two.add(span("listened", 400, 900, epoch=epoch), span("gap", 900, 1000, epoch=epoch))
    one.now_s = two.now_s = 1500 + 2000
    of_one = data_of(list(pool_source(one, "one", claims).read(100, 0)))
    of_two = data_of(list(pool_source(two, "two", claims).read(100, 0)))
    # of the interval that is all elsewhere it says nothing
    assert heard_s(of_one) == {"listened": 900.0, "total": 900.0, "elsewhere": 300.0}
    assert heard_s(of_two) == {
        "listened": 500.0,
        "gap": 100.0,
        "total": 600.0,
        "elsewhere": 200.0,  # to the end of its last interval
    }
    assert {name for one in of_one for name in one["reasons"].get("elsewhere", {})} == {"two"}


def test_time_in_which_a_stream_was_at_this_worker_and_nobody_listened_is_missing(
    tmp_path: Path,
) -> None:
    box = Box(tmp_path, ())
    epoch = "abcdefab"
    box.add(span("listened", 0, 200, epoch=epoch), span("listened", 250, 600, epoch=epoch))
    found = data_of(list(pool_source(box, "one", [claim("one", 0, 0)]).read(100, 0)))
    assert heard_s(found) == {"listened": 550.0, "missing": 50.0, "total": 600.0}


def test_no_part_is_sent_while_the_claims_cannot_be_read(tmp_path: Path) -> None:
    box = Box(tmp_path, ())
    box.add(span("listened", 0, 650, epoch="abcdefab"))
    assert list(pool_source(box, "one", None).read(100, 0)) == []
    assert len(pool_source(box, "one", [claim("one", 0, 0)]).read(100, 0)) == 2
