"""The answer of a worker to a query for its coverage."""

from __future__ import annotations

from pathlib import Path

import pytest
from coverage_spans import BEGAN_NS, span

from ast_stream.coverage.answer import CoverageAnswer, answer_coverage
from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.coverage.spans import Kind, Span
from ast_stream.errors import WireError
from ast_stream.messages.query import CoverageQuery, decode_query
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

S = SAMPLE_RATE


@pytest.fixture
def ledger(tmp_path: Path) -> tuple[Path, Path]:
    """A ledger of 20 spans of a second each, of two streams."""
    paths = tmp_path / "coverage", tmp_path / "coverage.jsonl"
    written = CoverageLedger(*paths)
    for second in range(10):
        kind: Kind = "gated" if second % 2 else "listened"
        for stream in ("porch", "yard"):
            written.add(span(second * S, (second + 1) * S, kind, stream=stream))
    written.save()
    written.release()
    return paths


def ask(
    ledger: tuple[Path, Path], since: int | None = None, until: int | None = None
) -> CoverageAnswer:
    query = decode_query(CoverageQuery(since_ns=since, until_ns=until).encode())
    assert isinstance(query, CoverageQuery)
    return CoverageAnswer.decode(answer_coverage(query, *ledger, "boot", max_spans=8))


def test_pages_together_have_all_spans_of_a_running_worker_once(ledger: tuple[Path, Path]) -> None:
    found: list[Span] = []
    answer = ask(ledger)
    while True:
        found += answer.spans
        if answer.complete_from_ns is None:
            break
        answer = ask(ledger, until=answer.complete_from_ns)
    assert len(found) == len(set(found)) == 20
    assert sum(one.samples for one in found) == 20 * S


def test_only_what_reaches_into_the_time_is_told(ledger: tuple[Path, Path]) -> None:
    second = NS_PER_SECOND
    answer = ask(ledger, since=BEGAN_NS + 3 * second, until=BEGAN_NS + 5 * second)
    assert {one.start_sample for one in answer.spans} == {3 * S, 4 * S}
    assert answer.complete_from_ns is None


def test_an_answer_that_would_be_too_large_has_fewer_spans(ledger: tuple[Path, Path]) -> None:
    frames = answer_coverage(CoverageQuery(), *ledger, "boot", max_bytes=2000)
    assert len(frames[0]) <= 2000
    answer = CoverageAnswer.decode(frames)
    assert answer.spans
    assert answer.complete_from_ns is not None


def test_a_ledger_that_is_not_there_is_empty(tmp_path: Path) -> None:
    answer = CoverageAnswer.decode(
        answer_coverage(CoverageQuery(), tmp_path / "none", tmp_path / "none.jsonl", "boot")
    )
    assert answer.spans == []


def test_a_refusal_is_no_empty_answer() -> None:
    with pytest.raises(WireError, match="lacks the right"):
        CoverageAnswer.decode([b'{"v":1,"error":"coverage: lacks the right"}'])
