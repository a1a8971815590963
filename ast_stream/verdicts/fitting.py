"""Fitting the verifier of a class to events that were judged right or wrong.

Logistic regression with a penalty, both kinds weighing alike however many there are. Verdicts are
few, so what is claimed of a verifier, and where its threshold lies, comes from events that it was
not fitted to: the verdicts are left out in turn, whole groups of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, stdtrit

from ast_stream.errors import UsageError

MIN_OF_A_KIND = 8
MIN_VERDICTS = 20
MAX_LOST = 0.03  # of right events, by what the verdicts show
PENALTIES = (0.01, 0.1, 1.0, 10.0)
MAX_PARTS = 10  # that are left out in turn
_MIN_SPREAD = 1e-6

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Examples:
    """Events of one class with a verdict each.

    Attributes:
        vectors: what the verifier sees of them, shape (n, width).
        is_right: shape (n,).
        groups: what stays together when parts are left out: events of one time; shape (n,).
    """

    vectors: npt.NDArray[np.float32]
    is_right: Flags
    groups: npt.NDArray[np.int64]

    @property
    def n_right(self) -> int:
        """How many are right."""
        return int(self.is_right.sum())

    @property
    def n_wrong(self) -> int:
        """How many are wrong."""
        return len(self.is_right) - self.n_right

    def only(self, chosen: npt.NDArray[np.int64] | Flags) -> Examples:
        """Return a part of them."""
        return Examples(self.vectors[chosen], self.is_right[chosen], self.groups[chosen])


@dataclass(frozen=True, eq=False)
class FittedVerifier:
    """A verifier and what is known of it.

    Attributes:
        weights: shape (width,), float32.
        threshold: in [0, 1], of the score.
        left_out: scores of the examples by verifiers fitted without them, shape (n,).
    """

    weights: npt.NDArray[np.float32]
    bias: float
    threshold: float
    penalty: float
    left_out: Vector

    def scores(self, vectors: npt.NDArray[np.float32]) -> Vector:
        """Return the scores of events, shape (n,), in [0, 1]."""
        logits = vectors.astype(np.float64) @ self.weights.astype(np.float64) + self.bias
        scores: Vector = expit(logits)
        return scores


def problem_with(label: str, n_right: int, n_wrong: int) -> str | None:
    """Return why no verifier can be fitted to so many verdicts; None: one can."""
    if n_right + n_wrong >= MIN_VERDICTS and min(n_right, n_wrong) >= MIN_OF_A_KIND:
        return None
    return (
        f"{label}: expected at least {MIN_VERDICTS} events with a verdict, {MIN_OF_A_KIND} or more "
        f"of them right and {MIN_OF_A_KIND} or more wrong, got {n_right} right and {n_wrong} wrong"
    )


def fit_verifier(label: str, examples: Examples, max_lost: float = MAX_LOST) -> FittedVerifier:
    """Return the verifier of a class.

    Args:
        max_lost: share of right events that may be withheld, by what the verdicts show.

    Raises:
        UsageError: too few verdicts of either kind.
    """
    problem = problem_with(label, examples.n_right, examples.n_wrong)
    if problem is not None:
        raise UsageError(problem)
    parts = _parts(examples)
    tried = [(penalty, _left_out(examples, parts, penalty)) for penalty in PENALTIES]
    penalty, logits = min(tried, key=lambda trial: _loss(trial[1], examples))
    weights, bias = _fit(examples, penalty)
    right = logits[examples.is_right]
    threshold = _lower_bound(right, max_lost)
    return FittedVerifier(
        weights.astype(np.float32), bias, float(expit(threshold)), penalty, expit(logits)
    )


def _lower_bound(logits: Vector, share: float) -> float:
    """Return below what a further one of these lies with that probability, were they normal."""
    n = len(logits)
    spread = float(logits.std(ddof=1)) * float(np.sqrt(1 + 1 / n))
    return float(logits.mean()) + float(stdtrit(n - 1, share)) * spread


def _parts(examples: Examples) -> npt.NDArray[np.int64]:
    """Return to which part each example belongs; parts have of both kinds about alike."""
    groups, members = np.unique(examples.groups, return_inverse=True)
    n_right = np.bincount(members, examples.is_right, len(groups))
    order = np.argsort(-n_right, kind="stable")
    part_of = np.empty(len(groups), np.int64)
    part_of[order] = np.arange(len(groups)) % min(MAX_PARTS, len(groups))
    parts: npt.NDArray[np.int64] = part_of[members]
    return parts


def _left_out(examples: Examples, parts: npt.NDArray[np.int64], penalty: float) -> Vector:
    """Return logits of the examples of each part by a fit to the others; 0 where none is left."""
    logits = np.zeros(len(examples.is_right))
    for part in np.unique(parts):
        others = examples.only(parts != part)
        if others.n_right and others.n_wrong:
            weights, bias = _fit(others, penalty)
            own = parts == part
            logits[own] = examples.vectors[own].astype(np.float64) @ weights + bias
    return logits


def _weights_of(examples: Examples) -> Vector:
    """Return how much each example counts: both kinds alike, one on average."""
    n = len(examples.is_right)
    weights: Vector = np.where(
        examples.is_right, n / (2 * max(1, examples.n_right)), n / (2 * max(1, examples.n_wrong))
    )
    return weights


def _loss(logits: Vector, examples: Examples) -> float:
    losses = np.logaddexp(0, logits) - examples.is_right * logits
    return float(_weights_of(examples) @ losses)


def _fit(examples: Examples, penalty: float) -> tuple[Vector, float]:
    """Return weights (width,) and bias for vectors as they are."""
    vectors = examples.vectors.astype(np.float64)
    mean = vectors.mean(axis=0)
    # one scale for all: of twenty vectors the spread of each number is not known
    scale = max(float(np.linalg.norm(vectors - mean, axis=1).mean()), _MIN_SPREAD)
    # the penalty knows no direction, so what is looked for lies in the space of the examples
    left, lengths, axes = np.linalg.svd((vectors - mean) / scale, full_matrices=False)
    points = np.column_stack((left * lengths, np.ones(len(left))))
    penalties = np.append(np.full(len(lengths), penalty), 0.0)  # none on the bias
    counts, targets = _weights_of(examples), examples.is_right.astype(np.float64)

    def loss(at: Vector) -> float:
        logits = points @ at
        return float(counts @ (np.logaddexp(0, logits) - targets * logits) + penalties @ at**2 / 2)

    def gradient(at: Vector) -> Vector:
        slope: Vector = points.T @ (counts * (expit(points @ at) - targets)) + penalties * at
        return slope

    def curvature(at: Vector) -> Matrix:
        chance = expit(points @ at)
        bend: Matrix = (points.T * (counts * chance * (1 - chance))) @ points + np.diag(penalties)
        return bend

    start = np.zeros(points.shape[1])
    found = minimize(loss, start, method="trust-exact", jac=gradient, hess=curvature).x
    weights = axes.T @ found[:-1] / scale
    return weights, float(found[-1] - weights @ mean)
