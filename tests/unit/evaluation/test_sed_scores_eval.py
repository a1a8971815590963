"""F1 and sound detection scores agree with `sed_scores_eval`, the field's own evaluator.

Its answers are stored in `golden/sed_scores_eval.json`, see `golden/make_sed_scores_eval.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ast_stream.evaluation.matching import F1_KINDS, Counts, Spans, spans_of
from ast_stream.evaluation.psds import (
    PSDS1,
    PSDS2,
    Criteria,
    SpansAt,
    Sweep,
    class_curve,
    psds,
    sweep,
)

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "sed_scores_eval.json").read_text("utf-8")
)
LABELS: list[str] = GOLDEN["labels"]
DURATION_S: float = GOLDEN["duration_s"]
SAME = 1e-9  # stored with ten decimals


class Case:
    """Soundscapes of scores in cells with the sounds that are true."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored = stored
        self.soundscapes = list(stored["truth"])
        self.scores = {name: np.array(scores) for name, scores in stored["scores"].items()}

    def sounds(self, soundscape: str, label: str) -> Spans:
        truth = self.stored["truth"][soundscape]
        return spans_of([(onset, offset, 1.0) for onset, offset, its in truth if its == label])

    def detected(self, soundscape: str, label: str) -> SpansAt:
        scores = self.scores[soundscape][:, LABELS.index(label)]
        edges = np.arange(len(scores) + 1) * GOLDEN["cell_s"]

        def at(threshold: float) -> Spans:
            steps = np.diff(np.r_[0, (scores >= threshold).astype(int), 0])
            onsets, offsets = edges[np.flatnonzero(steps > 0)], edges[np.flatnonzero(steps < 0)]
            return Spans(onsets, offsets, np.full(len(onsets), threshold))

        return at

    def counts(
        self, label: str, threshold: float, count: Callable[[Spans, Spans, float], Counts]
    ) -> Counts:
        rows = []
        for soundscape in self.soundscapes:
            detected = self.detected(soundscape, label)(threshold)
            rows.append(astuple(count(detected, self.sounds(soundscape, label), DURATION_S)))
        return Counts(*np.sum(rows, axis=0).tolist())

    def sweeps(self, criteria: Criteria) -> dict[str, Sweep]:
        truth = [
            {label: self.sounds(soundscape, label) for label in LABELS}
            for soundscape in self.soundscapes
        ]
        return {
            label: sweep(
                [self.detected(soundscape, label) for soundscape in self.soundscapes],
                np.unique(
                    np.concatenate([scores[:, index] for scores in self.scores.values()])
                ).tolist(),
                truth,
                label,
                criteria,
            )
            for index, label in enumerate(LABELS)
        }


CASES = [Case(stored) for stored in GOLDEN["cases"]]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize(("name", "criteria"), [("psds1", PSDS1), ("psds2", PSDS2)])
def test_sound_detection_scores_and_their_curves_agree(
    case: Case, name: str, criteria: Criteria
) -> None:
    theirs = case.stored[name]
    sweeps = case.sweeps(criteria)
    durations = np.full(len(case.soundscapes), DURATION_S)
    assert 0.01 < theirs["value"] < 0.99
    assert psds(sweeps, durations, criteria) == pytest.approx(theirs["value"], abs=SAME)
    for label, curve in theirs["curves"].items():
        recall, false_per_h = class_curve(sweeps[label], durations, criteria)
        np.testing.assert_allclose(recall, curve["recall"], atol=SAME)
        np.testing.assert_allclose(false_per_h, curve["false_per_h"], atol=SAME)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("kind", F1_KINDS)
def test_f1_of_every_kind_agrees_at_all_thresholds(case: Case, kind: str) -> None:
    compared = 0
    for threshold, by_kind in case.stored["f1"].items():
        for label, theirs in by_kind[kind].items():
            ours = case.counts(label, float(threshold), F1_KINDS[kind])
            assert ours.f1 == pytest.approx(theirs, abs=SAME)
            compared += theirs > 0
    assert compared >= 5
