"""The errors users can meet: each reads as one sentence (what, where, expected, got)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ast_stream.urls import mask

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class AstStreamError(Exception):
    """Base of all errors that are explained to a person without a traceback.

    Its text may go anywhere, to subscribers too: secrets in URLs are masked.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(mask(part) if isinstance(part, str) else part for part in args))


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration file.

    Path and text may hold what stands in the file: secrets in URLs are masked, and characters that
    a terminal would obey are spelled out.
    """

    file: str
    line: int | None
    path: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _shown(self.path))
        object.__setattr__(self, "text", _shown(self.text))

    @property
    def is_warning(self) -> bool:
        """Whether the configuration works all the same."""
        return False

    def __str__(self) -> str:
        """Read as `file:line: path: text`."""
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        kind = "warning: " if self.is_warning else ""
        path = f"{self.path}: " if self.path else ""
        return f"{where}: {kind}{path}{self.text}"


class Warned(Problem):
    """Something that works, but probably not as intended."""

    @property
    def is_warning(self) -> bool:
        """Whether the configuration works all the same."""
        return True


def _shown(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], mask(text))


class ConfigError(AstStreamError):
    """A configuration that cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class WireError(AstStreamError):
    """A message from outside that does not follow the wire format."""


class CaptureError(AstStreamError):
    """A sound source that cannot be opened or has stopped delivering; worth another try."""


class AudioError(AstStreamError):
    """A recording that cannot be read."""


class CheckpointError(AstStreamError):
    """A checkpoint that is not an AST, is damaged, or does not fit the settings."""


class StartupError(AstStreamError):
    """A process that cannot start: device, model, self-check, or an endpoint in use."""


class UsageError(AstStreamError):
    """A command line that asks for something impossible."""
