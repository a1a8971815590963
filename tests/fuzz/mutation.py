"""How bytes from outside are changed: as damage does it, and as somebody who knows the format.

A case is the frames of a message, or the contents of files. Everything is drawn from one generator,
so that a seed gives the same cases again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeAlias

Case: TypeAlias = tuple[bytes, ...]

MAX_CASE_BYTES = 256 * 1024
_CHANGES = (1, 1, 1, 1, 2, 2, 3, 6)  # of one case
_ODD_INTS: tuple[int, ...] = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536)
_ODD_INTS += (2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
_ODD_TEXTS = (
    b"", b"\0", b"\n", b"\r\n", b"\x1b[2J", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    "\u202e\u2028\u0130".encode(), b"../../etc/passwd", b"/dev/zero", b"a" * 300, b"a" * 70_000,
    b"NaN", b"-Infinity", b"1e400", b"-0", b"0x10", b"1_000", b"9" * 5_000, "٣".encode(),
    b"[" * 2_000, b'{"a":' * 2_000, b"{{", b"}}", b"%s%n", b"{0.__class__}", b"$(id)", b"None",
    b"!!python/object/apply:os.system [id]", b"&a [*a, *a]", b"*a", b"<<: *a", b"? ", b"---\n",
    b"\tx: 1", b"null", b"true", b"[]", b"{}", b'"', b"'", b"\\ud800", b"\\u0000", b",", b";", b":",
    b"2026-13-45T25:61:61Z", b"9999-12-31T23:59:59.999999Z", b"0001-01-01T00:00:00+23:59",
)  # fmt: skip
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**53, 2**63, 2**64,
    -(2**63), 10**30, 10**4000, "", "a", "a" * 5000, "\0", "\ud800", "\u202e", "../x", "bark", "1",
    "2026-11-20T10:00:00Z", "9999-12-31T23:59:59Z", [], {}, [[]], [None], {"": None},
    [0] * 1000, {"v": 1}, ["porch", 1], [[0, 0, 0]],
)  # fmt: skip
_WORDS = re.compile(rb"[A-Za-z_][A-Za-z0-9_./:-]{1,40}|-?[0-9][0-9.eE+-]*")


class Mutator:
    """Makes new cases of known ones.

    Args:
        seeds: cases that are right.
        tokens: words of the format beside those that the seeds hold.
    """

    def __init__(self, seeds: Sequence[Case], tokens: Sequence[bytes] = ()) -> None:
        found = {
            word for case in seeds for frame in case for word in _WORDS.findall(frame[:20_000])
        }
        self._tokens = [*tokens, *sorted(found)[:2_000], *_ODD_TEXTS]
        self._of_bytes: tuple[Callable[[bytearray, Random, bytes], None], ...] = (
            _flip, _overwrite, _set_int, _delete, _repeat, _insert_random, _truncate, _splice,
            self._insert_token, self._replace_word,
        )  # fmt: skip

    def mutated(self, case: Case, other: Case, rng: Random) -> Case:
        """Return a changed case.

        Args:
            other: another one, of which parts may be taken.
        """
        frames = list(case)
        for _ in range(rng.choice(_CHANGES)):
            if len(case) > 1 and rng.random() < 0.05:
                _change_frames(frames, other, rng)
            if not frames:
                return ()
            place = rng.randrange(len(frames))
            partner = other[place % len(other)] if other else b""
            frames[place] = self._changed(frames[place], partner, rng)[:MAX_CASE_BYTES]
        return tuple(frames)

    def _changed(self, frame: bytes, partner: bytes, rng: Random) -> bytes:
        draw = rng.random()
        if draw < 0.35 and (changed := _changed_json(frame, rng)) is not None:
            return changed
        if draw < 0.5 and frame.count(b"\n") > 1:
            return _changed_lines(frame, partner, rng)
        content = bytearray(frame)
        rng.choice(self._of_bytes)(content, rng, partner)
        return bytes(content)

    def _insert_token(self, content: bytearray, rng: Random, _: bytes) -> None:
        at = rng.randint(0, len(content))
        content[at:at] = rng.choice(self._tokens)

    def _replace_word(self, content: bytearray, rng: Random, _: bytes) -> None:
        start = rng.randint(0, len(content))
        words = [found.span() for found in _WORDS.finditer(content, start, start + 500)]
        if words:
            first, last = rng.choice(words)
            content[first:last] = rng.choice(self._tokens)


def _flip(content: bytearray, rng: Random, _: bytes) -> None:
    if content:
        content[_place(content, rng)] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, rng: Random, _: bytes) -> None:
    if content:
        at = _place(content, rng)
        content[at : at + rng.randint(1, 8)] = rng.randbytes(rng.randint(1, 8))


def _set_int(content: bytearray, rng: Random, _: bytes) -> None:
    width = rng.choice((1, 2, 4, 8))
    if len(content) >= width:
        at = min(_place(content, rng), len(content) - width)
        if rng.random() < 0.5:
            at -= at % width
        order = "little" if rng.random() < 0.5 else "big"
        number = rng.choice(_ODD_INTS) + rng.choice((0, 0, -1, 1, 8))
        content[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]


def _delete(content: bytearray, rng: Random, _: bytes) -> None:
    if content:
        at = _place(content, rng)
        del content[at : at + rng.choice((1, 2, 4, 16, 200))]


def _repeat(content: bytearray, rng: Random, _: bytes) -> None:
    if content:
        at = _place(content, rng)
        part = content[at : at + rng.choice((1, 4, 32, 500))]
        content[at:at] = part * rng.choice((1, 2, 20))


def _insert_random(content: bytearray, rng: Random, _: bytes) -> None:
    at = rng.randint(0, len(content))
    content[at:at] = rng.randbytes(rng.randint(1, 32))


def _truncate(content: bytearray, rng: Random, _: bytes) -> None:
    del content[_place(content, rng) if content else 0 :]


def _splice(content: bytearray, rng: Random, partner: bytes) -> None:
    at, start = rng.randint(0, len(content)), rng.randint(0, len(partner))
    part = partner[start : start + rng.choice((4, 64, 1_000))]
    content[at : at + rng.choice((0, len(part)))] = part


def _place(content: bytearray, rng: Random) -> int:
    """Return a position, most often in a header: what is there decides about the rest."""
    reach = len(content) if rng.random() < 0.5 else min(len(content), 128)
    return rng.randrange(reach)


def _change_frames(frames: list[bytes], other: Case, rng: Random) -> None:
    match rng.randrange(4):
        case 0:
            del frames[rng.randrange(len(frames))]
        case 1:
            frames.insert(rng.randint(0, len(frames)), rng.choice(frames))
        case 2:
            rng.shuffle(frames)
        case 3:
            frames.append(rng.choice(other) if other else b"")


def _changed_lines(frame: bytes, partner: bytes, rng: Random) -> bytes:
    lines = frame.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at : at + rng.choice((1, 1, 3))]
        case 1:
            lines[at:at] = lines[at : at + rng.choice((1, 1, 5))] * rng.choice((1, 2, 30))
        case 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = rng.choice((b"  ", b" ", b"- ", b"# ", b"\t", b"")) + lines[at].lstrip()
        case 4:
            lines[at] = lines[at].replace(b": ", rng.choice((b":", b": [", b": {", b": - ")))
        case 5:
            lines[at:at] = rng.sample(
                theirs := partner.splitlines(keepends=True), min(1, len(theirs))
            )
    return b"".join(lines)


def _changed_json(frame: bytes, rng: Random) -> bytes | None:
    """Return JSON, or one line of JSON lines, with another value somewhere; None if it is none."""
    lines = frame.splitlines(keepends=True) if frame[:1] in b"[{" else []
    if not lines or len(frame) > 64_000:
        return None
    at = rng.randrange(len(lines)) if len(lines) < 500 else 0
    for text, put in (
        (frame, lambda new: new),
        (lines[at], lambda new: b"".join([*lines[:at], new, b"\n", *lines[at + 1 :]])),
    ):
        try:
            root = [json.loads(text)]
        except (ValueError, RecursionError):
            continue
        _change_value(root, rng)
        try:
            changed = json.dumps(root[0], ensure_ascii=rng.random() < 0.5, separators=(",", ":"))
        except (ValueError, RecursionError):  # a number of thousands of digits
            return None
        return put(changed.encode("utf-8", "surrogatepass"))
    return None


def _change_value(root: list[Any], rng: Random) -> None:
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting and len(places) < 5_000:
        holder = waiting.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1 | 2:
            holder[key] = rng.choice(_ODD_VALUES)
        case 3 if holder is not root:
            del holder[key]
        case 4:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[place]))
        case 5 if isinstance(holder, dict):
            holder[rng.choice(("", "v", "extra", "a" * 300, "\ud800", "__class__"))] = 1
        case 6 if isinstance(holder, list) and holder is not root:
            holder[key:key] = [holder[key]] * rng.choice((1, 2, 100))
        case 7 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((-1, 1, -(2**31), 2**31, 2**53))
        case _:
            holder[key] = [holder[key]] if rng.random() < 0.5 else str(holder[key])
