"""Regenerate `sed_scores_eval.json`: made-up scores and sounds, and that evaluator's figures.

Run where `sed_scores_eval` is installed, apart from the project: it needs an older pandas and an
older setuptools, and brings numba and scikit-learn along:

    python3.11 -m venv /tmp/sed
    /tmp/sed/bin/pip install sed_scores_eval==0.0.4 'pandas<3' 'setuptools<80'
    /tmp/sed/bin/python -W ignore tests/golden/make_sed_scores_eval.py

The file carries the inputs, too, so that the test needs neither this script nor its packages.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sed_scores_eval import collar_based, intersection_based, segment_based

OUT = Path(__file__).parent / "sed_scores_eval.json"
LABELS = ("Bark", "Rain", "Siren")
N_CASES, N_SOUNDSCAPES = 3, 2
DURATION_S, CELL_S = 180.0, 0.25
EDGES = np.arange(0, DURATION_S + CELL_S / 2, CELL_S)
THRESHOLDS = (0.305, 0.455, 0.705)
DECIMALS = 10

Floats = npt.NDArray[np.float64]
Sound = tuple[float, float, str]


def make_soundscape(rng: np.random.Generator) -> tuple[Floats, list[Sound]]:
    """Return noisy scores in cells, shape (n_cells, n_labels), and sounds they partly follow.

    Sounds fill less than a tenth: else one detection of everything would be right for PSDS2.
    """
    scores = 0.35 * rng.random((len(EDGES) - 1, len(LABELS)))
    sounds: list[Sound] = []
    for index, label in enumerate(LABELS):
        at_s = rng.uniform(2, 8)
        while at_s < DURATION_S - 12:
            length_s = rng.uniform(0.5, 3.0)
            sounds.append((round(at_s, 3), round(at_s + length_s, 3), label))
            shown = index if rng.random() < 0.85 else int(rng.integers(len(LABELS)))
            begin_s, end_s = at_s + rng.normal(0, 0.3), at_s + length_s + rng.normal(0, 0.4)
            scores[(EDGES[:-1] > begin_s - CELL_S) & (EDGES[:-1] < end_s), shown] += rng.uniform(
                0.1, 0.6
            )
            at_s += length_s + rng.uniform(10.0, 30.0)
    return np.round(scores, 2), sounds


def make_case(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    soundscapes = {f"soundscape-{number}": make_soundscape(rng) for number in range(N_SOUNDSCAPES)}
    tables = {
        name: pd.DataFrame(
            np.column_stack([EDGES[:-1], EDGES[1:], scores]), columns=["onset", "offset", *LABELS]
        )
        for name, (scores, _) in soundscapes.items()
    }
    truth = {name: sounds for name, (_, sounds) in soundscapes.items()}
    durations = dict.fromkeys(soundscapes, DURATION_S)
    return {
        "scores": {name: scores.tolist() for name, (scores, _) in soundscapes.items()},
        "truth": truth,
        "psds1": psds(tables, truth, durations, dtc_threshold=0.7, gtc_threshold=0.7, alpha_st=1),
        "psds2": psds(
            tables,
            truth,
            durations,
            dtc_threshold=0.1,
            gtc_threshold=0.1,
            cttc_threshold=0.3,
            alpha_ct=0.5,
            alpha_st=1,
        ),
        "f1": {str(threshold): f1(tables, truth, durations, threshold) for threshold in THRESHOLDS},
    }


def psds(tables: Any, truth: Any, durations: Any, **criteria: float) -> dict[str, Any]:
    value, _, _, curves = intersection_based.psds(
        tables, truth, durations, max_efpr=100.0, **criteria
    )
    return {
        "value": value,
        "curves": {
            label: {"recall": recall.tolist(), "false_per_h": rate.tolist()}
            for label, (recall, rate, _) in curves.items()
        },
    }


def f1(tables: Any, truth: Any, durations: Any, threshold: float) -> dict[str, dict[str, float]]:
    def collar(onset: float, offset: float, rate: float = 0.0) -> Any:
        return collar_based.fscore(
            tables,
            truth,
            threshold,
            onset_collar=onset,
            offset_collar=offset,
            offset_collar_rate=rate,
        )[0]

    found = {
        "collar 0.2 s": collar(0.2, 0.2, 0.2),
        "onset 0.5 s": collar(0.5, 1e6),
        "onset 1 s": collar(1.0, 1e6),
        "intersection 0.5": intersection_based.fscore(
            tables, truth, threshold, dtc_threshold=0.5, gtc_threshold=0.5
        )[0],
        "segments 1 s": segment_based.fscore(
            tables, truth, durations, threshold, segment_length=1.0
        )[0],
    }
    return {kind: {label: float(by[label]) for label in LABELS} for kind, by in found.items()}


def rounded(value: Any) -> Any:
    """Return `value` with numbers that differ between machines in no digit."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(float(value), DECIMALS) if isinstance(value, float) else value


if __name__ == "__main__":
    content = {
        "made_with": {
            name: version(name) for name in ("sed_scores_eval", "numpy", "pandas", "scipy")
        },
        "cell_s": CELL_S,
        "duration_s": DURATION_S,
        "labels": LABELS,
        "cases": [rounded(make_case(seed)) for seed in range(N_CASES)],
    }
    OUT.write_text(json.dumps(content, separators=(",", ":")) + "\n", "utf-8")
