"""The pages for logging in and out."""

from __future__ import annotations

import math
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from ast_stream.privacy.page_users import MAX_NAME_CHARACTERS
from ast_stream.web.logins import LoginError
from ast_stream.web.rendering import render
from ast_stream.web.rights import public, visitor_of
from ast_stream.web.services import services_of

LOGIN, LOGOUT = "/login", "/logout"


@public
async def show_login(request: Request) -> Response:
    """Return the login form; visitors who need none are redirected."""
    after = local_path(request.query_params.get("next"))
    services = services_of(request)
    if visitor_of(request).account:
        return RedirectResponse(after, 303)
    if not services.visitors.can_log_in:
        text = "the proxy in front of this page does not name a user whom this page knows"
        return render(request, "error.html", status=403, text=text)
    has_users = len(services.users) > 0
    return render(request, "login.html", after=after, name="", error=None, has_users=has_users)


@public
async def log_in(request: Request) -> Response:
    """Begin a login session with a new secret, and end the browser's previous session."""
    services = services_of(request)
    form = await request.form()
    after = local_path(_text(form, "next"))
    name, password = _text(form, "name").strip(), _text(form, "password")
    if not services.visitors.can_log_in:
        return RedirectResponse(after, 303)
    peer = "" if request.client is None else request.client.host
    address = services.visitors.address(request.headers, peer)
    try:
        secret = await services.logins.begin(name, password, address)
    except LoginError as error:
        wait: dict[str, Any] = {}
        if error.wait_s is not None:
            wait = {"headers": {"Retry-After": str(math.ceil(error.wait_s))}}
        return render(
            request,
            "login.html",
            status=error.status,
            after=after,
            name=name[:MAX_NAME_CHARACTERS],
            error=str(error),
            has_users=True,
            **wait,
        )
    _end_session(request)
    response = RedirectResponse(after, 303)
    response.headers.append("Set-Cookie", services.cookies.of_session(secret))
    return response


@public
async def log_out(request: Request) -> Response:
    """End the login session."""
    _end_session(request)
    response = RedirectResponse(LOGIN, 303)
    response.headers.append("Set-Cookie", services_of(request).cookies.without_session())
    return response


def local_path(path: str | None) -> str:
    """Return a path if it is on this site; otherwise `/`, since a link may lead elsewhere."""
    is_ours = path is not None and path.startswith("/") and not path.startswith(("//", "/\\"))
    if (
        path is None
        or not is_ours
        or any(ord(character) < 0x21 or character == "\\" for character in path)
    ):
        return "/"
    return path


def _end_session(request: Request) -> None:
    visitor = visitor_of(request)
    if visitor.session is not None:
        services_of(request).sessions.end(visitor.session)


def _text(form: FormData, field: str) -> str:
    value = form.get(field)
    return value if isinstance(value, str) else ""


ROUTES: list[BaseRoute] = [
    Route(LOGIN, show_login, methods=["GET"]),
    Route(LOGIN, log_in, methods=["POST"]),
    Route(LOGOUT, log_out, methods=["POST"]),
]
