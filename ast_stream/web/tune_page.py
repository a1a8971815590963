"""The page Tune: a threshold to drag over recent scores, and the events that it would report."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ast_stream.errors import UsageError
from ast_stream.history.records import EventRecord
from ast_stream.units import samples_to_seconds
from ast_stream.web.moments import day_and_clock, day_range, local_time
from ast_stream.web.rendering import render
from ast_stream.web.rights import requires
from ast_stream.web.services import Services, services_of
from ast_stream.web.stored_data import NoHistoryError
from ast_stream.web.tuning import LANE_POINTS, ScoreLane, span_of_days

DAYS = (1, 2, 3, 7, 14)
SHOWN_EVENTS = 200
LANE_HEIGHT = 100
MIN_MARK = 3.0  # width of a short event's mark, so that it is visible
# settings that can be tried besides the threshold, with their names on the page
DURATIONS = {
    "confirm_s": "Confirm",
    "hold_s": "Hold",
    "min_duration_s": "Shortest event",
    "refractory_s": "Pause after an event",
}
_MAX_NUMBER_CHARACTERS = 20


@requires("view")
def tune(request: Request) -> Response:
    """Show the scores of a class, and what the settings in the form would have reported."""
    services = services_of(request)
    try:
        labels = list(services.tuning.trials.labels)
        name = request.query_params.get("class", "")
        context = _chosen(request, services) if name else {"label": None}
        problem = None
    except NoHistoryError as error:
        labels, context, problem = [], {"label": None}, str(error)
    return render(
        request,
        "tune.html",
        labels=labels,
        days=_days(request),
        all_days=DAYS,
        problem=problem,
        **context,
    )


@requires("view")
def trial(request: Request) -> Response:
    """Show what the settings in the query would have reported, as a part of the page."""
    services = services_of(request)
    return render(request, "tune_outcome.html", **_outcome(request, services))


def _chosen(request: Request, services: Services) -> dict[str, Any]:
    trials = services.tuning.trials
    label = trials.label(request.query_params["class"])
    since_ns, until_ns = span_of_days(_days(request))
    threshold, is_enabled = services.tuning.in_force(label)
    index = trials.parameters.labels.index(label)
    in_force = {
        name: round(samples_to_seconds(int(getattr(trials.parameters, field)[index])), 3)
        for name, field in (
            ("hold_s", "hold"),
            ("min_duration_s", "min_duration"),
            ("refractory_s", "refractory"),
        )
    }
    tried = _changes(request)
    lanes = services.tuning.lanes(label, since_ns, until_ns)
    return {
        "label": label,
        "is_enabled": is_enabled,
        "in_force": round(threshold, 4),
        "threshold": tried.get("onset_threshold", round(threshold, 4)),
        "durations": [
            (name, words, tried.get(name), in_force.get(name)) for name, words in DURATIONS.items()
        ],
        "lanes": [(lane, area(lane)) for lane in lanes],
        "midnights": _midnights(since_ns, until_ns),
        "since_ns": since_ns,
        "until_ns": until_ns,
        "width": LANE_POINTS,
        "height": LANE_HEIGHT,
        **_outcome(request, services),
    }


def _outcome(request: Request, services: Services) -> dict[str, Any]:
    since_ns, until_ns = span_of_days(_days(request))
    name = request.query_params.get("class", "")
    outcome = services.tuning.try_out(name, _changes(request), since_ns, until_ns)
    marks = [
        (kind, event, *_place(event, since_ns, until_ns))
        for kind in ("kept", "lost", "gained")
        for event in getattr(outcome.events, kind)
    ]
    changed = [mark for mark in marks if mark[0] != "kept"]
    return {
        "outcome": outcome,
        "marks": sorted(marks, key=lambda mark: mark[1].key),
        "changed": sorted(changed, key=lambda mark: mark[1].key, reverse=True)[:SHOWN_EVENTS],
        "n_changed": len(changed),
    }


def area(lane: ScoreLane) -> str:
    """Return the scores of a lane as an SVG path, interrupted where there are none."""
    parts: list[str] = []
    before: int | None = None
    for part, peak in lane.peaks.items():
        y = round(LANE_HEIGHT * (1 - peak), 1)
        if before is None or part != before + 1:
            parts.append(f"{'' if before is None else f'V{LANE_HEIGHT}Z'}M{part} {LANE_HEIGHT}")
        parts.append(f"V{y}H{part + 1}")
        before = part
    return "".join([*parts, f"V{LANE_HEIGHT}Z"]) if parts else ""


def _place(event: EventRecord, since_ns: int, until_ns: int) -> tuple[float, float]:
    """Return the position and width of an event in a lane."""
    scale = LANE_POINTS / (until_ns - since_ns)
    x = (event.onset_ns - since_ns) * scale
    stop_ns = event.onset_ns if event.offset_ns is None else event.offset_ns
    return round(x, 2), round(max(MIN_MARK, (stop_ns - event.onset_ns) * scale), 2)


def _midnights(since_ns: int, until_ns: int) -> list[tuple[float, str]]:
    """Return the positions in a lane where days begin, with their dates."""
    found = []
    _, at_ns = day_range(local_time(since_ns).date())
    while at_ns < until_ns:
        x = (at_ns - since_ns) * LANE_POINTS / (until_ns - since_ns)
        found.append((round(x, 1), day_and_clock(at_ns)[:10]))
        _, at_ns = day_range(local_time(at_ns).date())
    return found


def _days(request: Request) -> int:
    text = request.query_params.get("days") or str(DAYS[0])
    if text not in map(str, DAYS):
        raise UsageError(f"days: expected one of {', '.join(map(str, DAYS))}, got {text!r}")
    return int(text)


def _changes(request: Request) -> dict[str, float]:
    """Return the class settings to be tried, from the query."""
    wanted = {"onset_threshold": "threshold", **{name: name for name in DURATIONS}}
    found = {}
    for key, name in wanted.items():
        text = request.query_params.get(name, "").strip()
        if text:
            found[key] = _number(name, text)
    return found


def _number(name: str, text: str) -> float:
    try:
        if len(text) > _MAX_NUMBER_CHARACTERS:
            raise ValueError
        return float(text)
    except ValueError as error:
        raise UsageError(f"{name}: expected a number, got {text!r}") from error


ROUTES: list[BaseRoute] = [Route("/tune", tune), Route("/tune/trial", trial)]
