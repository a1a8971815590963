"""Requests of operators to an alerts process, and its answers: one JSON frame each."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from ast_stream.errors import UsageError, WireError
from ast_stream.messages.codec import (
    PROTOCOL_VERSION,
    Body,
    Request,
    Text,
    Time,
    decode_json,
    decode_request,
    encode_json,
)

MAX_NUMBERS = 1000
MAX_SNOOZE_S = 366 * 86_400
MAX_REQUEST_BYTES = 64 * 1024

_Name = Annotated[Text, Field(min_length=1, max_length=64)]
_Numbers = Annotated[list[Annotated[int, Field(ge=1, le=10**15)]], Field(max_length=MAX_NUMBERS)]


class AcknowledgeRequest(Request):
    """Say that an alert has been seen."""

    op: Literal["acknowledge"] = "acknowledge"
    alert: _Name
    """Its id, or a beginning that no other has."""


class SnoozeRequest(Request):
    """Suppress the notifications of a rule for a while."""

    op: Literal["snooze"] = "snooze"
    rule: _Name
    for_s: Annotated[float, Field(ge=0, le=MAX_SNOOZE_S)]
    """Seconds from now; 0 ends a snooze."""


class _RowsRequest(Request):
    numbers: _Numbers = Field(default_factory=list)
    """Of deliveries; without any all of them."""
    action: _Name | None = None
    """Only of this action."""


class RetryRequest(_RowsRequest):
    """Retry dead deliveries."""

    op: Literal["retry"] = "retry"


class DropRequest(_RowsRequest):
    """Drop pending deliveries."""

    op: Literal["drop"] = "drop"


AdministrationRequest = AcknowledgeRequest | SnoozeRequest | RetryRequest | DropRequest
_REQUESTS: dict[str, type[AdministrationRequest]] = {
    "acknowledge": AcknowledgeRequest,
    "snooze": SnoozeRequest,
    "retry": RetryRequest,
    "drop": DropRequest,
}


def decode_administration(frames: list[bytes]) -> AdministrationRequest:
    """Return a request.

    Raises:
        WireError: it is not one of the four requests in the format.
    """
    return decode_request(frames, _REQUESTS, "request", MAX_REQUEST_BYTES)


_Made = TypeVar("_Made", bound=AdministrationRequest)


def made(kind: type[_Made], **fields: object) -> _Made:
    """Return a request that a person asks for.

    Raises:
        UsageError: something that no such request can say.
    """
    try:
        return kind(**fields)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['loc'][0]}: {first['msg']}") from error


class Administered(Body):
    """What a request has changed."""

    v: Literal[1] = PROTOCOL_VERSION
    deliveries: Annotated[int, Field(ge=0)]
    """How many were dropped, retried or suppressed."""
    until_ns: Time | None = None
    """Until when a rule is snoozed; None for other requests."""

    def encode(self) -> list[bytes]:
        """Return the frame of the answer."""
        return [encode_json(self.to_json())]

    @classmethod
    def decode(cls, frames: list[bytes]) -> Self:
        """Return the answer.

        Raises:
            WireError: it does not follow the format, or the request was refused.
        """
        if len(frames) != 1:
            raise WireError(f"answer: expected 1 frame, got {len(frames)}")
        body: dict[str, Any] = decode_json(frames[0], "answer", mends_text=True)
        if "error" in body:
            raise WireError(f"refused: {body['error']}")
        return cls.from_json(body, "answer")


def refuse_administration(reason: str) -> list[bytes]:
    """Return the frame that refuses a request; `reason` is a sentence."""
    return [encode_json({"v": PROTOCOL_VERSION, "error": reason})]
