"""Names: slugs of class labels for topics, stream names, and near names for mistakes."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

STREAM_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
STREAM_NAME_RULE = "lower-case letters, digits and '-', at most 63, not starting with '-'"


def slug(label: str) -> str:
    """Return the topic form of a class label.

    >>> slug("Baby cry, infant cry")
    'baby_cry_infant_cry'
    >>> slug("Smoke detector, smoke alarm")
    'smoke_detector_smoke_alarm'
    """
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_") or "class"


def is_stream_name(name: str) -> bool:
    """Tell whether `name` may be a stream's name (see `STREAM_NAME_RULE`)."""
    return STREAM_NAME.match(name) is not None


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None if none is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    near = near_name(name, known)
    return f"; did you mean '{near}'?" if near else ""
