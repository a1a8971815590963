"""Spans of one stream: which samples were listened to and which were not.

A ledger is complete if the spans of an epoch of a stream are disjoint, in order, and leave no
sample out. Between two epochs nothing was recorded: that time is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field

from ast_stream.errors import WireError
from ast_stream.messages.codec import (
    MAX_SAMPLE_INDEX,
    Body,
    Text,
    Time,
    add_checksum,
    decode_json,
    encode_json,
    has_checksum,
)
from ast_stream.units import samples_to_ns

Kind = Literal["listened", "gated", "degraded", "missing", "gap", "off", "elsewhere"]
"""How samples were dealt with.

* listened: every window that was due was scored
* gated: too quiet to be scored, as `detection.gate_dbfs` wants it
* degraded: scored, but not every window that was due
* missing: nothing ran that could have listened
* gap: lost, with a record of it on the feed
* off: not in the configuration: from a span with the reason `REMOVED` until the next span
* elsewhere: at workers of a pool whose ledgers were not read, named in the reason; in no ledger
"""

KINDS: tuple[Kind, ...] = ("listened", "gated", "degraded", "missing", "gap")
"""Of the time in which a stream is to be listened to."""
REMOVED, ADDED = "removed", "added"  # reasons of `off`: from, and to the configuration
HEARD: frozenset[Kind] = frozenset(("listened", "gated", "degraded"))

MAX_LINE_BYTES = 1024
_SAME_NS = samples_to_ns(1) // 2  # times in the ledger are whole microseconds

Epoch: TypeAlias = tuple[str, str]
"""A stream and one of its epochs."""


class Span(Body):
    """Consecutive samples of one kind, on one straight line of time: a line of the ledger."""

    v: Literal[1] = 1
    stream: Text
    epoch: Text
    """Run of the capture process."""
    kind: Kind
    start_sample: Annotated[int, Field(alias="start", ge=0, le=MAX_SAMPLE_INDEX)]
    """Sample index of the first one, at 16 kHz."""
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLE_INDEX)]
    """How many they are."""
    time_ns: Time
    """Wall time of the first one, as the clock was set when it was captured."""
    reason: Text | None = None
    """Of a gap as in its record on the feed; `REMOVED` or `ADDED` where the configuration has
    changed; None for others."""

    @property
    def stop_sample(self) -> int:
        """Sample index just after the last one."""
        return self.start_sample + self.samples

    @property
    def stop_ns(self) -> int:
        """Wall time just after the last one."""
        return self.time_ns + samples_to_ns(self.samples)

    @property
    def of_epoch(self) -> Epoch:
        """Whose samples these are."""
        return self.stream, self.epoch

    @property
    def begins_off(self) -> bool:
        """Whether the stream is not in the configuration from here on."""
        return self.kind == "off" and self.reason == REMOVED

    def continues(self, before: Span) -> bool:
        """Return whether this span and the one before it can be one."""
        return (
            self.start_sample == before.stop_sample
            and (self.kind, self.reason, self.of_epoch)
            == (before.kind, before.reason, before.of_epoch)
            and abs(self.time_ns - before.stop_ns) < _SAME_NS
        )

    def extended(self, after: Span) -> Self:
        """Return this span and the one that continues it as one."""
        return self.model_copy(update={"samples": self.samples + after.samples})

    def within(self, start: int, stop: int | None = None) -> Self | None:
        """Return the part from sample `start` on and before `stop`; None if there is none."""
        first = max(start, self.start_sample)
        last = self.stop_sample if stop is None else min(stop, self.stop_sample)
        if first >= last:
            return None
        time_ns = self.time_ns + samples_to_ns(first - self.start_sample)
        return self.model_copy(
            update={"start_sample": first, "samples": last - first, "time_ns": time_ns}
        )

    def encode_line(self) -> bytes:
        """Return the line of the ledger: JSON that begins with its CRC-32."""
        known = {key: value for key, value in self.to_json().items() if value is not None}
        return add_checksum(encode_json(known))

    @classmethod
    def decode_line(cls, line: bytes) -> Self:
        """Return the span in one line of the ledger.

        Raises:
            WireError: the line is damaged, or of a later version.
        """
        if not has_checksum(line):
            raise WireError("coverage line: expected another checksum")
        return cls.from_json(decode_json(line, "coverage line", MAX_LINE_BYTES), "coverage line")


class Accounted:
    """Up to which sample each epoch of each stream is accounted for."""

    MAX_EPOCHS = 100_000

    def __init__(self) -> None:
        self._stops: dict[Epoch, int] = {}

    def stop(self, of_epoch: Epoch) -> int:
        """Return the sample up to which an epoch is accounted for; 0: nothing is known of it."""
        return self._stops.get(of_epoch, 0)

    def new_part(self, span: Span) -> Span | None:
        """Return what of a span is not accounted for yet, and count it; None: nothing."""
        stop = self._stops.get(span.of_epoch, 0)
        part = span if span.start_sample >= stop else span.within(stop)
        if part is not None:
            self._stops.pop(span.of_epoch, None)  # the newest are at the end
            self._stops[span.of_epoch] = part.stop_sample
            if len(self._stops) > self.MAX_EPOCHS:
                del self._stops[next(iter(self._stops))]
        return part


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return spans with those that continue each other as one; those of a stream keep their order.

    What occurs twice, as after a kill, is there once.
    """
    accounted = Accounted()
    found: list[Span] = []
    newest: dict[str, int] = {}  # place of the newest span of each stream
    for span in spans:
        part = accounted.new_part(span)
        if part is None:
            continue
        place = newest.get(part.stream)
        if place is not None and part.continues(found[place]):
            found[place] = found[place].extended(part)
        else:
            newest[part.stream] = len(found)
            found.append(part)
    return found


def decoded(lines: Iterable[bytes]) -> Iterator[Span | None]:
    """Yield the span of each line, None where the line is damaged."""
    for line in lines:
        try:
            yield Span.decode_line(line)
        except WireError:
            yield None
