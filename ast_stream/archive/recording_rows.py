"""The rows of one recording of an archive."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ast_stream.messages.event import Scores, Scores16
from ast_stream.scanner import ScannedEvent

Status = Literal["ok", "warned", "partial", "unreadable"]
_ROWS_AT_ONCE = 8192
_IN_MEMORY_BYTES = 256 * 1024


class ScoreSpool:
    """Holds the scores of one recording until its part is written.

    A part may have a thousand short recordings. The scores of a few minutes are kept in memory;
    those of longer recordings, of which a part has fewer, in a temporary file each.

    Raises:
        OSError: the disk with the temporary files is full.
    """

    def __init__(self, n_classes: int) -> None:
        self.n_rows = 0
        self._row = np.dtype([("end", "<i8"), ("scores", "<f2", (n_classes,))])
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115

    def add(self, scores: Scores) -> None:
        """Append the scores of a window or a frame."""
        row = np.zeros(1, self._row)
        row["end"], row["scores"] = scores.end_sample, scores.scores
        self._file.write(row.tobytes())
        self.n_rows += 1

    def blocks(self) -> Iterator[tuple[npt.NDArray[np.int64], Scores16]]:
        """Yield the window ends in samples, shape (n,), and the scores, shape (n, n_classes)."""
        self._file.seek(0)
        while data := self._file.read(_ROWS_AT_ONCE * self._row.itemsize):
            rows = np.frombuffer(data, self._row)
            yield rows["end"], rows["scores"]

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


@dataclass(frozen=True)
class RecordingRows:
    """One recording, scanned as far as it could be read.

    Attributes:
        name: as in `Recording`.
        n_bytes: size of the file; None: unknown.
        duration_s: duration of the audio that was scanned.
        status: ok; warned: scanned to its end, but perhaps wrongly; partial: only partly scanned;
            unreadable: not scanned at all.
        sentence: why it is not ok; None: it is.
        n_windows: number of windows that were scored or gated.
        gated_s: the part of `duration_s` that was too quiet to be scored.
        events: by onset, then by class.
        is_absent: there is no such file, or this user may not read it.
        scores: None: not requested.
    """

    name: str
    n_bytes: int | None
    duration_s: float
    status: Status
    sentence: str | None
    n_windows: int
    gated_s: float
    events: tuple[ScannedEvent, ...]
    is_absent: bool = False
    scores: ScoreSpool | None = None

    def to_json(self) -> str:
        """Return everything but the scores, for another process."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        return json.dumps(fields | {"events": [asdict(event) for event in self.events]})

    @classmethod
    def from_json(cls, text: str) -> RecordingRows:
        """Return the rows that `to_json` encoded."""
        fields = json.loads(text)
        fields["events"] = tuple(ScannedEvent(**event) for event in fields["events"])
        return cls(**fields)


_PLAIN = (
    "name",
    "n_bytes",
    "duration_s",
    "status",
    "sentence",
    "n_windows",
    "gated_s",
    "is_absent",
)


def in_order(events: list[ScannedEvent]) -> tuple[ScannedEvent, ...]:
    """Return the events of a recording in the order of the rows: by onset, class and offset."""
    return tuple(sorted(events, key=lambda event: (event.onset_s, event.slug, event.offset_s)))
