"""The event pages: the list for reviewing, and one event with its clip, scores and verdicts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from ast_stream.errors import UsageError
from ast_stream.history.records import (
    VERDICTS,
    AlertQuery,
    EventRecord,
    Verdict,
    VerdictRecord,
)
from ast_stream.labels import slug
from ast_stream.units import NS_PER_SECOND
from ast_stream.web.event_filter import (
    PAGE_EVENTS,
    VERDICT_CHOICES,
    EventFilter,
    format_key,
    parse_key,
)
from ast_stream.web.event_scores import event_scores, moments_around
from ast_stream.web.rendering import render
from ast_stream.web.rights import requires, visitor_of
from ast_stream.web.services import Services, services_of
from ast_stream.web.stored_data import StoredData, clip_file

MAX_NOTE_CHARACTERS = 500
VERDICT_WORDS: dict[Verdict, str] = {
    "right": "right",
    "wrong": "wrong",
    "other": "another class",
    "unsure": "unsure",
}


@requires("view")
def events(request: Request) -> Response:
    """Show a list of events; for htmx, the next part of it."""
    services = services_of(request)
    past = services.past
    asked = EventFilter.of(request.query_params)
    found = past.history.events(asked.query(after=parse_key(request.query_params.get("after"))))
    more = asked.address("/events", after=format_key(found[-1].key)) if found else ""
    context: dict[str, Any] = {
        "events": found,
        "more": more if len(found) == PAGE_EVENTS else "",
        "asked": asked,
        "words": VERDICT_WORDS,
    }
    if request.headers.get("hx-request") == "true":
        return render(request, "event_rows.html", **context)
    streams, classes = past.history.names()
    return render(
        request,
        "events.html",
        streams=streams,
        classes=_with_labels(classes, services.hub.labels or ()),
        verdicts=VERDICT_CHOICES,
        **context,
    )


@requires("view")
def event(request: Request) -> Response:
    """Show one event."""
    services = services_of(request)
    past = services.past
    found = _event(past, request)
    asked = EventFilter.of(request.query_params)
    return render(
        request,
        "event.html",
        event=found,
        clips=[
            {
                "part": clip.part,
                "seconds": (clip.stop_sample - clip.start_sample) / 16_000,
                "starts_s": (clip.start_ns - found.onset_ns) / NS_PER_SECOND,
                "format": clip.format,
                "size_kb": clip.size_bytes / 1000,
                "note": clip.note,
                "is_there": clip_file(services.clips, clip.path) is not None,
            }
            for clip in past.history.clips(found.id)
        ],
        alerts=past.history.alerts(AlertQuery(event_id=found.id, limit=20)),
        verdicts=past.history.verdicts(found.id),
        words=VERDICT_WORDS,
        way=way_of(found),
        asked=asked,
        older=_neighbour(past, found, asked, newest_first=True),
        newer=_neighbour(past, found, asked, newest_first=False),
        labels=_labels(services),
        no_clips=_why_no_clip(services),
    )


@requires("view")
def scores(request: Request) -> Response:
    """Return the logged scores around an event."""
    past = services_of(request).past
    found = _event(past, request)
    spans = past.scores(found.stream, *moments_around(found))
    return JSONResponse(event_scores(found, spans).to_json(found.duration_s))


@requires("review")
async def add_verdict(request: Request) -> Response:
    """Store a visitor's verdict on an event, and redirect to the next event."""
    form = await request.form()
    verdict = str(form.get("verdict", ""))
    label = str(form.get("label", "")).strip() or None
    note = str(form.get("note", "")).strip()
    return await run_in_threadpool(_add_verdict, request, verdict, label, note)


def _add_verdict(request: Request, verdict: str, label: str | None, note: str) -> Response:
    past = services_of(request).past
    found = _event(past, request)
    if verdict not in VERDICTS:
        raise UsageError(f"verdict: expected one of {', '.join(VERDICTS)}, got {verdict[:40]!r}")
    if len(note) > MAX_NOTE_CHARACTERS:
        text = f"expected at most {MAX_NOTE_CHARACTERS} characters, got {len(note)}"
        raise UsageError(f"note: {text}")
    past.add_verdict(
        VerdictRecord(
            event_id=found.id,
            verdict=verdict,
            label=label if verdict == "other" else None,
            by=visitor_of(request).name,
            time_ns=time.time_ns(),
            note=note,
        )
    )
    asked = EventFilter.of(request.query_params)
    following = _neighbour(past, found, asked, newest_first=True)
    return RedirectResponse(following or asked.address(f"/events/{found.id}"), 303)


def way_of(event: EventRecord) -> list[dict[str, Any]]:
    """Return the latency from sound to message by stage, in seconds; empty if not known.

    Until `captured` the sound has to last long enough; then its audio waits for a window and is
    scored; then the message is written and published.
    """
    moments = (event.onset_ns, event.captured_ns, event.scored_ns, event.published_ns)
    if any(moment is None for moment in moments):
        return []
    known = [moment for moment in moments if moment is not None]
    names = ("sound until it was certain", "captured to scored", "scored to published")
    parts_s = [(stop - start) / NS_PER_SECOND for start, stop in pairwise(known)]
    total_s = max(sum(max(0.0, part) for part in parts_s), 1e-9)
    start, found = 0.0, []
    for name, part_s in zip(names, parts_s, strict=True):
        width = 100 * max(0.0, part_s) / total_s
        found.append({"name": name, "seconds": part_s, "start": start, "width": width})
        start += width
    return found


def _event(past: StoredData, request: Request) -> EventRecord:
    found = past.history.event(str(request.path_params["id"]))
    if found is None:
        raise HTTPException(404, "there is no such event, or it is no longer kept")
    return found


def _neighbour(
    past: StoredData, event: EventRecord, asked: EventFilter, *, newest_first: bool
) -> str | None:
    """Return the URL of the next event in the visitor's list."""
    query = asked.query(after=event.key, limit=1, newest_first=newest_first)
    found = past.history.events(query)
    return asked.address(f"/events/{found[0].id}") if found else None


def _with_labels(slugs: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Return the labels of classes by their slugs."""
    names = {slug(label): label for label in labels}
    return {name: names.get(name, name) for name in slugs}


def _labels(services: Services) -> Sequence[str]:
    """Return the classes that a visitor can choose from."""
    return services.hub.labels or services.past.history.names()[1]


def _why_no_clip(services: Services) -> str:
    settings = services.settings
    if settings.privacy == "sensor":
        return "with privacy: sensor no audio is kept"
    if settings.recorder is None or not settings.recorder.clips:
        return "no clips are kept: `recorder.clips` of the configuration names none"
    return "no clip was kept of this event: no policy names it, or it was removed since"


ROUTES: list[BaseRoute] = [
    Route("/events", events),
    Route("/events/{id}", event),
    Route("/events/{id}/scores", scores),
    Route("/events/{id}/verdict", add_verdict, methods=["POST"]),
]
