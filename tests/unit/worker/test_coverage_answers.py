"""Queries for coverage are answered later, in order, and not without bound."""

from __future__ import annotations

import threading

import pytest

from ast_stream.errors import WireError
from ast_stream.messages.query import CoverageQuery
from ast_stream.worker.coverage_answers import MAX_WAITING, CoverageAnswers


def test_answers_come_in_order_to_whom_they_belong() -> None:
    is_free, is_done = threading.Event(), threading.Event()

    def answer(query: CoverageQuery) -> list[bytes]:
        is_free.wait()
        if query.since_ns == 2:
            raise WireError("no disk")
        if query.since_ns == 3:
            is_done.set()
        return [str(query.since_ns).encode()]

    answers = CoverageAnswers(answer)
    for number in range(4):
        answers.ask([b"%d" % number], CoverageQuery(since_ns=number))
    assert answers.finished() == []
    is_free.set()
    assert is_done.wait(60)
    found: list[tuple[list[bytes], list[bytes]]] = []
    while len(found) < 4:
        found += answers.finished()
    assert [client for client, _ in found] == [[b"0"], [b"1"], [b"2"], [b"3"]]
    assert found[1][1] == [b"1"]
    assert b"no disk" in found[2][1][0]


def test_no_more_wait_than_can_be_answered_soon() -> None:
    is_free, has_begun = threading.Event(), threading.Event()

    def answer(query: CoverageQuery) -> list[bytes]:
        has_begun.set()
        is_free.wait()
        return []

    answers = CoverageAnswers(answer)
    answers.ask([b"first"], CoverageQuery())
    assert has_begun.wait(60)
    for _ in range(MAX_WAITING):
        answers.ask([b"more"], CoverageQuery())
    with pytest.raises(WireError, match="ask again"):
        answers.ask([b"one too many"], CoverageQuery())
    is_free.set()
