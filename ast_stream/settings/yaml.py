"""YAML to plain data under strict rules, with the line of everything; the only importer of yaml.

Plain PyYAML reads `12:30` as 750, `on` as true, `010` as 8 and `1e-3` as text, and keeps the last
of two equal keys without a word. Here a value is what it looks like: only `true` and `false` are
booleans, numbers are decimal, everything else is text; equal keys, tags, merge keys and a second
document are refused.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ast_stream.errors import ConfigError, Problem
from ast_stream.settings.explain import Path as KeyPath
from ast_stream.settings.explain import show_path

MAX_FILE_BYTES = 1_000_000
MAX_WRITTEN = 50_000  # keys and values in the text: PyYAML needs 50 us for each
MAX_VALUES = 200_000  # after aliases are put in: bounds what they can multiply
MAX_DEPTH = 32  # of mappings and lists in each other
MAX_TEXT = 10_000  # characters of one value
MAX_INT = 2**63 - 1
_READ_AGAIN = 5  # times, for a file that is written while it is read
_READ_AGAIN_S = 0.05
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(
    r"[-+]?(?:(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.inf)\Z|\.nan\Z"
)


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


def read_document(path: Path, needed_key: str, what: str = "configuration file") -> Document:
    """Return the mapping in a YAML file.

    Args:
        needed_key: a key that belongs at the top, to be named if the file is empty.
        what: the file is, as it is named if it cannot be read.

    Raises:
        ConfigError: the file cannot be read at all; lesser problems are in the document.
    """
    return parse_document(_read(path, what), str(path), needed_key)


def parse_document(text: str, file: str, needed_key: str) -> Document:
    """Return the mapping in YAML text; `file` is the name used in problems."""
    reader = _Reader(file, needed_key)
    data = reader.read(text)
    return Document(data, reader.lines, reader.columns, reader.problems, file)


def _read(path: Path, what: str) -> str:
    def refuse(text: str) -> ConfigError:
        return ConfigError([Problem(str(path), None, "", text)])

    try:
        raw = _read_whole(path)
    except FileNotFoundError as error:
        raise refuse(f"no such {what}") from error
    except OSError as error:
        raise refuse(f"the {what} cannot be read: {error.strerror}") from error
    except ValueError as error:  # NUL in the name
        raise refuse(f"the {what} cannot be read: {error}") from error
    if raw is None:
        raise refuse(f"the {what} changes while it is read")
    if len(raw) > MAX_FILE_BYTES:
        raise refuse(f"expected a {what} of at most {MAX_FILE_BYTES} bytes, got more")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        text = f"expected UTF-8 text, got byte 0x{raw[error.start]:02x}"
        raise ConfigError([Problem(str(path), line, "", text)]) from error


def _read_whole(path: Path) -> bytes | None:
    """Return the content of a file that did not change while it was read; None if it kept changing.

    Raises:
        OSError: it cannot be read, or is something whose reading may never end.
    """
    for _ in range(_READ_AGAIN):
        # without O_NONBLOCK, opening a named pipe waits for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            before = os.fstat(descriptor)
            if stat.S_ISDIR(before.st_mode):
                raise IsADirectoryError(0, "Is a directory")
            if not stat.S_ISREG(before.st_mode):
                raise OSError(0, "expected a file, got a pipe, socket or device")
            raw = stream.read(MAX_FILE_BYTES + 1)
            after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            return raw
        time.sleep(_READ_AGAIN_S)
    return None


# what escapes in double quotes can make: controls, and halves of characters (lone surrogates)
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_KNOWN_TAGS = ("!secret", "!include", "!env", "!env_var")
_NAMES = re.compile(r"(alias|anchor|tag handle) '[^']*'")


_TOO_DEEP = f"expected at most {MAX_DEPTH} levels of nesting, got more"


class _TooMuch(Exception):
    """More than a person writes; `line` is where the limit was exceeded."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the strict meaning of plain words, and with limits."""

    n_written = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node; as in the base class."""
        self.n_written += 1
        self.depth += 1
        line = int(self.line) + 1
        if self.depth > MAX_DEPTH:
            raise _TooMuch(_TOO_DEEP, line)
        if self.n_written > MAX_WRITTEN:
            raise _TooMuch(f"expected at most {MAX_WRITTEN} keys and values, got more", line)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


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
        except _TooMuch as error:
            raise self._fatal(error.line, str(error)) from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = " ".join(part for part in (error.context, error.problem) if part)
            line = None if mark is None else mark.line + 1
            raise self._fatal(line, f"this is not valid YAML: {_without_names(words)}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            character = f"U+{int(error.character):04X}"  # a number, for text as input
            raise self._fatal(line, f"expected text, got the character {character}") from error
        except (ValueError, OverflowError) as error:  # of numbers in escapes and directives
            text = "this is not valid YAML: expected an escape or directive with a smaller number"
            raise self._fatal(None, text) from error
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
        if len(parents) > MAX_DEPTH:  # through aliases: each of them is written on one level
            raise self._fatal(_line(node), _TOO_DEEP)
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
            self._note(node, path, f"YAML tags are not used here, got {_shown_tag(node.tag)}")
            return None
        if not self._is_plain(node, path):
            return None
        try:
            value = convert(node.value)
        except (ValueError, KeyError):
            if node.value.lstrip("+-").isdecimal():  # int() refuses thousands of digits
                value = MAX_INT + 1
            else:
                kind = node.tag.replace(_TAG, "")
                self._note(node, path, f"expected {kind}, got {node.value[:40]}")
                return None
        if isinstance(value, int) and abs(value) > MAX_INT:
            self._note(node, path, f"expected a number of at most 18 digits, got {len(node.value)}")
            return None
        return value

    def _is_plain(self, node: yaml.ScalarNode, path: KeyPath) -> bool:
        """Return whether the text of a scalar can be stored, sent and shown anywhere."""
        odd = _NOT_TEXT.search(node.value)
        if odd is not None:
            self._note(node, path, f"expected text, got the character U+{ord(odd[0]):04X}")
        elif len(node.value) > MAX_TEXT:
            text = f"expected at most {MAX_TEXT} characters, got {len(node.value)}"
            self._note(node, path, text)
        else:
            return True
        return False

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
        return str(node.value) if self._is_plain(node, path) else None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _shown_tag(tag: str) -> str:
    """Return a tag for a sentence: a local one may be a secret that begins with `!`."""
    if tag.startswith(_TAG):
        return tag.replace(_TAG, "!!")
    return tag if tag in _KNOWN_TAGS else "a word that begins with '!': put it in quotes"


def _without_names(words: str) -> str:
    """Return PyYAML's words without names: a secret may begin with `*`, `&` or `!`."""
    without = _NAMES.sub(r"\1", words)
    return (
        f"{without} (put text that begins with *, & or ! in quotes)" if without != words else words
    )
