"""The page's cookies: of a login, and of a browser that has none."""

from __future__ import annotations

from starlette.datastructures import Headers

from ast_stream.settings.web import WebSettings


class Cookies:
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


def read_cookies(headers: Headers) -> dict[str, str]:
    """Return the cookies of a request; of two of one name none: one may be planted."""
    found: dict[str, str] = {}
    doubled = set()
    for part in "; ".join(headers.getlist("cookie")).split(";"):
        name, _, value = part.strip().partition("=")
        if name in found:
            doubled.add(name)
        found[name] = value
    return {name: value for name, value in found.items() if name not in doubled}
