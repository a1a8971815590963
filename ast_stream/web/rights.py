"""Authorisation: who a visitor is, what the visitor may do, and the right that each route needs.

Every endpoint declares the right it needs with `@requires(scope)`, or that it needs none with
`@public`; `app.create_app` refuses to start with an endpoint that declares neither.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from ast_stream.errors import AstStreamError
from ast_stream.settings.web import SCOPES, Scope

PUBLIC: Literal["public"] = "public"
CLOSED_FOR_LACK_OF_RIGHTS = 4403  # WebSocket close code
_NEEDS = "_ast_stream_needs"
_VISITOR = "ast_stream.visitor"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True)
class Visitor:
    """Who sent a request.

    Attributes:
        name: in words, for the audit log.
        account: user name; empty: not logged in.
        scopes: the visitor's rights.
        session: digest of the login session; None: there is none.
    """

    name: str
    account: str
    scopes: frozenset[Scope]
    session: str | None = None

    def may(self, scope: Scope) -> bool:
        """Return whether the visitor has a right."""
        return scope in self.scopes


NOBODY = Visitor("somebody who has not logged in", "", frozenset())


class DeniedError(AstStreamError):
    """A visitor lacks a right.

    Attributes:
        scope: the right.
        needs_login: the visitor is not logged in, so a login may help.
    """

    def __init__(self, text: str, scope: Scope, *, needs_login: bool) -> None:
        super().__init__(text)
        self.scope = scope
        self.needs_login = needs_login


def requires(scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Let only visitors with a right reach an endpoint, of requests or of a WebSocket."""
    if scope not in SCOPES:
        raise ValueError(f"expected one of {', '.join(SCOPES)}, got {scope!r}")

    def decorate(endpoint: Endpoint) -> Endpoint:
        guarded: Callable[..., Any]
        if inspect.iscoroutinefunction(endpoint):

            @functools.wraps(endpoint)
            async def guarded(connection: HTTPConnection) -> Any:
                if isinstance(connection, WebSocket) and not visitor_of(connection).may(scope):
                    return await connection.close(CLOSED_FOR_LACK_OF_RIGHTS)
                expect(visitor_of(connection), scope)
                return await endpoint(connection)
        else:  # Starlette runs it in a thread

            @functools.wraps(endpoint)
            def guarded(connection: HTTPConnection) -> Any:
                expect(visitor_of(connection), scope)
                return endpoint(connection)

        setattr(guarded, _NEEDS, scope)
        return guarded  # type: ignore[return-value]

    return decorate


def public(endpoint: Endpoint) -> Endpoint:
    """Declare that an endpoint needs no right."""
    setattr(endpoint, _NEEDS, PUBLIC)
    return endpoint


def need_of(endpoint: Callable[..., Any]) -> Scope | Literal["public"] | None:
    """Return the right that an endpoint has declared; None: it has declared nothing."""
    found: Scope | Literal["public"] | None = getattr(endpoint, _NEEDS, None)
    return found


def expect(visitor: Visitor, scope: Scope) -> None:
    """Refuse a visitor without a right.

    Raises:
        DeniedError: the visitor lacks it.
    """
    if visitor.may(scope):
        return
    if not visitor.account:
        raise DeniedError("log in first", scope, needs_login=True)
    text = f"{visitor.name} lacks the right {scope!r} ({SCOPES[scope]})"
    raise DeniedError(text, scope, needs_login=False)


def visitor_of(connection: HTTPConnection) -> Visitor:
    """Return the visitor who sent a request, as determined by the guard."""
    found: Visitor = connection.scope.get(_VISITOR, NOBODY)
    return found


def set_visitor(scope: Any, visitor: Visitor) -> None:
    """Store the visitor who sent a request in its ASGI scope."""
    scope[_VISITOR] = visitor
