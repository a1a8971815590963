"""Spans of the coverage ledger, by a clock that is exact."""

from __future__ import annotations

from ast_stream.coverage.spans import Kind, Span
from ast_stream.units import samples_to_ns

BEGAN_NS = 1_790_000_000_000_000_000


def span(
    start: int,
    stop: int,
    kind: Kind = "listened",
    *,
    stream: str = "porch",
    epoch: str = "aaaaaaaa",
    late_ns: int = 0,
    reason: str | None = None,
) -> Span:
    """A span of an epoch that began at `BEGAN_NS`, by a clock that is `late_ns` late."""
    return Span(
        stream=stream,
        epoch=epoch,
        kind=kind,
        start_sample=start,
        samples=stop - start,
        time_ns=BEGAN_NS + samples_to_ns(start) + late_ns,
        reason=reason,
    )
