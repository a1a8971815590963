"""Spans merge where they continue each other, and what is there twice counts once."""

from __future__ import annotations

import random

import pytest
from coverage_spans import span

from ast_stream.coverage.spans import Kind, Span, decoded, merged
from ast_stream.errors import WireError


def test_line_of_the_ledger_comes_back_as_it_was_and_damage_is_noticed() -> None:
    written = span(1600, 3200, "gap", reason="overflow")
    line = written.encode_line()
    assert line.startswith(b'{"crc":"')
    assert b'"start":1600,"samples":1600,"time":"2026-09-' in line
    assert Span.decode_line(line) == written
    assert b"reason" not in span(0, 1).encode_line()
    with pytest.raises(WireError, match="another checksum"):
        Span.decode_line(line.replace(b"1600", b"1601"))
    assert list(decoded([line, line[:-3], b"\n"])) == [written, None, None]


def test_only_what_continues_in_kind_samples_and_time_is_merged() -> None:
    first = span(0, 100)
    assert merged([first, span(100, 300)]) == [span(0, 300)]
    for other in (
        span(101, 300),
        span(100, 300, "gated"),
        span(100, 300, epoch="bbbbbbbb"),
        span(100, 300, stream="yard"),
        span(100, 300, late_ns=1_000_000),
        span(100, 300, reason="x"),
    ):
        assert merged([first, other]) == [first, other]


def test_streams_that_are_written_in_turn_merge_each_for_itself() -> None:
    spans = [
        span(100 * n, 100 * n + 100, stream=stream)
        for n in range(50)
        for stream in ("porch", "yard")
    ]
    assert merged(spans) == [span(0, 5000, stream="porch"), span(0, 5000, stream="yard")]


def test_any_cuts_and_repetitions_of_a_complete_ledger_are_the_same_ledger() -> None:
    rng = random.Random(5)
    kinds: list[Kind] = ["listened", "gated", "degraded", "gap"]
    for _ in range(200):
        complete, at = [], 0
        for _ in range(rng.randint(1, 12)):
            stop = at + rng.randint(1, 500)
            complete.append(span(at, stop, rng.choice(kinds)))
            at = stop
        whole = merged(complete)
        pieces: list[Span] = []
        for one in complete:
            cuts = sorted(rng.sample(range(one.start_sample, one.stop_sample), min(one.samples, 2)))
            for first, last in zip(
                [one.start_sample, *cuts], [*cuts, one.stop_sample], strict=True
            ):
                if (part := one.within(first, last)) is not None:
                    pieces.append(part)
        again: list[Span] = []  # a run that resumed says some of it once more
        for number, piece in enumerate(pieces):
            again.append(piece)
            if rng.random() < 0.3:
                again += pieces[max(0, number - rng.randint(0, 4)) : number + 1]
        found = merged(again)
        assert found == whole
        assert sum(one.samples for one in found) == at
