"""The coverage of a pool: all workers are asked, and who cannot be is named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from coverage_spans import BEGAN_NS, span
from coverage_worker import answer_of, coverage_worker
from ports import free_ports

from ast_stream.coverage.spans import Span
from ast_stream.coverage.timeline import Coverage
from ast_stream.feed import FeedAddress
from ast_stream.messages.pool import StreamClaim
from ast_stream.messages.query import CoverageQuery, refuse_query
from ast_stream.pool.coverage import PoolCoverage, ask_workers
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

S = SAMPLE_RATE
HERE = [span(0, 10 * S), span(30 * S, 40 * S)]
THERE = [span(9 * S, 30 * S)]
CLAIMS = [
    StreamClaim(epoch="aaaaaaaa", term=0, worker="one", is_continued=True, start=0),
    StreamClaim(epoch="aaaaaaaa", term=1, worker="two", is_continued=True, start=9 * S),
    StreamClaim(epoch="aaaaaaaa", term=2, worker="one", is_continued=True, start=30 * S),
]


class Holders:
    def __init__(self, claims: Sequence[StreamClaim] | None, home: str | None = None) -> None:
        self._claims = claims
        self._home = home

    def claims(self, stream: str) -> Sequence[StreamClaim] | None:
        return self._claims

    def home(self, stream: str) -> str | None:
        return self._home

    def streams(self) -> Sequence[str]:
        return ["porch", "yard"]


def address(query: str) -> FeedAddress:
    return FeedAddress("tcp://127.0.0.1:1", query, None)


def coverage(pool: PoolCoverage) -> Coverage:
    now_ns = BEGAN_NS + 40 * NS_PER_SECOND
    spans, others = pool.joined()["porch"], pool.others()("porch")
    return Coverage.of("porch", spans, now_ns, is_expected=False, others=others)


def test_the_ledgers_of_workers_that_answer_are_one() -> None:
    with coverage_worker(lambda query: answer_of(THERE)) as endpoint:
        found, unasked = ask_workers({"two": address(endpoint)}, None, CoverageQuery())
    assert unasked == {}
    pool = PoolCoverage({"one": {"porch": HERE}, **found}, unasked, Holders(CLAIMS))
    assert coverage(pool).samples["listened"] == coverage(pool).total == 40 * S


def test_a_worker_that_does_not_answer_is_named_and_its_time_is_elsewhere() -> None:
    gone = address(f"tcp://127.0.0.1:{free_ports()}")
    found, unasked = ask_workers({"two": gone, "three": None}, None, CoverageQuery(), 0.3)
    assert found == {}
    assert unasked == {
        "two": "it does not answer",
        "three": "it has no query endpoint by tcp",
    }
    shown = coverage(PoolCoverage({"one": {"porch": HERE}}, unasked, Holders(CLAIMS)))
    assert shown.samples["missing"] == 0
    assert shown.reasons == {"elsewhere": {"two": 20 * S}}


def test_a_worker_that_refuses_says_why() -> None:
    with coverage_worker(lambda query: refuse_query("coverage: not allowed")) as endpoint:
        found, unasked = ask_workers({"two": address(endpoint)}, None, CoverageQuery())
    assert found == {}
    assert "not allowed" in unasked["two"]


def test_pages_are_asked_for_until_all_is_there() -> None:
    def answer(query: CoverageQuery) -> list[bytes]:
        stop = 30 if query.until_ns is None else (query.until_ns - BEGAN_NS) // NS_PER_SECOND
        one = span((stop - 1) * S, stop * S)
        return answer_of([one], None if stop == 1 else one.time_ns)

    with coverage_worker(answer) as endpoint:
        found, unasked = ask_workers(
            {"two": address(endpoint)}, None, CoverageQuery(), max_pages=50
        )
        cut, why = ask_workers({"two": address(endpoint)}, None, CoverageQuery(), max_pages=3)
    assert unasked == {}
    assert [one.start_sample // S for one in found["two"]["porch"]] == list(range(30))
    assert [one.start_sample // S for one in cut["two"]["porch"]] == [27, 28, 29]
    assert "too much" in why["two"]


@pytest.mark.parametrize(
    ("claims", "home", "expected"),
    [
        (CLAIMS, None, {"missing": {"not_recorded": 20 * S}}),  # only two had it, and was asked
        (None, None, {"elsewhere": {"three": 20 * S}}),  # NATS is down: it may be
        ([], "two", {"missing": {"not_recorded": 20 * S}}),  # a list: each stream has its worker
        ([], "three", {"elsewhere": {"three": 20 * S}}),
    ],
)
def test_only_a_worker_that_may_have_had_the_stream_is_named(
    claims: Sequence[StreamClaim] | None, home: str | None, expected: dict[str, dict[str, int]]
) -> None:
    ledgers: dict[str, dict[str, list[Span]]] = {"one": {"porch": HERE}, "two": {}}
    pool = PoolCoverage(ledgers, {"three": "it does not answer"}, Holders(claims, home))
    assert coverage(pool).reasons == expected


def test_a_stream_that_only_a_worker_has_that_was_not_asked_is_named() -> None:
    ledgers = {"one": {"porch": HERE}}
    assert PoolCoverage(ledgers, {"two": "gone"}, Holders(CLAIMS[:2])).unseen() == {"yard": "two"}
    assert PoolCoverage(ledgers, {"two": "gone"}, Holders(CLAIMS)).unseen() == {}
    assert PoolCoverage(ledgers, {}, Holders(CLAIMS[:2])).unseen() == {}


def test_a_stream_that_went_to_a_worker_that_was_not_asked_is_there_until_now() -> None:
    ledgers = {"one": {"porch": HERE[:1]}}
    found = coverage(PoolCoverage(ledgers, {"two": "gone"}, Holders(CLAIMS[:2])))
    assert found.reasons == {"elsewhere": {"two": 30 * S}}
    assert (found.total, found.ends_with_record) == (10 * S, False)
