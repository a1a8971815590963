"""Who sent a request: found from the settings, a login, or what a proxy says."""

from __future__ import annotations

from starlette.datastructures import Headers

from ast_stream.settings.web import WebSettings
from ast_stream.web.rights import NOBODY, Visitor


class Visitors:
    """Knows visitors by what their requests carry."""

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings

    def of(self, headers: Headers, session: str | None) -> Visitor:
        """Return who sent a request.

        Args:
            session: secret of a login, from its cookie.
        """
        if not self._settings.needs_login:
            scopes = frozenset(self._settings.without_login)
            return Visitor("somebody on this box, without login", "loopback", scopes)
        return NOBODY
