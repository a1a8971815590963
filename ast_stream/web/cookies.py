"""The cookies of the page: for login sessions, and for browsers without one."""

from __future__ import annotations

from starlette.datastructures import Headers

from ast_stream.settings.web import WebSettings


class Cookies:
    """Makes the page's cookies.

    All ports of a host share their cookies, so the names contain the port. With TLS the names have
    a prefix that keeps other hosts from setting them.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._is_secure = settings.certificate is not None or settings.behind_proxy is not None
        port = 0 if settings.listen is None else settings.address[1]
        start = f"{'__Host-' if self._is_secure else ''}ast-stream-{port}"
        self.session = f"{start}-session"
        self.browser = f"{start}-browser"

    def of_browser(self, value: str) -> str:
        """Return the cookie that identifies a browser before it logs in."""
        return self._text(self.browser, value)

    def of_session(self, value: str) -> str:
        """Return the cookie of a login session, which ends when the browser is closed."""
        return self._text(self.session, value)

    def without_session(self) -> str:
        """Return a cookie that deletes the one of a login session."""
        return f"{self._text(self.session, '')}; Max-Age=0"

    def _text(self, name: str, value: str) -> str:
        secure = "; Secure" if self._is_secure else ""
        return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}"


def read_cookies(headers: Headers) -> dict[str, str]:
    """Return the cookies of a request, without duplicated names, one of which may be planted."""
    found: dict[str, str] = {}
    doubled = set()
    for part in "; ".join(headers.getlist("cookie")).split(";"):
        name, _, value = part.strip().partition("=")
        if name in found:
            doubled.add(name)
        found[name] = value
    return {name: value for name, value in found.items() if name not in doubled}
