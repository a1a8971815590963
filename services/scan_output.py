"""How `scan` writes events and scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ast_stream.errors import UsageError
from ast_stream.messages import Scores
from ast_stream.units import SAMPLE_RATE
from services.output import json_line

if TYPE_CHECKING:
    from ast_stream.scan import ScannedEvent


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


def _json(event: ScannedEvent) -> str:
    return json_line(event.as_json())


def _text(event: ScannedEvent) -> str:
    return (
        f"{event.onset_s:9.2f} {event.offset_s:9.2f}  {event.label:<40} "
        f"peak {event.peak:.2f}  mean {event.mean:.2f}  {event.file}"
    )


def _audacity(event: ScannedEvent) -> str:
    return f"{event.onset_s:.6f}\t{event.offset_s:.6f}\t{event.label}"


def _rttm(event: ScannedEvent) -> str:
    name = Path(event.file).stem.replace(" ", "_")
    return (
        f"SPEAKER {name} 1 {event.onset_s:.3f} {event.offset_s - event.onset_s:.3f} "
        f"<NA> <NA> {event.slug} {event.mean:.4f} <NA>"
    )


def _csv(event: ScannedEvent) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(event.as_json().values())
    return line.getvalue()


FORMATS: dict[str, Callable[[ScannedEvent], str]] = {
    "json": _json,
    "text": _text,
    "audacity": _audacity,
    "rttm": _rttm,
    "csv": _csv,
}
HEADERS = {"csv": "file,class,label,onset_s,offset_s,score,peak,uncertainty_s,mean"}
