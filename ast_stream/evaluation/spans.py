"""Stretches of time: what is true of a strip and what was detected, as arrays to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spans:
    """Half-open stretches of time, by onset, with a confidence each; shape (n,)."""

    onset_s: Times
    offset_s: Times
    confidence: Times

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.onset_s)

    def at_least(self, threshold: float) -> Spans:
        """Return those with at least this confidence."""
        kept = self.confidence >= threshold
        return Spans(self.onset_s[kept], self.offset_s[kept], self.confidence[kept])


def spans_of(rows: Sequence[tuple[float, float, float]]) -> Spans:
    """Return spans of (onset, offset, confidence)."""
    table = np.array(sorted(rows), np.float64).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2])
