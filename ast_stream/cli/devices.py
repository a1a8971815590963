"""`ast-stream devices`: input devices and their stable names."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

from ast_stream.capture.sources.microphone import list_devices
from ast_stream.cli.options import json_option
from ast_stream.cli.output import json_line, say
from ast_stream.cli.terminal import console, plain_table


def devices(
    as_json: Annotated[bool, json_option("One JSON object per device on standard output.")] = False,
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
        say(
            "no input devices; is the microphone plugged in, and this user in the group audio?",
            err=True,
        )
        return
    table = plain_table("device", "name", "channels", "rate", "index")
    for device in found:
        stable = f"{device.stable} *" if device.is_default else device.stable
        rate, index = f"{device.rate:.0f}", str(device.index)
        table.add_row(stable, device.name, str(device.channels), rate, index)
    suggested = next((device for device in found if device.is_default), found[0])
    out = console(stderr=False, piped_width=100)
    out.print(table)
    out.print("* the default input; in the configuration:")
    out.print(f"source: {{type: microphone, device: {json.dumps(suggested.stable)}}}")
