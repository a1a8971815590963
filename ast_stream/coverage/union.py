"""One stream in the ledgers of several workers of a pool: each sample once, and who else had it.

A worker that takes over begins where the record of the one before it ends. That one may have heard
more, so some samples are in both ledgers. Where a ledger cannot be read, the claims of the workers
tell whose it is that has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from ast_stream.coverage.spans import Kind, Span
from ast_stream.coverage.timeline import Taken
from ast_stream.messages.pool import StreamClaim

# of two records of a sample the first of these counts: what one worker has heard is not lost
_BY_VALUE: tuple[Kind, ...] = ("listened", "degraded", "gated", "gap", "missing", "off")


def joined(ledgers: Iterable[Sequence[Span]]) -> list[Span]:
    """Return the spans of one stream in several ledgers, each sample of an epoch once.

    Samples are compared by their index: the clocks of two workers may differ.
    """
    found = [spans for spans in ledgers if spans]
    if len(found) <= 1:
        return list(found[0]) if found else []
    epochs: dict[str, list[Span]] = {}
    for spans in found:
        for span in spans:
            epochs.setdefault(span.epoch, []).append(span)
    begun = sorted(epochs.values(), key=lambda spans: min(span.time_ns for span in spans))
    return [span for spans in begun for span in _once(spans)]


def _once(spans: Sequence[Span]) -> list[Span]:
    """Return the spans of an epoch in order, of each sample the one with most value."""
    taken, parts = Taken(), list[Span]()
    for span in sorted(spans, key=lambda span: (_BY_VALUE.index(span.kind), span.start_sample)):
        for start, stop in taken.take(span.start_sample, span.stop_sample):
            part = span.within(start, stop)
            assert part is not None
            parts.append(part)
    ordered: list[Span] = []
    for part in sorted(parts, key=attrgetter("start_sample")):
        if ordered and part.continues(ordered[-1]):
            ordered[-1] = ordered[-1].extended(part)
        else:
            ordered.append(part)
    return ordered


@dataclass(frozen=True)
class _Had:
    """A worker had samples of an epoch: from `start` to before `stop`, as far as is known."""

    worker: str
    epoch: str
    start: int
    stop: float


def others_between(
    before: Span,
    after: Span | None,
    claims: Sequence[StreamClaim],
    known: Collection[str],
) -> list[str]:
    """Return the workers that had a stream between two records, except those that are known.

    Args:
        after: None: until now.
        claims: on the stream, oldest first.
        known: workers whose records were read.
    """
    epochs = list(dict.fromkeys(claim.epoch for claim in claims))
    first = epochs.index(before.epoch) if before.epoch in epochs else -1
    is_claimed = after is not None and after.epoch in epochs
    last = epochs.index(after.epoch) if after is not None and is_claimed else len(epochs)
    found = []
    for had in _holders(claims):
        place = epochs.index(had.epoch)
        is_behind = place > first or had.stop > before.stop_sample
        is_ahead = place < last or (after is not None and had.start < after.start_sample)
        if first <= place <= last and is_behind and is_ahead and had.worker not in known:
            found.append(had.worker)
    return sorted(set(found))


def own_part(spans: Sequence[Span], claims: Sequence[StreamClaim], worker: str) -> list[Span]:
    """Return what a worker has of a stream, without what a worker after it begins with again.

    So the parts of all workers together have each sample once.
    """
    holders: dict[str, list[tuple[int, str]]] = {}  # by epoch: from which sample on, and who
    for claim in claims:
        start = 0 if claim.start is None and claim.worker == worker else claim.start
        if start is not None:
            before = holders.get(claim.epoch, [])
            holders[claim.epoch] = [had for had in before if had[0] < start]
            holders[claim.epoch].append((start, claim.worker))
    found: list[Span] = []
    for span in spans:
        begins = holders.get(span.epoch, [])
        ends: list[int | None] = [*(start for start, _ in begins[1:]), None]
        own = [
            (start, stop)
            for (start, name), stop in zip(begins, ends, strict=False)
            if name == worker
        ]
        if not begins or begins[0][0] > 0:
            own.insert(0, (0, begins[0][0] if begins else None))
        found += [part for start, stop in own if (part := span.within(start, stop)) is not None]
    return found


def _holders(claims: Sequence[StreamClaim]) -> list[_Had]:
    found = []
    for place, claim in enumerate(claims):
        after = next((one for one in claims[place + 1 :] if one.epoch == claim.epoch), None)
        stop = math.inf if after is None or after.start is None else after.start
        found.append(_Had(claim.worker, claim.epoch, claim.start or 0, stop))
    return found
