"""How `scan` writes events and scores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_stream.errors import UsageError
from ast_stream.messages import Event, Scores
from ast_stream.units import SAMPLE_RATE, samples_to_seconds

Fields = dict[str, Any]


def event_fields(file: str, event: Event) -> Fields:
    """Return a finished event as `scan` reports it; times in seconds from the file's start."""
    assert event.offset_sample is not None
    return {
        "file": file,
        "class": event.slug,
        "label": event.label,
        "onset_s": round(samples_to_seconds(event.onset_sample), 3),
        "offset_s": round(samples_to_seconds(event.offset_sample), 3),
        "score": round(event.mean or 0.0, 4),
        "peak": round(event.peak, 4),
        "uncertainty_s": round(event.uncertainty_s, 3),
    }


class ScoreCollector:
    """Keeps what the decision stage saw of one recording."""

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._rows: list[npt.NDArray[np.float32]] = []

    def add(self, scores: Scores) -> None:
        """Take the scores of one window."""
        self._ends.append(scores.end_sample)
        self._rows.append(scores.scores)

    def save(self, path: Path, labels: list[str]) -> None:
        """Write times_s (end of each window), scores (hops, classes) and labels as .npz.

        Raises:
            UsageError: the file cannot be written.
        """
        scores = np.array(self._rows, np.float32).reshape(len(self._rows), len(labels))
        times_s = np.array(self._ends, np.float64) / SAMPLE_RATE
        try:
            with path.open("wb") as file:
                np.savez_compressed(file, times_s=times_s, scores=scores, labels=np.array(labels))
        except OSError as error:
            raise UsageError(f"scan: --scores: cannot write {path}: {error.strerror}") from error


def _json(fields: Fields) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _text(fields: Fields) -> str:
    return (
        f"{fields['onset_s']:9.2f} {fields['offset_s']:9.2f}  {fields['label']:<40} "
        f"{fields['score']:.2f}  {fields['file']}"
    )


def _audacity(fields: Fields) -> str:
    return f"{fields['onset_s']:.6f}\t{fields['offset_s']:.6f}\t{fields['label']}"


def _rttm(fields: Fields) -> str:
    duration_s = fields["offset_s"] - fields["onset_s"]
    name = Path(fields["file"]).stem.replace(" ", "_")
    return (
        f"SPEAKER {name} 1 {fields['onset_s']:.3f} {duration_s:.3f} "
        f"<NA> <NA> {fields['class']} {fields['score']:.4f} <NA>"
    )


def _csv(fields: Fields) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields.values())
    return line.getvalue()


FORMATS: dict[str, Callable[[Fields], str]] = {
    "json": _json,
    "text": _text,
    "audacity": _audacity,
    "rttm": _rttm,
    "csv": _csv,
}
HEADERS = {"csv": "file,class,label,onset_s,offset_s,score,peak,uncertainty_s"}
