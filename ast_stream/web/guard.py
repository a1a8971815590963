"""What every request passes before a route sees it, and what every response carries.

The host it names, the proxy's secret, the length and pace of its body, where it was sent from, and
the token of the page it was sent from. Nothing is decided by the address of the sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ast_stream.errors import StartupError
from ast_stream.runtime.files import read_bounded
from ast_stream.settings.web import BehindProxy, WebSettings
from ast_stream.web.rendering import CSRF_TOKEN, NONCE
from ast_stream.web.rights import set_visitor
from ast_stream.web.services import Services
from ast_stream.web.tokens import random_text

MAX_BODY_BYTES = 64 * 1024
BODY_S = 20.0  # for all of a body to come
PROXY_TOKEN_HEADER = "X-Ast-Stream-Proxy-Token"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
MIN_PROXY_TOKEN_CHARACTERS = 32
_MAX_PROXY_TOKEN_BYTES = 4096
_MAX_FIELDS = 1000
_SAFE_METHODS = ("GET", "HEAD")
_LOCALHOST = ("localhost", "127.0.0.1", "::1")
_STATIC = "/static/"
_FORM = "application/x-www-form-urlencoded"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: with it browsers hide where a form was sent from
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
    """A request is not passed on."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services
        self._settings: WebSettings = services.settings.web
        self._proxy_token = read_proxy_token(self._settings.behind_proxy)
        self.cookies = CookieNames(self._settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = _cookies(headers)
        new_browser = None if self.cookies.browser in cookies else random_text()
        session = cookies.get(self.cookies.session)
        browser = session or cookies.get(self.cookies.browser) or new_browser or ""
        scope[NONCE] = random_text()
        scope[CSRF_TOKEN] = self._services.tokens.of(browser)
        send = self._with_headers(scope, send, new_browser)
        try:
            self._expect_host(scope, headers)
            self._expect_proxy(headers)
            set_visitor(scope, self._services.visitors.of(headers, session))
            if scope["type"] == "websocket":
                self._expect_origin(scope, headers)
            elif scope["method"] not in _SAFE_METHODS:
                self._expect_origin(scope, headers)
                body = await _body(headers, receive)
                self._expect_token(headers, body, browser)
                receive = _replayed(body, receive)
        except _RefusedError as refused:
            await _refuse(refused, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _expect_host(self, scope: Scope, headers: Headers) -> None:
        """Refuse a name that is not ours: a page of others may have it point here."""
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        known = {*self._settings.hosts}
        if self._settings.listen is not None:
            known.add(self._settings.address[0].lower())
        if self._settings.is_on_loopback:
            known.update(_LOCALHOST)
        # an address cannot be made to point elsewhere; but it has to be the one connected to
        local = (scope.get("server") or ("",))[0]
        if name is None or not (name in known or _is_address(name, local)):
            shown = ", ".join(hosts) or "none"
            text = f"this page is not known under the name {shown!r}: add it to web.hosts"
            raise _RefusedError(421, text)

    def _expect_proxy(self, headers: Headers) -> None:
        if self._proxy_token is None:
            return
        shown = headers.get(PROXY_TOKEN_HEADER, "").encode("latin-1", "replace")
        if not hmac.compare_digest(shown, self._proxy_token):
            text = f"expected the header {PROXY_TOKEN_HEADER} with the secret of "
            raise _RefusedError(403, f"{text}web.behind_proxy.token_file: ask through the proxy")

    def _expect_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse what a page of others has sent."""
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

    def _with_headers(self, scope: Scope, send: Send, new_browser: str | None) -> Send:
        """Return `send` with what every response carries."""
        is_static = scope["path"].startswith(_STATIC)

        async def with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["Content-Security-Policy"] = _POLICY.format(nonce=scope[NONCE])
                headers.setdefault("Cache-Control", "no-cache" if is_static else "no-store")
                is_page = headers.get("content-type", "").startswith("text/html")
                if new_browser is not None and is_page:
                    headers.append("Set-Cookie", self.cookies.of_browser(new_browser))
            await send(message)

        return with_headers


class CookieNames:
    """Names and texts of the page's cookies.

    Cookies are shared by all ports of a host: names hold the port. With TLS they are such that no
    other host can set them.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._is_secure = settings.certificate is not None or settings.behind_proxy is not None
        port = 0 if settings.listen is None else settings.address[1]
        start = f"{'__Host-' if self._is_secure else ''}ast-stream-{port}"
        self.session = f"{start}-session"
        self.browser = f"{start}-browser"

    def of_browser(self, value: str) -> str:
        """Return the cookie by which a browser is known before a login."""
        return self._text(self.browser, value)

    def of_session(self, value: str) -> str:
        """Return the cookie of a login; the browser forgets it when it is closed."""
        return self._text(self.session, value)

    def without_session(self) -> str:
        """Return the cookie that removes that of a login."""
        return f"{self._text(self.session, '')}; Max-Age=0"

    def _text(self, name: str, value: str) -> str:
        secure = "; Secure" if self._is_secure else ""
        return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}"


def read_proxy_token(proxy: BehindProxy | None) -> bytes | None:
    """Return the secret that the proxy shows; None: there is no proxy.

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
    """Return the name or address in a Host header, without its port; None: there is none."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{host}")
        if parts.netloc == host and parts.username is None and parts.port != 0:
            return parts.hostname
    return None


def _is_address(name: str, local: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name) == ipaddress.ip_address(local)
    return False


def _cookies(headers: Headers) -> dict[str, str]:
    """Return the cookies of a request; of two of one name none: one may be planted."""
    found: dict[str, str] = {}
    doubled = set()
    for part in "; ".join(headers.getlist("cookie")).split(";"):
        name, _, value = part.strip().partition("=")
        if name in found:
            doubled.add(name)
        found[name] = value
    return {name: value for name, value in found.items() if name not in doubled}


async def _body(headers: Headers, receive: Receive) -> bytes:
    """Return the whole body of a request, if it is short and comes soon."""
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
    """Return a `receive` that gives the body that was read, then what comes after it."""
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
    # whatever is left of the body is not read: the connection cannot be used again
    response = PlainTextResponse(f"{refused.text}\n", refused.status, {"Connection": "close"})
    await response(scope, receive, send)
