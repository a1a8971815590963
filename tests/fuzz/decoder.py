"""One decoder of bytes from outside, and the law that it is held to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fuzz.mutation import Case

from ast_stream.errors import AstStreamError, ConfigError

MAX_SENTENCE = 2_000  # characters of one problem
_NOT_WORDS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DETAILS = re.compile(r"'[^']*'?|\"[^\"]*\"?|[0-9][0-9a-fx_.,]*|/[^ :]*")
_GOT = re.compile(r",? got .*", re.DOTALL)


class Broken(Exception):
    """A decoder that does not keep the law, although it raised nothing else.

    Args:
        fault: what it did, in words that are the same for every case.
        details: of this case.
    """

    def __init__(self, fault: str, *details: str) -> None:
        super().__init__(fault, *details)
        self.fault = fault


@dataclass(frozen=True, eq=False)
class Decoder:
    """What is given bytes of others.

    Attributes:
        seeds: cases that are right; changed ones follow from them.
        decode: does all that the program does with the bytes; raises `AstStreamError` to refuse
            them, `Broken` if what it returns is wrong, such as a value that does not come back.
        share: of the cases of a campaign, beside that of the others; the slow ones get fewer.
        tokens: words of the format that no seed holds.
        repair: makes checksums right again, so that what is behind them is reached.
        close: frees what it has opened in this process.
    """

    name: str
    seeds: Sequence[Case]
    decode: Callable[[Case], object]
    share: float = 1.0
    tokens: Sequence[bytes] = ()
    repair: Callable[[Case], Case] | None = None
    close: Callable[[], None] = lambda: None


def outcome_of(decoder: Decoder, case: Case) -> str:
    """Return how a decoder takes a case, in words that are the same for the same way to take it.

    Raises:
        Exception: whatever but a refusal in a clear sentence.
    """
    try:
        value = decoder.decode(case)
    except AstStreamError as error:
        _check_sentence(error)
        kind = type(error).__name__
        first = str(error).partition("\n")[0]
        return f"{kind}: {_DETAILS.sub('…', _GOT.sub('', first))[:80]}"
    return f"accepted: {type(value).__name__}"


def digest(case: Case) -> str:
    """Return a short name of a case."""
    joined = b"".join(len(frame).to_bytes(4, "big") + frame for frame in case)
    return hashlib.blake2b(joined, digest_size=6).hexdigest()


def _check_sentence(error: AstStreamError) -> None:
    """Refuse what a person could not read, or a terminal would obey."""
    text = str(error)
    problems = [str(one) for one in error.problems] if isinstance(error, ConfigError) else [text]
    for line in problems:
        if not line.strip():
            raise Broken("it refuses without a word") from error
        if len(line) > MAX_SENTENCE:
            raise Broken("its sentence is far too long", f"{line[:200]!r}…") from error
        if _NOT_WORDS.search(line):
            raise Broken("its sentence holds a control character", repr(line[:200])) from error
        if "Traceback" in line or "object at 0x" in line:
            raise Broken("its sentence is not for people", repr(line[:200])) from error
