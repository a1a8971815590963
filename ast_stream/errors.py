"""The errors users can meet: each reads as one sentence (what, where, expected, got)."""

from __future__ import annotations

from dataclasses import dataclass

from ast_stream.labels import printable
from ast_stream.urls import mask

MAX_CHARACTERS = 2000  # of a sentence: what it quotes may be a whole file
_MAX_QUOTED = 400  # of what quotes a message, of which many may come, or a place in a file


class AstStreamError(Exception):
    """Base of all errors that are explained to a person without a traceback.

    Its text may go anywhere, to subscribers too, and quote anything: secrets in URLs are masked,
    characters that a terminal would obey are spelled out, and what is too long is cut.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(_cut(printable(mask(text), keep="\n"), MAX_CHARACTERS))


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration file.

    Path and text may hold what stands in the file: they are shown as an `AstStreamError` shows it.
    """

    file: str
    line: int | None
    path: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _shown(self.path, _MAX_QUOTED))
        object.__setattr__(self, "text", _shown(self.text, MAX_CHARACTERS // 2))

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


def _shown(text: str, max_characters: int) -> str:
    """Return one line that can be shown anywhere."""
    return _cut(printable(mask(text)), max_characters)


def _cut(text: str, max_characters: int) -> str:
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


class ConfigError(AstStreamError):
    """A configuration that cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        self.args = (mask("\n".join(map(str, problems))),)  # not cut: each is by itself
        self.problems = problems


class WireError(AstStreamError):
    """A message from outside that does not follow the wire format."""

    def __init__(self, text: str) -> None:
        super().__init__(_shown(text, _MAX_QUOTED))


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
