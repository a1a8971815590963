"""The `alerts:` section: rule files, and the named actions that alerts are delivered by."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ast_stream.settings.section import (
    MAX_SECONDS,
    FilePath,
    Misfit,
    MqttBroker,
    Patience,
    PositiveSeconds,
    Section,
    VariableName,
    refuse_misfits,
    unless_left_out,
)
from ast_stream.urls import check_url

ACTION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
FEED_ACTION = "feed"  # every alert is published; the name cannot be taken by another action
_TOPIC = r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$"


class RateLimit(Section):
    """At most `max` deliveries in any `per_s` seconds; others wait, until they expire."""

    max: int = Field(default=30, ge=1, le=1_000_000, description="deliveries")
    per_s: PositiveSeconds = Field(default=60.0, description="length of the sliding window")


class ActionSection(Section):
    """What all actions have."""

    on: list[Literal["firing", "resolved"]] = Field(
        default=["firing", "resolved"], min_length=1, description="what is sent"
    )
    rate_limit: RateLimit = Field(default=RateLimit(), description="limits the deliveries")

    @property
    def receiver(self) -> str | None:
        """To whom alerts go beyond the processes of this program, without secrets; None: nobody."""
        return None


class LogAction(ActionSection):
    """A line in the log of the alerts process."""

    type: Literal["log"]
    level: Literal["info", "warning", "error"] = Field(
        default="warning", description="of the line in the log"
    )


class CommandAction(ActionSection):
    """A program of this machine; needs `allow_exec`. The alert is JSON on its standard input."""

    type: Literal["command"]
    argv: list[str] = Field(min_length=1, description="program, by absolute path, and arguments")
    timeout_s: Patience = Field(
        default=10.0, description="then the program is killed, and the delivery retried"
    )
    pass_env: list[VariableName] = Field(
        default_factory=list, description="environment variables that the program may see"
    )

    @field_validator("argv")
    @classmethod
    def _program_is_absolute(cls, argv: list[str]) -> list[str]:
        if not argv[0].startswith("/"):
            raise ValueError(f"expected a program with its absolute path, got {argv[0]!r}")
        if any("\0" in argument for argument in argv):
            raise ValueError("expected arguments without NUL characters")
        return argv

    @property
    def receiver(self) -> str:
        """The program; where it sends things is not known."""
        return f"the program {self.argv[0]}, which may send them anywhere"


class WebhookAction(ActionSection):
    """An HTTP POST of a CloudEvents 1.0 body, signed as Standard Webhooks has it."""

    type: Literal["webhook"]
    url: str = Field(description="http:// or https://, without user and password")
    secret_file: FilePath | None = Field(
        default=None, description="file with one whsec_ secret a line; several while they rotate"
    )
    secret_env: VariableName | None = Field(
        default=None, description="environment variable with the secret, instead of `secret_file`"
    )
    ca_file: FilePath | None = Field(default=None, description="null: the system's authorities")
    timeout_s: Patience = Field(default=20.0, description="for the answer")
    allow_private: bool = Field(
        default=False, description="may connect to private, loopback and link-local addresses"
    )

    @model_validator(mode="after")
    def _fields_fit(self) -> WebhookAction:
        if self.secret_file is not None and self.secret_env is not None:
            raise ValueError("expected secret_file or secret_env, got both")
        if self.ca_file is not None and not self.url.startswith("https:"):
            raise ValueError("ca_file: expected an https:// url beside it, got http://")
        return self

    @field_validator("url")
    @classmethod
    def _url_is_plain(cls, url: str) -> str:
        check_url(url, ("http", "https"))
        if "@" in url:
            raise ValueError("expected http(s)://host/path without user, password and fragment")
        return url

    @property
    def receiver(self) -> str:
        """The host."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}"


class MqttAction(ActionSection, MqttBroker):
    """An MQTT broker with Home Assistant discovery (needs the extra `notify`)."""

    type: Literal["mqtt"]
    node: str | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9_-]{1,63}$",
        description="name of this machine in topics; null: its host name",
    )
    base_topic: str = Field(
        default="ast-stream", pattern=_TOPIC, description="what all topics begin with"
    )
    discovery_prefix: str | None = Field(
        default="homeassistant", pattern=_TOPIC, description="null: no Home Assistant discovery"
    )
    classes: list[str] = Field(
        default_factory=list, description="binary sensors, besides those of classes in rules"
    )
    timeout_s: Patience = Field(default=10.0, description="for the broker to confirm")

    @property
    def receiver(self) -> str:
        """The broker, and whoever reads there."""
        return self.described


class AppriseAction(ActionSection):
    """Chat, mail and push by apprise (extra `notify`); its URLs hold secrets, so not in here."""

    type: Literal["apprise"]
    urls_file: FilePath | None = Field(default=None, description="file with one apprise URL a line")
    urls_env: VariableName | None = Field(
        default=None, description="environment variable with apprise URLs, instead of `urls_file`"
    )
    timeout_s: Patience = Field(default=30.0, description="for the service to answer")

    @model_validator(mode="after")
    def _has_one_source(self) -> AppriseAction:
        if (self.urls_file is None) == (self.urls_env is None):
            raise ValueError("expected either urls_file or urls_env")
        return self

    @property
    def receiver(self) -> str:
        """Services that only the secrets name."""
        where = self.urls_file or f"${self.urls_env}"
        return f"the services whose addresses are in {where}"


Action = Annotated[
    LogAction | CommandAction | WebhookAction | MqttAction | AppriseAction,
    Field(discriminator="type"),
]


class Heartbeat(Section):
    """A sign of life while events can become alerts; an outside service misses it (dead man)."""

    action: str = Field(description="name of a webhook, command, log or apprise action")
    interval_s: float = Field(
        default=60.0, ge=1, le=MAX_SECONDS, description="between two signs of life"
    )


class AlertSettings(Section):
    """Alert rules and where alerts go; read by the alerts process."""

    rules: list[str] = Field(
        default_factory=list,
        description="rule files; relative paths begin at the configuration file",
    )
    actions: dict[str, Action] = Field(default_factory=dict)
    allow_exec: bool = Field(default=False, description="actions of type command may run")
    state_file: FilePath | None = Field(
        default=None, description="SQLite file of states and deliveries; null: in `state_dir`"
    )
    heartbeat: Heartbeat | None = None

    @field_validator("actions")
    @classmethod
    def _names_are_valid(cls, actions: dict[str, Action]) -> dict[str, Action]:
        for name in actions:
            if not ACTION_NAME.match(name) or name == FEED_ACTION:
                raise ValueError(
                    "expected names of lower-case letters, digits, '-' and '_', other than "
                    f"{FEED_ACTION!r}, got {name!r}"
                )
        return actions

    @model_validator(mode="after")
    def _actions_fit(self, info: ValidationInfo) -> AlertSettings:
        commands = [name for name, action in self.actions.items() if action.type == "command"]
        misfits: list[Misfit] = []
        if not self.allow_exec:
            text = "action {!r} runs a program: needs alerts.allow_exec: true"
            forbidden: list[Misfit] = [(("alerts",), text.format(name)) for name in commands]
            misfits += unless_left_out(forbidden, info, ("alerts", "allow_exec"))
        if self.heartbeat is not None:
            action = self.actions.get(self.heartbeat.action)
            if action is None or action.type == "mqtt":
                text = "heartbeat.action: expected the name of a webhook, command, log or apprise "
                lost: Misfit = (("alerts",), f"{text}action, got {self.heartbeat.action!r}")
                misfits += unless_left_out([lost], info, ("alerts", "actions"))
        refuse_misfits(misfits, info)
        return self
