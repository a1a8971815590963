"""The ledgers of several workers as one: each sample once, and whose the rest is."""

from __future__ import annotations

from itertools import pairwise

from coverage_spans import BEGAN_NS, span
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.coverage.spans import Kind, Span
from ast_stream.coverage.timeline import Coverage
from ast_stream.coverage.union import joined, others_between, own_part
from ast_stream.messages.pool import StreamClaim
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

OLD, NEW = "aaaaaaaa", "bbbbbbbb"
S = SAMPLE_RATE


def claim(worker: str, term: int, start: int | None = None, epoch: str = OLD) -> StreamClaim:
    return StreamClaim(epoch=epoch, term=term, worker=worker, is_continued=True, start=start)


def ranges(spans: list[Span]) -> list[tuple[int, int, Kind]]:
    return [(one.start_sample, one.stop_sample, one.kind) for one in spans]


def test_a_stream_that_went_to_another_worker_and_back_is_one() -> None:
    here = [span(0, 10 * S), span(30 * S, 40 * S)]
    there = [span(9 * S, 31 * S)]  # it began at the record, and heard more than was acknowledged
    assert ranges(joined([here, there])) == [(0, 40 * S, "listened")]


def test_what_one_worker_has_heard_is_not_lost_though_another_says_so() -> None:
    late = [span(0, 10 * S), span(10 * S, 20 * S, "gap", reason="ring_overrun")]
    other = [span(5 * S, 15 * S, "degraded")]
    assert ranges(joined([late, other])) == [
        (0, 10 * S, "listened"),
        (10 * S, 15 * S, "degraded"),
        (15 * S, 20 * S, "gap"),
    ]


def test_clocks_of_workers_that_differ_lose_nothing() -> None:
    minute = 60 * NS_PER_SECOND
    here = [span(0, 10 * S), span(20 * S, 30 * S)]
    ahead = [span(10 * S, 20 * S, late_ns=-minute)]  # it seems to be before all others
    assert [one.samples for one in joined([here, ahead])] == [10 * S] * 3
    found = Coverage.of("porch", joined([here, ahead]), BEGAN_NS + minute, is_expected=False)
    assert found.samples["listened"] == found.total == 30 * S


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    parts=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 500),
            st.integers(1, 200),
            st.sampled_from(["listened", "gated", "gap"]),
            st.sampled_from([OLD, NEW]),
        ),
        max_size=30,
    )
)
def test_each_sample_that_any_worker_has_is_there_once(
    parts: list[tuple[int, int, int, Kind, str]],
) -> None:
    ledgers: list[list[Span]] = [[], [], [], []]
    samples = set()
    for worker, start, length, kind, epoch in parts:
        one = span(start, start + length, kind, epoch=epoch)
        ledger = [*ledgers[worker], one]
        ordered = sorted(ledger, key=lambda each: (each.epoch, each.start_sample))
        if any(a.epoch == b.epoch and a.stop_sample > b.start_sample for a, b in pairwise(ordered)):
            continue  # a worker accounts for a sample once
        ledgers[worker] = ordered
        samples |= {(epoch, sample) for sample in range(start, start + length)}
    found = joined(ledgers)
    assert sum(one.samples for one in found) == len(samples)
    assert samples == {
        (one.epoch, sample) for one in found for sample in range(one.start_sample, one.stop_sample)
    }


CLAIMS = [claim("one", 0, 0), claim("two", 1, 10 * S), claim("one", 2, 30 * S)]


def test_time_at_a_worker_that_was_not_asked_is_elsewhere_and_not_missing() -> None:
    spans = [span(0, 10 * S), span(30 * S, 40 * S)]
    found = Coverage.of(
        "porch",
        spans,
        BEGAN_NS + 40 * NS_PER_SECOND,
        is_expected=False,
        others=lambda before, after: others_between(before, after, CLAIMS, {"one"}),
    )
    assert (found.samples["listened"], found.samples["missing"]) == (20 * S, 0)
    assert found.elsewhere == 20 * S
    assert found.total == 20 * S
    assert found.heard == 1.0
    shown = found.to_json()
    assert shown["reasons"] == {"elsewhere": {"two": 20 * S}}
    assert shown["samples"]["elsewhere"] == 20 * S
    assert [one["kind"] for one in shown["spans"]] == ["listened", "elsewhere", "listened"]


def test_time_that_all_workers_say_nothing_of_is_missing() -> None:
    before, after = span(0, 10 * S), span(12 * S, 40 * S)
    assert others_between(before, after, CLAIMS, {"one", "two"}) == []


def test_a_worker_is_not_named_for_time_before_or_behind_its_own() -> None:
    assert others_between(span(0, 5 * S), span(7 * S, 10 * S), CLAIMS, {"one"}) == []
    assert others_between(span(30 * S, 35 * S), span(36 * S, 40 * S), CLAIMS, {"one"}) == []
    assert others_between(span(30 * S, 35 * S), None, CLAIMS, {"one"}) == []


def test_the_workers_of_epochs_in_between_and_of_now_are_named() -> None:
    claims = [*CLAIMS, claim("three", 0, 0, NEW), claim("four", 1, 5 * S, NEW)]
    last = span(30 * S, 35 * S)
    assert others_between(last, None, claims, {"one", "two"}) == ["four", "three"]
    begun = span(0, 4 * S, epoch="cccccccc")
    assert others_between(last, begun, claims, {"one", "two", "four"}) == ["three"]


def test_the_parts_of_all_workers_have_each_sample_once() -> None:
    one = [span(0, 12 * S), span(30 * S, 40 * S)]
    two = [span(10 * S, 31 * S)]
    assert ranges(own_part(one, CLAIMS, "one")) == [
        (0, 10 * S, "listened"),
        (30 * S, 40 * S, "listened"),
    ]
    assert ranges(own_part(two, CLAIMS, "two")) == [(10 * S, 30 * S, "listened")]


def test_a_worker_keeps_what_it_has_where_nobody_says_where_the_next_began() -> None:
    claims = [claim("one", 0), claim("two", 1), claim("three", 0, 0, NEW)]
    one = [span(0, 12 * S), span(0, 5 * S, epoch="cccccccc")]
    assert own_part(one, claims, "one") == one
    assert own_part(one, [], "one") == one
