"""Texts of alerts: `{{ name }}` filled with fixed fields, whose values can do nothing.

There are no conditions, loops, filters with arguments or attribute look-ups. The rule's author is
trusted, the values are not: a stream label may hold anything. Whatever channel shows the text, a
value is only read, never obeyed. The rule for values:

* line ends, tabs and other control characters become a space; format characters (bidirectional
  overrides, zero-width and so on), private and unassigned ones are left out;
* the characters with which HTML, Markdown and chat programs mark up, quote or mention become
  look-alikes that no program interprets (`LOOK_ALIKES`), and `://` is broken so that nothing links;
* a value is cut at `MAX_VALUE` characters, a text at `MAX_TEXT`.

Escaping for the channel itself (JSON, HTML) still happens there, after rendering.
"""
# ruff: noqa: RUF001, RUF002 - looking like another character is what these are for

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from ast_stream.labels import did_you_mean

MAX_VALUE = 100
MAX_TEXT = 1000
ABSENT = "-"  # shown where a field has no value
FIELDS = {
    "alert": "name of the rule",
    "severity": "of the rule",
    "group": "name of the rule's group in the file",
    "state": "firing or resolved",
    "stream.name": "stream of the newest event",
    "class": "its class as in topics",
    "label": "its class for people",
    "score": "its score when it counted",
    "peak": "its highest score until then",
    "watcher_score": "what the small model of a cascade said of it then",
    "verifier_score": "that it is right, by the verifier of its class",
    "onset": "when it began, UTC",
    "started": "when the first sound of the alert began, UTC",
    "fired": "when the alert fired, UTC",
    "active_s": "seconds of sound for 'for', lost for 'coverage', else since the alert began",
    "count": "events in the alert",
    "heard_by": "streams that heard the sound, for 'same_sound'; the event is the best of them",
    "heard_on": "their names, the first one first",
    "level_dbfs": "level of the stream, for level rules",
    "suppressed": "firings suppressed since the last alert",
}
LABEL_PREFIXES = ("labels.", "stream.labels.")

# not the full-width forms: compatibility normalisation would turn those back
LOOK_ALIKES = {
    "<": "‹", ">": "›", "&": "+", '"': "”", "'": "’", "`": "’", "*": "∗", "_": "ˍ",
    "[": "❲", "]": "❳", "{": "❴", "}": "❵", "\\": "∖", "|": "∣", "~": "∼", "#": "♯",
    "@": "(at)",
}  # fmt: skip
_LOOK_ALIKES = str.maketrans(LOOK_ALIKES)
_FIELD = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_MARKS = ("{{", "}}", "{%", "{#")
_MAX_SHOWN = 30  # characters of a template that a message quotes
_LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}\Z")
_AS_SPACE = ("Cc", "Zl", "Zp", "Zs")
_LEFT_OUT = ("Cf", "Co", "Cn", "Cs")


def inert(value: str) -> str:
    """Return `value` so that it is text and nothing else, in every channel.

    >>> inert("<b>porch</b>")
    '‹b›porch‹/b›'
    """
    kept = []
    for character in value[: 10 * MAX_VALUE]:
        category = unicodedata.category(character)
        if category in _AS_SPACE:
            kept.append(" ")
        elif category not in _LEFT_OUT:
            kept.append(character)
    text = "".join(kept).translate(_LOOK_ALIKES).replace("://", "∶//").strip()
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


@dataclass(frozen=True)
class Template:
    """A text that was checked when it was loaded; rendering cannot fail."""

    parts: tuple[tuple[str, str | None, bool], ...]  # text before, field, whether whole numbers

    @classmethod
    def parse(cls, text: str) -> Template:
        """Return the template in `text`.

        Raises:
            ValueError: an unknown field or filter, lone braces, or characters that are no text.
        """
        *pieces, last = _FIELD.split(text)  # text and field in turn
        parts = (
            (_literal(before), *_parse_field(field))
            for before, field in zip(pieces[::2], pieces[1::2], strict=True)
        )
        return cls((*parts, (_literal(last), None, False)))

    def render(self, values: Mapping[str, str | int | float | None]) -> str:
        """Return the text with every field filled in, at most `MAX_TEXT` characters."""
        shown = []
        for before, field, is_whole in self.parts:
            shown.append(before)
            if field is not None:
                shown.append(_show(values.get(field), is_whole))
        text = "".join(shown)
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _show(value: str | int | float | None, is_whole: bool) -> str:
    if value is None or value == "":
        return ABSENT
    if isinstance(value, str):
        return inert(value)
    return str(int(value)) if is_whole else f"{value:.10g}"


def _parse_field(inside: str) -> tuple[str, bool]:
    name, bar, given_filter = (part.strip() for part in inside.partition("|"))
    if bar and given_filter != "int":
        raise ValueError(f"unknown filter '{given_filter}'; expected int or none")
    prefix = next((prefix for prefix in LABEL_PREFIXES if name.startswith(prefix)), None)
    if prefix is not None:
        if not _LABEL_NAME.match(name.removeprefix(prefix)):
            raise ValueError(f"expected the name of a label after '{prefix}', got '{name}'")
    elif name not in FIELDS:
        near = did_you_mean(name, FIELDS)
        known = f"; known: {', '.join(FIELDS)}, labels.<name>, stream.labels.<name>"
        raise ValueError(f"unknown field '{name}'{near or known}")
    return name, bool(bar)


def _literal(text: str) -> str:
    starts = [start for mark in _MARKS if (start := text.find(mark)) >= 0]
    if starts:
        rest = text[min(starts) :]
        got = f"{rest[:_MAX_SHOWN]}..." if len(rest) > _MAX_SHOWN else rest
        raise ValueError(
            "expected fields as {{ name }} and no other use of double braces, {% or {#, "
            f"got {got!r}"
        )
    wrong = next((c for c in text if c not in "\n\t" and unicodedata.category(c)[0] == "C"), None)
    if wrong is not None:
        raise ValueError(f"expected readable text, got the character U+{ord(wrong):04X}")
    return text
