"""YAML to settings under strict rules, with every problem at its line; the only importer of yaml.

Plain PyYAML reads `12:30` as 750, `on` as true, `010` as 8 and `1e-3` as text, and keeps the last
of two equal keys without a word. Here a value is what it looks like: only `true` and `false` are
booleans, numbers are decimal, everything else is text; equal keys, tags, merge keys and a second
document are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ast_stream.errors import ConfigError, Problem
from ast_stream.settings.check import LoadedSettings, check_against_model, check_classes
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.explain import explain, show_path
from ast_stream.settings.schema import Settings

__all__ = [
    "Document",
    "LoadedSettings",
    "check_against_model",
    "check_classes",
    "load_file",
    "load_settings",
    "parse_document",
    "parse_settings",
    "parse_text",
    "read_document",
]

MAX_FILE_BYTES = 1_000_000
MAX_VALUES = 200_000  # bounds what aliases can multiply
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(
    r"[-+]?(?:(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.inf)\Z|\.nan\Z"
)


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
    return parse_text(_read(path), str(path))


def parse_text(text: str, file: str = "<text>") -> LoadedSettings:
    """Return the settings in YAML text together with the lines they came from.

    Raises:
        ConfigError: as `parse_settings`.
    """
    reader = _Reader(file)
    data = reader.read(text)
    found = {(problem.line, problem.path): problem for problem in reader.problems}
    settings = None
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        for problem in explain(error.errors(include_url=False), Settings, file, reader.lines):
            # what could not be read stands as null in `data`: the first complaint says it better
            found.setdefault((problem.line, problem.path), problem)
    if found or settings is None:
        raise ConfigError(sorted(found.values(), key=lambda problem: problem.line or 0))
    return LoadedSettings(settings=settings, lines=reader.lines, file=file)


@dataclass(frozen=True)
class Document:
    """A mapping read under the strict rules, with the place of everything in it.

    Attributes:
        data: plain values; what could not be read stands as null and has a problem.
        lines, columns: of each key and list item, from 1, by path.
    """

    data: dict[str, Any]
    lines: Mapping[KeyPath, int]
    columns: Mapping[KeyPath, int]
    problems: list[Problem]
    file: str


def read_document(path: Path, needed_key: str) -> Document:
    """Return the mapping in a YAML file that is not a configuration, such as alert rules.

    Args:
        needed_key: a key that belongs at the top, to be named if the file is empty.

    Raises:
        ConfigError: the file cannot be read at all; lesser problems are in the document.
    """
    return parse_document(_read(path), str(path), needed_key)


def parse_document(text: str, file: str, needed_key: str) -> Document:
    """Return the mapping in YAML text; as `read_document`."""
    reader = _Reader(file, needed_key)
    data = reader.read(text)
    return Document(data, reader.lines, reader.columns, reader.problems, file)


def _read(path: Path) -> str:
    def refuse(text: str) -> ConfigError:
        return ConfigError([Problem(str(path), None, "", text)])

    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise refuse("no such configuration file") from error
    except OSError as error:
        raise refuse(f"the configuration file cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise refuse(f"expected at most {MAX_FILE_BYTES} bytes of configuration, got more")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        text = f"expected UTF-8 text, got byte 0x{raw[error.start]:02x}"
        raise ConfigError([Problem(str(path), line, "", text)]) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the strict meaning of plain words."""


# under the key None stand the words that PyYAML tries whatever their first letter is
_Loader.yaml_implicit_resolvers = {
    None: [
        (_TAG + "bool", re.compile(r"(?:true|false)\Z")),
        (_TAG + "null", re.compile(r"(?:~|null|)\Z")),
        (_TAG + "int", _INT),
        (_TAG + "float", _FLOAT),
        (_TAG + "merge", re.compile(r"<<\Z")),
    ]
}

_SCALARS: dict[str, Callable[[str], Any]] = {
    _TAG + "str": str,
    _TAG + "bool": {"true": True, "false": False}.__getitem__,
    _TAG + "null": lambda _: None,
    _TAG + "int": int,
    _TAG + "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
}


class _Reader:
    """Turn one YAML document into plain data, noting the line of every key and item."""

    def __init__(self, file: str, needed_key: str = "streams") -> None:
        self.lines: dict[KeyPath, int] = {}
        self.columns: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._file = file
        self._needed_key = needed_key
        self._values = 0

    def read(self, text: str) -> dict[str, Any]:
        """Return the mapping at the top; problems that leave some data are collected.

        Raises:
            ConfigError: there is nothing to go on with: broken syntax, empty, not a mapping.
        """
        root = self._compose(text)
        if root is None or root.tag == _TAG + "null":
            text = f"expected settings, got an empty file; '{self._needed_key}' is needed"
            raise self._fatal(None, text)
        if not isinstance(root, yaml.MappingNode):
            text = f"expected keys such as '{self._needed_key}:' at the top level"
            raise self._fatal(_line(root), text)
        data: dict[str, Any] = self._mapping(root, (), ())
        return data

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            documents = list(yaml.compose_all(text, Loader=_Loader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = " ".join(part for part in (error.context, error.problem) if part)
            line = None if mark is None else mark.line + 1
            raise self._fatal(line, f"this is not valid YAML: {words}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            character = f"U+{int(error.character):04X}"  # a number, for text as input
            raise self._fatal(line, f"expected text, got the character {character}") from error
        except RecursionError as error:
            raise self._fatal(None, "the configuration is nested too deeply") from error
        if len(documents) > 1:
            raise self._fatal(_line(documents[1]), "expected one YAML document, got a second one")
        return documents[0] if documents else None

    def _fatal(self, line: int | None, text: str) -> ConfigError:
        return ConfigError([*self.problems, Problem(self._file, line, "", text)])

    def _note(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(self._file, _line(node), show_path(path), text))

    def _value(self, node: yaml.Node, path: KeyPath, parents: tuple[int, ...]) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._fatal(_line(node), f"expected at most {MAX_VALUES} values, got more")
        if id(node) in parents:
            self._note(node, path, "an alias may not contain itself")
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path, (*parents, id(node)))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return self._sequence(node, path, (*parents, id(node)))
        return self._scalar(node, path)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        convert = _SCALARS.get(node.tag)
        if convert is None or not isinstance(node, yaml.ScalarNode):
            shown = node.tag.replace(_TAG, "!!")
            self._note(node, path, f"YAML tags are not used here, got {shown}")
            return None
        try:
            return convert(node.value)
        except (ValueError, KeyError):
            self._note(node, path, f"expected {node.tag.replace(_TAG, '')}, got {node.value[:40]}")
            return None

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath, parents: tuple[int, ...]) -> Any:
        items = []
        for index, item in enumerate(node.value):
            self._mark(item, (*path, index))
            items.append(self._value(item, (*path, index), parents))
        return items

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, parents: tuple[int, ...]) -> Any:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in data:
                self._note(key_node, here, f"given twice, first on line {self.lines[here]}")
                continue
            self._mark(key_node, here)
            data[key] = self._value(value_node, here, parents)
        return data

    def _mark(self, node: yaml.Node, path: KeyPath) -> None:
        self.lines[path] = _line(node)
        self.columns[path] = int(node.start_mark.column) + 1

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if node.tag == _TAG + "merge":
            self._note(node, path, "merge keys ('<<') are not used here; write the keys out")
            return None
        if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "str":
            is_scalar = isinstance(node, yaml.ScalarNode)
            shown = f"{node.value[:40]}; put it in quotes" if is_scalar else "more than one word"
            self._note(node, path, f"expected text as a key, got {shown}")
            return None
        return str(node.value)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
