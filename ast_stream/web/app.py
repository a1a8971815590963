"""The ASGI application: its routes behind one guard, and its error pages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from ast_stream.errors import AstStreamError, UsageError
from ast_stream.settings.paths import page_id
from ast_stream.settings.web import ALIVE_PATH
from ast_stream.version import __version__
from ast_stream.web import (
    clip_routes,
    event_pages,
    health_page,
    login_page,
    now_page,
    timeline_page,
    tune_page,
)
from ast_stream.web.guard import Guard
from ast_stream.web.login_page import LOGIN
from ast_stream.web.rendering import NavigationEntry, render
from ast_stream.web.rights import PUBLIC, DeniedError, need_of, public, visitor_of
from ast_stream.web.services import Services, services_of

STATIC = "/static"
# by name in the navigation; the first route of each is the page itself
PAGES: dict[str, list[BaseRoute]] = {
    "Now": now_page.ROUTES,
    "Timeline": timeline_page.ROUTES,
    "Events": event_pages.ROUTES,
    "Tune": tune_page.ROUTES,
    "Health": health_page.ROUTES,
}
_SENTENCES = {
    404: "there is no such page",
    405: "this page cannot be asked for in that way",
}

logger = logging.getLogger(__name__)


def routes(services: Services) -> list[BaseRoute]:
    """Return all routes; each page module has its own."""
    return [
        Route(ALIVE_PATH, alive),
        *login_page.ROUTES,
        *(route for routes_of_page in PAGES.values() for route in routes_of_page),
        # on a sensor no clip can be had, whatever is in the folder
        *([] if services.settings.privacy == "sensor" else clip_routes.ROUTES),
        Mount(STATIC, StaticFiles(packages=[("ast_stream.web", "static")]), name="static"),
    ]


def navigation() -> tuple[NavigationEntry, ...]:
    """Return an entry for each page; it needs the right that the page needs."""
    entries = []
    for name, (page, *_) in PAGES.items():
        assert isinstance(page, Route)
        need = need_of(page.endpoint)
        assert need is not None
        assert need != PUBLIC
        entries.append(NavigationEntry(name, page.path, need))
    return tuple(entries)


def create_app(services: Services) -> Starlette:
    """Return the application.

    Raises:
        ValueError: a route does not say which right it needs.
    """
    found = routes(services)
    for route in found:
        _expect_need(route)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        services.hub.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await asyncio.to_thread(services.hub.stop)

    app = Starlette(
        lifespan=life,
        routes=found,
        middleware=[Middleware(Guard, services=services, show_fault=_show_fault)],
        exception_handlers={
            DeniedError: _show_denied,
            AstStreamError: _show_sentence,
            HTTPException: _show_http_error,
        },
    )
    app.state.services = services
    app.state.navigation = navigation()
    return app


def _expect_need(route: BaseRoute) -> None:
    if isinstance(route, Mount) and isinstance(route.app, StaticFiles):
        return  # serves only files of the package
    if not isinstance(route, Route | WebSocketRoute) or need_of(route.endpoint) is None:
        raise ValueError(f"expected @requires(…) or @public at each route, got none at {route}")


@public
async def alive(request: Request) -> Response:
    """Answer that this process is alive, and identify its page; reveals nothing about the box."""
    page = page_id(services_of(request).settings)
    return JSONResponse({"v": 1, "program": "ast-stream", "version": __version__, "page": page})


async def _show_denied(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeniedError)
    visitor = visitor_of(request)
    if error.scope == "listen" and visitor.account:
        event_id = str(request.path_params.get("id", ""))
        audit = services_of(request).clip_audit
        await asyncio.to_thread(audit.record_refusal, visitor, event_id, str(error))
    if error.needs_login and request.method == "GET" and _wants_page(request):
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{LOGIN}?next={quote(path, safe='')}", 303)
    return _error(request, 401 if error.needs_login else 403, str(error))


async def _show_sentence(request: Request, error: Exception) -> Response:
    return _error(request, 400 if isinstance(error, UsageError) else 503, str(error))


async def _show_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = _SENTENCES.get(error.status_code, error.detail)
    return _error(request, error.status_code, text, dict(error.headers or {}))


async def _show_fault(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(request, 500, "this failed; the log of the page says why")


def _error(
    request: Request, status: int, text: str, headers: dict[str, str] | None = None
) -> Response:
    """Return an error response: a page or, for programs, JSON."""
    if not _wants_page(request):
        return JSONResponse({"v": 1, "error": text}, status, headers)
    return render(request, "error.html", status=status, headers=headers, text=text)


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")
