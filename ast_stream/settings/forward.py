"""The `forward:` section: brokers that the durable messages of this box are sent to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ast_stream.settings.section import (
    FilePath,
    Misfit,
    MqttBroker,
    Patience,
    Section,
    VariableName,
)
from ast_stream.urls import check_url

Kind = Literal["event", "gap", "alert", "coverage", "health"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OUTPUT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
NATS_SCHEMES = ("nats", "tls")
_TOKEN = r"^[A-Za-z0-9_-]{1,64}$"  # of subjects, topics and keys, without what has a meaning there
_HOST_AND_PORT = r"^(\[[0-9A-Fa-f:.]+\]|[^:/@,\s\[\]]+):[0-9]{1,5}$"
_MAX_UNCONFIRMED = 4096

Token = Annotated[str, Field(pattern=_TOKEN)]


class OutputSection(Section):
    """What outputs of all types have."""

    name: str = Field(
        description="name of this output in the log, in status and of its position file"
    )
    kinds: list[Kind] = Field(
        default_factory=lambda: list(KINDS), min_length=1, description="what is sent"
    )
    updates: bool = Field(
        default=True,
        description="also send updates of events, up to one a second, not only begin and end",
    )
    prefix: Token = Field(default="ast_stream", description="prefix of all subjects or topics")
    max_unconfirmed: int = Field(
        default=256,
        ge=1,
        le=_MAX_UNCONFIRMED,
        description="maximum number of unconfirmed messages",
    )
    timeout_s: Patience = Field(
        default=10.0, description="for connecting, and for the broker's confirmation"
    )

    @field_validator("name")
    @classmethod
    def _name_is_valid(cls, name: str) -> str:
        if not OUTPUT_NAME.match(name):
            text = "expected lower-case letters, digits, '-' and '_', at most 32, not starting with"
            raise ValueError(f"{text} '-' or '_', got {name!r}")
        return name

    @property
    def receiver(self) -> str:
        """To whom messages go, without secrets."""
        raise NotImplementedError

    @property
    def place_of_messages(self) -> str:
        """Where messages are, by which an output is known again under another name."""
        raise NotImplementedError

    @property
    def status_place(self) -> str:
        """Where the status of the box is."""
        return f"{self.place_of_messages} {self.name}"

    @property
    def secret_files(self) -> dict[str, str]:
        """Files with secrets, by the name of the setting; services get them as credentials."""
        return {}

    def credential(self, key: str) -> str:
        """Return the name of the credential (`LoadCredential=`) with the secret of a setting."""
        return f"forward-{self.name}-{key}"


class NatsAccess(Section):
    """How to connect to NATS servers: addresses, one way to log in, TLS."""

    servers: list[str] = Field(
        min_length=1,
        max_length=32,
        description="nats://host:port or tls://host:port, without user and password; several "
        "servers of one cluster are alternatives",
    )
    username: str | None = Field(default=None, description="null: no user name")
    password_file: FilePath | None = Field(default=None, description="file with the password")
    password_env: VariableName | None = Field(
        default=None, description="environment variable with the password instead"
    )
    token_file: FilePath | None = Field(default=None, description="file with a token")
    token_env: VariableName | None = Field(
        default=None, description="environment variable with the token instead"
    )
    nkey_file: FilePath | None = Field(
        default=None, description="file with the seed of a user's nkey, which begins with SU"
    )
    creds_file: FilePath | None = Field(
        default=None, description="file with a user's JWT and seed, as `nsc` writes it (.creds)"
    )
    tls: bool = Field(
        default=False,
        description="refuse servers without TLS; tls:// addresses have the same effect",
    )
    ca_file: FilePath | None = Field(default=None, description="null: the system's authorities")
    cert_file: FilePath | None = Field(
        default=None, description="our own certificate, for servers that ask for one (PEM)"
    )
    key_file: FilePath | None = Field(
        default=None, description="key of `cert_file`; null: in the same file"
    )

    @field_validator("servers")
    @classmethod
    def _servers_are_plain(cls, servers: list[str]) -> list[str]:
        for server in servers:
            check_url(server, NATS_SCHEMES)
            if "@" in server:
                text = "expected an address without user and password: username and password_file, "
                raise ValueError(f"{text}token_file, nkey_file or creds_file have them")
        return servers

    @model_validator(mode="after")
    def _one_proof(self) -> NatsAccess:
        ways = {
            "username": self.username,
            "token_file or token_env": self.token_file or self.token_env,
            "nkey_file": self.nkey_file,
            "creds_file": self.creds_file,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"expected one way to log in, got {' and '.join(given)}")
        for one, other in (("password_file", "password_env"), ("token_file", "token_env")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"expected {one} or {other}, got both")
        if (self.username is None) != (self.password_file is self.password_env is None):
            raise ValueError("expected username and password_file or password_env, got one alone")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file: expected cert_file beside it, got none")
        return self

    @property
    def needs_tls(self) -> bool:
        """Whether a connection without TLS is refused."""
        files = (self.ca_file, self.cert_file)
        is_named = any(server.startswith("tls:") for server in self.servers)
        return self.tls or is_named or any(file is not None for file in files)


class JetStreamLimits(Section):
    """Limits of the stream, if this program creates it."""

    max_gib: float = Field(
        default=10.0,
        gt=0,
        le=1_000_000,
        description="of all boxes; the oldest messages are deleted first. The bucket with their "
        "status has a tenth more, at most 1 GiB",
    )
    max_days: float | None = Field(
        default=365.0, gt=0, le=36_500, description="after which messages are deleted; null: never"
    )
    replicas: int = Field(
        default=1, ge=1, le=5, description="of a cluster: number of servers that store the stream"
    )
    duplicates_s: float = Field(
        default=600.0,
        ge=1,
        le=86_400,
        description="window in which the server drops duplicates",
    )


class NatsOutput(OutputSection, NatsAccess):
    """NATS JetStream (needs the extra `fleet`)."""

    type: Literal["nats"]
    stream: Token = Field(
        default="AST_STREAM", description="JetStream stream with the messages of all boxes"
    )
    bucket: Token = Field(
        default="ast_stream_boxes",
        description="key-value bucket with the status of each box, under <site>.<box>",
    )
    domain: Token | None = Field(
        default=None, description="JetStream domain, such as that of a leaf node; null: of the hub"
    )
    create: bool = Field(
        default=True, description="create the stream and the bucket if they do not exist"
    )
    limits: JetStreamLimits = Field(
        default=JetStreamLimits(), description="of the stream, if this program creates it"
    )

    @property
    def receiver(self) -> str:
        """The servers, and whoever reads there."""
        how = "with tls" if self.needs_tls else "not encrypted"
        return f"the NATS server {', '.join(self.servers)}, {how}"

    @property
    def place_of_messages(self) -> str:
        """The stream of these servers."""
        servers = ",".join(sorted(self.servers))
        return f"nats {servers} {self.domain or ''} {self.stream} {self.prefix}"

    @property
    def status_place(self) -> str:
        """The bucket, in which a box has one key."""
        return f"nats {','.join(sorted(self.servers))} {self.domain or ''} {self.bucket}"

    @property
    def secret_files(self) -> dict[str, str]:
        """Password, token, seed, credentials, or the key of a certificate."""
        found = {
            "password": self.password_file,
            "token": self.token_file,
            "nkey": self.nkey_file,
            "creds": self.creds_file,
            "key": self.key_file,
        }
        return {key: file for key, file in found.items() if file is not None}


class MqttOutput(OutputSection, MqttBroker):
    """An MQTT 5 broker (needs the extra `fleet`)."""

    type: Literal["mqtt"]
    cert_file: FilePath | None = Field(
        default=None, description="our own certificate, for brokers that ask for one (PEM)"
    )
    key_file: FilePath | None = Field(
        default=None, description="key of `cert_file`; null: in the same file"
    )
    client_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="client id, unique at the broker; null: made of prefix, site, box and name",
    )
    without_subscriber: Literal["wait", "drop"] = Field(
        default="wait",
        description="messages without a subscriber at the broker, which would not keep them. wait: "
        "keep them on this box until there is one; drop: do not send them again",
    )
    resend_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="longer than the broker takes to save confirmed messages to disk; messages "
        "confirmed more recently are sent again if a killed broker has lost them",
    )
    offline_after_s: float = Field(
        default=15.0,
        ge=0,
        le=86_400,
        description="without a connection for this long, the broker publishes that this box is "
        "offline",
    )

    @model_validator(mode="after")
    def _login_is_whole(self) -> MqttOutput:
        _check_login(self)
        return self

    @property
    def receiver(self) -> str:
        """The broker, and whoever reads there."""
        return self.described

    @property
    def place_of_messages(self) -> str:
        """The topics of this broker."""
        return f"mqtt {self.host}:{self.port} {self.prefix}"

    @property
    def secret_files(self) -> dict[str, str]:
        """Password, and the key of a certificate."""
        return _secrets(self)


class KafkaOutput(OutputSection):
    """A Kafka cluster (needs the extra `kafka`)."""

    type: Literal["kafka"]
    brokers: list[Annotated[str, Field(pattern=_HOST_AND_PORT)]] = Field(
        min_length=1, max_length=32, description="host:port of some of the brokers"
    )
    username: str | None = Field(default=None, description="null: no login")
    password_file: FilePath | None = Field(default=None, description="file with the password")
    password_env: VariableName | None = Field(
        default=None, description="environment variable with the password instead"
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="of the login (SASL)"
    )
    tls: bool = Field(default=False, description="encrypt the connection")
    ca_file: FilePath | None = Field(default=None, description="null: the system's authorities")
    cert_file: FilePath | None = Field(
        default=None, description="our own certificate, for brokers that ask for one (PEM)"
    )
    key_file: FilePath | None = Field(
        default=None, description="key of `cert_file`; null: in the same file"
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="zstd", description="of messages that are sent together"
    )

    @model_validator(mode="after")
    def _login_is_whole(self) -> KafkaOutput:
        _check_login(self)
        return self

    @property
    def place(self) -> str:
        """Where the brokers are, as people write it."""
        return ", ".join(self.brokers)

    @property
    def receiver(self) -> str:
        """The cluster, and whoever reads there."""
        how = "with tls" if self.tls else "not encrypted"
        return f"the Kafka cluster {self.place}, {how}"

    @property
    def place_of_messages(self) -> str:
        """The topics of this cluster."""
        return f"kafka {','.join(sorted(self.brokers))} {self.prefix}"

    @property
    def secret_files(self) -> dict[str, str]:
        """Password, and the key of a certificate."""
        return _secrets(self)


def _check_login(output: MqttOutput | KafkaOutput) -> None:
    """Refuse what is only half a login or certificate, and files without TLS."""
    if output.password_file is not None and output.password_env is not None:
        raise ValueError("expected password_file or password_env, got both")
    has_password = output.password_file is not None or output.password_env is not None
    if (output.username is None) == has_password:
        raise ValueError("expected username and password_file or password_env, got one alone")
    if output.key_file is not None and output.cert_file is None:
        raise ValueError("key_file: expected cert_file beside it, got none")
    for key in ("ca_file", "cert_file"):
        if getattr(output, key) is not None and not output.tls:
            raise ValueError(f"{key}: expected tls: true beside it, got false")


def _secrets(output: MqttOutput | KafkaOutput) -> dict[str, str]:
    found = {"password": output.password_file, "key": output.key_file}
    return {key: file for key, file in found.items() if file is not None}


ForwardOutput = Annotated[NatsOutput | MqttOutput | KafkaOutput, Field(discriminator="type")]
"""The settings of one output, of any type."""


def misfits(outputs: Sequence[ForwardOutput]) -> Iterator[Misfit]:
    """Yield names that two outputs have: each has a position of its own."""
    first: dict[str, int] = {}
    for index, output in enumerate(outputs):
        if first.setdefault(output.name, index) != index:
            text = f"expected different names, got {output.name!r} twice"
            yield ("forward", index, "name"), text
