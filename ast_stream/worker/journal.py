"""The position and state of each stream on disk, so that a killed worker resumes exactly there.

One small file in the runtime folder (memory, on most systems), replaced atomically: a line of JSON
with a checksum for each stream, so that damage costs the records that it hit and no others. It is
written, and synced where the folder is on a disk, before audio is acknowledged to the rings; what
was published after the last write is derived again from the same audio and recognised by its id.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ast_stream.detect.state import MAX_SAMPLE, DetectorState
from ast_stream.errors import WireError
from ast_stream.labels import is_stream_name
from ast_stream.machine_clock import CLOCK_ID, Moment
from ast_stream.messages.codec import add_checksum, has_checksum
from ast_stream.messages.event import event_id
from ast_stream.runtime.files import (
    read_state,
    replace_file,
    warn_set_aside,
)
from ast_stream.runtime.logging import Outage
from ast_stream.sample_clock import Anchor, SampleClock
from ast_stream.settings.storage import MAX_JOURNAL_BYTES
from ast_stream.units import MAX_TIME_NS, SAMPLE_RATE

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 1.0
SAVE_EVERY_SAMPLES = 5 * SAMPLE_RATE  # of any stream: sources faster than real time wait for acks
MAX_PORTABLE_BYTES = 2 * 1024 * 1024  # of a record that comes from another worker, as JSON
_COMPRESSION = 6
_WHAT = "worker journal"
_STRICT = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
_TimeNs = Annotated[int, Field(ge=0, le=MAX_TIME_NS)]
_Anchor = tuple[Annotated[int, Field(ge=0, le=MAX_SAMPLE)], _TimeNs, _TimeNs]


class StreamRecord(BaseModel):
    """The journalled state of one stream.

    Attributes:
        epoch: run of the capture process that the positions belong to.
        detector: what `Detector.export` gave.
        clock: anchors of the stream's clock: sample, wall time and monotonic time.
    """

    model_config = _STRICT
    epoch: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    detector: DetectorState
    clock: list[_Anchor] = Field(max_length=SampleClock.MAX_ANCHORS)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.clock != sorted(self.clock):
            raise ValueError("expected the anchors of the clock in their order")
        clock = self.sample_clock()
        for sample in (self.detector.context_start, self.detector.position) if self.clock else ():
            if not 0 <= clock.moment(sample).wall_ns <= MAX_TIME_NS:
                raise ValueError("expected positions of our time")
        return self

    @classmethod
    def of(cls, epoch: str, detector: DetectorState, clock: SampleClock) -> StreamRecord:
        """Return the record of a stream's present state."""
        # checked where it is read: nothing here may stop a worker that runs
        return cls.model_construct(epoch=epoch, detector=detector, clock=list(clock.anchors))

    def without_frames(self) -> StreamRecord:
        """Return this record without the frames that were not decided when it was made."""
        return self.model_copy(
            update={"detector": self.detector.model_copy(update={"frames": None})}
        )

    def by_clock_of(self, now: Moment) -> StreamRecord:
        """Return this record of another machine with its times on both clocks of this one."""
        clock = [(sample, wall_ns, wall_ns - now.offset_ns) for sample, wall_ns, _ in self.clock]
        known = [anchor for anchor in clock if anchor[2] >= 0]
        return self.model_copy(update={"clock": known})

    def sample_clock(self) -> SampleClock:
        """Return the stream's clock as it was."""
        return SampleClock([Anchor(*anchor) for anchor in self.clock])

    def time_ns(self, sample: int) -> int | None:
        """Return the wall time of a sample, None if no audio had come yet."""
        return self.sample_clock().time_ns(sample) if self.clock else None

    @property
    def position(self) -> int:
        """Samples before this index are decided."""
        return self.detector.position

    def open_events(self, stream: str) -> set[str]:
        """Return the ids of events that have begun and not ended."""
        return {
            event_id(stream, self.epoch, index, known.first_seen)
            for index, known in self.detector.classes.items()
            if known.is_published
        }


class _JournalLine(BaseModel):
    """What every line has."""

    model_config = _STRICT
    crc: str | None = None
    v: Literal[2]
    model: str


class _StreamLine(_JournalLine):
    stream: str
    record: StreamRecord


class _LastLine(_JournalLine):
    """Says how many streams there were, so that a missing line is noticed."""

    streams: int = Field(ge=0)


class _PortableLine(_StreamLine):
    """A record that leaves the machine."""

    clock: str = Field(max_length=64)


def encode_record(stream: str, record: StreamRecord, model: str) -> bytes:
    """Return the record of a stream for a worker on another box, compressed."""
    line = _PortableLine.model_construct(
        v=2, model=model, stream=stream, record=record, clock=CLOCK_ID
    )
    return zlib.compress(_encode(line), _COMPRESSION)


def decode_record(
    content: bytes, stream: str, model: str, n_classes: int, now: Moment
) -> StreamRecord | None:
    """Return the record of a stream that another worker has made.

    Args:
        now: both clocks of this machine.

    Returns:
        None if it is of another model or other settings.

    Raises:
        WireError: it is damaged, or of another stream.
    """
    opened = zlib.decompressobj()
    try:
        line = opened.decompress(content, MAX_PORTABLE_BYTES)
    except zlib.error as error:
        raise WireError(f"stream {stream}: journal record: {error}") from error
    if not has_checksum(line):
        raise WireError(f"stream {stream}: journal record: its checksum is wrong")
    try:
        found = _PortableLine.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise WireError(f"stream {stream}: journal record: {first['msg']}") from error
    if found.model != model:
        return None
    if found.stream != stream or not found.record.detector.is_of(n_classes):
        raise WireError(f"stream {stream}: journal record: it is of another stream or model")
    return found.record if found.clock == CLOCK_ID else found.record.by_clock_of(now)


class JournalledStream(Protocol):
    """What the journal needs of a stream."""

    @property
    def name(self) -> str:
        """The stream's name."""

    @property
    def position(self) -> int | None:
        """Samples before this index are decided; None while that cannot be journalled."""

    def record(self) -> StreamRecord | None:
        """Return what a later run needs to continue from here; None if there is nothing."""

    def acknowledge(self, stop: int) -> None:
        """Tell the ring that everything before `stop` is decided, published and journalled."""


class Journal:
    """Journals the state of the streams, then acknowledges it to their rings: never before.

    Args:
        max_streams: records used of streams that are not in the configuration.
        now_s: present time of the clock that `save` gets.
        save_every_s: how long audio waits for its acknowledgement.
    """

    def __init__(
        self,
        file: JournalFile,
        max_streams: int,
        now_s: float,
        save_every_s: float = SAVE_EVERY_S,
    ) -> None:
        self._file = file
        self._save_every_s = save_every_s
        self._saved_s = now_s
        self._saved: dict[str, int] = {}  # positions by stream
        # of streams that are not in the configuration and may come back
        self._unclaimed = dict(list(file.load().items())[:max_streams])

    @property
    def outage(self) -> Outage:
        """Whether the file cannot be written, and why."""
        return self._file.outage

    @property
    def model(self) -> str:
        """The identity of model and settings; decisions of another one cannot be continued."""
        return self._file.model

    def decode(self, content: bytes, stream: str, now: Moment) -> StreamRecord | None:
        """Return the record that another worker has made; see `decode_record`."""
        return decode_record(content, stream, self._file.model, self._file.n_classes, now)

    def unclaimed(self, stream: str) -> StreamRecord | None:
        """Return what an earlier run journalled of a stream that has not come back yet."""
        return self._unclaimed.get(stream)

    def claim(self, stream: str) -> StreamRecord | None:
        """Return what an earlier run journalled of a stream, once."""
        return self._unclaimed.pop(stream, None)

    def change_model(self, model: str) -> None:
        """Journal for another model or other settings from now on."""
        self._unclaimed.clear()
        self._file.model = model

    def is_due(self, streams: Collection[JournalledStream], now_s: float) -> bool:
        """Return whether it is time to save again."""
        is_far = any(
            position - self._saved.get(name, 0) >= SAVE_EVERY_SAMPLES
            for name, position in _positions(streams).items()
        )
        return is_far or now_s - self._saved_s >= self._save_every_s

    def save(self, streams: Collection[JournalledStream], now_s: float) -> None:
        """Journal and acknowledge.

        What could not be journalled is acknowledged all the same, unless a journal of older
        positions is left over: resuming from those, a later run would lack audio it has decided.
        """
        positions = _positions(streams)
        self._saved_s, self._saved = now_s, positions
        records = {
            stream.name: record for stream in streams if (record := stream.record()) is not None
        }
        if self._file.save(self._unclaimed | records):
            for stream in streams:
                if stream.name in positions:
                    stream.acknowledge(positions[stream.name])


def _positions(streams: Collection[JournalledStream]) -> dict[str, int]:
    return {
        stream.name: position for stream in streams if (position := stream.position) is not None
    }


class JournalFile:
    """The journal file of one worker.

    Args:
        path: the file; its folder exists.
        model: identifies model and detection settings; a journal of others is not used.
        n_classes: of the model.

    Attributes:
        errors: writes that failed.
    """

    def __init__(self, path: Path, model: str, n_classes: int) -> None:
        self.path = path
        self.model = model
        self.errors = 0
        self.outage = Outage(logger, f"{_WHAT} {path} is written again")
        self.n_classes = n_classes

    def load(self) -> dict[str, StreamRecord]:
        """Return the usable records by stream; a damaged file is set aside."""
        lines = read_state(self.path, bytes.splitlines, MAX_JOURNAL_BYTES, _WHAT)
        if lines is None:
            return {}
        content = _Content(self.model, self.n_classes)
        for line in lines:
            content.add(line + b"\n")
        if content.is_of_another_model:
            logger.info(
                "%s %s is of another model or other settings, starting afresh", _WHAT, self.path
            )
        elif (reason := content.damage()) is not None:
            then = f"going on with {len(content.records)} streams, the others start afresh"
            warn_set_aside(self.path, _WHAT, reason, then)
        return content.records

    def save(self, streams: Mapping[str, StreamRecord]) -> bool:
        """Replace the file.

        Returns:
            False if older positions are left over. A file that cannot be written (counted, and
            logged once) is removed, because resuming from old positions is worse than from none.
        """
        lines: list[_JournalLine] = [
            _StreamLine.model_construct(v=2, model=self.model, stream=name, record=record)
            for name, record in streams.items()
        ]
        lines.append(_LastLine.model_construct(v=2, model=self.model, streams=len(streams)))
        content = b"".join(_encode(line) for line in lines)
        try:
            replace_file(self.path, content, is_synced=True, mode=0o640)
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


class _Content:
    """What the lines of a journal hold."""

    def __init__(self, model: str, n_classes: int) -> None:
        self.records: dict[str, StreamRecord] = {}
        self.is_of_another_model = False
        self._model = model
        self._n_classes = n_classes
        self._n_expected: int | None = None
        self._n_damaged = 0

    def add(self, line: bytes) -> None:
        """Read the next line."""
        decoded = _decode(line)
        if decoded is None:
            self._n_damaged += 1
        elif decoded.model != self._model:
            self.is_of_another_model = True
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


def _encode(line: _JournalLine) -> bytes:
    return add_checksum(line.model_dump_json(exclude_unset=True).encode())


def _decode(line: bytes) -> _JournalLine | None:
    if not has_checksum(line):
        return None
    for kind in (_StreamLine, _LastLine):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    return None
