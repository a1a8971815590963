"""What all benchmarks share: ways that run in turn, figures of the rounds, a table, JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ast_stream.version import __version__

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TableColumn:
    """A column of a table of figures, for terminals and pages alike.

    Attributes:
        title: what the figures are, with their unit.
        text: how a row's fields become the cell, as of `str.format`.
        is_figure: right-aligned.
    """

    title: str
    text: str
    is_figure: bool = True


@dataclass(frozen=True)
class Spread:
    """Figures of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Return the spread of figures, at least one."""
        return cls(statistics.median(figures), min(figures), max(figures))


def seconds_in_turn(
    ways: Sequence[Callable[[], object]],
    n_rounds: int,
    on_round: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return the seconds that each way took in each round, shape (ways, rounds).

    One round runs each way once, in turn (A B A B), so that what else the machine does meets all
    of them.

    Args:
        on_round: called after each round.
        clock: in seconds; `time.process_time` counts the processor's alone.
    """
    seconds: list[list[float]] = [[] for _way in ways]
    for _round in range(n_rounds):
        for way, of_way in zip(ways, seconds, strict=True):
            began_s = clock()
            way()
            of_way.append(clock() - began_s)
        on_round()
    return seconds


def times_as_fast(seconds: Sequence[float], first: Sequence[float]) -> float:
    """Return how many times as fast as the first way one is: the median of the rounds' ratios."""
    return statistics.median(first_s / own_s for first_s, own_s in zip(first, seconds, strict=True))


def cells(columns: Sequence[TableColumn], row: Row) -> list[str]:
    """Return the cells of a row."""
    return [column.text.format(**row) for column in columns]


def versions() -> dict[str, str]:
    """Return what a measurement depends on."""
    return {
        "ast-stream": __version__,
        "Python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
    }
