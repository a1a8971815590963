"""Where each stream stands, so that a killed worker goes on with the next sample.

One small JSON file in the runtime folder (memory, on most systems), replaced atomically. It is
written before the rings are told that audio is no longer needed; what was published after the
last write is derived again from the same audio and recognised by its id.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ast_stream.messages import SampleClock

logger = logging.getLogger(__name__)

JOURNAL_VERSION = 1


class StreamRecord(BaseModel):
    """The journalled state of one stream.

    Attributes:
        epoch: run of the capture process that the positions belong to.
        detector: what `Detector.export` gave.
        clock: anchors of the stream's clock, (sample, nanoseconds since 1970).
    """

    model_config = ConfigDict(strict=True, frozen=True)
    epoch: str
    detector: dict[str, Any]
    clock: list[list[int]]

    @classmethod
    def of(cls, epoch: str, detector: dict[str, Any], clock: SampleClock) -> StreamRecord:
        """Return the record of a stream's present state."""
        anchors = [[sample, time_ns] for sample, time_ns in clock.anchors]
        return cls(epoch=epoch, detector=detector, clock=anchors)

    def sample_clock(self) -> SampleClock:
        """Return the stream's clock as it was."""
        return SampleClock([(sample, time_ns) for sample, time_ns in self.clock])

    def time_ns(self, sample: int) -> int | None:
        """Return the wall time of a sample, None if no audio had come yet."""
        return self.sample_clock().time_ns(sample) if self.clock else None

    @property
    def position(self) -> int:
        """Samples before this index are decided."""
        return int(self.detector["position"])


class _Contents(BaseModel):
    v: int
    model: str
    streams: dict[str, StreamRecord]


class Journal:
    """The journal file of one worker.

    Args:
        path: the file; its folder exists.
        model: identifies model and detection settings; a journal of others is not used.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.errors = 0
        self._model = model
        self._is_failing = False

    def belong_to(self, model: str) -> None:
        """From the next `save` on the journal is of other detection settings."""
        self._model = model

    def load(self) -> dict[str, StreamRecord]:
        """Return the records by stream; none if there is no journal that can be used."""
        try:
            contents = _Contents.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            logger.warning("journal %s cannot be used, starting afresh: %s", self.path, error)
            return {}
        if contents.v != JOURNAL_VERSION or contents.model != self._model:
            logger.info(
                "journal %s is of another model or other settings, starting afresh", self.path
            )
            return {}
        return contents.streams

    def save(self, streams: dict[str, StreamRecord]) -> bool:
        """Replace the file.

        Returns:
            False if older positions are left over. A file that cannot be written (counted, and
            logged once) is removed, because going back to old positions is worse than none.
        """
        contents = {
            "v": JOURNAL_VERSION,
            "model": self._model,
            "streams": {name: record.model_dump() for name, record in streams.items()},
        }
        temporary = self.path.with_suffix(".new")
        try:
            temporary.write_text(json.dumps(contents, separators=(",", ":")))
            temporary.replace(self.path)
        except OSError as error:
            self.errors += 1
            if not self._is_failing:
                logger.error("journal %s cannot be written: %s", self.path, error)
            self._is_failing = True
            return self._remove()
        self._is_failing = False
        return True

    def _remove(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            return False
        return True
