"""What it costs to know a sound later: longer spans and averages find more, but not as soon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ast_stream.errors import UsageError
from ast_stream.training.calibration.by_class import parse_by_class

DELAY_COST = 0.2


@dataclass(frozen=True)
class DelayCosts:
    """By how much of a sound each second counts until it is known, of every class.

    Attributes:
        default: of classes that have none of their own.
    """

    default: float = DELAY_COST
    by_label: Mapping[str, float] = field(default_factory=dict)

    def of(self, label: str) -> float:
        """Return the cost of one class."""
        return self.by_label.get(label, self.default)

    def worth(self, label: str, delays_s: npt.NDArray[np.float64]) -> float:
        """Return what sounds of one class count together, known after `delays_s` seconds."""
        return float(np.maximum(0.0, 1.0 - self.of(label) * delays_s).sum())


def parse_delay_costs(texts: Iterable[str], labels: Sequence[str]) -> DelayCosts:
    """Return what several --delay-cost options mean: "0.2" for all classes, "Siren=0.05" for one.

    Raises:
        UsageError: no number from 0 to 1, a class the checkpoint does not have, or one twice.
    """
    default, by_label = parse_by_class(texts, labels, "--delay-cost", _cost)
    return DelayCosts(DELAY_COST if default is None else default, by_label)


def _cost(text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = -1.0
    if not 0 <= cost <= 1:
        raise UsageError(f"--delay-cost: expected a number from 0 to 1, got {text!r}")
    return cost
