"""All decoders of bytes from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz import (
    browsers,
    checkpoints,
    configuration,
    fleets,
    receivers,
    recordings,
    remembered,
    state,
    wire,
)
from fuzz.decoder import Decoder

_PARTS: tuple[Callable[[Path], Iterator[Decoder]], ...] = (
    wire.decoders, configuration.decoders, state.decoders, checkpoints.decoders,
    recordings.decoders, receivers.decoders, remembered.decoders, browsers.decoders,
    fleets.decoders,
)  # fmt: skip


def all_decoders(scratch: Path) -> list[Decoder]:
    """Return them; `scratch` is a folder that they may use."""
    return [decoder for part in _PARTS for decoder in part(scratch)]
