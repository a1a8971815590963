"""Options shared by several commands, each declared once; groups of them become parameters."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, get_type_hints

import typer

from ast_stream.alerts.rules.field_types import parse_duration
from ast_stream.errors import UsageError
from ast_stream.settings.model import CascadeSettings
from ast_stream.units import parse_time

MOMENT = "A time (2026-11-20T10:00:00Z), or how long ago (24h, 7d)"
N_CORES = os.cpu_count() or 1

Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. (default: as many as there are cores)")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
CascadeCheckpoint = Annotated[
    str | None,
    typer.Option(help="Small checkpoint that scores all windows; --model scores few."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def cascade_settings(checkpoint: str | None) -> CascadeSettings | None:
    """Return the cascade with this small checkpoint; None without one."""
    return None if checkpoint is None else CascadeSettings(checkpoint=checkpoint)


def config_option(help: str = "The configuration (YAML).") -> Any:
    """Return the option that names a configuration file."""
    return typer.Option("--config", "-c", metavar="FILE", help=help)


def json_option(help: str) -> Any:
    """Return the flag for a command's output that programs read."""
    return typer.Option("--json", help=help)


def moment(text: str | None, option: str, now_ns: int) -> int | None:
    """Return the value of an option in nanoseconds since 1970, None if it is not given.

    Raises:
        UsageError: it is neither a time nor a duration.
    """
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        pass
    try:
        return now_ns - parse_duration(text)
    except ValueError as error:
        raise UsageError(
            f"{option}: expected a time with its offset from UTC, such as 2026-11-20T10:00:00Z, or "
            f"a duration such as 24h, got {text!r}"
        ) from error


def require_packages(command: str, *packages: str) -> None:
    """Make sure that packages of the extra `train` are there, before hours of work.

    Raises:
        UsageError: one cannot be imported.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f"{command} needs {package}: pip install 'ast-stream[train]'"
            ) from error


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take the fields of every dataclass among its parameters as its own options.

    What belongs together, or is shared by several commands, is declared once that way, and arrives
    as one object.
    """
    parameters: list[Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        groups[name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            Parameter(
                field.name,
                Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        made = {
            name: group(
                **{field.name: values.pop(field.name) for field in dataclasses.fields(group)}
            )
            for name, group in groups.items()
        }
        command(**values, **made)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat
