"""How `scan` writes events and scores."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ast_stream.cli.output import json_line
from ast_stream.errors import UsageError
from ast_stream.messages.event import Scores
from ast_stream.units import SAMPLE_RATE

if TYPE_CHECKING:
    from ast_stream.scan import ScannedEvent


class ScoreCollector:
    """Keeps what the decision stage saw of one recording, for a file that can be written.

    Raises:
        UsageError: it cannot; better known before hours are scanned than after.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise UsageError(f"scan: --scores: expected a file, got the folder {path}")
        if not path.parent.is_dir():
            raise UsageError(f"scan: --scores: cannot write {path}: there is no such folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"scan: --scores: cannot write {path}: Permission denied")
        self._path = path
        self._ends: list[int] = []
        self._rows: list[npt.NDArray[np.float32]] = []

    def add(self, scores: Scores) -> None:
        """Take the scores of one window."""
        self._ends.append(scores.end_sample)
        self._rows.append(scores.scores)

    @property
    def is_empty(self) -> bool:
        """Tell whether no window has come yet."""
        return not self._rows

    def save(self, labels: list[str]) -> None:
        """Write times_s (end of each window), scores (hops, classes) and labels as .npz.

        Raises:
            UsageError: the file cannot be written.
        """
        scores = np.array(self._rows, np.float32).reshape(len(self._rows), len(labels))
        times_s = np.array(self._ends, np.float64) / SAMPLE_RATE
        try:
            with self._path.open("wb") as file:
                np.savez_compressed(file, times_s=times_s, scores=scores, labels=np.array(labels))
        except OSError as error:
            raise UsageError(
                f"scan: --scores: cannot write {self._path}: {error.strerror}"
            ) from error


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
