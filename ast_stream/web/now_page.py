"""The page Now, and its two live connections."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ast_stream.history.records import EventQuery, EventRecord
from ast_stream.units import format_time
from ast_stream.web.browser_queue import BrowserQueue
from ast_stream.web.live import LiveHub
from ast_stream.web.live_messages import TOP_SCORES
from ast_stream.web.moments import utc_offset_s
from ast_stream.web.rendering import render
from ast_stream.web.rights import requires
from ast_stream.web.services import services_of
from ast_stream.web.stored_data import NoHistoryError, StoredData

SHOWN_EVENTS = 30
TRY_AGAIN_LATER = 1013  # WebSocket close code
_MAX_WISH_CHARACTERS = 64 * 1024
_KEEP_ALIVE_S = 15.0


@requires("view")
def now(request: Request) -> Response:
    """Show the current state of all streams."""
    services = services_of(request)
    hub = services.hub
    # read first: everything newer arrives by the event stream
    place = hub.place
    health = dict(hub.health)
    configured = [stream.name for stream in services.settings.streams]
    names = list(dict.fromkeys([*configured, *sorted(health)]))
    return render(
        request,
        "now.html",
        place=place,
        utc_offset_s=utc_offset_s(time.time_ns()),
        streams=[{"name": name, "health": health.get(name)} for name in names],
        n_top=TOP_SCORES if hub.labels is None else min(TOP_SCORES, len(hub.labels)),
        open_events=[json.dumps(body) for body in list(hub.open_events.values())],
        events=newest_events(services.past, hub),
        is_blank=services.settings.privacy == "sensor",
    )


@requires("view")
async def event_stream(request: Request) -> Response:
    """Send server-sent events until the browser disconnects."""
    last_id = request.headers.get("last-event-id") or request.query_params.get("after")
    stream = services_of(request).hub.event_stream(last_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@requires("view")
async def pictures(socket: WebSocket) -> None:
    """Send live pictures of the streams that the browser shows."""
    hub: LiveHub = services_of(socket).hub
    await socket.accept()
    with hub.watching() as listener:
        if listener is None:
            await socket.close(TRY_AGAIN_LATER)
            return
        reading = asyncio.create_task(_read_wishes(socket, listener))
        try:
            while not reading.done():
                message = await listener.next(_KEEP_ALIVE_S)
                if message is None:
                    continue
                if isinstance(message.data, bytes):
                    await socket.send_bytes(message.data)
                else:
                    await socket.send_text(message.data)
        except (WebSocketDisconnect, RuntimeError):
            pass  # it disconnected during a send
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading


async def _read_wishes(socket: WebSocket, listener: BrowserQueue) -> None:
    """Apply the browser's wishes until it disconnects or sends an invalid one."""
    with suppress(WebSocketDisconnect):
        while (streams := parse_wish(await socket.receive_text())) is not None:
            listener.streams = streams
        await socket.close(1003)
    listener.wake()


def parse_wish(text: str) -> frozenset[str] | None:
    """Return the streams whose pictures a browser wants; None: the text is invalid."""
    if len(text) > _MAX_WISH_CHARACTERS:
        return None
    try:
        wish = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match wish:
        case {"streams": [*names]} if all(isinstance(name, str) for name in names):
            return frozenset(names)
    return None


def newest_events(past: StoredData, hub: LiveHub) -> list[dict[str, Any]]:
    """Return the last events, newest first: from the history, or else those since the start."""
    try:
        records = past.history.events(EventQuery(limit=SHOWN_EVENTS))
    except NoHistoryError:
        found: dict[str, dict[str, Any]] = {}
        for message in hub.recent(10 * SHOWN_EVENTS):
            if message.kind == "event":
                found[str(message.body.get("id"))] = message.body
        return list(found.values())[: -SHOWN_EVENTS - 1 : -1]
    return [_as_body(record) for record in records]


def _as_body(record: EventRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "type": record.state,
        "stream": record.stream,
        "class": record.class_,
        "label": record.label,
        "peak": record.peak,
        "onset": format_time(record.onset_ns),
        "duration_s": record.duration_s,
    }


ROUTES: list[BaseRoute] = [
    Route("/", now),
    Route("/live/events", event_stream),
    WebSocketRoute("/live/pictures", pictures),
]
