"""`ast-stream devices`: what can be recorded from, by the names that stay."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer
from rich.table import Table

from ast_stream.capture.sound_cards import InputDevice
from ast_stream.capture.sources.microphone import list_devices
from ast_stream.cli.output import json_line
from ast_stream.cli.terminal import console


def devices(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per device on standard output.")
    ] = False,
) -> None:
    """List input devices with stable names for the configuration.

    Example: ast-stream devices
    """
    found = list_devices()
    if as_json:
        for device in found:
            print(json_line(dataclasses.asdict(device)))
        return
    if not found:
        print(
            "no input devices; is the microphone plugged in, and this user in the group audio?",
            file=sys.stderr,
        )
        return
    out = console(stderr=False, piped_width=100)
    out.print(_table(found))
    out.print("* the default input; in the configuration:")
    out.print(f"source: {{type: microphone, device: {json.dumps(_suggestion(found).stable)}}}")


def _table(found: list[InputDevice]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("device", "name", "channels", "rate", "index"):
        table.add_column(heading, overflow="fold")
    for device in found:
        stable = f"{device.stable} *" if device.is_default else device.stable
        row = (device.name, str(device.channels), f"{device.rate:.0f}", str(device.index))
        table.add_row(stable, *row)
    return table


def _suggestion(found: list[InputDevice]) -> InputDevice:
    return next((device for device in found if device.is_default), found[0])
