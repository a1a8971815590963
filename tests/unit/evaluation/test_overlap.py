"""F1 by collar, intersection and segments, on cases worked by hand and by their laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ast_stream.evaluation.matching import (
    F1_KINDS,
    Collar,
    Counts,
    Spans,
    collar_counts,
    intersection_counts,
    max_pairs,
    segment_counts,
    spans_of,
)

DURATION_S = 200.0


@st.composite
def disjoint_spans(draw: st.DrawFn, fewest: int = 0) -> Spans:
    """Spans in order, at least 2.5 s apart, on a grid of 1/8 s (exact in binary)."""
    rows, at_s = [], 0.0
    for _ in range(draw(st.integers(fewest, 8))):
        at_s += 2.5 + draw(st.integers(0, 40)) / 8
        length_s = draw(st.integers(1, 40)) / 8
        rows.append((at_s, at_s + length_s, 1.0))
        at_s += length_s
    return spans_of(rows)


def shifted(spans: Spans, by_s: float) -> Spans:
    return Spans(spans.onset_s + by_s, spans.offset_s + by_s, spans.confidence)


def spans(*times: tuple[float, float]) -> Spans:
    return spans_of([(onset, offset, 1.0) for onset, offset in times])


@pytest.mark.parametrize("kind", F1_KINDS)
@given(sounds=disjoint_spans(fewest=1))
def test_perfect_detections_have_an_f1_of_one(kind: str, sounds: Spans) -> None:
    assert F1_KINDS[kind](sounds, sounds, DURATION_S).f1 == 1.0


@pytest.mark.parametrize("kind", F1_KINDS)
@given(sounds=disjoint_spans(fewest=1))
def test_no_detections_have_an_f1_of_zero(kind: str, sounds: Spans) -> None:
    assert F1_KINDS[kind](spans(), sounds, DURATION_S).f1 == 0.0


@pytest.mark.parametrize("kind", F1_KINDS)
def test_nothing_to_find_and_nothing_found_has_no_f1(kind: str) -> None:
    assert math.isnan(F1_KINDS[kind](spans(), spans(), DURATION_S).f1)


@given(detected=disjoint_spans(), sounds=disjoint_spans(), seconds=st.integers(1, 50))
def test_moving_everything_changes_nothing(detected: Spans, sounds: Spans, seconds: int) -> None:
    for kind, count in F1_KINDS.items():
        here = count(detected, sounds, DURATION_S)
        there = count(shifted(detected, seconds), shifted(sounds, seconds), DURATION_S + seconds)
        assert here == there, kind


@given(detected=disjoint_spans(), sounds=disjoint_spans())
def test_counts_add_up(detected: Spans, sounds: Spans) -> None:
    for collar in (Collar(0.2, 0.2), Collar(1.0)):
        counts = collar_counts(detected, sounds, collar)
        assert counts.n_found + counts.n_false == len(detected)
        assert counts.n_found <= counts.n_sounds == len(sounds)


@given(detected=disjoint_spans(), sounds=disjoint_spans())
def test_a_wider_collar_never_finds_less(detected: Spans, sounds: Spans) -> None:
    found = [collar_counts(detected, sounds, Collar(s)).n_found for s in (0.1, 0.5, 1.0, 5.0)]
    assert found == sorted(found)


def test_a_shift_within_the_collar_is_forgiven_and_beyond_it_not() -> None:
    sounds = spans((10.0, 12.0), (20.0, 21.0))
    assert collar_counts(shifted(sounds, 0.2), sounds, Collar(0.2, 0.2)).f1 == 1.0
    assert collar_counts(shifted(sounds, 0.201), sounds, Collar(0.2, 0.2)).f1 == 0.0


def test_a_long_sound_may_end_a_share_of_its_length_off() -> None:
    sound = spans((10.0, 20.0))
    assert collar_counts(spans((10.0, 18.0)), sound, Collar(0.2, 0.2)).f1 == 1.0
    assert collar_counts(spans((10.0, 17.9)), sound, Collar(0.2, 0.2)).f1 == 0.0
    assert collar_counts(spans((10.0, 11.0)), sound, Collar(0.2)).f1 == 1.0


def test_each_detection_is_paired_with_one_sound_only() -> None:
    sounds = spans((10.0, 11.0), (10.3, 11.3))
    assert collar_counts(spans((10.2, 11.2)), sounds, Collar(0.5, 0.5)) == Counts(1, 0, 2)


def test_pairs_are_changed_where_that_gives_more() -> None:
    is_hit = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1]], bool)
    assert max_pairs(is_hit) == 3
    assert max_pairs(is_hit[:, :2]) == 2
    assert max_pairs(np.zeros((0, 4), bool)) == 0


@given(arrays(np.bool_, st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_no_pairing_has_more_pairs(is_hit: npt.NDArray[np.bool_]) -> None:
    square = np.zeros((5, 5), np.bool_)
    square[: is_hit.shape[0], : is_hit.shape[1]] = is_hit
    every = (
        sum(square[row, column] for row, column in enumerate(order))
        for order in itertools.permutations(range(5))
    )
    assert max_pairs(is_hit) == max(every)


def test_two_halves_together_cover_a_sound() -> None:
    sound, halves = spans((10.0, 14.0)), spans((10.0, 11.0), (12.9, 14.0))
    assert intersection_counts(halves, sound, 0.5) == Counts(1, 0, 1)
    assert intersection_counts(halves, sound, 0.6) == Counts(0, 0, 1)


def test_a_detection_mostly_beside_the_sound_is_false() -> None:
    sound = spans((10.0, 12.0))
    assert intersection_counts(spans((10.0, 14.0)), sound, 0.5) == Counts(1, 0, 1)
    assert intersection_counts(spans((10.0, 14.1)), sound, 0.5) == Counts(0, 1, 1)


def test_segments_count_every_second_that_is_touched() -> None:
    counts = segment_counts(spans((2.5, 4.5)), spans((3.0, 6.0)), 10.0)
    assert counts == Counts(n_found=2, n_false=1, n_sounds=3)
