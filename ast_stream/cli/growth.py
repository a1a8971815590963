"""Whether figures of processes that run for long grow: a robust slope, against stated limits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

WARM_UP_PART = 0.25  # of a life: caches fill, pools are made
MIN_WARM_UP_S = 30.0
MIN_POINTS = 12  # after the warm-up; a shorter life is not judged
_MAX_BINS = 60


@dataclass(frozen=True)
class Limit:
    """By how much a figure may grow in one life of its process, after the warm-up.

    Attributes:
        amount: in the unit of the figure.
        part: of its level; the larger of both counts.
    """

    amount: float
    part: float = 0.0

    def of(self, level: float) -> float:
        """Return the growth that is allowed at a level."""
        return max(self.amount, self.part * level)


@dataclass(frozen=True)
class Growth:
    """What a figure did in the life in which it grew most, measured by its limit.

    Attributes:
        level: median after the warm-up.
        growth: the robust slope times the time that was judged.
        span_s: that time; 0 where no life was long enough.
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
    """A figure over time, in the lives of the processes that it is about.

    Attributes:
        lives: points (seconds, value) of each life, by what tells them apart.
    """

    name: str
    unit: str
    limit: Limit
    lives: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, life: int, at_s: float, value: float) -> None:
        """Add a point."""
        self.lives.setdefault(life, []).append((at_s, value))

    def growth(self) -> Growth:
        """Return the growth of the life that came closest to the limit, or went beyond it most."""
        judged = [found for points in self.lives.values() if (found := self._judge(points))]
        if not judged:
            values = [value for points in self.lives.values() for _, value in points]
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
    """Return the points behind the warm-up of a life."""
    if not points:
        return []
    begin_s, end_s = points[0][0], points[-1][0]
    warm_s = begin_s + max(MIN_WARM_UP_S, WARM_UP_PART * (end_s - begin_s))
    return [point for point in points if point[0] >= warm_s]


def robust_slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope per second of Theil and Sen: the median of the slopes between points.

    Of long series it takes the medians of at most 60 stretches of time. A peak, as after an
    outage, does not move it.
    """
    places = [
        (median(at_s for at_s, _ in part), median(value for _, value in part))
        for part in _parts(points, _MAX_BINS)
    ]
    times: npt.NDArray[np.float64] = np.array([place[0] for place in places])
    values: npt.NDArray[np.float64] = np.array([place[1] for place in places])
    rows, columns = np.triu_indices(len(places), 1)
    passed = times[columns] - times[rows]
    is_later = passed > 0
    if not is_later.any():
        return 0.0
    slopes = (values[columns] - values[rows])[is_later] / passed[is_later]
    return float(np.median(slopes))


def _parts(
    points: Sequence[tuple[float, float]], max_parts: int
) -> list[Sequence[tuple[float, float]]]:
    n_parts = min(max_parts, len(points))
    edges = [round(number * len(points) / n_parts) for number in range(n_parts + 1)]
    return [points[begin:end] for begin, end in itertools.pairwise(edges)]
