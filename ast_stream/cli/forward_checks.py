"""Checks of `ast-stream doctor` for the forwarder: its libraries, secrets and brokers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from ast_stream.cli.doctor_checks import Check
from ast_stream.errors import StartupError
from ast_stream.forward.outputs import make_output
from ast_stream.settings.fleet import box_identity
from ast_stream.settings.forward import ForwardOutput
from ast_stream.settings.schema import Settings

CONNECT_S = 5.0
_LOOK_EVERY_S = 0.05


def check_forward(settings: Settings) -> Iterator[Check]:
    """Yield whether each output can be used, and reaches its broker now; nothing is sent."""
    for own in settings.forward:
        yield _check_output(own, settings)


def _check_output(own: ForwardOutput, settings: Settings) -> Check:
    name = f"forward {own.name}"
    facts = {"type": own.type, "kinds": own.kinds}
    try:
        output = make_output(_beside(own), box_identity(settings))
        output.check()
    except StartupError as error:
        return Check(name, "failed", str(error).removeprefix(f"output {own.name}: "), facts)
    output.start()
    try:
        end_s = time.monotonic() + CONNECT_S
        while output.error is not None and time.monotonic() < end_s:
            time.sleep(_LOOK_EVERY_S)
        why = output.error
    finally:
        output.close()
    if why is not None:
        # what is to be sent waits until it is there
        return Check(name, "warning", f"no connection now: {why}", facts)
    return Check(name, "ok", f"reaches {own.receiver}", facts)


def _beside(own: ForwardOutput) -> ForwardOutput:
    """Return the settings of a connection that does not take the place of the forwarder's."""
    if own.type != "mqtt":
        return own
    return own.model_copy(update={"client_id": f"ast-stream-doctor-{secrets.token_hex(4)}"})
