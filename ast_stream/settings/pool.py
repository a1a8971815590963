"""The `pool:` section: workers that share the streams of many capture boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from ast_stream.settings.fleet import FleetName, host_name
from ast_stream.settings.forward import NatsAccess
from ast_stream.settings.section import FilePath, Misfit, Section
from ast_stream.urls import check_endpoint

if TYPE_CHECKING:
    from ast_stream.settings.schema import Settings

MAX_MEMBERS = 1024


class PoolMemberSettings(Section):
    """A worker of a fixed list."""

    name: FleetName = Field(description="of the worker")
    audio: str = Field(description="endpoint of its transport.audio, as capture boxes reach it")
    rings: str = Field(description="endpoint of its transport.rings")
    feed: str | None = Field(
        default=None,
        description="endpoint of its transport.feed, for alerts and the recorder",
    )
    query: str | None = Field(
        default=None,
        description="endpoint of its transport.query, for missed messages and audio",
    )
    key: FilePath | None = Field(default=None, description="its public key; null: none is needed")
    weight: float = Field(default=1.0, gt=0, le=1e9, description="its relative number of streams")

    @field_validator("audio", "rings", "feed", "query")
    @classmethod
    def _endpoint_is_one(cls, endpoint: str | None) -> str | None:
        return None if endpoint is None else check_endpoint(endpoint, has_keys=True)


class PoolSettings(Section):
    """Workers that share the streams of many capture boxes, and take over from each other."""

    name: FleetName = Field(description="name of the pool, the same for all its workers and boxes")
    nats: NatsAccess | None = Field(
        default=None,
        description="NATS servers with JetStream, where workers register in the bucket "
        "ast_stream_pool_<name>; null: `members` lists them",
    )
    members: list[PoolMemberSettings] = Field(
        default_factory=list,
        max_length=MAX_MEMBERS,
        description="a fixed list of workers instead: streams are distributed in the same way, but "
        "wait for a worker that is gone",
    )
    keys: list[FilePath] = Field(
        default_factory=list,
        max_length=MAX_MEMBERS,
        description="public keys of workers, as files or folders of .key files: audio is sent to no"
        " other key, whatever the bucket says",
    )
    member: FleetName | None = Field(
        default=None, description="name of this worker in the pool; null: fleet.box, or its host"
    )
    host: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None,
        description="name or address by which capture boxes reach this worker; null: that of "
        "transport.audio, or the host's name where that is bound to all addresses",
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="relative number of streams for this worker; null: model.max_streams",
    )
    dead_s: float = Field(
        default=5.0,
        ge=2,
        le=120,
        description="a worker that has not renewed its entry for this long counts as dead",
    )
    record_s: float = Field(
        default=10.0,
        ge=1,
        le=60,
        description="how often a worker sends the state of a stream to its capture process, from "
        "which the next worker continues with the audio in the ring",
    )
    create: bool = Field(default=True, description="create the bucket if it does not exist")

    @property
    def bucket(self) -> str:
        """Name of the key-value bucket."""
        return f"ast_stream_pool_{self.name}"

    def misfits(self) -> Iterator[Misfit]:
        """Yield what cannot work."""
        if (self.nats is None) == (not self.members):
            text = "expected nats, or members, " + (
                "got neither" if not self.members else "got both"
            )
            yield ("pool",), text
        names = [member.name for member in self.members]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            yield ("pool", "members"), f"expected different names, got {', '.join(doubled)} twice"


def member_name(settings: Settings) -> str:
    """Return the name of this worker in its pool."""
    assert settings.pool is not None
    return settings.pool.member or settings.fleet.box or host_name()


def is_capture_box(settings: Settings) -> bool:
    """Return whether a configuration is of capture processes alone: its workers are elsewhere."""
    return settings.pool is not None and settings.transport.audio is None
