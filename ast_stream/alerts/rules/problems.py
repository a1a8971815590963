"""Problems of a rule file: the place, a code to look up, and one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ast_stream.errors import Problem
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.explain import line_of, show_path
from ast_stream.settings.yaml import Document

MAX_CHARACTERS = 500  # of a problem: what it quotes may be as long as a file

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

CODES = {
    "E100": "not readable YAML",
    "E101": "unknown key, wrong type or wrong value",
    "E102": "not exactly one trigger",
    "E103": "unknown or unusable window",
    "E104": "unknown action",
    "E105": "unknown class",
    "E106": "unknown class group, branch or ontology",
    "E107": "unusable template",
    "E108": "name given twice",
    "E109": "inhibition of an unknown alert",
    "W201": "score below the detector's own threshold",
    "W202": "'for' on an impulsive class",
    "W203": "faster than the model can resolve",
    "W204": "sequence that cannot be matched",
    "W205": "unused window",
    "W206": "unused action",
    "W207": "unused class group",
    "W208": "branch member that also lies elsewhere",
    "W209": "class that makes no events",
    "W210": "rule that can never fire",
    "W211": "'for' shorter than any event",
    "W212": "'for' longer than any event",
    "W213": "rule that notifies nobody",
    "W214": "score of a small model that gives none",
    "W215": "sound level of a stream that is not calibrated",
    "W216": "'same_sound' on fewer than two streams, or on one that there is not",
    "W217": "'same_sound' that takes sounds which follow each other for one",
    "W218": "more streams than alerts of a rule at a time",
    "W219": "stream, or label of streams, that there is not",
}


@dataclass(frozen=True)
class RuleProblem(Problem):
    """A problem that also has a column, a code of `CODES`, and may be a mere warning."""

    column: int | None = None
    code: str = "E101"

    @property
    def is_warning(self) -> bool:
        """Whether the rules work all the same."""
        return self.code.startswith("W")

    def __str__(self) -> str:
        """Read as `file:line:col: error|warning CODE: path: text`."""
        place = "".join(f":{part}" for part in (self.line, self.column) if part is not None)
        kind = "warning" if self.is_warning else "error"
        path = f"{self.path}: " if self.path else ""
        return f"{self.file}{place}: {kind} {self.code}: {path}{self.text}"


def problem_at(document: Document, path: KeyPath, code: str, text: str) -> RuleProblem:
    """Return a problem at `path`, or at the nearest thing around it that the file holds."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS - 100]} … {text[-100:]}"
    line, column = (line_of(places, path) for places in (document.lines, document.columns))
    return RuleProblem(document.file, line, show_path(path), text, column, code)


@dataclass
class Notes:
    """Problems of one document, noted while it is compiled."""

    document: Document
    problems: list[RuleProblem] = field(default_factory=list)

    def add(self, path: KeyPath, code: str, text: str) -> None:
        """Note a problem."""
        is_lone = path and isinstance(path[-1], int) and path not in self.document.lines
        if is_lone:  # one name where a list of names may be, too
            path = path[:-1]
        self.problems.append(problem_at(self.document, path, code, text))

    def attempt(
        self, path: KeyPath, code: str, make: Callable[[_Given], _Made], given: _Given | None
    ) -> _Made | None:
        """Return what `make` makes of `given`; None if it is None, or wrong, which is noted."""
        try:
            return None if given is None else make(given)
        except ValueError as error:
            self.add(path, code, str(error))
            return None
