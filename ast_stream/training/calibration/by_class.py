"""Options that hold for all classes, or with LABEL= for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ast_stream.errors import UsageError
from ast_stream.labels import did_you_mean, slug

T = TypeVar("T")


def parse_by_class(
    texts: Iterable[str], labels: Sequence[str], option: str, parse: Callable[[str], T]
) -> tuple[T | None, dict[str, T]]:
    """Return the value for all classes, None if none is given, and those of single classes.

    Raises:
        UsageError: a class the checkpoint does not have, the same one twice, or as `parse` does.
    """
    default: T | None = None
    by_label: dict[str, T] = {}
    for text in texts:
        name, is_of_class, value = text.rpartition("=")
        parsed = parse(value)
        if not is_of_class:
            if default is not None:
                raise UsageError(f"{option}: expected one for all classes, got also {text!r}")
            default = parsed
            continue
        label = find_label(name.strip(), labels, option)
        if label in by_label:
            raise UsageError(f"{option}: expected one of {label!r}, got also {text!r}")
        by_label[label] = parsed
    return default, by_label


def find_label(name: str, labels: Sequence[str], option: str) -> str:
    """Return the label that `name` is, or is the slug of.

    Raises:
        UsageError: the checkpoint has no such class; names near it are said.
    """
    if name in labels:
        return name
    by_slug = {slug(label): label for label in labels}
    if name in by_slug:
        return by_slug[name]
    raise UsageError(
        f"{option}: expected a class of the checkpoint, got {name!r}{did_you_mean(name, labels)}"
    )
