"""Verifiers compared with the one in force, on days that they were not fitted to.

Each day with verdicts is left out in turn: a verifier that is fitted to all other days, threshold
and all, judges its events. So nothing of a day, no dog and no cough that was heard twice on it, is
on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.detect.verifiers import ClassVerifier, VerifiersFile
from ast_stream.verdicts.fitting import (
    Examples,
    FittedVerifier,
    fit_verifier,
    problem_with,
)
from ast_stream.verdicts.rescoring import RescoredEvent

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VerifierOutcome:
    """What becomes of reviewed events.

    Attributes:
        n_wrong, n_right: that were judged.
        turned_off, lost: how many of these are withheld.
    """

    n_wrong: int
    turned_off: int
    n_right: int
    lost: int

    @classmethod
    def of(cls, is_right: Flags, is_withheld: Flags) -> VerifierOutcome:
        """Return the outcome of events, both of shape (n,)."""
        return cls(
            int((~is_right).sum()),
            int((~is_right & is_withheld).sum()),
            int(is_right.sum()),
            int((is_right & is_withheld).sum()),
        )

    def __add__(self, other: VerifierOutcome) -> VerifierOutcome:
        """Return both together."""
        return VerifierOutcome(
            self.n_wrong + other.n_wrong,
            self.turned_off + other.turned_off,
            self.n_right + other.n_right,
            self.lost + other.lost,
        )


@dataclass(frozen=True, eq=False)
class ClassResult:
    """The verifier of one class, and what it would have done.

    Attributes:
        problem: why there is none; None: there is one.
        held_out: on days that it was not fitted to.
        n_days: how many of them.
        in_force: of the verifier in force, on the same events; None: there is none.
    """

    label: str
    n_right: int
    n_wrong: int
    problem: str | None = None
    fitted: FittedVerifier | None = None
    held_out: VerifierOutcome | None = None
    n_days: int = 0
    in_force: VerifierOutcome | None = None

    @property
    def description(self) -> ClassVerifier:
        """The entry of a verifiers' file."""
        assert self.fitted is not None
        assert self.held_out is not None
        return ClassVerifier(
            label=self.label,
            threshold=self.fitted.threshold,
            n_right=self.n_right,
            n_wrong=self.n_wrong,
            turned_off=self.held_out.turned_off,
            lost=self.held_out.lost,
        )


def fit_class(
    label: str, rescored: Sequence[RescoredEvent], max_lost: float, in_force: VerifiersFile | None
) -> ClassResult:
    """Fit the verifier of a class and judge the reviewed events of each day without that day.

    Args:
        rescored: events of the class that are right or wrong.
        max_lost: see `fit_verifier`.
        in_force: what the configuration names now; None: nothing.
    """
    examples, days = examples_of(rescored)
    problem = problem_with(label, examples.n_right, examples.n_wrong)
    if problem is not None:
        return ClassResult(label, examples.n_right, examples.n_wrong, problem)
    held_out, n_days, is_judged = VerifierOutcome(0, 0, 0, 0), 0, np.zeros(len(days), np.bool_)
    for day in np.unique(days):
        others, own = examples.only(days != day), examples.only(days == day)
        if problem_with(label, others.n_right, others.n_wrong) is None:
            verifier = fit_verifier(label, others, max_lost)
            is_withheld = verifier.scores(own.vectors) < verifier.threshold
            held_out += VerifierOutcome.of(own.is_right, is_withheld)
            n_days += 1
            is_judged |= days == day
    return ClassResult(
        label,
        examples.n_right,
        examples.n_wrong,
        fitted=fit_verifier(label, examples, max_lost),
        held_out=held_out,
        n_days=n_days,
        in_force=_in_force(label, examples.only(is_judged), in_force),
    )


def examples_of(rescored: Sequence[RescoredEvent]) -> tuple[Examples, npt.NDArray[np.int64]]:
    """Return examples whose groups are hours, and the number of each one's day."""
    days = sorted({event.reviewed.day for event in rescored})
    hour_ns = 3_600_000_000_000
    width = len(rescored[0].vector) if rescored else 0
    examples = Examples(
        np.array([event.vector for event in rescored], np.float32).reshape(len(rescored), width),
        np.array([bool(event.reviewed.is_right) for event in rescored], np.bool_),
        np.array([event.reviewed.event.onset_ns // hour_ns for event in rescored], np.int64),
    )
    return examples, np.array([days.index(event.reviewed.day) for event in rescored], np.int64)


def _in_force(label: str, examples: Examples, file: VerifiersFile | None) -> VerifierOutcome | None:
    if file is None:
        return None
    known = {verifier.label: number for number, verifier in enumerate(file.description.classes)}
    if label not in known:
        return None
    number = known[label]
    threshold = file.description.classes[number].threshold
    scores = np.array([file.score(number, vector) for vector in examples.vectors])
    return VerifierOutcome.of(examples.is_right, scores < threshold)
