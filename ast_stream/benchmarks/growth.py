"""Whether figures of long-running processes grow: a robust slope, compared with stated limits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

WARM_UP_RATIO = 0.25  # of the lifetime of a process, in which caches fill and pools are made
MIN_WARM_UP_S = 30.0
MIN_POINTS = 12  # after the warm-up; a process with fewer is not judged
_MAX_BINS = 60


@dataclass(frozen=True)
class Limit:
    """How much a figure may grow in the lifetime of one process, after the warm-up.

    Attributes:
        amount: in the unit of the figure.
        ratio: of its level; the larger of the two applies.
    """

    amount: float
    ratio: float = 0.0

    def of(self, level: float) -> float:
        """Return the growth that is allowed at a level."""
        return max(self.amount, self.ratio * level)


@dataclass(frozen=True)
class Growth:
    """The growth of a figure in the process in which it grew most relative to its limit.

    Attributes:
        level: median after the warm-up.
        growth: the robust slope times the time that was judged.
        span_s: that time; 0 if no process ran long enough.
    """

    name: str
    unit: str
    level: float
    growth: float
    limit: float
    span_s: float

    @property
    def is_too_much(self) -> bool:
        """Whether it grew by more than the limit."""
        return self.growth > self.limit

    def to_json(self) -> dict[str, Any]:
        """Return JSON content."""
        return {
            "name": self.name,
            "unit": self.unit,
            "level": round(self.level, 3),
            "growth": round(self.growth, 3),
            "limit": round(self.limit, 3),
            "judged_s": round(self.span_s, 1),
            "is_too_much": self.is_too_much,
        }


@dataclass
class Figure:
    """A figure over time, in each of the processes that had it one after the other.

    Attributes:
        points: (seconds, value), by process id.
    """

    name: str
    unit: str
    limit: Limit
    points: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, pid: int, at_s: float, value: float) -> None:
        """Add a point."""
        self.points.setdefault(pid, []).append((at_s, value))

    def growth(self) -> Growth:
        """Return the growth in the process that came closest to the limit, or exceeded it most."""
        judged = [found for points in self.points.values() if (found := self._judge(points))]
        if not judged:
            values = [value for points in self.points.values() for _, value in points]
            level = median(values) if values else 0.0
            return Growth(self.name, self.unit, level, 0.0, self.limit.of(level), 0.0)
        return max(judged, key=lambda found: found.growth / found.limit)

    def _judge(self, points: Sequence[tuple[float, float]]) -> Growth | None:
        settled = after_warm_up(points)
        if len(settled) < MIN_POINTS:
            return None
        span_s = settled[-1][0] - settled[0][0]
        level = median(value for _, value in settled)
        growth = robust_slope(settled) * span_s
        return Growth(self.name, self.unit, level, growth, self.limit.of(level), span_s)


def after_warm_up(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of a process after its warm-up."""
    if not points:
        return []
    begin_s, end_s = points[0][0], points[-1][0]
    warm_s = begin_s + max(MIN_WARM_UP_S, WARM_UP_RATIO * (end_s - begin_s))
    return [point for point in points if point[0] >= warm_s]


def robust_slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the Theil-Sen slope per second: the median of the slopes between all pairs of points.

    A long series is first reduced to the medians of at most 60 bins. A peak, as after an outage,
    does not move the slope.
    """
    medians = [
        (median(at_s for at_s, _ in bin), median(value for _, value in bin))
        for bin in _bins(points)
    ]
    times: npt.NDArray[np.float64] = np.array([at_s for at_s, _ in medians])
    values: npt.NDArray[np.float64] = np.array([value for _, value in medians])
    rows, columns = np.triu_indices(len(medians), 1)
    passed = times[columns] - times[rows]
    is_later = passed > 0
    if not is_later.any():
        return 0.0
    slopes = (values[columns] - values[rows])[is_later] / passed[is_later]
    return float(np.median(slopes))


def _bins(points: Sequence[tuple[float, float]]) -> list[Sequence[tuple[float, float]]]:
    n_bins = min(_MAX_BINS, len(points))
    edges = [round(number * len(points) / n_bins) for number in range(n_bins + 1)]
    return [points[begin:end] for begin, end in itertools.pairwise(edges)]
