"""Checks every request before it reaches a route, and adds headers to every response.

Checked are the Host header, the proxy's secret, the length and pace of the body, the origin, and
the CSRF token. The sender's address decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ast_stream.errors import StartupError
from ast_stream.runtime.files import read_bounded
from ast_stream.settings.web import ALIVE_PATH, BehindProxy, WebSettings
from ast_stream.web.cookies import read_cookies
from ast_stream.web.rendering import CSRF_TOKEN, NONCE
from ast_stream.web.rights import CLOSED_FOR_LACK_OF_RIGHTS, Visitor, set_visitor
from ast_stream.web.services import Services
from ast_stream.web.tokens import random_text

MAX_BODY_BYTES = 64 * 1024
BODY_S = 20.0  # for a whole body to arrive
PROXY_TOKEN_HEADER = "X-Ast-Stream-Proxy-Token"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
MIN_PROXY_TOKEN_CHARACTERS = 32
_MAX_PROXY_TOKEN_BYTES = 4096
_MAX_FIELDS = 1000
_SAFE_METHODS = ("GET", "HEAD")
_LOCALHOST = ("localhost", "127.0.0.1", "::1")
STATIC = "/static/"
_FORM = "application/x-www-form-urlencoded"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer, with which browsers hide the origin of a form
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; media-src 'self' blob:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

logger = logging.getLogger(__name__)


class _RefusedError(Exception):
    """A request is refused."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Guard:
    """ASGI middleware around the whole application.

    Args:
        show_fault: returns the response to a request whose handling has failed.
    """

    def __init__(
        self,
        app: ASGIApp,
        services: Services,
        show_fault: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._services = services
        self._show_fault = show_fault
        self._settings: WebSettings = services.settings.web
        self._proxy_token = read_proxy_token(self._settings.behind_proxy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        reply = _Reply(scope, send, self._services)
        try:
            self._expect_host(scope, headers)
            self._expect_proxy(scope, headers)
            visitor, browser = self._know(scope, headers, reply)
            if scope["type"] == "websocket":
                self._expect_origin(scope, headers)
            elif scope["method"] not in _SAFE_METHODS:
                self._expect_origin(scope, headers)
                body = await _body(headers, receive)
                self._expect_token(headers, body, browser)
                receive = _replayed(body, receive)
        except _RefusedError as refused:
            await _refuse(refused, scope, receive, reply.send)
            return
        reply.visitor = visitor
        try:
            await self._app(scope, receive, reply.send)
        except Exception as error:
            if scope["type"] != "http" or reply.has_started:
                logger.error("%s failed", scope["path"], exc_info=error)
                raise
            response = await self._show_fault(Request(scope), error)
            await response(scope, receive, reply.send)

    def _know(self, scope: Scope, headers: Headers, reply: _Reply) -> tuple[Visitor, str]:
        """Return the visitor who sent a request, and the login or browser that its CSRF tokens are
        bound to; also stores the visitor in the scope.
        """
        cookies, names = read_cookies(headers), self._services.cookies
        secret = cookies.get(names.session)
        visitor = self._services.visitors.of(headers, secret)
        browser = secret if visitor.session is not None else cookies.get(names.browser)
        if not browser:
            browser = reply.new_browser = random_text()
        set_visitor(scope, visitor)
        scope[NONCE] = random_text()
        scope[CSRF_TOKEN] = self._services.tokens.of(browser)
        return visitor, browser

    def _expect_host(self, scope: Scope, headers: Headers) -> None:
        """Refuse a host name that is not ours: an attacker may have it resolve to this address."""
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        known = {*self._settings.hosts}
        if self._settings.listen is not None:
            known.add(self._settings.address[0].lower())
        if self._settings.is_on_loopback:
            known.update(_LOCALHOST)
        # an IP address cannot be rebound, but it must be the one that was connected to
        local = (scope.get("server") or ("",))[0]
        if name is None or not (name in known or _is_address(name, local)):
            shown = ", ".join(hosts) or "none"
            text = f"this page is not known under the name {shown!r}: add it to web.hosts"
            raise _RefusedError(421, text)

    def _expect_proxy(self, scope: Scope, headers: Headers) -> None:
        if self._proxy_token is None or scope["path"] == ALIVE_PATH:
            return
        shown = headers.get(PROXY_TOKEN_HEADER, "").encode("latin-1", "replace")
        if not hmac.compare_digest(shown, self._proxy_token):
            text = f"expected the header {PROXY_TOKEN_HEADER} with the secret of "
            raise _RefusedError(403, f"{text}web.behind_proxy.token_file: ask through the proxy")

    def _expect_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse requests sent by pages of another origin."""
        origins = headers.getlist("origin")
        parts = urlsplit(origins[0]) if len(origins) == 1 else urlsplit("")
        schemes = {scope["scheme"].replace("ws", "http")}
        if self._settings.behind_proxy is not None:
            schemes.add("https")
        if parts.scheme not in schemes or parts.netloc != headers.get("host"):
            shown = ", ".join(origins) or "none"
            text = f"expected a request from a page of {headers.get('host')}, got one from {shown}"
            raise _RefusedError(403, text)

    def _expect_token(self, headers: Headers, body: bytes, browser: str) -> None:
        token = headers.get(CSRF_HEADER)
        if token is None and headers.get("content-type", "").partition(";")[0].strip() == _FORM:
            with contextlib.suppress(ValueError):
                fields = parse_qs(body.decode("latin-1"), max_num_fields=_MAX_FIELDS)
                token = fields.get(CSRF_FIELD, [None])[0]
        if token is None or not self._services.tokens.is_of(token, browser):
            text = "the token of the page does not fit: it was loaded before the last start or "
            raise _RefusedError(403, f"{text}login; load it again and repeat what you did")


class _Reply:
    """A response: adds the headers of every response, and stops when the visitor's rights end.

    Attributes:
        visitor: who it is sent to; None: not known yet.
        new_browser: value of the cookie for a browser that has none; None: it has one.
        has_started: whether the head has been sent.
    """

    def __init__(self, scope: Scope, send: Send, services: Services) -> None:
        self.visitor: Visitor | None = None
        self.new_browser: str | None = None
        self.has_started = False
        self._scope = scope
        self._send = send
        self._services = services
        self._has_ended = False

    async def send(self, message: Message) -> None:
        """Send a message, or end the response if the visitor's rights have ended."""
        kind = message["type"]
        if self._has_ended:
            return
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.has_started = True
            self._add_headers(message)
        goes_on = kind == "websocket.send" or message.get("more_body", False)
        if goes_on and not self._may_go_on():
            self._has_ended = True
            if kind == "websocket.send":
                message = {"type": "websocket.close", "code": CLOSED_FOR_LACK_OF_RIGHTS}
            else:
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _may_go_on(self) -> bool:
        return self.visitor is None or self._services.visitors.may_go_on(self.visitor)

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers.update(HEADERS)
        policy = _POLICY.format(nonce=self._scope.get(NONCE) or random_text())
        headers["Content-Security-Policy"] = policy
        is_static = self._scope["path"].startswith(STATIC)
        headers.setdefault("Cache-Control", "no-cache" if is_static else "no-store")
        is_page = headers.get("content-type", "").startswith("text/html")
        if self.new_browser is not None and is_page:
            cookie = self._services.cookies.of_browser(self.new_browser)
            headers.append("Set-Cookie", cookie)


def read_proxy_token(proxy: BehindProxy | None) -> bytes | None:
    """Return the secret that the proxy must present; None: there is no proxy.

    Raises:
        StartupError: it cannot be read, or is too short.
    """
    if proxy is None:
        return None
    try:
        token = read_bounded(Path(proxy.token_file), _MAX_PROXY_TOKEN_BYTES).strip()
    except OSError as error:
        text = f"web.behind_proxy.token_file: cannot read {proxy.token_file}: {error.strerror}"
        raise StartupError(text) from error
    if len(token) < MIN_PROXY_TOKEN_CHARACTERS:
        text = f"expected at least {MIN_PROXY_TOKEN_CHARACTERS} characters in {proxy.token_file}, "
        raise StartupError(f"web.behind_proxy.token_file: {text}got {len(token)}")
    return token


def _host_name(host: str) -> str | None:
    """Return the name or address in a Host header, without its port; None: it is invalid."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{host}")
        if parts.netloc == host and parts.username is None and parts.port != 0:
            return parts.hostname
    return None


def _is_address(name: str, local: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name) == ipaddress.ip_address(local)
    return False


async def _body(headers: Headers, receive: Receive) -> bytes:
    """Return the whole body of a request, or refuse it if it is too long or too slow."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
        raise _RefusedError(413, f"expected at most {MAX_BODY_BYTES} bytes, got {length[:20]}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _RefusedError(400, "the request was cut off")
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise _RefusedError(413, f"expected at most {MAX_BODY_BYTES} bytes, got more")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise _RefusedError(408, f"the request did not come within {BODY_S:g} s") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first yields the body that was read, then what follows it."""
    is_given = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(refused: _RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 4400 + refused.status % 100})
        return
    # the rest of the body is not read, so the connection cannot be reused
    response = PlainTextResponse(f"{refused.text}\n", refused.status, {"Connection": "close"})
    await response(scope, receive, send)
