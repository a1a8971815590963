"""Bounds of rates and bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.evaluation.intervals import (
    bootstrap_quantile,
    bootstrap_ratio,
    poisson_upper_bound,
    quantile,
)


@pytest.mark.parametrize(
    ("count", "bound"),  # half the 95 % quantile of chi-square with 2 (count + 1) degrees
    [(0, 2.995732), (1, 4.743865), (10, 16.962219), (100, 118.079273), (5000, 5117.886079)],
)
def test_the_poisson_bound_is_exact(count: int, bound: float) -> None:
    assert poisson_upper_bound(count) == pytest.approx(bound, rel=1e-6)


@given(st.integers(0, 60), st.floats(0.6, 0.99))
def test_the_bound_leaves_the_rest_to_fewer_events(count: int, confidence: float) -> None:
    mean = poisson_upper_bound(count, confidence)
    fewer = sum(mean**k * math.exp(-mean) / math.factorial(k) for k in range(count + 1))
    assert fewer == pytest.approx(1 - confidence, rel=1e-9)


def test_more_alarms_have_a_higher_bound() -> None:
    bounds = [poisson_upper_bound(count) for count in range(50)]
    assert bounds == sorted(bounds)
    assert all(bound > count for count, bound in enumerate(bounds))


def test_misses_are_infinite_times_in_quantiles() -> None:
    assert quantile(np.array([1.0, 2.0, math.inf]), 0.5) == 2.0
    assert quantile(np.array([1.0, math.inf]), 0.5) == math.inf
    assert quantile(np.array([1.0, 2.0, 4.0, 5.0]), 0.5) == 3.0
    assert math.isnan(quantile(np.array([]), 0.5))


@pytest.mark.parametrize(("n", "low"), [(5, 0.4782), (10, 0.6915), (100, 0.9638)])
def test_where_all_or_none_are_found_the_bound_is_exact(n: int, low: float) -> None:
    every = bootstrap_ratio([1.0] * n, [1.0] * n, range(n), seed=0)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(low, abs=1e-4)  # Clopper and Pearson
    none = bootstrap_ratio([0.0] * n, [1.0] * n, range(n), seed=0)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - low, abs=1e-4)


def test_the_bound_counts_recordings_and_not_their_sounds() -> None:
    twice = bootstrap_ratio([1.0] * 20, [1.0] * 20, [k % 5 for k in range(20)], seed=0)
    assert twice.low == pytest.approx(0.4782, abs=1e-4)


def test_fewer_than_five_recordings_have_no_interval() -> None:
    hits, clips = [1.0, 0.0, 1.0, 1.0] * 3, ["a", "b", "c", "d"] * 3
    ratio = bootstrap_ratio(hits, [1.0] * 12, clips, seed=0)
    assert ratio.value == 0.75
    middle = bootstrap_quantile(hits, clips, 0.5, seed=0)
    assert middle.value == 1.0
    assert all(math.isnan(bound) for bound in (ratio.low, ratio.high, middle.low, middle.high))


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    hits = [1.0] * 80 + [0.0] * 20
    interval = bootstrap_ratio(hits, [1.0] * 100, range(100), seed=3)
    assert interval.value == 0.8
    assert interval.low == pytest.approx(0.72, abs=0.02)
    assert interval.high == pytest.approx(0.88, abs=0.02)


def test_what_belongs_together_is_drawn_together() -> None:
    hits = [1.0, 0.0] * 50
    alone = bootstrap_ratio(hits, [1.0] * 100, range(100), seed=0)
    by_clip = bootstrap_ratio(hits, [1.0] * 100, [k // 10 * 2 + k % 2 for k in range(100)], seed=0)
    assert by_clip.value == alone.value == 0.5
    assert by_clip.high - by_clip.low > 1.5 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, clips = [0.1, 0.4, 0.2, 0.9, 0.5], ["a", "b", "c", "d", "e"]
    first = bootstrap_quantile(values, clips, 0.5, seed=1)
    assert first == bootstrap_quantile(values, clips, 0.5, seed=1)
    assert first.value == 0.4
    assert first.low < 0.4 < first.high


def test_nothing_has_no_interval() -> None:
    assert math.isnan(bootstrap_quantile([], [], 0.5, seed=0).value)
    assert math.isnan(bootstrap_ratio([], [], [], seed=0).value)
