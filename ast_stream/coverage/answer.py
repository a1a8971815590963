"""What a worker answers when it is asked for its coverage ledger, and the answer read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ast_stream.coverage.ledger import read_spans
from ast_stream.coverage.spans import Span
from ast_stream.errors import WireError
from ast_stream.messages.codec import Time
from ast_stream.messages.query import MAX_ANSWER_BYTES, Answer, CoverageQuery

MAX_SPANS = 12_000  # of one answer


class CoverageAnswer(Answer):
    """The newest spans of the streams of a worker in a time, in the order of its ledger."""

    complete_from_ns: Time | None = None
    """Older spans were left out, to be asked for with this as `to`; None: these are all."""
    spans: list[Span]


def answer_coverage(
    query: CoverageQuery,
    folder: Path,
    unwritten: Path,
    boot: str,
    max_spans: int = MAX_SPANS,
    max_bytes: int = MAX_ANSWER_BYTES,
) -> list[bytes]:
    """Return the frames that answer a query from the ledger of a worker, also while it runs.

    Raises:
        WireError: the ledger cannot be read.
    """
    since_ns, until_ns = query.since_ns, query.until_ns
    try:
        streams = read_spans(folder, unwritten, since_ns)
    except OSError as error:
        raise WireError(f"coverage: the ledger cannot be read: {error.strerror}") from error
    found = [
        span
        for spans in streams.values()
        for span in spans
        if (since_ns is None or span.stop_ns > since_ns)
        and (until_ns is None or span.time_ns < until_ns)
    ]
    while True:
        kept, complete_from_ns = _newest(found, max_spans)
        answer = CoverageAnswer(boot=boot, complete_from_ns=complete_from_ns, spans=kept)
        frames = answer.encode()
        if len(frames[0]) <= max_bytes or max_spans <= 1:
            return frames
        max_spans //= 2


def _newest(spans: Sequence[Span], limit: int) -> tuple[list[Span], int | None]:
    """Return the newest spans in their order, and the time before which some are left out."""
    if len(spans) <= limit:
        return list(spans), None
    since_ns = sorted(span.time_ns for span in spans)[-limit]
    return [span for span in spans if span.time_ns >= since_ns], since_ns
