"""Verifiers are fitted to few verdicts, and say what they did to events they were not fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from ast_stream.errors import UsageError
from ast_stream.verdicts.fitting import Examples, fit_verifier, problem_with


def examples(n_right: int, n_wrong: int, apart: float, seed: int = 0, width: int = 64) -> Examples:
    """Return events of two kinds whose middles lie `apart`, in a space with much noise."""
    rng = np.random.default_rng(seed)
    n = n_right + n_wrong
    is_right = np.arange(n) < n_right
    vectors = rng.normal(size=(n, width))
    vectors[:, 0] += np.where(is_right, apart / 2, -apart / 2)
    order = rng.permutation(n)
    return Examples(vectors[order].astype(np.float32), is_right[order], np.arange(n))


def test_twenty_verdicts_turn_off_most_of_what_is_wrong_and_little_of_what_is_right() -> None:
    fitted = fit_verifier("Bark", examples(10, 10, 12.0))
    new = examples(500, 500, 12.0, seed=1)
    is_believed = fitted.scores(new.vectors) >= fitted.threshold
    assert is_believed[new.is_right].mean() >= 0.97
    assert is_believed[~new.is_right].mean() <= 0.2


def test_kinds_that_do_not_differ_lose_no_more_than_they_may() -> None:
    lost = []
    for seed in range(10):
        fitted = fit_verifier("Bark", examples(10, 10, 0.0, seed=seed))
        new = examples(500, 10, 0.0, seed=100 + seed)
        lost.append((fitted.scores(new.vectors) < fitted.threshold)[new.is_right].mean())
    assert np.mean(lost) <= 0.06


def test_a_hundred_of_one_kind_do_not_outweigh_ten_of_the_other() -> None:
    fitted = fit_verifier("Bark", examples(100, 10, 8.0))
    new = examples(500, 500, 8.0, seed=1)
    scores = fitted.scores(new.vectors)
    assert abs(np.median(scores[new.is_right]) - (1 - np.median(scores[~new.is_right]))) < 0.1


def test_groups_are_left_out_whole() -> None:
    # each group is ten copies of a vector: fitted with a copy it would be known, left out it is not
    rng = np.random.default_rng(3)
    vectors = np.repeat(rng.normal(size=(6, 200)), 10, axis=0).astype(np.float32)
    is_right = np.repeat([True, False] * 3, 10)
    copies = fit_verifier("Bark", Examples(vectors, is_right, np.arange(60)))
    grouped = fit_verifier("Bark", Examples(vectors, is_right, np.repeat(np.arange(6), 10)))
    assert copies.left_out[is_right].min() > 0.8
    assert grouped.left_out[is_right].min() < 0.7


@pytest.mark.parametrize(("n_right", "n_wrong"), [(0, 30), (30, 7), (9, 10)])
def test_too_few_verdicts_of_a_kind_are_refused(n_right: int, n_wrong: int) -> None:
    with pytest.raises(UsageError, match=rf"Bark: expected .*got {n_right} right and {n_wrong}"):
        fit_verifier("Bark", examples(n_right, n_wrong, 3.0))


def test_twenty_of_which_eight_are_of_the_rarer_kind_are_enough() -> None:
    assert problem_with("Bark", 12, 8) is None
