"""Who ends the events that a worker has begun, as the claims of a stream say."""

from __future__ import annotations

import pytest

from ast_stream.messages.pool import MAX_CLAIMS, StreamClaim, StreamHistory
from ast_stream.pool.directory import owner_of

OLD, NEW = "a" * 32, "b" * 32


def claim(worker: str, term: int, *, epoch: str = OLD, is_continued: bool = True) -> StreamClaim:
    return StreamClaim(epoch=epoch, term=term, worker=worker, is_continued=is_continued)


FIRST = claim("one", 0, is_continued=False)


@pytest.mark.parametrize(
    ("claims", "owner"),
    [
        ([], "this"),
        ([FIRST], "this"),
        ([FIRST, claim("two", 1)], "another"),
        ([FIRST, claim("two", 1, is_continued=False)], "this at once"),
        ([FIRST, claim("two", 1), claim("one", 2)], "this"),
        ([FIRST, claim("two", 1), claim("three", 2, is_continued=False)], "another"),
        ([FIRST, claim("two", 0, epoch=NEW, is_continued=False)], "this at once"),
        ([FIRST, claim("two", 1), claim("two", 0, epoch=NEW)], "another"),
        ([claim("two", 1)], "another"),  # its own claim was never written
    ],
)
def test_the_worker_that_went_on_ends_the_events(claims: list[StreamClaim], owner: str) -> None:
    assert owner_of(claims, "one", OLD) == owner


def test_a_late_claim_takes_its_place_among_those_of_its_epoch() -> None:
    history = StreamHistory(claims=[FIRST, claim("three", 2), claim("x", 0, epoch=NEW)])
    late = history.with_claim(claim("two", 1))
    assert [one.worker for one in late.claims] == ["one", "two", "three", "x"]
    assert late.with_claim(claim("two", 1)) == late


def test_a_history_is_bounded() -> None:
    history = StreamHistory(claims=[])
    for term in range(3 * MAX_CLAIMS):
        history = history.with_claim(claim("one", term))
    assert [one.term for one in history.claims] == list(range(2 * MAX_CLAIMS, 3 * MAX_CLAIMS))
