"""Pages rendered from templates, and the helpers that all templates share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from ast_stream.settings.web import Scope
from ast_stream.units import format_time
from ast_stream.version import __version__
from ast_stream.web.moments import clock, day_and_clock
from ast_stream.web.rights import visitor_of

NONCE = "ast_stream.nonce"  # key of the ASGI scope: of style elements that a script makes
CSRF_TOKEN = "ast_stream.csrf_token"  # key of the ASGI scope


@dataclass(frozen=True)
class NavigationEntry:
    """One entry of the navigation.

    Attributes:
        needs: the right to open it.
    """

    name: str
    path: str
    needs: Scope


def render(
    request: Request,
    template: str,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """Return a page rendered from a template that extends `base.html`.

    Besides `context`, templates can use: `visitor` (its `may`), `entries` of the navigation that
    the visitor may open, `path` of the request, `csrf_token`, `nonce` for style elements, and
    `version`.
    """
    visitor = visitor_of(request)
    text = (
        _environment()
        .get_template(template)
        .render(
            visitor=visitor,
            entries=[entry for entry in request.app.state.navigation if visitor.may(entry.needs)],
            path=request.url.path,
            csrf_token=request.scope.get(CSRF_TOKEN, ""),
            nonce=request.scope.get(NONCE, ""),
            version=__version__,
            **context,
        )
    )
    return HTMLResponse(text, status, headers)


def sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop; a name at its beginning is kept."""
    first = text.partition(" ")[0]
    is_name = first.endswith(":") or any(mark in first for mark in "_./")
    return f"{text if is_name else text[:1].upper() + text[1:]}."


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ast_stream.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": clock,
        "day_and_clock": day_and_clock,
        "rfc3339": format_time,
        "sentence": sentence,
    }
    return environment
