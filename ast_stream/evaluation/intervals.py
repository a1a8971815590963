"""Confidence intervals: exact Poisson bounds of rates, and the bootstrap over clusters.

Exact bounds are scipy's. Its `bootstrap` could resample clusters by their indices, but its
intervals are undefined where some resamples are: those without any sound of a class, and those
whose quantile lies between sounds that were never found, which are infinite. Here the former are
left out and the latter are infinite, so the resampling and the quantile are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
N_RESAMPLES = 1000
MIN_CLUSTERS = 5  # fewer, drawn again and again, look surer than they are

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % confidence interval; NaN: too little data."""

    value: float
    low: float
    high: float


def poisson_upper_bound(count: int, confidence: float = CONFIDENCE) -> float:
    """Return the exact one-sided upper bound of a Poisson mean after `count` were seen.

    Half the chi-square quantile with 2 (count + 1) degrees of freedom (Garwood 1936). Zero seen
    gives 3.0.

    >>> round(poisson_upper_bound(0), 4), round(poisson_upper_bound(10), 4)
    (2.9957, 16.9622)
    """
    from scipy.stats import chi2

    return float(chi2.ppf(confidence, 2 * (count + 1))) / 2


def bootstrap_quantile(
    values: Sequence[float], clusters: Sequence[Hashable], ratio: float, seed: int
) -> Interval:
    """Return the quantile `ratio` of `values` with its interval over resampled clusters.

    What lies in one cluster (all sounds mixed of one clip) is drawn together, because it is not
    independent. Infinite values stay where they are: at the end.

    Args:
        values: shape (n,); may be infinite.
        clusters: which of them belong together, shape (n,).
    """
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    parts = [np.array(group) for group in groups.values()]
    value = quantile(np.array(values), ratio)
    if len(parts) < MIN_CLUSTERS:
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [
        quantile(
            np.concatenate([parts[index] for index in rng.integers(len(parts), size=len(parts))]),
            ratio,
        )
        for _ in range(N_RESAMPLES)
    ]
    return _interval(value, np.array(drawn))


def bootstrap_ratio(
    hits: Sequence[float], totals: Sequence[float], clusters: Sequence[Hashable], seed: int
) -> Interval:
    """Return the ratio sum(hits) / sum(totals) with its interval over resampled clusters.

    Resampling says nothing where all are hits, or none: there the bound is the exact one of as
    many independent trials as there are clusters (Clopper and Pearson 1934).
    """
    order: dict[Hashable, int] = {}
    rows = [order.setdefault(cluster, len(order)) for cluster in clusters]
    sums = np.zeros((2, len(order)))
    np.add.at(sums[0], rows, np.asarray(hits, np.float64))
    np.add.at(sums[1], rows, np.asarray(totals, np.float64))

    def ratio(weights: Figures) -> Figures:
        with np.errstate(invalid="ignore"):
            result: Figures = (weights @ sums[0]) / (weights @ sums[1])
        return result

    interval = bootstrap(ratio, len(order), seed)
    if interval.value not in (0.0, 1.0) or math.isnan(interval.low):
        return interval
    from scipy.stats import binomtest

    n_hits = len(order) if interval.value else 0
    exact = binomtest(n_hits, len(order)).proportion_ci(CONFIDENCE, method="exact")
    return Interval(interval.value, float(exact.low), float(exact.high))


def bootstrap(
    statistic: Callable[[Figures], Figures], n_clusters: int, seed: int, n: int = N_RESAMPLES
) -> Interval:
    """Return a statistic with its interval over resampled clusters.

    Args:
        statistic: how often each cluster counts, shape (n, n_clusters), to figures, shape (n,).
    """
    if not n_clusters:
        return Interval(math.nan, math.nan, math.nan)
    value = float(statistic(np.ones((1, n_clusters)))[0])
    if n_clusters < MIN_CLUSTERS:
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n)
    return _interval(value, statistic(weights.astype(np.float64)))


def quantile(values: Figures, ratio: float) -> float:
    """Return the value that `ratio` of `values` do not exceed; NaN without values.

    Of two values in the middle the mean is taken, infinite if one of them is.

    >>> quantile(np.array([1.0, 2.0, np.inf]), 0.5), quantile(np.array([1.0, np.inf]), 0.5)
    (2.0, inf)
    """
    if not values.size:
        return math.nan
    ordered = np.sort(values)
    place = ratio * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return float(below if place == math.floor(place) else _between(below, above, place % 1))


def _between(below: float, above: float, ratio: float) -> float:
    return above if math.isinf(above) else below + ratio * (above - below)


def _interval(value: float, drawn: Figures) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    tail = (1 - CONFIDENCE) / 2
    return Interval(value, quantile(drawn, tail), quantile(drawn, 1 - tail))
