"""The section `transport`: ZeroMQ endpoints, and the keys of those over tcp."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, field_validator

from ast_stream.settings.section import FilePath, Misfit, Section
from ast_stream.urls import check_endpoint

DEFAULT_ALLOW_LIST = "/etc/ast-stream/keys/allowed.json"
_ENDPOINTS = ("audio", "rings", "feed", "query", "admin")


class CurveSettings(Section):
    """Keys of tcp endpoints, made by `ast-stream keys create`; ipc needs none."""

    server_secret: FilePath | None = Field(
        default=None,
        description="secret key of the worker; null: the worker runs on another box",
    )
    server_key: FilePath | None = Field(
        default=None,
        description="public key of the worker, which clients expect; null: the .key beside "
        "server_secret",
    )
    client_secret: FilePath | None = Field(
        default=None,
        description="secret key of clients: capture, alerts, status, subscribe; null: nothing "
        "connects over tcp",
    )
    allow_list: FilePath = Field(
        default=DEFAULT_ALLOW_LIST,
        description="keys that the worker allows, with their rights; reread when it changes",
    )


class TransportSettings(Section):
    """ZeroMQ endpoints; null: ipc files in `runtime_dir`."""

    audio: str | None = None
    rings: str | None = Field(
        default=None,
        description="where capture processes of other boxes connect, so that the worker can read "
        "their rings after a loss; null: only rings of this box",
    )
    feed: str | None = None
    query: str | None = None
    admin: str | None = Field(
        default=None,
        description="endpoint of the alerts process for ack, snooze and the outbox commands",
    )
    curve: CurveSettings | None = Field(
        default=None, description="keys of tcp endpoints; null: tcp on loopback only, without keys"
    )

    @field_validator(*_ENDPOINTS)
    @classmethod
    def _endpoint_is_one(cls, endpoint: str | None) -> str | None:
        return endpoint if endpoint is None else check_endpoint(endpoint, has_keys=True)

    @property
    def has_keyed_tcp(self) -> bool:
        """Whether an endpoint needs keys."""
        endpoints = (getattr(self, name) for name in _ENDPOINTS)
        if self.curve is None:
            return False
        if self.curve.server_key is self.curve.server_secret is None:
            return True  # to the workers of a pool, each of which has a key of its own
        return any(endpoint is not None and endpoint.startswith("tcp://") for endpoint in endpoints)

    def misfits(self, *, is_in_pool: bool) -> Iterator[Misfit]:
        """Yield what is not safe, or cannot work."""
        for name in _ENDPOINTS:
            endpoint = getattr(self, name)
            if endpoint is None or self.curve is not None:
                continue
            try:
                check_endpoint(endpoint)
            except ValueError as error:
                yield ("transport", name), str(error)
        first: dict[str, str] = {}
        for name in _ENDPOINTS:
            endpoint = getattr(self, name)
            if endpoint is not None and (other := first.setdefault(endpoint, name)) != name:
                text = (
                    f"expected an endpoint of its own, got {endpoint}, which is transport.{other}"
                )
                yield ("transport", name), text
        is_away = self.audio is not None and self.audio.startswith("tcp://")
        if self.rings is not None and not is_away:
            text = "expected transport.audio over tcp as well: both are of the same worker"
            yield ("transport", "rings"), text
        curve = self.curve
        is_keyless = curve is not None and curve.server_key is curve.server_secret is None
        if is_keyless and not is_in_pool:
            text = "expected server_key, or server_secret on the box of the worker, got neither"
            yield ("transport", "curve"), text
