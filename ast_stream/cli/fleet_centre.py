"""Options by which the fleet commands reach a centre: its servers, or a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError

from ast_stream.cli.options import config_option
from ast_stream.errors import StartupError, UsageError
from ast_stream.fleet.buckets import FleetStore
from ast_stream.runtime.nats import NatsConnection, read_login
from ast_stream.settings.forward import MqttOutput, NatsOutput
from ast_stream.settings.load import load_settings
from ast_stream.settings.section import MqttBroker
from ast_stream.urls import check_url

CONNECT_S = 15.0
_MQTT = ("mqtt", "mqtts")
_MQTT_PORT, _MQTTS_PORT = 1883, 8883


@dataclass(frozen=True)
class CentreOptions:
    """Where the centre is, and who we are there."""

    config: Annotated[
        Path | None,
        config_option("A configuration with the centre in its `forward`, in place of --nats."),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of several outputs of type nats in it. (the first)"),
    ] = None
    nats: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A NATS server of the centre, nats:// or tls://host."),
    ] = None
    user: Annotated[str | None, typer.Option(help="The user name there.")] = None
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The password of --user.")
    ] = None
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A token.")] = None
    nkey_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The seed of a user's nkey.")
    ] = None
    creds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A user's JWT and seed (.creds).")
    ] = None
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates to trust instead (PEM).")
    ] = None
    domain: Annotated[str | None, typer.Option(help="The JetStream domain.")] = None
    bucket: Annotated[str, typer.Option(help="The bucket with the reports of the boxes.")] = (
        "ast_stream_boxes"
    )


@dataclass(frozen=True)
class ReadingOptions(CentreOptions):
    """The same for what MQTT is enough for."""

    mqtt: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An MQTT broker instead, mqtt://host or mqtts://host."),
    ] = None
    prefix: Annotated[str, typer.Option(help="What the topics there begin with.")] = "ast_stream"


def nats_output(options: CentreOptions) -> NatsOutput:
    """Return the servers of the centre.

    Raises:
        UsageError: the options do not say which.
        ConfigError: the configuration cannot be used.
    """
    if options.nats:
        return _from_options(options)
    if options.config is None:
        raise UsageError("expected --nats URL, or --config FILE with a `forward` of type nats")
    outputs = [
        output for output in load_settings(options.config).forward if isinstance(output, NatsOutput)
    ]
    named = [output for output in outputs if options.output in (None, output.name)]
    if not named:
        wanted = "one" if options.output is None else repr(options.output)
        raise UsageError(f"--config: expected {wanted} of type nats in `forward`, got none")
    return named[0]


@contextmanager
def connected_store(options: CentreOptions, program: str) -> Iterator[FleetStore]:
    """Yield what the centre keeps.

    Args:
        program: the name that the servers show of this client.

    Raises:
        UsageError, ConfigError: as `nats_output`.
        StartupError: no connection, or a file cannot be used.
    """
    output = nats_output(options)
    what = f"the NATS server {', '.join(output.servers)}"
    read_login("fleet", output)  # what is wrong with files is said at once
    connection = NatsConnection(lambda: read_login("fleet", output), program, what, is_quiet=True)
    connection.start()
    try:
        if not connection.wait(CONNECT_S):
            raise StartupError(connection.error or f"{what}: no answer within {CONNECT_S:g} s")
        yield FleetStore(connection, output.bucket, output.domain)
    finally:
        connection.close()


def mqtt_output(options: ReadingOptions) -> tuple[MqttBroker, str] | None:
    """Return the MQTT broker with the reports, and what its topics begin with; None: not MQTT.

    Raises:
        UsageError: the options do not say where it is.
        ConfigError: the configuration cannot be used.
    """
    if options.mqtt is not None:
        return _broker(options, options.mqtt), options.prefix
    if options.config is None or options.nats:
        return None
    outputs = load_settings(options.config).forward
    named = [output for output in outputs if options.output in (None, output.name)]
    has_nats = any(isinstance(output, NatsOutput) for output in named)
    brokers = [output for output in named if isinstance(output, MqttOutput)]
    return None if has_nats or not brokers else (brokers[0], brokers[0].prefix)


def _broker(options: ReadingOptions, url: str) -> MqttBroker:
    try:
        parts = urlsplit(check_url(url, _MQTT))
        if "@" in url:
            raise ValueError("expected an address without user and password: --user, ...")
        tls = parts.scheme == "mqtts" or options.ca is not None
        found = {
            "host": parts.hostname,
            "port": parts.port or (_MQTTS_PORT if tls else _MQTT_PORT),
            "tls": tls,
            "username": options.user,
            "password_file": options.password_file and str(options.password_file),
            "ca_file": options.ca and str(options.ca),
        }
        return MqttBroker.model_validate(found)
    except ValueError as error:  # of pydantic, too
        raise UsageError(f"--mqtt: {_first(error)}") from None


def _first(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        text = str(error.errors(include_url=False, include_input=False)[0]["msg"])
        return text.removeprefix("Value error, ")
    return str(error)


def _from_options(options: CentreOptions) -> NatsOutput:
    given = {
        "username": options.user,
        "password_file": options.password_file,
        "token_file": options.token_file,
        "nkey_file": options.nkey_file,
        "creds_file": options.creds,
        "ca_file": options.ca,
    }
    fields = {key: str(value) for key, value in given.items() if value is not None}
    try:
        return NatsOutput.model_validate(
            {
                "name": "centre",
                "type": "nats",
                "servers": list(options.nats or ()),
                "domain": options.domain,
                "bucket": options.bucket,
                **fields,
            }
        )
    except ValidationError as error:
        raise UsageError(f"--nats: {_first(error)}") from None
