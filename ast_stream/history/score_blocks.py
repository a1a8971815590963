"""Scores on disk: blocks of consecutive windows of one stream, one after another in a file.

A block is a line of JSON, which begins with its checksum and identifies the scores; then the
highest score of each class, as float16; then all scores, exactly as published. Consecutive scores
of a class hardly differ, so the differences of their bits are compressed, all high bytes before all
low ones. Lines of another kind have the class names of a model.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ast_stream.errors import WireError
from ast_stream.messages.codec import (
    Body,
    SampleIndex,
    Text,
    Time,
    add_checksum,
    decode_json,
    encode_json,
    has_checksum,
)
from ast_stream.messages.event import MAX_BODY_BYTES, Scores16
from ast_stream.runtime.files import DamagedFileError
from ast_stream.runtime.segments import LineFile, open_at_once
from ast_stream.units import samples_to_ns

SUFFIX = ".blocks"
NAME = "scores"
MAX_WINDOWS = 4096  # of a block
MAX_CLASSES = 100_000
_MAX_CELLS = 8 * 1024 * 1024  # of a block
_MAX_LINE_BYTES = 4 * MAX_BODY_BYTES
_BEGIN = b'{"crc":"'
_LEVEL = 6
_READ_AT_ONCE = 1024  # the line and the peaks; what follows is passed over
_WHAT = "block of scores"


class BlockHeader(Body):
    """The line before the scores of some windows."""

    v: Literal[1] = 1
    kind: Literal["scores"] = "scores"
    stream: Text
    epoch: Text
    end: SampleIndex
    """Sample index of the end of the first window, or frame."""
    step: Annotated[int, Field(ge=0, le=2**40)]
    """Samples from one to the next."""
    windows: Annotated[int, Field(ge=1, le=MAX_WINDOWS)]
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    time_ns: Time
    """When the first window ended."""
    model: Text | None
    """Hash of the model, None where it is not known."""
    bytes: Annotated[int, Field(ge=1, le=4 * _MAX_CELLS)]
    """Of what follows the line."""
    payload_crc: Annotated[int, Field(ge=0, lt=2**32)]
    """Its CRC-32."""


class ModelHeader(Body):
    """A line that names the classes of a model."""

    v: Literal[1] = 1
    kind: Literal["model"] = "model"
    model: Text
    labels: Annotated[list[Text], Field(max_length=MAX_CLASSES)]


@dataclass(frozen=True, eq=False)
class ScoreSpan:
    """Scores of consecutive windows, or frames, of one stream in one epoch.

    Attributes:
        labels: of the columns; None where they are not known.
        ends: end of each window, a step apart, shape (n_windows,).
        times_ns: when each window ended, shape (n_windows,).
        scores: as published, averaged as they are decided by, shape (n_windows, n_classes).
    """

    stream: str
    epoch: str
    model: str | None
    labels: tuple[str, ...] | None
    step: int
    ends: npt.NDArray[np.int64]
    times_ns: npt.NDArray[np.int64]
    scores: Scores16


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The place of a block in a file, with the content of its line."""

    stream: str
    epoch: str
    model: str | None
    end: int
    step: int
    n_windows: int
    n_classes: int
    start_ns: int
    offset: int
    n_bytes: int
    crc: int
    peak_bytes: bytes

    @property
    def last_end(self) -> int:
        """End of the last window."""
        return self.end + self.step * (self.n_windows - 1)

    @property
    def stop_ns(self) -> int:
        """When the last window ended."""
        return self.start_ns + samples_to_ns(self.step * (self.n_windows - 1))

    @property
    def peaks(self) -> Scores16:
        """Highest score of each class, shape (n_classes,)."""
        return np.frombuffer(self.peak_bytes, "<f2").astype(np.float16, copy=False)


def encode_block(
    stream: str,
    epoch: str,
    model: str | None,
    *,
    end: int,
    step: int,
    start_ns: int,
    scores: Scores16,
) -> bytes:
    """Return a block of scores of shape (n_windows, n_classes)."""
    n_windows, n_classes = scores.shape
    peaks = np.ascontiguousarray(scores.max(axis=0), "<f2").tobytes()
    payload = peaks + zlib.compress(_planes(scores), _LEVEL)
    header = BlockHeader(
        stream=stream, epoch=epoch, end=end, step=step, windows=n_windows, classes=n_classes,
        time_ns=start_ns, model=model, bytes=len(payload), payload_crc=zlib.crc32(payload),
    )  # fmt: skip
    return add_checksum(encode_json(header.to_json())) + payload


def encode_model(model: str, labels: Sequence[str]) -> bytes:
    """Return the line that names the classes of a model."""
    return add_checksum(encode_json(ModelHeader(model=model, labels=list(labels)).to_json()))


def decode_scores(payload: bytes, place: Place) -> Scores16:
    """Return the scores in the payload of a block, shape (n_windows, n_classes).

    Raises:
        DamagedFileError: it is damaged.
    """
    if len(payload) != place.n_bytes or zlib.crc32(payload) != place.crc:
        raise DamagedFileError(f"{_WHAT}: expected another checksum")
    n_cells = place.n_windows * place.n_classes
    unpack = zlib.decompressobj()
    try:
        planes = unpack.decompress(payload[2 * place.n_classes :], 2 * n_cells + 1)
    except zlib.error as error:
        raise DamagedFileError(f"{_WHAT}: {error}") from error
    if len(planes) != 2 * n_cells:
        raise DamagedFileError(f"{_WHAT}: expected {2 * n_cells} bytes, got {len(planes)}")
    high, low = np.frombuffer(planes, np.uint8).reshape(2, place.n_classes, place.n_windows)
    steps = high.astype(np.uint16) << np.uint16(8) | low
    scores = np.cumsum(steps, axis=1, dtype=np.uint16).T.copy().view(np.float16)
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN is neither
        raise DamagedFileError(f"{_WHAT}: expected scores from 0 to 1")
    return scores


def _planes(scores: Scores16) -> bytes:
    bits = np.ascontiguousarray(scores.T, np.float16).view(np.uint16)
    steps = np.diff(bits, axis=1, prepend=np.uint16(0))
    return (steps >> np.uint16(8)).astype(np.uint8).tobytes() + steps.astype(np.uint8).tobytes()


class BlockFile(LineFile):
    """One file of blocks.

    Attributes:
        places: its blocks, in the order in which they were written.
        labels: of the models that it names.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.places: list[Place] = []
        self.labels: dict[str, tuple[str, ...]] = {}
        self._scanned = 0

    def scan(self) -> None:
        """Index what was written since the last scan; an incomplete end is left for later.

        Raises:
            OSError: the file cannot be read.
        """
        with open(open_at_once(self.path, 0), "rb", buffering=_READ_AT_ONCE) as file:
            n_bytes = file.seek(0, 2)
            at = self._scanned
            while at < n_bytes:
                stop = self._scan_one(file, at, n_bytes)
                if stop is None:
                    stop = _find_next(file, at + 1)
                    if stop is None:
                        break  # torn, or not completely written yet
                    self.damaged += 1
                else:
                    self._scanned = self.size = stop
                at = stop

    def read(self, place: Place) -> bytes:
        """Return the payload of a block.

        Raises:
            OSError: the file cannot be read.
        """
        with open(open_at_once(self.path, 0), "rb", buffering=0) as file:
            file.seek(place.offset)
            return file.read(place.n_bytes)

    def _scan_one(self, file: BinaryIO, at: int, n_bytes: int) -> int | None:
        """Index the block or line at an offset; return where it ends, None if it is damaged."""
        file.seek(at)
        line = file.readline(_MAX_LINE_BYTES)
        if not has_checksum(line):
            return None
        try:
            body = decode_json(line, _WHAT, _MAX_LINE_BYTES)
            if body.get("kind") == "model":
                named = ModelHeader.from_json(body, _WHAT)
                self.labels[named.model] = tuple(named.labels)
                return at + len(line)
            header = BlockHeader.from_json(body, _WHAT)
        except WireError:
            return None
        offset = at + len(line)
        n_peak_bytes = 2 * header.classes
        is_too_much = header.windows * header.classes > _MAX_CELLS
        if is_too_much or header.bytes <= n_peak_bytes or offset + header.bytes > n_bytes:
            return None
        self.places.append(
            Place(
                sys.intern(header.stream), sys.intern(header.epoch), header.model, header.end,
                header.step, header.windows, header.classes, header.time_ns, offset, header.bytes,
                header.payload_crc, file.read(n_peak_bytes),
            )
        )  # fmt: skip
        return offset + header.bytes


def _find_next(file: BinaryIO, at: int) -> int | None:
    """Return the offset of the next line with a checksum; None: there is none."""
    file.seek(at)
    rest = file.read()
    found = -1
    while (found := rest.find(_BEGIN, found + 1)) >= 0:
        end = rest.find(b"\n", found) + 1
        if end > 0 and has_checksum(rest[found:end]):
            return at + found
    return None


def span_of(place: Place, labels: tuple[str, ...] | None, scores: Scores16) -> ScoreSpan:
    """Return the scores of a block."""
    number = np.arange(place.n_windows)
    return ScoreSpan(
        place.stream, place.epoch, place.model, labels, place.step,
        place.end + place.step * number,
        place.start_ns + samples_to_ns(place.step) * number,
        scores,
    )  # fmt: skip


def joined(spans: Iterable[ScoreSpan]) -> Iterator[ScoreSpan]:
    """Yield the same scores, with adjacent spans joined."""
    parts: list[ScoreSpan] = []
    for span in spans:
        if parts and not follows(parts[-1], span):
            yield _as_one(parts)
            parts = []
        parts.append(span)
    if parts:
        yield _as_one(parts)


def follows(span: ScoreSpan, following: ScoreSpan) -> bool:
    """Return whether a span continues another one without missing windows."""
    step = int(following.ends[0] - span.ends[-1])
    steps = {block_span.step for block_span in (span, following) if len(block_span.ends) > 1}
    return (
        (span.epoch, span.model, span.labels)
        == (following.epoch, following.model, following.labels)
        and step > 0
        and steps <= {step}
        and span.scores.shape[1:] == following.scores.shape[1:]
    )


def _as_one(parts: Sequence[ScoreSpan]) -> ScoreSpan:
    if len(parts) == 1:
        return parts[0]
    ends, times_ns, scores = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("ends", "times_ns", "scores")
    )
    step = int(ends[1] - ends[0])
    return replace(parts[0], step=step, ends=ends, times_ns=times_ns, scores=scores)
