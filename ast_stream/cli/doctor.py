"""`ast-stream doctor`: check that this installation works, and how fast it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ast_stream.cli.options import CascadeCheckpoint, config_option, json_option
from ast_stream.cli.output import json_line
from ast_stream.cli.terminal import StatusLine, console
from ast_stream.settings.explain import with_options
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import SceneSource, StreamSettings

if TYPE_CHECKING:
    from ast_stream.cli.doctor_checks import Check

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    config: Annotated[Path | None, config_option("Check what this configuration uses.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint.")] = None,
    cascade: CascadeCheckpoint = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, fp16, bf16, int8 or fp8.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="auto, flash_attn, flash, cudnn, efficient, blocked or math.")
    ] = None,
    as_json: Annotated[bool, json_option("One JSON object per check on standard output.")] = False,
) -> None:
    """Check the model, its speed and correctness here, sound input, sockets and permissions.

    Exit 0 only if everything that is required works; warnings are for you to judge. Nothing is
    changed, and a running worker is not disturbed.

    Example: ast-stream doctor --device cuda
    """
    chosen: dict[str, Any] = {
        "checkpoint": model,
        "device": device,
        "precision": precision,
        "attention": attention,
    }
    chosen["cascade"] = None if cascade is None else {"checkpoint": cascade}
    settings = _settings(config, {key: value for key, value in chosen.items() if value is not None})
    out = console(stderr=as_json)
    failures = 0
    is_shown = out.is_terminal and not (as_json and sys.stdout.isatty())
    with StatusLine(out, is_shown=is_shown) as status:
        status.update("checking")
        # they import torch: not before this is shown
        from ast_stream.cli.doctor_checks import check_state_dirs, checks
        from ast_stream.cli.forward_checks import check_forward
        from ast_stream.cli.page_checks import check_page
        from ast_stream.cli.privacy_checks import check_privacy

        found: Iterator[Check] = checks(settings, status.update)
        if config is not None:
            found = chain(
                found,
                check_state_dirs(settings, config),
                check_page(settings),
                check_forward(settings),
                check_privacy(settings),
            )
        for check in found:
            failures += check.status == "failed"
            if as_json:
                shown = {"check": check.name, "status": check.status, "text": check.text}
                typer.echo(json_line(shown | check.facts))
            else:
                out.print(_line(check))
    if as_json:
        typer.echo(json.dumps({"check": "summary", "ok": not failures, "failed": failures}))
    elif failures:
        out.print(f"{failures} of the checks failed", style="bold red")
    else:
        out.print("everything that is required works", style="green")
    if failures:
        raise typer.Exit(1)


def _settings(config: Path | None, model: dict[str, Any]) -> Settings:
    if config is None:
        source = StreamSettings(name="scene", source=SceneSource(type="scene"))
        settings = Settings(streams=[source])
    else:
        settings = load_settings(config)
    options = {key: (f"doctor: --{key}", value) for key, value in model.items()}
    return settings.model_copy(update={"model": with_options(settings.model, options)})


def _line(check: Check) -> Table:
    line = Table.grid(padding=(0, 2))
    line.add_column(width=7, style=_STYLES[check.status])
    line.add_column(width=14)
    line.add_column(overflow="fold")
    line.add_row(check.status, check.name, check.text)
    return line
