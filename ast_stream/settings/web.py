"""The `web:` section: where the page listens, and who may do what on it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from ast_stream.settings.section import FilePath, HostPort, Misfit, Section

Scope = Literal["view", "review", "listen", "administrate"]
SCOPES: dict[Scope, str] = {
    "view": "see streams, events, alerts, scores and spectrograms",
    "review": "give verdicts on events",
    "listen": "play and download clips",
    "administrate": "acknowledge, snooze, retry and drop",
}
ALIVE_PATH = "/alive"  # whoever asks for it learns that the page works, and which it is
DEFAULT_IDLE_H = 12.0
DEFAULT_SESSION_H = 7 * 24.0
_HEADER = r"^[A-Za-z][A-Za-z0-9-]{0,63}$"
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")
_MAX_PORT = 65_535

Hours = Annotated[float, Field(ge=0.1, le=24 * 365)]


class BehindProxy(Section):
    """A reverse proxy that all requests come through, and that proves it with a secret.

    Nothing is trusted because of the address that it comes from.
    """

    token_file: FilePath = Field(
        description="file with a secret of at least 32 characters; requests without it in the "
        "header X-Ast-Stream-Proxy-Token are refused"
    )
    user_header: Annotated[str, Field(pattern=_HEADER)] | None = Field(
        default=None,
        description="header with the user whom the proxy has logged in; null: users log in to the "
        "page",
    )


class WebSettings(Section):
    """The page for browsers; off unless `listen` says where (needs the extra `web`)."""

    listen: HostPort | None = Field(
        default=None,
        description="host:port, e.g. 127.0.0.1:8080; beyond loopback it needs `certificate`; "
        "null: no page",
    )
    hosts: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="host names of the page, besides its address and localhost; requests for other "
        "names are refused",
    )
    certificate: FilePath | None = Field(
        default=None, description="PEM file with the certificate and its chain; null: no TLS"
    )
    private_key: FilePath | None = Field(
        default=None, description="PEM file with the key of `certificate`"
    )
    users_file: FilePath | None = Field(
        default=None,
        description="users who may log in, written by `ast-stream users`; null: web/users.json in "
        "state_dir",
    )
    without_login: list[Scope] = Field(
        default_factory=lambda: list(SCOPES),
        max_length=len(SCOPES),
        description="scopes without a login, on loopback without TLS and proxy; empty: a login is "
        "required there, too",
    )
    behind_proxy: BehindProxy | None = Field(
        default=None, description="a reverse proxy in front; null: browsers connect directly"
    )
    idle_h: Hours = Field(
        default=DEFAULT_IDLE_H, description="hours without a request after which a login ends"
    )
    session_h: Hours = Field(
        default=DEFAULT_SESSION_H, description="hours after which a login ends in any case"
    )

    @field_validator("hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not _HOST.match(host):
                raise ValueError(f"expected names without port or scheme, got {host!r}")
        return [host.lower() for host in hosts]

    @property
    def address(self) -> tuple[str, int]:
        """Host, without brackets, and port of `listen`, which must not be None."""
        assert self.listen is not None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_on_loopback(self) -> bool:
        """Whether `listen` is an address that no other machine can reach."""
        host, _ = self.address
        if host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:  # a name may mean anything
            return False

    @property
    def needs_login(self) -> bool:
        """Whether visitors without a login see nothing."""
        is_open = self.is_on_loopback and self.certificate is None and self.behind_proxy is None
        return not (is_open and self.without_login)

    @property
    def origin(self) -> str:
        """Where a browser of this machine finds the page."""
        return f"{'http' if self.certificate is None else 'https'}://{self.listen}"

    def misfits(self) -> Iterator[Misfit]:
        """Yield what is not safe, or cannot work."""
        if (self.certificate is None) != (self.private_key is None):
            there = "certificate" if self.private_key is None else "private_key"
            lacks = "private_key" if self.private_key is None else "certificate"
            yield ("web", there), f"expected {lacks}, too, got {there} alone"
        if self.listen is None:
            return
        if not 1 <= self.address[1] <= _MAX_PORT:
            text = f"expected a port from 1 to {_MAX_PORT}, got {self.address[1]}"
            yield ("web", "listen"), text
        if not self.is_on_loopback and self.certificate is None:
            text = "expected a certificate and a private_key where others can connect, or an "
            text += "address on loopback such as 127.0.0.1:8080 (also behind a proxy), got "
            yield ("web", "listen"), f"{text}{self.listen} without"
