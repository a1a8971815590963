"""Clients of MQTT brokers: the only importer of paho-mqtt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ast_stream.errors import StartupError
from ast_stream.runtime.credentials import (
    connection_error,
    read_secret,
    secret_file,
    tls_context,
)
from ast_stream.settings.section import MqttBroker

if TYPE_CHECKING:  # an extra, which may not be there
    from paho.mqtt.client import Client
    from paho.mqtt.properties import Properties

QOS = 1  # the broker confirms each message

_REASONS = {  # MQTT 5 reason codes that say little by their names, or nothing to do about it
    0x80: "it does not say why",
    0x81: "it takes the packet for damaged",
    0x82: "it takes the packet for wrong",
    0x84: "it does not speak MQTT 5",
    0x85: "it does not accept the client id",
    0x86: "user or password is wrong",
    0x87: "this user may not do it",
    0x88: "it is not available",
    0x89: "it is busy",
    0x8A: "this client is banned",
    0x8B: "it is shutting down",
    0x8D: "it heard nothing from here for too long",
    0x8E: "another client has connected with the same id",
    0x90: "it does not accept the topic",
    0x93: "it had more unconfirmed messages than it takes",
    0x95: "the message is larger than it takes",
    0x96: "it had too many messages in a short time",
    0x97: "a quota is used up",
    0x98: "an administrator has ended the connection",
    0x99: "it does not accept the format of the payload",
    0x9A: "it keeps no retained messages",
    0x9B: "it does not confirm messages (QoS 1)",
    0x9C: "it asks to use another server",
    0x9D: "it has moved to another server",
    0x9F: "it had too many connections in a short time",
}


def check_library(what: str, extra: str) -> None:
    """Raise unless the library is there.

    Args:
        what: who needs it, as the error names it.
        extra: of this package, with the library.

    Raises:
        StartupError: it is missing.
    """
    try:
        import paho.mqtt.client  # noqa: F401
    except ImportError as error:
        text = f"{what}: paho-mqtt is not installed: pip install 'ast-stream[{extra}]'"
        raise StartupError(text) from error


def new_client(
    what: str,
    extra: str,
    broker: MqttBroker,
    *,
    credential: Callable[[str], str | None] = lambda key: None,
    own_certificate: tuple[str, str | None] | None = None,
    **options: Any,
) -> Client:
    """Return a client that is not connected yet.

    Args:
        what: who it is for, as errors name it.
        extra: of this package, with the library.
        credential: returns the name of systemd's credential for a key (password, key); None: there
            is none.
        own_certificate: our own and its key; None for the key: in the same file.
        options: of the library's `Client`.

    Raises:
        StartupError: the library is missing, or the password or certificates cannot be read.
    """
    check_library(what, extra)
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2, **options)
    if broker.username is not None:
        password = read_secret(
            what, broker.password_file, broker.password_env, credential("password")
        )
        client.username_pw_set(broker.username, password)
    if broker.tls:
        own: tuple[str | None, Path | None] = (None, None)
        if own_certificate is not None:
            certificate, key = own_certificate
            own = certificate, None if key is None else secret_file(key, credential("key"))
        client.tls_set_context(tls_context(what, broker.ca_file, *own))
    return client


def protocol_5() -> Any:
    """Return what makes a client speak MQTT 5."""
    from paho.mqtt.enums import MQTTProtocolVersion

    return MQTTProtocolVersion.MQTTv5


def properties(packet: str, **values: Any) -> Properties:
    """Return properties of MQTT 5.

    Args:
        packet: kind of packet, such as CONNECT.
    """
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    found = Properties(getattr(PacketTypes, packet))  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(found, name, value)
    return found


def reason_in_words(reason: Any) -> str:
    """Return what a broker says by a reason code (or an older return code), in words."""
    code = getattr(reason, "value", None)
    return _REASONS.get(code, str(reason).lower()) if code is not None else str(reason).lower()


def current_error() -> str:
    """Return why the connection failed; the library calls back while it handles the error."""
    error = sys.exception()
    return "unknown" if not isinstance(error, Exception) else connection_error(error)
