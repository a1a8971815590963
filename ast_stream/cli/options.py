"""Options that several commands have, each declared once; groups of them become parameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, get_type_hints

import typer

from ast_stream.settings.schema import CascadeSettings

N_CORES = os.cpu_count() or 1

Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. (default: as many as there are cores)")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
CascadeCheckpoint = Annotated[
    str | None,
    typer.Option(help="Small checkpoint that hears all windows; --model is asked about few."),
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
