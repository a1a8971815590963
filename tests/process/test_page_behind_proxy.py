"""The page behind real reverse proxies, set up as docs/how-to/web.md says."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import OPENSSL, Authority, Identity
from feed_worker import Worker, event
from page_process import Browser, Page, running_page
from pipeline import wait_for
from ports import free_ports
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from ast_stream.settings.web import Scope
from ast_stream.web.guard import PROXY_TOKEN_HEADER
from ast_stream.web.login_limits import OF_NAME_AND_ADDRESS

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")

GUIDE = Path(__file__).parents[2] / "docs/how-to/web.md"
TOKEN = "0123456789abcdef" * 4
LIMIT_S = 60.0
STOP_S = 20.0


@dataclass
class Proxied:
    """A page, its worker, and the proxy before it.

    Attributes:
        port: of the proxy.
    """

    name: str
    page: Page
    worker: Worker
    port: int
    tls: ssl.SSLContext

    def browser(self, user: str | None = None) -> Browser:
        browser = Browser(self.port, self.tls)
        if user is not None:
            assert browser.log_in(user).status == 303
        return browser


def snippet(language: str, changes: dict[str, str]) -> str:
    """Return an example of the guide, for this place."""
    text = GUIDE.read_text().split(f"```{language}\n")[1].split("```")[0]
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, page_port: int, identity: Identity) -> list[str]:
    """Return the command of nginx, which needs no rights."""
    own = snippet(
        "nginx",
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/nginx/tls/fullchain.pem": str(identity.certificate),
            "/etc/nginx/tls/key.pem": str(identity.key),
            "127.0.0.1:8080": f"127.0.0.1:{page_port}",
            '"…"': f'"{TOKEN}"',
        },
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\n"
        f"error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}{own}}}\n"
    )
    return ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]


def caddy(folder: Path, port: int, page_port: int, identity: Identity) -> list[str]:
    """Return the command of Caddy."""
    own = snippet(
        "caddyfile",
        {
            "box.example.org {": f"https://127.0.0.1:{port} {{\n"
            f"    tls {identity.certificate} {identity.key}",
            "127.0.0.1:8080": f"127.0.0.1:{page_port}",
        },
    )
    config = folder / "Caddyfile"
    config.write_text(f"{{\n    admin off\n    auto_https off\n}}\n{own}")
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


PROXIES: dict[str, Callable[[Path, int, int, Identity], list[str]]] = {
    "nginx": nginx,
    "caddy": caddy,
}


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    """Run a proxy for a while."""
    own = {"AST_STREAM_PROXY_TOKEN": TOKEN, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    try:
        yield
        assert process.poll() is None, (folder / "proxy.log").read_text()
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Worker]]:
    """Yield a page that is behind a proxy, and its worker."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "run").mkdir()
    (folder / "token").write_text(f"{TOKEN}\n")
    users: dict[str, list[Scope]] = {name: ["view", "listen"] for name in ("anna", *PROXIES)}
    web = {"behind_proxy": {"token_file": str(folder / "token")}}
    worker = Worker(folder / "run", "b1")
    try:
        with running_page(folder, users=users, web=web) as page:
            yield page, worker
    finally:
        worker.close()


@pytest.fixture(scope="module", params=PROXIES)
def proxied(
    request: pytest.FixtureRequest,
    served: tuple[Page, Worker],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxied]:
    name: str = request.param
    if shutil.which(name) is None:
        if os.environ.get("CI") == "true" and name == "nginx":
            pytest.fail("nginx is not installed; make debian does it")
        pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp(name)
    identity = Authority(folder).self_signed()
    port, (page, worker) = free_ports(), served
    with running(PROXIES[name](folder, port, page.port, identity), folder):
        tls = ssl.create_default_context(cafile=str(identity.certificate))
        found = Proxied(name, page, worker, port, tls)
        wait_for(lambda: is_answered(found.browser()), "the proxy", LIMIT_S)
        yield found


def is_answered(browser: Browser) -> bool:
    try:
        return browser.get("/login").status == 200
    except OSError:
        return False


def test_whoever_passes_the_proxy_by_is_refused(proxied: Proxied) -> None:
    direct = proxied.page.browser().get("/login")
    assert direct.status == 403
    assert "ask through the proxy" in direct.text
    browser = proxied.browser()
    assert browser.get("/login", **{PROXY_TOKEN_HEADER: "x" * 40}).status == 200  # replaced


def test_a_user_logs_in_at_any_port_and_sees_the_pages(proxied: Proxied) -> None:
    browser = proxied.browser("anna")
    assert all(name.startswith("__Host-") for name in browser.cookies)
    for path in ("/", "/timeline", "/tune", "/health"):
        answer = browser.get(path)
        assert answer.status == 200, path
        assert "upgrade" not in (answer.one("Connection") or "").lower()
    assert proxied.browser().get("/").status == 303  # whom nobody knows


def test_events_come_as_they_happen(proxied: Proxied) -> None:
    connection = proxied.browser("anna")
    stream = connection.connection()
    cookie = "; ".join(f"{name}={value}" for name, value in connection.cookies.items())
    stream.request("GET", "/live/events", headers={"Host": connection.host, "Cookie": cookie})
    response = stream.getresponse()
    assert response.status == 200
    number, is_published = time.monotonic_ns(), False
    for line in response:
        if line.startswith(b"event: status") and not is_published:  # the page hears the worker
            proxied.worker.publish(event(number))
            is_published = True
        if line.startswith(b"data:") and json.loads(line[5:]).get("id") == event(number).id:
            break
    else:
        pytest.fail("the stream ended")
    proxied.worker.publish(event(number, "end"))
    stream.close()


def test_pictures_come_over_a_websocket(proxied: Proxied) -> None:
    browser = proxied.browser("anna")
    asyncio.run(ask_for_pictures(proxied, browser, browser.origin))
    with pytest.raises(InvalidStatus, match="403"):
        asyncio.run(ask_for_pictures(proxied, browser, "https://elsewhere.example"))


async def ask_for_pictures(proxied: Proxied, browser: Browser, origin: str) -> None:
    # Not by `websockets.sync`: its thread reads from a TLS connection while another writes to it,
    # which OpenSSL does not allow, and nothing wakes it while it reads a record that is no data.
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    async with connect(
        f"wss://{browser.host}/live/pictures",
        ssl=proxied.tls,
        origin=Origin(origin),
        additional_headers={"Cookie": cookie},
        open_timeout=LIMIT_S,
        proxy=None,
    ) as socket:
        await socket.send(json.dumps({"streams": ["porch"]}))
        await asyncio.wait_for(await socket.ping(), LIMIT_S)


def test_a_browser_cannot_say_where_it_comes_from(proxied: Proxied) -> None:
    browser = proxied.browser()
    statuses = []
    for number in range(OF_NAME_AND_ADDRESS.burst + 1):
        browser.headers = {"X-Forwarded-For": f"192.0.2.{number}"}
        statuses.append(browser.log_in(proxied.name, "guessed").status)
    assert statuses[-1] == 429, statuses
