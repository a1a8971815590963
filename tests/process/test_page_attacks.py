"""The page attacked from outside: its own process, over real sockets, with every header by hand."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from certificates import OPENSSL, Authority, Identity
from feed_worker import Worker, event
from history_samples import clip, whole_event
from page_process import PASSWORD, Answer, Browser, Page, add_users, running_page
from pipeline import wait_for
from ports import free_ports
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from ast_stream.box_status import page_answers
from ast_stream.cli.page_checks import check_page
from ast_stream.history.database import History
from ast_stream.privacy.audit import decode_access
from ast_stream.privacy.page_users import User, changing_users
from ast_stream.settings.load import load_file, load_settings
from ast_stream.settings.storage import history_database
from ast_stream.settings.web import SCOPES, Scope
from ast_stream.web import app, connections, guard
from ast_stream.web.app import routes
from ast_stream.web.guard import HEADERS, MAX_BODY_BYTES
from ast_stream.web.login_limits import OF_ADDRESS, OF_NAME_AND_ADDRESS
from ast_stream.web.rights import PUBLIC, need_of
from ast_stream.web.server import PageServer, bind
from ast_stream.web.services import open_services

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")

# one user for each right it lacks, and one for each it has alone
USERS: dict[str, list[Scope]] = {
    "all": [*SCOPES],
    **{f"only-{scope}": [scope] for scope in SCOPES},
    **{f"no-{scope}": [other for other in SCOPES if other != scope] for scope in SCOPES},
}
SAMPLE = {"id": "no-such-event", "part": "0", "stream": "porch"}
N_UNREAD = 400  # answers of 50 kB: more than the buffers of the kernel hold
EVENT_STREAM = "/live/events"  # goes on for ever
LIMIT_S = 60.0  # only a failing test waits so long
SECRET = "root:"  # begins what is looked for in files of the system


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Authority(tmp_path_factory.mktemp("certificates")).self_signed()


@pytest.fixture(scope="module")
def page(identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page that needs a login, with all users."""
    folder = tmp_path_factory.mktemp("page")
    with running_page(folder, identity=identity, users=USERS, web={"hosts": ["box.lan"]}) as page:
        yield page


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page on loopback, without login."""
    with running_page(tmp_path_factory.mktemp("open"), web={"hosts": ["box.lan"]}) as page:
        yield page


@pytest.fixture(scope="module")
def browsers(page: Page) -> dict[str, Browser]:
    """A browser of each user, logged in; the limits would not allow it for each test."""
    return {name: page.browser(name) for name in USERS}


def served(page: Page) -> list[Route | WebSocketRoute]:
    """Return all routes that the page has, from its own application."""
    with ExitStack() as cleanup:
        found: list[BaseRoute] = routes(open_services(load_file(page.config), cleanup))
    return [route for route in found if not isinstance(route, Mount)]  # type: ignore[misc]


def path_of(route: Route | WebSocketRoute) -> str:
    return re.sub(r"{(\w+)(:\w+)?}", lambda found: SAMPLE.get(found[1], "1"), route.path)


def ask(browser: Browser, route: Route | WebSocketRoute) -> list[Answer]:
    """Ask for a route in each way that it has, with everything right but perhaps the visitor."""
    path = path_of(route)
    if isinstance(route, WebSocketRoute):
        return [handshake(browser, path)]
    answers = []
    for method in sorted(route.methods or ()):
        if method in ("GET", "HEAD"):
            answers.append(head_of(browser, method, path))
        else:
            sent = {"Origin": browser.origin, "X-CSRF-Token": browser.token()}
            answers.append(browser.ask(method, path, b"", sent))
    return answers


def head_of(browser: Browser, method: str, path: str) -> Answer:
    """Return the start of an answer, which may go on for ever."""
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    connection = browser.connection()
    connection.request(method, path, headers={"Accept": "*/*", "Cookie": cookies})
    response = connection.getresponse()
    answer = Answer(response.status, response.getheaders(), b"")
    connection.close()
    return answer


def handshake(browser: Browser, path: str, **headers: str) -> Answer:
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    sent = {
        "Host": browser.host,
        "Origin": browser.origin,
        "Cookie": cookies,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return raw(browser, "\r\n".join([*lines, "", ""]).encode("latin-1"))


def raw(browser: Browser, request: bytes) -> Answer:
    """Send bytes as they are, and return the head of the answer."""
    with browser.socket() as connection:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
            received += chunk
    return Answer(int(received.split(b" ", 2)[1]), [], received)


@pytest.mark.slow
def test_every_route_is_closed_to_whoever_lacks_its_right(
    page: Page, browsers: dict[str, Browser]
) -> None:
    n_closed = 0
    for route in served(page):
        need = need_of(route.endpoint)
        assert need is not None, f"{route.path} declares no right"
        if need == PUBLIC:
            continue
        strangers = [page.browser(), browsers[f"no-{need}"]]
        strangers += [browsers[f"only-{other}"] for other in SCOPES if other != need]
        for browser in strangers:
            for answer in ask(browser, route):
                assert answer.status in (401, 403), (route.path, answer.status)
                n_closed += 1
    assert n_closed


def test_every_route_is_open_to_whoever_has_its_right(
    page: Page, browsers: dict[str, Browser]
) -> None:
    for route in served(page):
        need = need_of(route.endpoint)
        if need in (PUBLIC, None):
            continue
        for answer in ask(browsers[f"only-{need}"], route):
            assert answer.status not in (401, 403, 405, 500), (route.path, answer.status)


def test_pages_send_strangers_to_the_login_and_programs_a_sentence(page: Page) -> None:
    browser = page.browser()
    answer = browser.get("/?a=b")
    assert (answer.status, answer.one("Location")) == (303, "/login?next=%2F%3Fa%3Db")
    answer = browser.get("/", Accept="application/json")
    assert (answer.status, json.loads(answer.body)) == (401, {"v": 1, "error": "log in first"})


def test_a_login_leads_on_and_nowhere_else(page: Page) -> None:
    for after, led_to in (("/health", "/health"), ("//evil.example", "/")):
        browser = page.browser()
        fields = {"csrf_token": browser.token(), "name": "all", "password": PASSWORD}
        answer = browser.post("/login", fields | {"next": after})
        assert (answer.status, answer.one("Location")) == (303, led_to)


FORGED = {
    "no origin": {"Origin": None},
    "another origin": {"Origin": "https://evil.example"},
    "an origin that begins as ours": {"Origin": "https://127.0.0.1:1.evil.example"},
    "a hidden origin": {"Origin": "null"},
    "an origin without TLS": {"Origin": "http://HOST"},
    "two origins": {"Origin": "https://HOST, https://evil.example"},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_requests_of_other_pages_change_nothing(page: Page, forged: dict[str, str | None]) -> None:
    browser = page.browser("all")
    token = browser.token()
    headers = {
        name: None if value is None else value.replace("HOST", browser.host)
        for name, value in forged.items()
    }
    assert browser.post("/logout", {"csrf_token": token}, **headers).status == 403
    assert "Log out" in browser.get("/no-such-page").text
    assert browser.post("/logout", {"csrf_token": token}).status == 303
    assert "Log out" not in browser.get("/no-such-page").text


def test_tokens_of_others_are_worth_nothing(page: Page, browsers: dict[str, Browser]) -> None:
    browser = page.browser("only-view")
    before_login = page.browser()
    tokens = [
        "",
        "0" * 64,
        before_login.token(),
        browsers["all"].token(),
        browser.token()[:-1],
    ]
    for token in tokens:
        answer = browser.post("/logout", {"csrf_token": token})
        assert (answer.status, "the token of the page does not fit" in answer.text) == (403, True)
        assert browser.post("/logout", {}, **{"X-CSRF-Token": token}).status == 403
    assert browser.post("/logout", {}).status == 403
    # neither a query nor a body of another kind can hold it
    token = browser.token()
    assert browser.post(f"/logout?csrf_token={token}", {}).status == 403
    kind = {"Content-Type": "text/plain"}
    assert browser.post("/logout", {"csrf_token": token}, **kind).status == 403
    assert "Log out" in browser.get("/no-such-page").text


def test_a_planted_login_is_not_taken_over(page: Page) -> None:
    browser = page.browser()
    name = f"__Host-ast-stream-{page.port}-session"
    browser.cookies[name] = "planted"
    assert browser.log_in("only-view").status == 303
    assert browser.cookies[name] != "planted"
    thief = page.browser()
    thief.cookies[name] = "planted"
    assert "Log out" not in thief.get("/no-such-page").text


def test_a_new_login_ends_the_one_before_and_a_logout_every_use_of_it(page: Page) -> None:
    browser = page.browser("only-view")
    name = f"__Host-ast-stream-{page.port}-session"
    first = browser.cookies[name]
    token = browser.token()
    fields = {"csrf_token": token, "name": "all", "password": PASSWORD, "next": "/"}
    assert browser.post("/login", fields).status == 303
    second = browser.cookies[name]
    assert first != second
    assert browser.post("/logout", {"csrf_token": browser.token()}).status == 303
    assert name not in browser.cookies
    for old in (first, second):
        thief = page.browser()
        thief.cookies[name] = old
        assert "Log out" not in thief.get("/no-such-page").text


def test_of_two_cookies_of_one_name_none_counts(page: Page, browsers: dict[str, Browser]) -> None:
    browser = browsers["all"]
    name = f"__Host-ast-stream-{page.port}-session"
    twice = f"{name}={browser.cookies[name]}; {name}=planted"
    assert "Log out" not in browser.ask("GET", "/x", headers={"Cookie": twice}).text
    assert "Log out" in browser.get("/x").text


def test_cookies_are_for_this_host_and_for_no_script(page: Page) -> None:
    answer = page.browser().log_in("all")
    (cookie,) = answer.all("Set-Cookie")
    name, *parts = cookie.split("; ")
    assert name.startswith(f"__Host-ast-stream-{page.port}-session=")
    assert sorted(parts) == ["HttpOnly", "Path=/", "SameSite=Strict", "Secure"]


@pytest.mark.slow
def test_who_is_removed_or_has_another_password_is_out(page: Page) -> None:
    file = page.config.parent / "state/web/users.json"
    add_users(file, {"leaver": ["view"], "changed": ["view"], "narrowed": ["view", "listen"]})
    time.sleep(1.1)  # the file is looked at once a second
    leaver, changed, narrowed = map(page.browser, ("leaver", "changed", "narrowed"))
    with changing_users(file) as users:
        del users["leaver"]
        users["changed"] = User("changed", users["all"].password_hash + "x", ("view",))  # type: ignore[operator]
        users["narrowed"] = User("narrowed", users["narrowed"].password_hash, ("listen",))
    time.sleep(1.1)
    for browser in (leaver, changed):
        assert "Log out" not in browser.get("/x").text
    assert "Log out" in narrowed.get("/x").text
    assert narrowed.get("/timeline", Accept="*/*").status in (403, 404)


def test_bad_passwords_are_limited_and_another_address_is_not(page: Page) -> None:
    """Each from an address of its own, so that other tests are not held up."""

    def tries(address: str, n: int, password: str) -> list[int]:
        browser = page.browser()
        fields = {"csrf_token": browser.token(), "name": "victim", "password": password}
        body = "&".join(f"{name}={value}" for name, value in fields.items()).encode()
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        headers = {
            "Origin": browser.origin,
            "Cookie": cookies,
            "Content-Type": "application/x-www-form-urlencoded",
        }
        connection = http.client.HTTPSConnection(
            "127.0.0.1", page.port, timeout=20, context=page.tls, source_address=(address, 0)
        )
        found = []
        for _ in range(n):
            connection.request("POST", "/login", body, headers)
            response = connection.getresponse()
            response.read()
            found.append(response.status)
            if response.status == 429:
                assert int(response.headers["Retry-After"]) > 0
        connection.close()
        return found

    file = page.config.parent / "state/web/users.json"
    add_users(file, {"victim": ["view"]})
    time.sleep(1.1)
    first = tries("127.0.0.66", 300, "guess")
    assert first.count(401) in (OF_NAME_AND_ADDRESS.burst, OF_NAME_AND_ADDRESS.burst + 1)
    assert first.count(401) + first.count(429) == 300
    assert tries("127.0.0.66", 1, PASSWORD.replace(" ", "+")) == [429]  # even the right one
    assert tries("127.0.0.67", 1, PASSWORD.replace(" ", "+")) == [303]
    assert OF_ADDRESS.burst > OF_NAME_AND_ADDRESS.burst


TRICKS = [
    "/static/../app.py",
    "/static/../../settings/web.py",
    "/static/%2e%2e/app.py",
    "/static/..%2f..%2f..%2fetc/passwd",
    "/static//etc/passwd",
    "/static/%2fetc/passwd",
    "/static/....//....//etc/passwd",
    "/static/..\\..\\app.py",
    "/static/%00",
    "/static/app.css%00.html",
    "/clips/../../../../etc/passwd/0",
    "/clips/..%2f..%2f..%2fetc%2fpasswd/0",
    "/clips/%2e%2e/%2e%2e/etc/passwd",
    "/clips/%00/0",
    "/clips/x/-1",
    "/clips/x/99999999999999999999999999",
    "//etc/passwd",
    "/etc/passwd",
    "http://evil.example/etc/passwd",
    "/%ff%fe",
    "/events/%00",
    "/events/..%2f..%2fstate%2fweb%2fusers.json",
    "/" + "a" * 30_000,
]


@pytest.mark.parametrize("path", TRICKS, ids=range(len(TRICKS)))
def test_path_tricks_reach_no_file(page: Page, browsers: dict[str, Browser], path: str) -> None:
    browser = browsers["all"]
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    request = f"GET {path} HTTP/1.1\r\nHost: {browser.host}\r\nCookie: {cookies}\r\n"
    with browser.socket() as connection:
        connection.sendall(f"{request}Connection: close\r\n\r\n".encode("latin-1"))
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert int(received.split(b" ", 2)[1]) in (307, 400, 404, 405, 503)
    for content in (SECRET.encode(), b"argon2", b"from __future__"):
        assert content not in received


BODIES = {
    "long": ({"Content-Length": str(MAX_BODY_BYTES + 1)}, b"", 413),
    "huge": ({"Content-Length": "9" * 19}, b"", 413),
    "endless": ({"Transfer-Encoding": "chunked"}, b"10000\r\n" + b"a" * 65536 + b"\r\n", 413),
    "no number": ({"Content-Length": "many"}, b"", 400),
    "negative": ({"Content-Length": "-1"}, b"", 400),
    "two lengths": ({"Content-Length": "1, 2"}, b"", 400),
    "two ways": ({"Content-Length": "1", "Transfer-Encoding": "chunked"}, b"0\r\n\r\n", 403),
    "a thousand fields": ({"Content-Length": "10000"}, b"a=&b=&c=&&" * 1000, 403),
}


@pytest.mark.parametrize(("headers", "body", "status"), BODIES.values(), ids=BODIES)
def test_bodies_are_bounded(
    open_page: Page, headers: dict[str, str], body: bytes, status: int
) -> None:
    browser = open_page.browser()
    kind = {"Content-Type": "application/x-www-form-urlencoded", "Origin": browser.origin}
    lines = [
        f"{name}: {value}" for name, value in ({"Host": browser.host} | kind | headers).items()
    ]
    request = "\r\n".join(["POST /login HTTP/1.1", *lines, "", ""]).encode() + body
    if headers.get("Transfer-Encoding") and status == 413:
        request += b"1\r\na\r\n"  # more than may be
    assert raw(browser, request).status == status
    assert browser.get("/alive").status == 200


def test_a_head_is_bounded(open_page: Page) -> None:
    browser = open_page.browser()
    head = f"GET / HTTP/1.1\r\nHost: {browser.host}\r\n" + "X-A: b\r\n" * 10_000
    assert raw(browser, head.encode()).status == 400
    assert raw(browser, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").status == 400
    assert browser.get("/alive").status == 200


HOSTS = {
    "127.0.0.1:PORT": 200,
    "localhost:PORT": 200,
    "LOCALHOST:PORT": 200,
    "box.lan": 200,
    "evil.example": 421,
    "evil.example:PORT": 421,
    "127.0.0.1.evil.example": 421,
    "localhost.evil.example": 421,
    "127.0.0.2:PORT": 421,
    "user@127.0.0.1": 421,
    "127.0.0.1@evil.example": 421,
    "127.0.0.1/evil.example": 421,
    "": 421,
}


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_the_page_answers_under_its_own_names_alone(
    open_page: Page, host: str, status: int
) -> None:
    """A page of others can have its own name point to 127.0.0.1 (DNS rebinding)."""
    browser = open_page.browser()
    host = host.replace("PORT", str(open_page.port))
    answer = browser.ask("GET", "/alive", headers={"Host": host})
    assert answer.status == status
    if status == 421:
        assert "add it to web.hosts" in answer.text


def test_a_request_with_two_hosts_or_none_is_refused(open_page: Page) -> None:
    browser = open_page.browser()
    host = f"Host: {browser.host}\r\n"
    for hosts in (host + "Host: evil.example\r\n", ""):
        request = f"GET /alive HTTP/1.1\r\n{hosts}\r\n"
        assert raw(browser, request.encode()).status == 400
    assert raw(browser, b"GET /alive HTTP/1.0\r\n\r\n").status == 421


def web_sockets(page: Page) -> list[str]:
    return [path_of(route) for route in served(page) if isinstance(route, WebSocketRoute)]


def test_web_sockets_are_for_our_own_pages(open_page: Page) -> None:
    paths = web_sockets(open_page)
    assert paths
    browser = open_page.browser()
    for path in paths:
        assert handshake(browser, path).status == 101
        for origin in ("http://evil.example", "null", "", f"https://{browser.host}"):
            assert handshake(browser, path, Origin=origin).status == 403
        assert handshake(browser, path, Host="evil.example").status == 403


def test_a_live_view_ends_with_the_rights_of_who_watches(page: Page) -> None:
    file = page.config.parent / "state/web/users.json"
    add_users(file, {"watcher": ["view"]})
    time.sleep(1.1)
    browser = page.browser("watcher")
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    worker = Worker(page.config.parent / "run", "b1")
    numbers = itertools.count()
    try:
        connection = browser.connection()
        connection.request("GET", EVENT_STREAM, headers={"Cookie": cookies})
        response = connection.getresponse()
        assert response.status == 200
        seen = b""
        while b"Bark" not in seen:  # until the page has found the feed
            worker.publish(event(next(numbers)))
            seen += response.read1(65536)
        with changing_users(file) as users:
            del users["watcher"]
        time.sleep(1.1)
        worker.publish(event(next(numbers), label="Secret"))
        assert b"Secret" not in response.read()  # which comes to an end
        connection.close()
    finally:
        worker.close()


def test_a_route_without_a_declared_right_keeps_the_page_from_starting(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgotten(request: object) -> None:
        raise AssertionError("it is never served")

    monkeypatch.setitem(app.PAGES, "Health", [Route("/forgotten", forgotten)])
    with ExitStack() as cleanup:
        services = open_services(load_file(page.config), cleanup)
        with pytest.raises(ValueError, match="expected @requires"):
            app.create_app(services)


def test_a_sensor_has_no_route_to_sound(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    settings = {
        "state_dir": str(tmp_path / "state"),
        "runtime_dir": str(tmp_path / "run"),
        "privacy": "sensor",
        "streams": [{"name": "porch", "source": {"type": "scene"}}],
        "web": {"listen": "127.0.0.1:8080"},
    }
    config.write_text(json.dumps(settings))
    with ExitStack() as cleanup:
        found = routes(open_services(load_file(config), cleanup))
    assert "listen" not in {need_of(route.endpoint) for route in found if isinstance(route, Route)}
    assert not any(getattr(route, "path", "").startswith("/clips") for route in found)


@pytest.mark.slow
def test_each_clip_that_is_played_or_refused_is_a_line(tmp_path: Path) -> None:
    users: dict[str, list[Scope]] = {"anna": ["view", "listen"], "bob": ["view"]}
    with running_page(tmp_path, users=users, web={"without_login": []}, recorder={}) as page:
        settings = load_settings(page.config)
        folder = tmp_path / "state/clips/porch"
        folder.mkdir(parents=True)
        with History(history_database(settings).path) as history:
            for name in ("one", "two"):
                history.add_messages(whole_event(name, time.time_ns(), stream="porch"))
                (folder / f"{name}.flac").write_bytes(b"fLaC" + name.encode() * 100)
                history.add_clip(clip(name, path=f"porch/{name}.flac"))
            (tmp_path / "state/secret.flac").write_bytes(b"secret")
            history.add_messages(whole_event("out", time.time_ns(), stream="porch"))
            history.add_clip(clip("out", path="../secret.flac"))
        anna, bob = page.browser("anna"), page.browser("bob")
        assert anna.get("/clips/one/0").body.endswith(b"one")
        assert anna.get("/clips/one/0", Range="bytes=4-6").body == b"one"
        assert anna.get("/clips/two/0").body.endswith(b"two")
        assert anna.get("/clips/out/0").status == 404  # a path that leads out of the folder
        assert bob.get("/clips/one/0").status == 403
        page.process.terminate()  # what is repeated within a minute is written at the end
        assert page.process.wait(20) == 0
        lines = b"".join(
            path.read_bytes() for path in sorted((tmp_path / "state/audit/web").glob("*.jsonl"))
        )
        found = [decode_access(line) for line in lines.splitlines(keepends=True)]
    shown = sorted((one.account, one.clip, one.outcome, one.requests) for one in found)
    assert shown == [
        ("anna", "one", "granted", 1),
        ("anna", "one", "granted", 1),  # the range that was asked for after it
        ("anna", "two", "granted", 1),
        ("bob", "one", "refused", 1),
    ]


def test_who_is_too_slow_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in this process that has less patience with one thing at a time.

    With all at once: on a busy machine it would be too late for what is no matter of the test.
    """
    has_stopped = threading.Event()
    stop_writing = connections.RequestConnection.pause_writing

    def noted(connection: connections.RequestConnection) -> None:
        stop_writing(connection)
        has_stopped.set()

    monkeypatch.setattr(connections.RequestConnection, "pause_writing", noted)
    config = tmp_path / "config.yaml"
    port = free_ports()
    web = {"listen": f"127.0.0.1:{port}"}
    streams = [{"name": "porch", "source": {"type": "scene"}}]
    folders = {"state_dir": str(tmp_path / "state"), "runtime_dir": str(tmp_path / "run")}
    config.write_text(json.dumps({"streams": streams, "web": web, **folders}))
    (tmp_path / "run").mkdir()
    with ExitStack() as cleanup:
        loaded = load_file(config)
        services = open_services(loaded, cleanup)
        running = PageServer(app.create_app(services), bind(loaded.settings.web), None)
        running.start()
        cleanup.callback(running.stop)
        browser = Browser(port)
        with monkeypatch.context() as hasty:
            hasty.setattr(connections, "HEAD_S", 0.2)
            with browser.socket() as silent, browser.socket() as slow:
                slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
                assert silent.recv(1) == slow.recv(1) == b""  # cut off
        head = f"POST /logout HTTP/1.1\r\nHost: {browser.host}\r\nOrigin: {browser.origin}\r\n"
        with monkeypatch.context() as hasty:
            hasty.setattr(guard, "BODY_S", 0.2)
            assert raw(browser, f"{head}Content-Length: 5\r\n\r\nab".encode()).status == 408
        with monkeypatch.context() as hasty, browser.socket() as deaf:
            hasty.setattr(connections, "READ_S", 0.2)
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            request = f"GET /static/vendor/htmx.min.js HTTP/1.1\r\nHost: {browser.host}\r\n\r\n"
            deaf.sendall(request.encode() * N_UNREAD)
            assert has_stopped.wait(LIMIT_S)  # it waits for this browser alone
            wait_for(lambda: running.n_connections == 0, "its end")
        assert browser.get("/alive").status == 200


def test_every_answer_carries_the_policy(page: Page, browsers: dict[str, Browser]) -> None:
    browser = browsers["all"]
    answers = [
        browser.get("/alive"),
        browser.get("/login"),
        browser.get("/no-such-page"),
        browser.get("/no-such-page", Accept="*/*"),
        browser.get("/static/app.css"),
        browser.get("/static/no-such.css"),
        browser.ask("GET", "/", headers={"Host": "evil.example"}),
        browser.post("/logout", {}),
        browser.ask("DELETE", "/alive", headers={"Origin": browser.origin}),
        page.browser().get("/"),
    ]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.all(name) == [value]
        (policy,) = answer.all("Content-Security-Policy")
        assert "default-src 'none'; script-src 'self'; " in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.one("Server") is None
    assert answers[1].all("Cache-Control") == ["no-store"]


def test_pages_hold_no_script_or_style_of_their_own(
    page: Page, browsers: dict[str, Browser]
) -> None:
    for route in served(page):
        if isinstance(route, Route) and "GET" in (route.methods or ()) and "{" not in route.path:
            if route.path == EVENT_STREAM:
                continue
            text = browsers["all"].get(route.path).text
            assert not re.search(
                r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text
            )


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("proxied")
    (folder / "token").write_text("0123456789abcdef0123456789abcdef\n")
    proxy = {"token_file": str(folder / "token"), "user_header": "X-User"}
    users: dict[str, list[Scope]] = {"anna": ["view"]}
    web = {"behind_proxy": proxy, "hosts": ["box.lan"]}
    with running_page(folder, users=users, web=web) as page:
        yield page


TOKEN = {"X-Ast-Stream-Proxy-Token": "0123456789abcdef0123456789abcdef"}


def test_what_a_proxy_says_counts_with_its_secret_alone(proxied: Page) -> None:
    browser = proxied.browser()
    assert browser.get("/x", **{"X-User": "anna"}).status == 403
    wrong = {"X-Ast-Stream-Proxy-Token": "0123456789abcdef0123456789abcdeg"}
    assert browser.get("/x", **wrong, **{"X-User": "anna"}).status == 403
    assert "Timeline" in browser.get("/x", **TOKEN, **{"X-User": "anna"}).text
    assert "Timeline" not in browser.get("/x", **TOKEN).text
    assert "Timeline" not in browser.get("/x", **TOKEN, **{"X-User": "root"}).text
    twice = "X-User: anna\r\nX-User: root\r\n"
    request = f"GET /x HTTP/1.1\r\nHost: {browser.host}\r\n{twice}"
    secret = f"X-Ast-Stream-Proxy-Token: {TOKEN['X-Ast-Stream-Proxy-Token']}\r\n"
    assert b"Timeline" not in raw(browser, f"{request}{secret}\r\n".encode()).body


def test_behind_a_proxy_requests_come_from_the_page_as_browsers_see_it(proxied: Page) -> None:
    browser = proxied.browser(**TOKEN, **{"X-User": "anna", "Host": "box.lan"})
    token = browser.token("/x")
    for origin, status in (("https://box.lan", 303), ("https://evil.example", 403)):
        answer = browser.post("/logout", {"csrf_token": token}, Origin=origin)
        assert answer.status == status
    answer = browser.get("/login?next=/health")
    assert (answer.status, answer.one("Location")) == (303, "/health")
    stranger = proxied.browser(**TOKEN)
    assert stranger.get("/login").status == 403


def test_status_and_doctor_see_whether_it_answers(page: Page) -> None:
    settings = load_settings(page.config)
    assert page_answers(settings)
    texts = [check.text for check in check_page(settings)]
    assert texts[0] == f"answers at https://127.0.0.1:{page.port}"
    assert "only-listen: listen" in texts[1]
    elsewhere = {"listen": f"127.0.0.1:{free_ports()}"}
    web = settings.web.model_copy(update=elsewhere)
    assert not page_answers(settings.model_copy(update={"web": web}))
    other = settings.model_copy(update={"state_dir": str(page.config.parent / "another")})
    assert not page_answers(other)
    assert check_page(other).__next__().status == "failed"


@pytest.mark.slow
def test_a_page_that_cannot_start_says_why(tmp_path: Path) -> None:
    port = free_ports()
    config = tmp_path / "config.yaml"
    streams = "streams: [{name: porch, source: {type: scene}}]"
    config.write_text(f"{streams}\nruntime_dir: {tmp_path}\nweb: {{listen: '127.0.0.1:{port}'}}\n")
    command = [sys.executable, "-m", "ast_stream.cli", "web", "-c", str(config)]
    with socket.create_server(("127.0.0.1", port)):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_signal_ends_it_and_a_hangup_renews_its_certificate(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = Authority(tmp_path).self_signed("first")
    second = Authority(tmp_path_factory.mktemp("second")).self_signed("second")
    with running_page(tmp_path, identity=first) as page:
        first.certificate.write_bytes(second.certificate.read_bytes())
        first.key.write_bytes(second.key.read_bytes())
        page.process.send_signal(signal.SIGHUP)
        renewed = Browser(page.port, second.client_context())
        end_s = time.monotonic() + 20
        while time.monotonic() < end_s:
            try:
                assert renewed.get("/alive").status == 200
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("the certificate is not renewed")
        os.kill(page.process.pid, signal.SIGTERM)
        assert page.process.wait(20) == 0
