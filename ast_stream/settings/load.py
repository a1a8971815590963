"""From a configuration file to settings, with every problem at its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ast_stream.errors import ConfigError, Problem
from ast_stream.labels import is_stream_name
from ast_stream.settings.chosen_model import with_chosen_model
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.explain import explain_by_path, line_of, show_path
from ast_stream.settings.paths import socket_problem
from ast_stream.settings.schema import Settings
from ast_stream.settings.section import FOLDER, LEFT_OUT, MISFITS
from ast_stream.settings.yaml import Document, parse_document, read_document

MAX_PROBLEMS = 100  # that are listed; the others are counted
_ROUNDS = 10  # of leaving out what is wrong and checking the rest
_NEEDED_KEY = "streams"


@dataclass(frozen=True)
class LoadedSettings:
    """Settings with the lines they came from.

    Attributes:
        settings: with the checkpoint in force, which the centre of a fleet may have chosen.
        lines: line of each key and list item in `file`, by path, e.g. ("streams", 0, "name").
        checkpoint: the one that the file names; None: as in `settings`.
    """

    settings: Settings
    lines: Mapping[KeyPath, int]
    file: str
    checkpoint: str | None = None

    @property
    def configured_checkpoint(self) -> str:
        """The checkpoint that the file names."""
        return self.settings.model.checkpoint if self.checkpoint is None else self.checkpoint

    def problem(self, path: KeyPath, text: str) -> Problem:
        """Return a problem at the line of `path`, or of the nearest thing around it."""
        return Problem(self.file, line_of(self.lines, path), show_path(path), text)


def load_settings(path: Path) -> Settings:
    """Return the settings in a YAML file.

    Raises:
        ConfigError: the file cannot be read or used; it lists every problem with its line.
    """
    return load_file(path).settings


def parse_settings(text: str, file: str = "<text>") -> Settings:
    """Return the settings in YAML text; `file` is the name used in problems.

    Raises:
        ConfigError: the text cannot be used; it lists every problem with its line.
    """
    return parse_text(text, file).settings


def load_file(path: Path) -> LoadedSettings:
    """Return the settings in a YAML file together with the lines they came from.

    Raises:
        ConfigError: as `load_settings`.
    """
    return _expect_right(*examine_file(path))


def parse_text(text: str, file: str = "<text>", folder: Path | None = None) -> LoadedSettings:
    """Return the settings in YAML text together with the lines they came from.

    Args:
        folder: where relative paths begin; None: they stay as they are.

    Raises:
        ConfigError: as `parse_settings`.
    """
    return _expect_right(*examine_text(text, file, folder))


def examine_file(path: Path) -> tuple[LoadedSettings | None, list[Problem]]:
    """Return the settings in a YAML file as far as they are right, and what is wrong.

    What is wrong is replaced by its default, or by a generated scene in place of a stream's
    source: to find more problems, not for use.

    Raises:
        ConfigError: the file cannot be read at all.
    """
    return _examine(read_document(path, _NEEDED_KEY), path.absolute().parent)


def examine_text(
    text: str, file: str, folder: Path | None = None
) -> tuple[LoadedSettings | None, list[Problem]]:
    """Return the settings in YAML text as far as they are right; as `examine_file`."""
    return _examine(parse_document(text, file, _NEEDED_KEY), folder)


def _expect_right(loaded: LoadedSettings | None, problems: list[Problem]) -> LoadedSettings:
    if problems or loaded is None:
        raise ConfigError(problems)
    return loaded


def _examine(
    document: Document, folder: Path | None
) -> tuple[LoadedSettings | None, list[Problem]]:
    data, file, lines = document.data, document.file, document.lines
    found = {(problem.line, problem.path): problem for problem in document.problems}
    settings = None
    cut: set[KeyPath] = set()
    for _ in range(_ROUNDS):
        misfits: list[tuple[KeyPath, str]] = []
        context = {
            FOLDER: None if folder is None else str(folder),
            MISFITS: misfits,
            LEFT_OUT: cut,
        }
        try:
            settings = Settings.model_validate(data, context=context)
        except ValidationError as error:
            details = error.errors(include_url=False)[:MAX_PROBLEMS]
            for path, problem in explain_by_path(details, Settings, file, lines).items():
                # what could not be read stands as null in `data`: the first problem says more
                if path not in cut:
                    found.setdefault((problem.line, problem.path), problem)
                _cut(data, path, cut)
        for path, words in misfits:
            line, shown = line_of(lines, path), show_path(path)
            found.setdefault((line, f"{shown}: {words}"), Problem(file, line, shown, words))
        if settings is not None:
            break
    loaded = None
    if settings is not None:
        checkpoint = settings.model.checkpoint
        loaded = LoadedSettings(with_chosen_model(settings), lines, file, checkpoint)
    if loaded is not None and (text := socket_problem(loaded.settings)) is not None:
        problem = loaded.problem(("runtime_dir",), text)
        found.setdefault((problem.line, problem.path), problem)
    problems = sorted(found.values(), key=lambda problem: problem.line or 0)
    if len(problems) > MAX_PROBLEMS:
        more = f"and {len(problems) - MAX_PROBLEMS} more problems"
        problems = [*problems[:MAX_PROBLEMS], Problem(file, None, "", more)]
    return loaded, problems


def _cut(data: dict[str, Any], path: KeyPath, cut: set[KeyPath]) -> None:
    """Remove what is wrong at `path` from `data`, so that the rest can be checked.

    Items of lists keep their numbers: streams and actions are replaced, other lists go as a whole.
    """
    if path and path[-1] == "type":  # unknown: then what is beside it means nothing
        cut.add(path)
        path = path[:-1]
    while path:
        cut.add(path)
        holder: Any = data
        for part in path[:-1]:
            is_key = isinstance(holder, dict) and part in holder
            is_item = isinstance(holder, list) and isinstance(part, int) and part < len(holder)
            holder = holder[part] if is_key or is_item else None
        key = path[-1]
        if path == ("streams",):
            data["streams"] = [_stand_in(None, 0)]
            return
        if len(path) == 2 and path[0] == "streams" and isinstance(holder, list):
            holder[int(key)] = _stand_in(holder[int(key)], int(key))
            return
        if len(path) == 3 and path[:2] == ("alerts", "actions") and isinstance(holder, dict):
            holder[key] = {"type": "log"}
            return
        if isinstance(holder, dict) and key in holder:
            del holder[key]
            return
        path = path[:-1]  # something is missing here


def _stand_in(stream: Any, index: int) -> dict[str, Any]:
    name = stream.get("name") if isinstance(stream, dict) else None
    is_usable = isinstance(name, str) and is_stream_name(name)
    return {"name": name if is_usable else f"stream-{index}", "source": {"type": "scene"}}
