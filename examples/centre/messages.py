"""A CloudEvent from a box as a row, whatever the bytes are."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

REFUSED = "refused"  # type of a row with what could not be read


@dataclass(frozen=True)
class Row:
    """One message; `source` and `id` together are the key."""

    source: str
    id: str
    type: str
    subject: str | None
    time: datetime | None
    data: str
    """JSON."""


def read(topic: str, body: bytes) -> Row:
    """Return the message, or a row that says why it is none.

    Nothing is left out: what could not be stored would come again for ever and hold up the rest.
    """
    try:
        event = json.loads(body, parse_constant=_refuse)
        data = json.dumps(event["data"], ensure_ascii=False, allow_nan=False)
        row = Row(
            source=_text(event["source"]),
            id=_text(event["id"]),
            type=_text(event["type"]),
            subject=None if event.get("subject") is None else _text(event["subject"]),
            time=None if event.get("time") is None else _time(event["time"]),
            data=data,
        )
        data.encode()  # halves of characters, which JSON can have, no file and no database can
        if "\\u0000" in data:
            raise ValueError("it has a NUL character")
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        return refused(topic, body, f"{type(error).__name__}: {error}")
    return row


def refused(topic: str, body: bytes, why: str) -> Row:
    """Return a row with what could not be kept as it is."""
    raw = base64.b64encode(body).decode()
    data = {"why": ascii(why)[1:-1], "body_base64": raw}
    key = hashlib.sha256(body).hexdigest()
    return Row(ascii(topic)[1:-1][:500], key, REFUSED, None, None, json.dumps(data))


def _time(value: Any) -> datetime:
    return datetime.fromisoformat(_text(value)).astimezone(UTC)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"expected text, got {value!r}")
    value.encode()
    return value


def _refuse(name: str) -> Callable[[str], float]:
    raise ValueError(f"{name} is not a number")
