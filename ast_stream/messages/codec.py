"""JSON on sockets: frames encoded compactly, bodies decoded into typed messages or refused.

A `Body` is one kind of JSON object. Its fields are declared once, in the order of the wire, with
their units; both directions of the codec follow from that.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)

from ast_stream.errors import WireError
from ast_stream.machine_clock import Moment
from ast_stream.units import MAX_TIME_NS, NS_PER_SECOND, format_time, parse_time

PROTOCOL_VERSION: Final = 1
MAX_HEADER_BYTES = 16_384
MAX_SAMPLE_INDEX = 2**53  # JSON numbers are exact up to here; 17 000 years at 16 kHz
_MAX_SECONDS = MAX_TIME_NS // NS_PER_SECOND

_CRC_PREFIX = b'{"crc":"%08x",'
_CRC_PREFIX_BYTES = len(_CRC_PREFIX % 0)
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may stand for one
_FROM_WIRE = object()  # context of a validation: the values are JSON, times are text

_Model = TypeVar("_Model", bound=BaseModel)


def _time(value: object, info: ValidationInfo) -> object:
    if info.context is not _FROM_WIRE:
        return value
    if not isinstance(value, str):
        raise ValueError("expected a time as text, such as 2026-11-20T10:00:30Z")
    return decode_time(value)


def _text(value: object) -> object:
    """Replace halves of characters: JSON can have them, files and sockets cannot."""
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="replace").decode()
    return value


Time = Annotated[
    int, BeforeValidator(_time), PlainSerializer(format_time, return_type=str, when_used="always")
]
"""Nanoseconds since 1970 UTC; RFC 3339 text on the wire."""

Monotonic = Annotated[int, Field(ge=0, le=MAX_TIME_NS)]
"""Nanoseconds on a machine's monotonic clock."""

Seconds = Annotated[float, Field(ge=-_MAX_SECONDS, le=_MAX_SECONDS)]
"""A number of seconds that can be added to a time."""

SampleIndex = Annotated[int, Field(ge=-MAX_SAMPLE_INDEX, le=MAX_SAMPLE_INDEX)]
"""A position in an epoch, or a number of samples."""

Text = Annotated[str, BeforeValidator(_text)]
"""Text that can be written anywhere."""


def _wire_name(field: str) -> str:
    """Return the key of a field: times have no `_ns` there, as they are text; `class` is free."""
    is_number = field == "monotonic_ns"
    return field if is_number else field.removesuffix("_ns").removesuffix("_")


class Body(BaseModel):
    """A JSON object on a socket: exact types, keys of a newer writer are ignored.

    A field `x_ns` is the time `x` on the wire, see `Time`; `monotonic_ns` is a number there, too.
    """

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        alias_generator=_wire_name,
        populate_by_name=True,
    )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, keys in the order of the fields."""
        return self.model_dump(by_alias=True)

    @classmethod
    def from_json(cls, body: Mapping[str, Any], what: str) -> Self:
        """Return the message in a decoded JSON object; `what` names it in the error.

        Raises:
            WireError: it does not follow the format; names the first field at fault.
        """
        return validate(cls, body, what)


class Request(Body):
    """A request to a process; each kind has its own value of the field `op`.

    Unknown keys are refused: a mistyped one might replay or change more than was meant.
    """

    model_config = ConfigDict(extra="forbid")
    v: Literal[1] = PROTOCOL_VERSION

    def encode(self) -> list[bytes]:
        """Return the frame of the request."""
        return [encode_json(self.to_json())]


_Kind = TypeVar("_Kind", bound=Request)


class FeedBody(Body):
    """Fields that every body on the feed may have, besides its own."""

    published_ns: Annotated[Time | None, Field(exclude=True)] = None
    """When it was published; the publisher writes this and what follows. All times in a body are
    by the wall clock as it was set then. None in bodies that were not published."""
    monotonic_ns: Annotated[Monotonic | None, Field(exclude=True)] = None
    """The same on the monotonic clock of the publisher's machine."""
    clock: Annotated[Text | None, Field(exclude=True)] = None
    """Names that clock; times on another one, or before a reboot, cannot be compared."""

    @property
    def published(self) -> Moment | None:
        """When it was published, on both clocks; None if it does not say so."""
        if self.published_ns is None or self.monotonic_ns is None:
            return None
        return Moment(self.published_ns, self.monotonic_ns)


def decode_time(text: str) -> int:
    """Return a time from outside as nanoseconds since 1970.

    Raises:
        ValueError: it is no time, or one before 1970 or after 2200.
    """
    time_ns = parse_time(text)
    if not 0 <= time_ns <= MAX_TIME_NS:
        raise ValueError(f"expected a time from 1970 to 2200, got {text}")
    return time_ns


def encode_json(body: Mapping[str, Any]) -> bytes:
    """Return compact UTF-8 JSON; NaN and infinity are our own bug and raise ValueError."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode_json(
    frame: bytes, what: str, max_bytes: int = MAX_HEADER_BYTES, *, mends_text: bool = False
) -> dict[str, Any]:
    """Return a JSON object from outside of at most `max_bytes`.

    Args:
        mends_text: of an object of which parts go on as they are, for JSON can have halves of
            characters, and files and sockets cannot: they become `?`.

    Raises:
        WireError: not UTF-8, not JSON, not an object, NaN or infinity, or too long.
    """
    if len(frame) > max_bytes:
        raise WireError(f"{what}: expected at most {max_bytes} bytes, got {len(frame)}")
    try:
        value = _loads(frame.decode())  # decoded first: json itself would also take UTF-16
        if mends_text and _HALF_CHARACTER.search(frame):
            whole = json.dumps(value, ensure_ascii=False).encode(errors="replace")
            value = _loads(whole.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: expected a JSON object, got {short(frame)}: {error}") from error
    if not isinstance(value, dict):
        raise WireError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def decode_request(
    frames: list[bytes],
    kinds: Mapping[str, type[_Kind]],
    what: str,
    max_bytes: int = MAX_HEADER_BYTES,
) -> _Kind:
    """Return the request in a message of one frame.

    Args:
        kinds: the classes that it may be of, by `op`.
        what: names it in errors.

    Raises:
        WireError: it is of none of them, or does not follow the format.
    """
    if len(frames) != 1:
        raise WireError(f"{what}: expected 1 frame, got {len(frames)}")
    body = decode_json(frames[0], what, max_bytes, mends_text=True)
    op = body.get("op")
    kind = kinds.get(op) if isinstance(op, str) else None
    if kind is None:
        shown = short(repr(op).encode(errors="replace"))
        raise WireError(f"{what}: op: expected {', '.join(kinds)}, got {shown}")
    return validate(kind, body, what)


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_number, parse_float=_finite_number)


def add_checksum(json_object: bytes) -> bytes:
    """Return a line of JSON that begins with the CRC-32 of the rest of it."""
    rest = json_object[1:]
    return _CRC_PREFIX % zlib.crc32(rest) + rest + b"\n"


def has_checksum(line: bytes) -> bool:
    """Return whether a line is one that `add_checksum` made, unchanged."""
    rest = line[_CRC_PREFIX_BYTES:-1]
    return line[-1:] == b"\n" and line[:_CRC_PREFIX_BYTES] == _CRC_PREFIX % zlib.crc32(rest)


def validate(kind: type[_Model], body: Mapping[str, Any], what: str) -> _Model:
    """Return a decoded JSON object as a model.

    Raises:
        WireError: it does not follow the model; names the first field at fault.
    """
    try:
        return kind.model_validate(body, context=_FROM_WIRE, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = short(repr(first.get("input")).encode())
        raise WireError(f"{what}: {where}: {first['msg']}, got {got}") from error


def short(frame: bytes) -> str:
    """Return the beginning of bytes from outside, safe to print."""
    text = frame[:60].decode(errors="backslashreplace")
    return repr(text) + ("…" if len(frame) > 60 else "")


def _refuse_number(text: str) -> float:
    raise ValueError(f"{short(text.encode())} is not a finite number")


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)
