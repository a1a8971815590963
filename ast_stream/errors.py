"""The errors users can meet: each reads as one sentence (what, where, expected, got)."""

from __future__ import annotations

from dataclasses import dataclass


class AstStreamError(Exception):
    """Base of all errors that are explained to a person without a traceback."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration file."""

    file: str
    line: int | None
    path: str
    text: str

    def __str__(self) -> str:
        """Read as `file:line: path: text`."""
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.path}: {self.text}" if self.path else f"{where}: {self.text}"


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
