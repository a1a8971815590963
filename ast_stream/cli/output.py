"""Plain lines on stdout and stderr, without control characters that act on a terminal; no rich."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence

from ast_stream.labels import printable

# what JSON lets stand although terminals and some readers of lines act on it
_NOT_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def say(text: str, *, err: bool = False) -> None:
    """Print lines for people, whatever is in names and texts from outside."""
    print(printable(text, keep="\n"), file=sys.stderr if err else sys.stdout, flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows of cells as lines, in columns as wide as they need to be, however many."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def json_line(content: object) -> str:
    """Return JSON on one line, readable, without characters that a terminal acts on."""
    return _NOT_IN_JSON.sub(
        lambda found: f"\\u{ord(found[0]):04x}", json.dumps(content, ensure_ascii=False)
    )
