"""Names: slugs of labels, stream names, stable ids, and near names for typing mistakes."""

from __future__ import annotations

import base64
import difflib
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

STREAM_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
MAX_NEAR_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 1000  # of a line of somebody else's words
STREAM_NAME_RULE = "lower-case letters, digits and '-', at most 63, not starting with '-'"
_MAX_SLUG = 64  # a part of topics and file names, which are limited
_HASH_BYTES = 5
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Unicode categories of punctuation, spaces, control and format characters
_SEPARATORS = frozenset({"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Zs", "Zl", "Zp", "Cc", "Cf"})


@lru_cache(maxsize=4096)
def slug(label: str) -> str:
    """Return the topic form of a class label: 1 to 64 of `a-z0-9_`, its own slug.

    Accents are dropped. Where letters, digits or symbols have no ASCII form, or the name is too
    long, a short hash of the whole label keeps apart what would otherwise look alike. The hash
    does not depend on case nor on the Unicode normal form.

    >>> slug("Baby cry, infant cry")
    'baby_cry_infant_cry'
    >>> slug("Smoke detector, smoke alarm")
    'smoke_detector_smoke_alarm'
    >>> slug("狗叫"), slug("Dog 狗叫")
    ('class_tz6hkegy', 'dog_guc4bkn7')
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", label).casefold())
    kept = "".join(letter for letter in folded if unicodedata.category(letter)[0] != "M")
    plain = re.sub(r"[^a-z0-9]+", "_", kept).strip("_")
    if plain and len(plain) <= _MAX_SLUG and not any(map(_has_no_ascii_form, kept)):
        return plain
    whole = " ".join(folded.split()).encode("utf-8", "surrogatepass")
    digest = base64.b32encode(hashlib.blake2b(whole, digest_size=_HASH_BYTES).digest())
    start = plain[: _MAX_SLUG - len(digest) - 1].rstrip("_") or "class"
    return f"{start}_{digest.decode().lower()}"


def stream_topic(kind: str, stream: str) -> str:
    """Return the topic of messages of a kind about a stream, e.g. `scores/porch/`."""
    return f"{kind}/{stream}/"


def stable_id(*parts: str) -> str:
    """Return a short id that is the same for the same parts, whenever and wherever."""
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=15).digest()
    return base64.b32encode(digest).decode().lower()


def _has_no_ascii_form(character: str) -> bool:
    """Return whether leaving the character out would change what a label says."""
    return not character.isascii() and unicodedata.category(character) not in _SEPARATORS


def find_label(name: str, labels: Iterable[str]) -> str | None:
    """Return the label that a user means by `name`: the label itself, or its slug; else None."""
    known = list(labels)
    if name in known:
        return name
    composed = unicodedata.normalize("NFC", name)  # names of folders on macOS are decomposed
    for label in known:
        if composed == unicodedata.normalize("NFC", label) or name == slug(label):
            return label
    return None


def problem_with_labels(labels: Sequence[str]) -> str | None:
    """Return what keeps `labels` from being the classes of one model, None if nothing does.

    Each is text that can be shown and sent, and has a topic of its own.
    """
    first: dict[str, int] = {}
    for index, label in enumerate(labels):
        if not label.strip():
            return f"expected a name for class {index}, got none"
        if label != label.strip():
            return f"expected no spaces around the name of class {index}, got {label!a}"
        bad = next(
            (letter for letter in label if unicodedata.category(letter) in ("Cc", "Cs")), None
        )
        if bad is not None:
            return f"expected printable text for class {index}, got {label!a} with U+{ord(bad):04X}"
        other = first.setdefault(slug(label), index)
        if other != index:
            if label == labels[other]:
                return f"expected different labels, got {label!r} for classes {other} and {index}"
            return (
                f"expected labels with different topics, got {slug(label)!r} for both "
                f"{labels[other]!r} (class {other}) and {label!r} (class {index})"
            )
    return None


def printable(text: str, keep: str = "") -> str:
    """Return `text` with all that a terminal or a log would act on written out, as in `\\x1b`.

    These are control characters, such as those that begin terminal escapes, breaks of lines, marks
    that turn the direction of writing, and halves of characters, which no encoding can write.

    Args:
        keep: characters to leave as they are, e.g. "\\n".
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text
    )


def one_line(text: str) -> str:
    """Return `text` on one line, without control and format characters, shortened."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(kept.split())[:MAX_TEXT_CHARACTERS]


def is_stream_name(name: str) -> bool:
    """Return whether `name` may be a stream's name (see `STREAM_NAME_RULE`)."""
    return STREAM_NAME.match(name) is not None


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None if none is close."""
    if len(name) > MAX_NEAR_CHARACTERS:  # no name is; comparing takes its square
        return None
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    near = near_name(name, known)
    return f"; did you mean '{near}'?" if near else ""
