"""Entries of a pool's bucket: members, claims on streams, and the placement of a stream."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ast_stream.labels import STREAM_NAME_RULE, is_stream_name
from ast_stream.messages.codec import Body, Seconds, Text, Time, encode_json
from ast_stream.urls import check_endpoint

MAX_MEMBER_BYTES = 8192
MAX_HISTORY_BYTES = 64 * 1024
MAX_CLAIMS = 24  # the newest of a stream
_TCP = re.compile(r"tcp://[A-Za-z0-9\[][\x21-\x7e]*\Z")
_EPOCH = r"^[0-9a-f]{8,64}$"

State = Literal["serving", "full", "leaving"]


def _name(name: str) -> str:
    if not is_stream_name(name):
        raise ValueError(f"expected {STREAM_NAME_RULE}")
    return name


MemberName = Annotated[str, AfterValidator(_name)]


def _endpoint(endpoint: str) -> str:
    """Return where a worker is reached: by tcp alone, for no key protects an ipc socket.

    Raises:
        ValueError: it is no such endpoint.
    """
    if _TCP.match(endpoint) is None:
        raise ValueError(f"expected an endpoint such as tcp://gpu-1:5555, got {endpoint[:100]!r}")
    return check_endpoint(endpoint, has_keys=True)


_Endpoint = Annotated[str, AfterValidator(_endpoint)]


class PoolMember(Body):
    """A worker of a pool, under `member.<name>`; written when something of it changes."""

    v: Literal[1] = 1
    name: MemberName
    boot: Annotated[str, Field(max_length=64)]
    """This run of it."""
    audio: _Endpoint
    """Endpoint for live blocks."""
    rings: _Endpoint
    """Where capture processes connect, so that it can read their rings."""
    feed: _Endpoint | None = None
    """Where it publishes; None: not by tcp."""
    query: _Endpoint | None = None
    """Endpoint for replays of its feed; None: not over tcp."""
    key: Annotated[str | None, Field(max_length=64)] = None
    """Its public CURVE key in Z85."""
    model: Annotated[str, Field(max_length=256)]
    """Checkpoint and settings: must be equal for another worker to continue."""
    capacity: Annotated[int, Field(ge=1, le=1_000_000)]
    """Streams that it can have."""
    weight: Annotated[float, Field(gt=0, le=1e9)]
    """Its relative number of streams."""
    state: State = "serving"
    version: Annotated[Text, Field(max_length=64)] = ""

    def encode(self) -> bytes:
        """Return the value of its key."""
        return encode_json(self.to_json())


class StreamClaim(Body):
    """The claim of a worker to an epoch of a stream, with the term of its capture process."""

    epoch: Annotated[str, Field(pattern=_EPOCH)]
    term: Annotated[int, Field(ge=0)]
    worker: MemberName
    is_continued: bool
    """It continues where the previous worker stopped; otherwise that one ends its own events."""
    start: Annotated[int | None, Field(ge=0)] = None
    """The first sample that it accounts for; None: not known."""


class StreamHistory(Body):
    """Who had which epoch of a stream, oldest first, under `stream.<name>`."""

    v: Literal[1] = 1
    claims: Annotated[list[StreamClaim], Field(max_length=4 * MAX_CLAIMS)]

    def encode(self) -> bytes:
        """Return the value of its key."""
        return encode_json(self.to_json())

    def with_claim(self, claim: StreamClaim) -> StreamHistory:
        """Return the history with one more claim in order; the oldest are dropped."""
        claims = [known for known in self.claims if known != claim]
        later = [
            known for known in claims if known.epoch == claim.epoch and known.term > claim.term
        ]
        at = claims.index(later[0]) if later else len(claims)
        claims.insert(at, claim)
        return StreamHistory(claims=claims[-MAX_CLAIMS:])


_Count = Annotated[int, Field(ge=0, le=2**53)]


class Placement(Body):
    """Which worker of a pool has a stream, as its capture process and the worker report it."""

    worker: Annotated[Text | None, Field(max_length=160)] = None
    """None: none has it now."""
    since_ns: Time | None = None
    """Since when, by the clock of who says so."""
    changes: _Count = 0
    """Times that the stream went to another worker, since its capture process began; as a worker
    says it, since its source did."""
    takeovers: _Count | None = None
    """Of these, how often because the worker before was gone; None: only the other side knows."""
    handover_s: Annotated[Seconds | None, Field(ge=0)] = None
    """Seconds from the last acknowledgement of the worker before to the first of this one, at the
    last change; None: there was none, or only the other side knows."""
