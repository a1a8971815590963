"""Budgets of false alarms, and bounds on their rate from the hours of audio heard.

After `count` alarms in T hours the rate is, with 95 %, below `poisson_upper_bound(count)` / T,
which is 3 / T (the rule of three) where none was heard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ast_stream.errors import UsageError
from ast_stream.evaluation.intervals import poisson_upper_bound
from ast_stream.labels import did_you_mean, find_label

HOURS: dict[str, float] = {"h": 1.0, "hour": 1.0, "day": 24.0, "week": 168.0, "month": 730.5}
_BUDGET = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)/([a-z]+)\Z")
_SYNTAX = "a number, '/', and h, day, week or month, like 0.5/h or 1/day"


@dataclass(frozen=True)
class Budget:
    """So many false alarms of one class are accepted; `text` is how a person wrote it."""

    per_h: float
    text: str

    def allowed(self, hours: float) -> int:
        """Return how many alarms in `hours` keep the budget."""
        return math.floor(self.per_h * hours + 1e-9)

    @property
    def hours_to_claim(self) -> float:
        """Hours without any alarm after which the rate is below the budget with 95 %."""
        return poisson_upper_bound(0) / self.per_h


@dataclass(frozen=True)
class Budgets:
    """The budget of every class: its own, or the one for all.

    Attributes:
        among: the budget of every class among sounds of others; None: the same as without any.
    """

    default: Budget
    by_label: dict[str, Budget] = field(default_factory=dict)
    among: Budget | None = None

    def of(self, label: str) -> Budget:
        """Return the budget of one class."""
        return self.by_label.get(label, self.default)

    def among_of(self, label: str) -> Budget:
        """Return the budget of one class among other sounds."""
        return self.of(label) if self.among is None else self.among


def per_hour(rate: float) -> Budget:
    """Return the budget of `rate` alarms an hour."""
    return Budget(rate, f"{rate:g}/h")


DEFAULT_BUDGET = per_hour(0.5)
LADDER = tuple(
    Budget(n / HOURS[unit], f"{n}/{unit}")
    for n, unit in ((10, "h"), (1, "h"), (1, "day"), (1, "week"))
)


def parse_budget(text: str, option: str = "--budget") -> Budget:
    """Return what "0.5/h" or "1/day" means.

    >>> parse_budget("1/day").per_h * 24
    1.0

    Raises:
        UsageError: it is not written so, or zero, which no amount of audio can show.
    """
    match = _BUDGET.match(text.strip())
    if match is None or match[2] not in HOURS:
        raise UsageError(f"{option}: expected {_SYNTAX}, got {text!r}")
    if float(match[1]) == 0:
        raise UsageError(
            f"{option}: expected more than zero, got {text!r}: no amount of audio can show that"
        )
    return Budget(float(match[1]) / HOURS[match[2]], text.strip())


def parse_budgets(texts: Iterable[str], labels: Sequence[str]) -> Budgets:
    """Return what several --budget options mean: "0.5/h" for all classes, "Glass=1/day" for one.

    Raises:
        UsageError: a wrong budget, a class the checkpoint does not have, or the same one twice.
    """
    default: Budget | None = None
    by_label: dict[str, Budget] = {}
    for text in texts:
        name, is_of_class, rate = text.rpartition("=")
        budget = parse_budget(rate)
        if not is_of_class:
            if default is not None:
                raise UsageError(f"--budget: expected one for all classes, got also {text!r}")
            default = budget
            continue
        label = class_named(name.strip(), labels, "--budget")
        if label in by_label:
            raise UsageError(f"--budget: expected one of {label!r}, got also {text!r}")
        by_label[label] = budget
    return Budgets(default or DEFAULT_BUDGET, by_label)


def class_named(name: str, labels: Sequence[str], option: str) -> str:
    """Return the label that `name` is, or is the slug of.

    Raises:
        UsageError: the checkpoint has no such class; names near it are said.
    """
    label = find_label(name, labels)
    if label is None:
        raise UsageError(
            f"{option}: expected a class of the checkpoint, got {name!r}"
            f"{did_you_mean(name, labels)}"
        )
    return label


def rate_text(per_h: float) -> str:
    """Return a rate in the unit that reads best.

    >>> rate_text(1.5), rate_text(1 / 24), rate_text(0.004)
    ('1.5/h', '1/day', '0.67/week')
    """
    for unit in ("h", "day"):
        if per_h * HOURS[unit] >= 0.5:
            return f"{per_h * HOURS[unit]:.2g}/{unit}"
    return f"{per_h * HOURS['week']:.2g}/week"


def hours_text(hours: float) -> str:
    """Return a length of time in hours as people say it.

    >>> hours_text(0.25), hours_text(1.999), hours_text(71.9)
    ('0.25 h', '2 h', '72 h')
    """
    return f"{hours:.2g} h" if hours < 10 else f"{hours:.0f} h"


def claim(count: int, hours: float, budget: Budget) -> str | None:
    """Return why `count` alarms in `hours` do not prove that `budget` is kept; None if they do."""
    if not hours:
        return f"no negative audio was heard; to claim {budget.text} you need " + hours_text(
            budget.hours_to_claim
        )
    bound_per_h = poisson_upper_bound(count) / hours
    if bound_per_h <= budget.per_h * (1 + 1e-3):
        return None
    alarms = "no false alarm" if count == 0 else f"{count} false alarm{'s' if count > 1 else ''}"
    return (
        f"{hours_text(hours)} heard, {alarms}: the rate is below {rate_text(bound_per_h)} with "
        f"95 %; to claim {budget.text} you need {hours_text(budget.hours_to_claim)} without any"
    )
