"""Errors of pydantic in plain words, with the line of the file."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ast_stream.errors import Problem, UsageError
from ast_stream.labels import did_you_mean

Path = tuple[str | int, ...]
_Model = TypeVar("_Model", bound=BaseModel)

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_QUOTED = re.compile(r"'([^']*)'")
_HOLDS_SECRETS = re.compile(
    r"(?i)pass|pwd|secret|token|key$|auth|headers|user|_env$|nkey|creds|seed"
)
_QUOTED_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\Z")
_WITH_UNIT = re.compile(
    r"(?i)[-+]?[0-9.]+ ?(?:ms|s|sec|seconds?|m|min|minutes?|h|hours?|d|days?|dBFS|dB|k?Hz|%"
    r"|[kmg]i?b|k?bit/s)\Z"
)
_HIDDEN = object()  # in place of a value that may be a secret, wherever it was written
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "none_required": "null",
}


def explain(
    errors: Iterable[ErrorDetails], model: type[BaseModel], file: str, lines: Mapping[Path, int]
) -> list[Problem]:
    """Return one problem for each place that pydantic complains about; as `explain_by_path`."""
    return list(explain_by_path(errors, model, file, lines).values())


def explain_by_path(
    errors: Iterable[ErrorDetails], model: type[BaseModel], file: str, lines: Mapping[Path, int]
) -> dict[Path, Problem]:
    """Return one problem for each place that pydantic complains about.

    Args:
        errors: what `ValidationError.errors()` returned for `model`.
        lines: line of each key and item that the file holds.
    """
    by_place: dict[Path, list[tuple[_Place, ErrorDetails]]] = {}
    for error in errors:
        place = _locate(model, error["loc"])
        if error["type"] == "union_tag_invalid":
            place = replace(place, path=(*place.path, "type"))
        by_place.setdefault(place.path, []).append((place, error))
    problems = {}
    for path, found in by_place.items():
        if path and _HOLDS_SECRETS.search(str(path[-1])):
            for _, detail in found:
                detail["input"] = _HIDDEN
        place, error = found[0]
        problems[path] = Problem(
            file=file,
            line=line_of(lines, path),
            path=show_path(path),
            # a union reports once per member: name all that would have been right
            text=_either([e for _, e in found]) if len(found) > 1 else _words(place, error),
        )
    return problems


def with_options(settings: _Model, options: Mapping[str, tuple[str, object]]) -> _Model:
    """Return settings with values of the command line in place of their own.

    Args:
        options: name of the option (as `scan: --hop`) and value by key; a value of None is not
            given.

    Raises:
        UsageError: every value that the settings refuse, by the name of its option.
    """
    given = {key: value for key, (_, value) in options.items() if value is not None}
    kind = type(settings)
    try:
        return kind.model_validate(settings.model_dump() | given)
    except ValidationError as error:
        problems = explain(error.errors(include_url=False), kind, "", {})
        names = {key: name for key, (name, _) in options.items()}
        sentences = (
            f"{names.get(problem.path, problem.path)}: {problem.text}" for problem in problems
        )
        raise UsageError("; ".join(sentences)) from error


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """Return the line of `path`, or of the nearest thing around it that the file holds."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def show_path(path: Path) -> str:
    """Return a path as operators read it.

    >>> show_path(("streams", 0, "source", "device"))
    'streams[0].source.device'
    >>> show_path(("detection", "classes", "Baby cry, infant cry", "hold_s"))
    'detection.classes["Baby cry, infant cry"].hold_s'
    """
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif _PLAIN_KEY.match(part):
            shown += f".{part}" if shown else part
        else:
            shown += f'["{part}"]'
    return shown


@dataclass(frozen=True)
class _Place:
    """Where an error lies: its path, the keys known around it, what is expected there.

    Attributes:
        types: values of `type` that a section here may have.
    """

    path: Path
    known: tuple[str, ...]
    expected: str | None
    types: tuple[str, ...]


def _locate(model: type[BaseModel], loc: Path) -> _Place:
    """Follow pydantic's location, leaving out the names it gives to members of unions."""
    kind: Any = model
    path: list[str | int] = []
    known: tuple[str, ...] = ()
    expected = None
    for part in loc:
        kind = _inside(kind)
        if isinstance(kind, tuple):
            kind = _member(kind, part)
            continue
        path.append(part)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            # a field may go by another name in the file: `for` is no name in Python
            fields = {field.alias or name: field for name, field in kind.model_fields.items()}
            known = tuple(fields)
            known_field = fields.get(str(part))
            kind = Any if known_field is None else known_field.annotation
            description = None if known_field is None else known_field.description
            # what follows a semicolon explains the value to readers of the reference
            expected = description and description.partition(";")[0]
        else:
            arguments = get_args(kind)
            kind = arguments[-1] if arguments else Any
    kind = _inside(kind)
    members = kind if isinstance(kind, tuple) else ()
    listed = tuple(tag for member in members for tag in _tags(member))
    return _Place(path=tuple(path), known=known, expected=expected, types=listed)


def _inside(kind: Any) -> Any:
    """Return a type without Annotated and None; a union of several types as their tuple."""
    if get_origin(kind) is Annotated:
        return _inside(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        members = tuple(member for member in get_args(kind) if member is not types.NoneType)
        return _inside(members[0]) if len(members) == 1 else members
    return kind


def _member(members: tuple[Any, ...], tag: str | int) -> Any:
    """Return the member of a tagged union whose `type` is `tag`."""
    return next((member for member in members if tag in _tags(member)), Any)


def _tags(member: Any) -> tuple[str, ...]:
    """Return what `type` may be in a member of a tagged union."""
    is_model = isinstance(member, type) and issubclass(member, BaseModel)
    field = member.model_fields.get("type") if is_model else None
    return () if field is None else get_args(field.annotation)


def _either(errors: list[ErrorDetails]) -> str:
    kinds = dict.fromkeys(_kind(error) for error in errors)
    return f"expected {' or '.join(kinds)}, got {show_value(errors[0]['input'])}"


def _kind(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return _any_of(_QUOTED.findall(str(error["ctx"]["expected"]))) or "another value"
    return _KINDS.get(error["type"], "another value")


def _words(place: _Place, error: ErrorDetails) -> str:
    write = _SENTENCES.get(error["type"])
    if write is not None:
        return write(place, error)
    if error["type"] in _KINDS:
        return f"expected {_KINDS[error['type']]}, got {_shown_with_hint(error)}"
    # a kind of error that the schema does not use today: pydantic's words are better than none
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {show_value(error['input'])}"


def _shown_with_hint(error: ErrorDetails) -> str:
    """Return the value of a wrong type, and how to write it where that is surely what was meant."""
    value, kind = error["input"], _KINDS[error["type"]]
    if kind == "text" and type(value) in (int, float):
        return f"{show_value(value)}; put it in quotes"
    if kind == "a whole number" and isinstance(value, float) and value.is_integer():
        return repr(value)  # 8.0, which %g shows as the 8 that was expected
    if kind.endswith("number") and isinstance(value, str):
        if _QUOTED_NUMBER.match(value):
            return f"{show_value(value)}; leave out the quotes"
        if _WITH_UNIT.match(value):
            return f"{show_value(value)}; write the number alone, in the unit that the key names"
    return show_value(value)


def show_value(value: Any) -> str:
    """Return a value from a file as it is named in a sentence."""
    if value is _HIDDEN:
        return "one that is not shown"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}…'"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    return f"{value:g}" if isinstance(value, float) else f"{str(value)[:60]}"


def _unknown_key(place: _Place, error: ErrorDetails) -> str:
    key = str(place.path[-1])
    near = did_you_mean(key, place.known)
    return f"unknown key '{key}'{near or '; known here: ' + ', '.join(place.known)}"


def _missing_key(place: _Place, error: ErrorDetails) -> str:
    return f"the key '{place.path[-1]}' is missing"


def _listed_word(place: _Place, error: ErrorDetails) -> str:
    words = _QUOTED.findall(str(error["ctx"]["expected"]))
    got = error["input"]
    near = did_you_mean(got, words) if isinstance(got, str) else ""
    return f"expected {_any_of(words) or error['ctx']['expected']}, got {show_value(got)}{near}"


def _unknown_type(place: _Place, error: ErrorDetails) -> str:
    words = _QUOTED.findall(str(error["ctx"]["expected_tags"]))
    tag = str(error["ctx"]["tag"])
    return f"unknown type '{tag}'; expected {_any_of(words)}{did_you_mean(tag, words)}"


def _any_of(words: list[str]) -> str:
    return (
        words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else ""
    )


def _bound(words: str, key: str) -> Callable[[_Place, ErrorDetails], str]:
    def write(place: _Place, error: ErrorDetails) -> str:
        return f"expected {words} {show_value(error['ctx'][key])}, got {show_value(error['input'])}"

    return write


_SENTENCES: dict[str, Callable[[_Place, ErrorDetails], str]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing_key,
    "literal_error": _listed_word,
    "union_tag_invalid": _unknown_type,
    "union_tag_not_found": lambda place, error: (
        f"the key 'type' is missing; expected {_any_of(list(place.types))}"
    ),
    "greater_than": _bound("more than", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("less than", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "finite_number": lambda place, error: (
        f"expected a finite number, got {show_value(error['input'])}"
    ),
    "too_short": lambda place, error: (
        f"expected at least {error['ctx']['min_length']}, got {error['ctx']['actual_length']}"
    ),
    "string_pattern_mismatch": lambda place, error: (
        f"expected {place.expected or 'another form'}, got {show_value(error['input'])}"
    ),
    "value_error": lambda place, error: str(error["ctx"]["error"]),
}
