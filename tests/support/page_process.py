"""The page's own process, and browsers that talk to it by hand: with cookies, and any header."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from argon2 import PasswordHasher
from certificates import Identity
from forked_command import ForkedCommand
from ports import free_ports

from ast_stream.privacy.page_users import User, changing_users
from ast_stream.settings.web import Scope

PASSWORD = "correct horse battery"
TIMEOUT_S = 60.0
START_S = 60.0
_TOKEN = re.compile(r'<meta name="csrf-token" content="(\w+)">')


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)


@dataclass
class Browser:
    """Keeps cookies, and sends what a browser sends."""

    port: int
    tls: ssl.SSLContext | None = None
    cookies: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with each request."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{self.host}"

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str | None] = {},
    ) -> Answer:
        """Send a request; a header of None is left out."""
        sent: dict[str, str | None] = {"Accept": "text/html", **self.headers}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent |= headers
        connection = self.connection()
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": self.host, **sent}.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None and "Content-Length" not in sent:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()
        for cookie in answer.all("Set-Cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
            if "Max-Age=0" in cookie:
                del self.cookies[name]
        return answer

    def connection(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=TIMEOUT_S, context=self.tls
        )

    def socket(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
        if self.tls is None:
            return plain
        return self.tls.wrap_socket(plain, server_hostname="127.0.0.1")

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def token(self, path: str = "/no-such-page") -> str:
        """Return the token of a page."""
        found = _TOKEN.search(self.get(path).text)
        assert found is not None
        return found[1]

    def post(self, path: str, fields: Mapping[str, str], **headers: str | None) -> Answer:
        """Send a form as a page of ours does; headers replace what it sends."""
        sent = {"Origin": self.origin, "Content-Type": "application/x-www-form-urlencoded"}
        return self.ask("POST", path, urlencode(fields).encode(), sent | headers)

    def log_in(self, name: str, password: str = PASSWORD) -> Answer:
        fields = {"csrf_token": self.token(), "name": name, "password": password, "next": "/"}
        return self.post("/login", fields)


@dataclass
class Page:
    """A running page."""

    process: subprocess.Popen[str]
    port: int
    config: Path
    tls: ssl.SSLContext | None

    def browser(self, user: str | None = None, **headers: str) -> Browser:
        """Return a new browser, logged in if a user is named."""
        browser = Browser(self.port, self.tls, headers=headers)
        if user is not None:
            assert browser.log_in(user).status == 303
        return browser


@contextmanager
def running_page(
    folder: Path,
    *,
    identity: Identity | None = None,
    users: Mapping[str, list[Scope]] | None = None,
    web: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Iterator[Page]:
    """Run `ast-stream web` in a process of its own.

    Args:
        identity: its certificate; None: no TLS.
        users: with `PASSWORD`.
        web: further settings of the page.
        sections: further sections of the configuration.
    """
    port = free_ports()
    config = folder / "config.yaml"
    tls_settings: dict[str, Any] = {}
    tls = None
    if identity is not None:
        tls_settings = {
            "certificate": str(identity.certificate),
            "private_key": str(identity.key),
        }
        tls = ssl.create_default_context(cafile=str(identity.certificate))
    settings = {
        "state_dir": str(folder / "state"),
        "runtime_dir": str(folder / "run"),
        "streams": [{"name": "porch", "source": {"type": "scene"}}],
        "web": {"listen": f"127.0.0.1:{port}", **tls_settings, **(web or {})},
        **sections,
    }
    config.write_text(json.dumps(settings))  # YAML knows JSON
    add_users(folder / "state" / "web" / "users.json", users or {})
    with page_of(config, port, tls) as page:
        yield page


@contextmanager
def page_of(config: Path, port: int, tls: ssl.SSLContext | None = None) -> Iterator[Page]:
    """Run the page of a configuration that listens at a port of loopback."""
    process = ForkedCommand(["web", "-c", config], 1, subprocess.PIPE, text=True)
    page = Page(process, port, config, tls)
    try:
        wait_until_alive(page)
        yield page
    finally:
        process.terminate()
        try:
            process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()


def wait_until_alive(page: Page) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        if page.process.poll() is not None:
            raise AssertionError(page.process.communicate()[1])
        with suppress(OSError, http.client.HTTPException):
            if page.browser().get("/alive").status == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the page does not answer")


def add_users(file: Path, users: Mapping[str, list[Scope]]) -> None:
    """Write users whose passwords are `PASSWORD`."""
    with changing_users(file) as found:
        for name, scopes in users.items():
            found[name] = User(name, _password_hash(), tuple(scopes))


@cache
def _password_hash() -> str:
    return PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)
