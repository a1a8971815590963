"""Input devices and the stable names by which a configuration knows them; no sound library.

ALSA numbers cards in the order in which they appear, so `hw:1,0` may be another card after a
restart. A card keeps one of these names:

- `usb:<vendor>:<product>:<serial>` for USB devices with a serial number,
- `usb:<vendor>:<product>@<port>` for the others: the same model in the same socket,
- `hw:CARD=<id>,DEV=<n>` for the rest: the id that the driver, or a udev rule, gave the card.

`usb:<vendor>:<product>` is enough where there is only one such device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ast_stream.capture.sources.base import SourceError

SYSFS = Path("/sys")
_PORTAUDIO_HARDWARE = re.compile(r"\(hw:(\d+),(\d+)\)")


@dataclass(frozen=True)
class InputDevice:
    """A device that can record.

    Attributes:
        index: today's number; changes when devices come and go.
        name: PortAudio's name.
        stable: the name to put into the configuration.
        aliases: further stable names.
        channels: maximum number of channels it records.
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
        listed = "; ".join(
            f"{device.stable} (index {device.index}, {device.name})" for device in found
        )
        raise SourceError("device_ambiguous", f"{what}: expected one match, got {listed}")
    listed = "; ".join(device.stable for device in devices) or "none"
    raise SourceError("device_absent", f"{what} is not there; input devices: {listed}")


def _named(wanted: str, devices: list[InputDevice]) -> list[InputDevice]:
    """Return the devices with the stable name, else the name, else the part of a name `wanted`."""
    stable = [
        device
        for device in devices
        if wanted in (name.casefold() for name in (device.stable, *device.aliases))
    ]
    named = [device for device in devices if wanted == device.name.casefold()]
    return stable or named or [device for device in devices if wanted in device.name.casefold()]


@dataclass(frozen=True)
class Card:
    """One sound card.

    Attributes:
        number: today's number, as in `hw:<number>,0`.
        id: ALSA's name for it, e.g. `Device`.
        usb: `usb:<vendor>:<product>`, or None if it is not a USB device.
        serial: serial number of the USB device, or None.
        port: USB port it is plugged into, e.g. `1-1.3`, or None.
    """

    number: int
    id: str
    usb: str | None = None
    serial: str | None = None
    port: str | None = None


def find_cards(sysfs: Path = SYSFS) -> list[Card]:
    """Return the sound cards of this machine, by number; none where sysfs does not show them."""
    folders = [path for path in sysfs.glob("class/sound/card*") if path.name[4:].isdigit()]
    return sorted((_card(folder) for folder in folders), key=lambda card: card.number)


def names_of(portaudio_name: str, cards: list[Card]) -> list[str]:
    """Return the stable names of a PortAudio device, the most specific first.

    Args:
        portaudio_name: e.g. `USB PnP Sound Device: Audio (hw:1,0)`; a name without such an
            ending is a virtual device, known by its name alone.
    """
    match = _PORTAUDIO_HARDWARE.search(portaudio_name)
    if match is None:
        return [portaudio_name]
    number, device = int(match[1]), int(match[2])
    card = next((card for card in cards if card.number == number), None)
    if card is None:
        return [portaudio_name]
    names = [f"hw:CARD={card.id},DEV={device}"]
    if card.usb is not None:
        suffix = f",DEV={device}" if device else ""
        serials = [f"{card.usb}:{card.serial}{suffix}"] if card.serial else []
        ports = [f"{card.usb}@{card.port}{suffix}"] if card.port else []
        names = [*serials, *ports, *names, f"{card.usb}{suffix}"]
    return names


def is_hardware(portaudio_name: str) -> bool:
    """Return whether a PortAudio device is a sound card itself, not a sound server."""
    return _PORTAUDIO_HARDWARE.search(portaudio_name) is not None


def _card(folder: Path) -> Card:
    number = int(folder.name[4:])
    card_id = _text(folder / "id") or str(number)
    device = (folder / "device").resolve()
    # the card hangs below an interface of the USB device; the device has the vendor and product
    for place in [device, *device.parents][:3]:
        vendor, product = _text(place / "idVendor"), _text(place / "idProduct")
        if vendor and product:
            usb = f"usb:{vendor}:{product}"
            return Card(number, card_id, usb, _text(place / "serial"), place.name)
    return Card(number, card_id)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None
