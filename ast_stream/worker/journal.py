"""Where each stream stands, so that a killed worker goes on with the next sample.

One small file in the runtime folder (memory, on most systems), replaced atomically: a line of JSON
with a checksum for each stream, so that damage costs the records that it hit and no others. It is
written before the rings are told that audio is no longer needed; what was published after the
last write is derived again from the same audio and recognised by its id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ast_stream.detect.state import MAX_SAMPLE, DetectorState
from ast_stream.labels import is_stream_name
from ast_stream.messages.audio import MAX_TIME_NS
from ast_stream.runtime.files import (
    add_checksum,
    has_checksum,
    read_state,
    replace_file,
    warn_set_aside,
)
from ast_stream.runtime.logging import Outage
from ast_stream.sample_clock import SampleClock

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024 * 1024  # more than all streams of a worker with all classes heard
_WHAT = "worker journal"
_STRICT = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
_Anchor = tuple[
    Annotated[int, Field(ge=0, le=MAX_SAMPLE)], Annotated[int, Field(ge=0, le=MAX_TIME_NS)]
]


class StreamRecord(BaseModel):
    """The journalled state of one stream.

    Attributes:
        epoch: run of the capture process that the positions belong to.
        detector: what `Detector.export` gave.
        clock: anchors of the stream's clock, (sample, nanoseconds since 1970).
    """

    model_config = _STRICT
    epoch: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    detector: DetectorState
    clock: list[_Anchor] = Field(max_length=SampleClock.MAX_ANCHORS)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.clock != sorted(self.clock):
            raise ValueError("expected the anchors of the clock in their order")
        for sample in (self.detector.context_start, self.detector.position):
            if not 0 <= (self.time_ns(sample) or 0) <= MAX_TIME_NS:
                raise ValueError("expected positions of our time")
        return self

    @classmethod
    def of(cls, epoch: str, detector: DetectorState, clock: SampleClock) -> StreamRecord:
        """Return the record of a stream's present state."""
        # checked where it is read: nothing here may stop a worker that runs
        return cls.model_construct(epoch=epoch, detector=detector, clock=list(clock.anchors))

    def sample_clock(self) -> SampleClock:
        """Return the stream's clock as it was."""
        return SampleClock(list(self.clock))

    def time_ns(self, sample: int) -> int | None:
        """Return the wall time of a sample, None if no audio had come yet."""
        return self.sample_clock().time_ns(sample) if self.clock else None

    @property
    def position(self) -> int:
        """Samples before this index are decided."""
        return self.detector.position


class _Line(BaseModel):
    """What every line has."""

    model_config = _STRICT
    crc: str | None = None
    v: Literal[2]
    model: str


class _StreamLine(_Line):
    stream: str
    record: StreamRecord


class _LastLine(_Line):
    """Says how many streams there were, so that a missing line is noticed."""

    streams: int = Field(ge=0)


class Journal:
    """The journal file of one worker.

    Args:
        path: the file; its folder exists.
        model: identifies model and detection settings; a journal of others is not used.
        n_classes: of the model.
    """

    def __init__(self, path: Path, model: str, n_classes: int) -> None:
        self.path = path
        self.errors = 0
        self._model = model
        self._n_classes = n_classes
        self.outage = Outage(logger, f"{_WHAT} {path} is written again")

    def belong_to(self, model: str) -> None:
        """From the next `save` on the journal is of other detection settings."""
        self._model = model

    def load(self) -> dict[str, StreamRecord]:
        """Return the records by stream that can be used; a damaged file is set aside."""
        lines = read_state(self.path, bytes.splitlines, MAX_BYTES, _WHAT)
        if lines is None:
            return {}
        found = _Reading(self._model, self._n_classes)
        for line in lines:
            found.take(line + b"\n")
        if found.is_of_others:
            logger.info(
                "%s %s is of another model or other settings, starting afresh", _WHAT, self.path
            )
        elif (reason := found.damage()) is not None:
            then = f"going on with {len(found.records)} streams, the others start afresh"
            warn_set_aside(self.path, _WHAT, reason, then)
        return found.records

    def save(self, streams: Mapping[str, StreamRecord]) -> bool:
        """Replace the file.

        Returns:
            False if older positions are left over. A file that cannot be written (counted, and
            logged once) is removed, because going back to old positions is worse than none.
        """
        lines: list[_Line] = [
            _StreamLine.model_construct(v=2, model=self._model, stream=name, record=record)
            for name, record in streams.items()
        ]
        lines.append(_LastLine.model_construct(v=2, model=self._model, streams=len(streams)))
        content = b"".join(_encode(line) for line in lines)
        try:
            replace_file(self.path, content)
        except OSError as error:
            self.errors += 1
            self.outage.failed("%s %s cannot be written: %s", _WHAT, self.path, error.strerror)
            return self._remove()
        self.outage.worked()
        return True

    def _remove(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            return False
        return True


class _Reading:
    """What the lines of a journal are found to hold."""

    def __init__(self, model: str, n_classes: int) -> None:
        self.records: dict[str, StreamRecord] = {}
        self.is_of_others = False
        self._model = model
        self._n_classes = n_classes
        self._n_expected: int | None = None
        self._n_damaged = 0

    def take(self, line: bytes) -> None:
        """Take the next line."""
        decoded = _decode(line)
        if decoded is None:
            self._n_damaged += 1
        elif decoded.model != self._model:
            self.is_of_others = True
        elif isinstance(decoded, _LastLine):
            self._n_expected = decoded.streams
        elif isinstance(decoded, _StreamLine):
            if is_stream_name(decoded.stream) and decoded.record.detector.is_of(self._n_classes):
                self.records[decoded.stream] = decoded.record
            else:
                self._n_damaged += 1

    def damage(self) -> str | None:
        """Return what is wrong, None if all is whole."""
        if self._n_damaged:
            return f"{self._n_damaged} of its lines are damaged"
        if self._n_expected is None:
            return "its end is missing"
        if self._n_expected != len(self.records):
            return f"expected {self._n_expected} streams, got {len(self.records)}"
        return None


def _encode(line: _Line) -> bytes:
    return add_checksum(line.model_dump_json(exclude_unset=True).encode())


def _decode(line: bytes) -> _Line | None:
    if not has_checksum(line):
        return None
    for kind in (_StreamLine, _LastLine):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    return None
