"""JSON frames: encoded compactly, decoded and validated with errors that say what is wrong."""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ast_stream.errors import WireError
from ast_stream.units import NS_PER_SECOND

PROTOCOL_VERSION = 1
MAX_HEADER_BYTES = 16_384
MAX_SAMPLE_INDEX = 2**53  # JSON numbers are exact up to here; 17 000 years at 16 kHz
MAX_TIME_NS = 230 * 366 * 86_400 * NS_PER_SECOND  # about the year 2200: far from any overflow

_Model = TypeVar("_Model", bound=BaseModel)


def encode_json(body: dict[str, Any]) -> bytes:
    """Return compact UTF-8 JSON; NaN and infinity are our own bug and raise ValueError."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode_json(frame: bytes, what: str, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """Return a JSON object from outside of at most `max_bytes`.

    Raises:
        WireError: not UTF-8, not JSON, not an object, NaN or infinity, or too long.
    """
    if len(frame) > max_bytes:
        raise WireError(f"{what}: expected at most {max_bytes} bytes, got {len(frame)}")
    try:
        # decoded first: json itself would also take UTF-16 and UTF-32
        value = json.loads(
            frame.decode(), parse_constant=_refuse_number, parse_float=_finite_number
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: expected a JSON object, got {short(frame)}: {error}") from error
    if not isinstance(value, dict):
        raise WireError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def validate(kind: type[_Model], body: dict[str, Any], what: str) -> _Model:
    """Return `body` as a model.

    Raises:
        WireError: it does not follow the model; names the first field at fault.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = short(repr(first.get("input")).encode())
        raise WireError(f"{what}: {where}: {first['msg']}, got {got}") from error


def _refuse_number(text: str) -> float:
    raise ValueError(f"{short(text.encode())} is not a finite number")


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def short(frame: bytes) -> str:
    """Return the beginning of bytes from outside, safe to print."""
    text = frame[:60].decode(errors="backslashreplace")
    return repr(text) + ("…" if len(frame) > 60 else "")
