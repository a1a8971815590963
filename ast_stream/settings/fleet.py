"""The `fleet:` section: the name of a box and its site, its time server, its models."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from ast_stream.labels import STREAM_NAME_RULE, is_stream_name
from ast_stream.settings.section import Misfit, Section

if TYPE_CHECKING:
    from ast_stream.settings.forward import NatsOutput
    from ast_stream.settings.schema import Settings

_MAX_NAME = 63


def _check_name(name: str) -> str:
    if not is_stream_name(name):
        raise ValueError(f"expected {STREAM_NAME_RULE}, got {name!r}")
    return name


FleetName = Annotated[str, AfterValidator(_check_name)]
"""A name that is a part of subjects, topics and keys: as that of a stream."""


class ModelsSettings(Section):
    """Whether the centre of the fleet chooses the model of this box."""

    follow: bool = Field(
        default=False,
        description="use the model chosen by `ast-stream fleet rollout` after checking it; false: "
        "always use `model.checkpoint`",
    )
    output: str | None = Field(
        default=None,
        description="name of the nats output in `forward` from whose servers models come; null: the"
        " first",
    )


class FleetSettings(Section):
    """The identity of this box among several boxes."""

    site: FleetName = Field(default="home", description="the place; several boxes may share it")
    box: FleetName | None = Field(
        default=None,
        description="name of this box, unique at its site; null: its host name",
    )
    ntp: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None,
        description="time server with which the clock of this box is compared, host or host:port; "
        "null: none",
    )
    models: ModelsSettings = ModelsSettings()


@dataclass(frozen=True)
class BoxIdentity:
    """Which box this is.

    Attributes:
        site, box: parts of subjects; each of `a-z0-9-`.
    """

    site: str
    box: str

    @property
    def source(self) -> str:
        """What a CloudEvent says that it comes from: `/<site>/<box>`."""
        return f"/{self.site}/{self.box}"

    @property
    def key(self) -> str:
        """`<site>.<box>`, as the key of its status in a bucket."""
        return f"{self.site}.{self.box}"


def box_identity(settings: Settings) -> BoxIdentity:
    """Return which box the configuration is of."""
    fleet = settings.fleet
    return BoxIdentity(fleet.site, host_name() if fleet.box is None else fleet.box)


def models_output(settings: Settings) -> NatsOutput | None:
    """Return the output through which the centre chooses the model; None if there is none."""
    wanted = settings.fleet.models
    found = [output for output in settings.forward if output.type == "nats"]
    named = [output for output in found if wanted.output in (None, output.name)]
    return named[0] if wanted.follow and named else None


def misfits(settings: Settings) -> Iterator[Misfit]:
    """Yield that no output can carry the choice of the model."""
    wanted = settings.fleet.models
    if wanted.follow and models_output(settings) is None:
        if wanted.output is None:
            text = "expected an output of type nats in `forward`, whose servers choose the model, "
            yield ("fleet", "models", "follow"), f"{text}got none"
        else:
            text = f"expected the name of an output of type nats in `forward`, got {wanted.output}"
            yield ("fleet", "models", "output"), text


def host_name() -> str:
    """Return the name of this machine as a part of subjects; "box" if it has none that can be."""
    name = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().split(".")[0].lower())
    return name.strip("-")[:_MAX_NAME].rstrip("-") or "box"
