"""Finds out who sent a request: from the settings, a login session, or a header of the proxy."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

from starlette.datastructures import Headers

from ast_stream.privacy.page_users import User, Users
from ast_stream.settings.web import WebSettings
from ast_stream.web.rights import NOBODY, Visitor
from ast_stream.web.sessions import Sessions

OPEN_ACCOUNT = "loopback"  # of every visitor on this box, if no login is required
_FORWARDED_FOR = "X-Forwarded-For"


class Visitors:
    """Identifies visitors by the headers of their requests, which the guard has checked.

    Args:
        users: who may log in or be named by the proxy.
        sessions: the open login sessions.
    """

    def __init__(self, settings: WebSettings, users: Users, sessions: Sessions) -> None:
        self._settings = settings
        self._users = users
        self._sessions = sessions

    @property
    def can_log_in(self) -> bool:
        """Whether visitors log in here: there are users, and no proxy identifies them."""
        return self._settings.needs_login and self._user_header is None

    def of(self, headers: Headers, secret: str | None) -> Visitor:
        """Return the visitor who sent a request.

        Args:
            secret: of the login session, from the cookie.
        """
        if not self._settings.needs_login:
            scopes = frozenset(self._settings.without_login)
            return Visitor("somebody on this box, without login", OPEN_ACCOUNT, scopes)
        if self._user_header is not None:
            names = headers.getlist(self._user_header)
            user = self._users.get(names[0]) if len(names) == 1 else None
            return NOBODY if user is None else _visitor(user, "through the proxy")
        session = None if secret is None else self._sessions.use(secret)
        if session is None:
            return NOBODY
        user = self._users.get(session.account)
        if user is None or user.stamp != session.stamp:  # user removed, or password changed
            self._sessions.end(session.key)
            return NOBODY
        return _visitor(user, "through a login", session.key)

    def may_go_on(self, visitor: Visitor) -> bool:
        """Return whether a visitor's rights are unchanged, for long-lived connections."""
        if visitor.account in ("", OPEN_ACCOUNT):
            return True
        user = self._users.get(visitor.account)
        if user is None or not visitor.scopes <= frozenset(user.scopes):
            return False
        if visitor.session is None:
            return True
        session = self._sessions.get(visitor.session)
        return session is not None and session.stamp == user.stamp

    def address(self, headers: Headers, peer: str) -> str:
        """Return the apparent address of a request's sender; no right may depend on it.

        Args:
            peer: the other end of the connection, which may be the proxy.
        """
        if self._settings.behind_proxy is not None:
            last = headers.get(_FORWARDED_FOR, "").rpartition(",")[2].strip()
            with suppress(ValueError):
                return str(ipaddress.ip_address(last))
        return peer

    @property
    def _user_header(self) -> str | None:
        proxy = self._settings.behind_proxy
        return None if proxy is None else proxy.user_header


def _visitor(user: User, how: str, session: str | None = None) -> Visitor:
    return Visitor(f"{user.name}, {how}", user.name, frozenset(user.scopes), session)
