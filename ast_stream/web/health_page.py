"""The page Health: status, gaps, alerts and deliveries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from ast_stream.alerts.rules.field_types import parse_duration
from ast_stream.box_status import BoxStatus, follower_state
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.messages.administration import (
    AcknowledgeRequest,
    Administered,
    AdministrationRequest,
    DropRequest,
    RetryRequest,
    SnoozeRequest,
    made,
)
from ast_stream.settings.storage import DAY_S
from ast_stream.units import NS_PER_SECOND, samples_to_seconds, seconds_to_ns
from ast_stream.web.moments import day_and_clock
from ast_stream.web.rendering import render
from ast_stream.web.rights import requires, visitor_of
from ast_stream.web.services import Services, services_of
from ast_stream.web.stored_data import NoHistoryError, StoredData

SHOWN_GAPS = 50
MAX_NUMBER_CHARACTERS = 15
HEALTH, NOW = "/health", "/health/now"
_SAID = "said: "  # prefix of the text that such a token signs


@requires("view")
def health(request: Request) -> Response:
    """Show the state of the box."""
    services = services_of(request)
    return render(
        request,
        "health.html",
        **_now(services),
        **_gaps(services.past),
        **_desk(services),
        said=_what_was_said(request),
        has_failed=request.query_params.get("failed") == "1",
    )


@requires("view")
def health_now(request: Request) -> Response:
    """Show the part of the page that changes each second."""
    return render(request, "health_now.html", **_now(services_of(request)))


def _what_was_said(request: Request) -> str:
    """Return the answer in the redirect's URL; empty if its token shows that it is forged."""
    said = request.query_params.get("said", "")
    mark = request.query_params.get("mark", "")
    return said if services_of(request).tokens.is_of(mark, _SAID + said) else ""


def _now(services: Services) -> dict[str, Any]:
    look = services.box.latest()
    if look is None:
        return {"problems": ["nothing has answered yet"], "looked": None}
    boxes = look.found.boxes
    return {
        "problems": look.found.problems,
        "workers": [(name, box) for name, box in boxes.items()],
        "alerts_process": next((box.alerts for box in boxes.values() if box.alerts), None),
        "follower_state": follower_state,
        "recorder": next((box.recorder for box in boxes.values() if box.recorder), None),
        "forward": next((box.forward for box in boxes.values() if box.forward), None),
        "streams": [(name, stream, open_events(box, name)) for box in boxes.values()
                    for name, stream in box.streams.items()],
        "looked": look.time_ns,
        "lost_s": samples_to_seconds,
    }  # fmt: skip


def open_events(box: BoxStatus, stream: str) -> str:
    """Return the classes of the open events of a stream."""
    return ", ".join(event.label for event in box.events if event.stream == stream) or "none"


def _gaps(past: StoredData) -> dict[str, Any]:
    since_ns = time.time_ns() - seconds_to_ns(DAY_S)
    try:
        found = past.history.gaps(since_ns=since_ns)
    except NoHistoryError as error:
        return {"gaps": [], "n_gaps": 0, "no_gaps": str(error)}
    newest = sorted(found, key=lambda gap: gap.start_ns, reverse=True)
    return {
        "gaps": [(gap, samples_to_seconds(gap.samples)) for gap in newest[:SHOWN_GAPS]],
        "n_gaps": len(newest),
        "no_gaps": None,
    }


def _desk(services: Services) -> dict[str, Any]:
    if not services.alerts.has_rules:
        return {"desk": None, "no_desk": "there are no rules, so nothing is delivered", "rules": []}
    try:
        return {"desk": services.alerts.look(), "no_desk": None, "rules": services.alerts.rules()}
    except AstStreamError as error:
        return {"desk": None, "no_desk": str(error), "rules": []}


@requires("administrate")
async def administrate(request: Request) -> Response:
    """Acknowledge, snooze, retry or drop, as `ast-stream ack`, `snooze` and `outbox` do."""
    form = await request.form()
    wanted = request.path_params["act"]
    make = _REQUESTS.get(wanted)
    if make is None:
        raise UsageError(f"expected one of {', '.join(_REQUESTS)}, got {wanted!r}")
    return await run_in_threadpool(_administrate, request, make(form))


def _administrate(request: Request, wanted: tuple[AdministrationRequest, str]) -> Response:
    services = services_of(request)
    asked, words = wanted
    services.clip_audit.record_act(visitor_of(request), words)
    try:
        said, has_failed = _said(asked, services.alerts.ask(asked)), False
    except AstStreamError as error:
        said, has_failed = str(error), True
    query = {"said": said, "mark": services.tokens.of(_SAID + said), "failed": str(int(has_failed))}
    return RedirectResponse(f"{HEALTH}?{urlencode(query)}", 303)


def _said(asked: AdministrationRequest, answer: Administered) -> str:
    n_rows = answer.deliveries
    n_changed = "1 delivery" if n_rows == 1 else f"{n_rows} deliveries"
    match asked:
        case AcknowledgeRequest():
            return f"acknowledged; {n_changed} dropped"
        case SnoozeRequest() if asked.for_s == 0:
            return f"rule {asked.rule} is snoozed no longer"
        case SnoozeRequest():
            until = day_and_clock(answer.until_ns or 0)
            return f"rule {asked.rule} is snoozed until {until}; {n_changed} held back"
        case RetryRequest():
            return f"{n_changed} tried again"
    return f"{n_changed} dropped"


def _acknowledge(form: FormData) -> tuple[AdministrationRequest, str]:
    if not _text(form, "alert"):
        raise UsageError("alert: expected the id of one, got none")
    asked = made(AcknowledgeRequest, alert=_text(form, "alert"))
    return asked, f"acknowledge alert {asked.alert}"


def _snooze(form: FormData) -> tuple[AdministrationRequest, str]:
    try:
        for_s = parse_duration(_text(form, "for")) / NS_PER_SECOND
    except ValueError as error:
        raise UsageError(f"for: {error}") from error
    asked = made(SnoozeRequest, rule=_text(form, "rule"), for_s=for_s)
    return asked, f"snooze rule {asked.rule} for {asked.for_s:g} s"


def _retry(form: FormData) -> tuple[AdministrationRequest, str]:
    asked = made(RetryRequest, numbers=_numbers(form))
    return asked, f"retry {_which(asked.numbers)}"


def _drop(form: FormData) -> tuple[AdministrationRequest, str]:
    asked = made(DropRequest, numbers=_numbers(form))
    return asked, f"drop {_which(asked.numbers)}"


def _numbers(form: FormData) -> list[int]:
    """Return the delivery numbers in a form; empty if the form says that it means all."""
    texts = [value for value in form.getlist("number") if isinstance(value, str)]
    if not all(text.isdecimal() and len(text) <= MAX_NUMBER_CHARACTERS for text in texts):
        raise UsageError(f"number: expected those of deliveries, got {', '.join(texts)!r}")
    if bool(texts) == (_text(form, "all") == "1"):
        raise UsageError("expected numbers of deliveries, or all=1")
    return [int(text) for text in texts]


def _which(numbers: list[int]) -> str:
    return f"deliveries {', '.join(map(str, numbers))}" if numbers else "all deliveries"


def _text(form: FormData, field: str) -> str:
    value = form.get(field)
    return value if isinstance(value, str) else ""


_REQUESTS: dict[str, Callable[[FormData], tuple[AdministrationRequest, str]]] = {
    "acknowledge": _acknowledge,
    "snooze": _snooze,
    "retry": _retry,
    "drop": _drop,
}

ROUTES: list[BaseRoute] = [
    Route(HEALTH, health),
    Route(NOW, health_now),
    Route(f"{HEALTH}/{{act}}", administrate, methods=["POST"]),
]
