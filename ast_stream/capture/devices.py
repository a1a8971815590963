"""Input devices and how they are named in a configuration; no sound library."""

from __future__ import annotations

from dataclasses import dataclass

from ast_stream.audio.source import SourceError


@dataclass(frozen=True)
class InputDevice:
    """A device that can record.

    Attributes:
        index: today's number; changes when devices come and go.
        name: PortAudio's name.
        stable: the name to put into the configuration.
        aliases: further names that stay (see `hardware`).
        channels: most channels it records.
        rate: its default rate in Hz.
    """

    index: int
    name: str
    stable: str
    aliases: tuple[str, ...]
    host_api: str
    channels: int
    rate: float
    is_default: bool


def find_device(wanted: str | int | None, devices: list[InputDevice]) -> InputDevice:
    """Return the device that `wanted` names.

    Args:
        wanted: index, stable name, name or part of a name (case does not matter); None: the
            default input.

    Raises:
        CaptureError: no device or several devices match; the sentence lists them.
    """
    if wanted is None:
        found = [device for device in devices if device.is_default]
    elif isinstance(wanted, int):
        found = [device for device in devices if device.index == wanted]
    else:
        found = _named(wanted.casefold(), devices)
    if len(found) == 1:
        return found[0]
    what = "the default input" if wanted is None else f"input device {wanted!r}"
    if found:
        listed = "; ".join(f"{one.stable} (index {one.index}, {one.name})" for one in found)
        raise SourceError("device_ambiguous", f"{what}: expected one match, got {listed}")
    listed = "; ".join(one.stable for one in devices) or "none"
    raise SourceError("device_absent", f"{what} is not there; input devices: {listed}")


def _named(wanted: str, devices: list[InputDevice]) -> list[InputDevice]:
    """Return the devices with the stable name, else the name, else the part of a name `wanted`."""
    stable = [
        one for one in devices if wanted in (name.casefold() for name in (one.stable, *one.aliases))
    ]
    named = [one for one in devices if wanted == one.name.casefold()]
    return stable or named or [one for one in devices if wanted in one.name.casefold()]
