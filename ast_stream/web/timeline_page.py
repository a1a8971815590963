"""The page Timeline: events by class and day, and coverage, events and alerts of one day."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ast_stream.coverage.timeline import Coverage, Stretch
from ast_stream.errors import AstStreamError
from ast_stream.history.days import starts_of_days
from ast_stream.history.records import AlertQuery, AlertRecord, EventCount, EventQuery, EventRecord
from ast_stream.labels import slug
from ast_stream.messages.alert import Alert
from ast_stream.units import NS_PER_SECOND
from ast_stream.web.event_filter import EventFilter
from ast_stream.web.moments import clock, day_range, local_time, parse_day, zone
from ast_stream.web.rendering import render
from ast_stream.web.rights import requires
from ast_stream.web.services import services_of
from ast_stream.web.stored_data import NoHistoryError

HEATMAP_DAYS = 14
HEATMAP_CLASSES = 24
LANES = 16  # classes of a stream
LANE_EVENTS = 1500  # of a stream
SHOWN_ALERTS = 200
SAME_ALERT_S = 1.0  # an alert and what its rule would have fired are the same if this close
_SHADES = 6
_MINUTE_S = 60
# a minute is shown as the first of these kinds that occurs in it
_BY_WEIGHT = ("gap", "missing", "elsewhere", "degraded", "gated", "listened", "off")
KIND_WORDS = {
    "listened": "listened",
    "gated": "quiet, not scored",
    "degraded": "degraded",
    "missing": "not listened",
    "gap": "lost",
    "off": "not configured",
    "elsewhere": "at a worker that was not asked",
}


@dataclass(frozen=True)
class Bar:
    """A part of a lane; seconds since the day began."""

    start_s: float
    duration_s: float
    kind: str
    title: str
    event_id: str = ""


@dataclass(frozen=True)
class TimelineLane:
    """One lane of the timeline: the events of a class."""

    name: str
    class_: str
    bars: list[Bar]
    n_events: int


@dataclass(frozen=True)
class StreamDay:
    """One day of one stream.

    Attributes:
        heard: share of the recorded time that was heard; None: no time was recorded.
        would_be: alerts that the configured rules would have fired but did not.
        is_cut: there are more events than are shown.
    """

    name: str
    heard: float | None
    coverage: list[Bar]
    lanes: list[TimelineLane]
    alerts: list[Bar]
    would_be: list[Bar]
    is_cut: bool


@requires("view")
def timeline(request: Request) -> Response:
    """Show days by class, and one day of each stream."""
    services = services_of(request)
    past = services.past
    now_ns = time.time_ns()
    today = local_time(now_ns).date()
    day = parse_day(request.query_params.get("day"), today)
    since_ns, until_ns = day_range(day)
    covered = past.coverage(since_ns, until_ns)
    coverages = covered.streams
    problem, heat, days = None, None, []
    is_judged = request.query_params.get("rules") == "now"
    would_be: list[Alert] = []
    try:
        if is_judged:
            would_be = services.tuning.would_have_fired(since_ns, until_ns)
    except AstStreamError as error:
        problem = f"The rules cannot be judged: {str(error).splitlines()[0]}"
    try:
        last = min(max(day, day + timedelta(days=HEATMAP_DAYS // 2)), max(today, day))
        dates = [last - timedelta(days=back) for back in range(HEATMAP_DAYS)][::-1]
        heat = heatmap(
            past.history.counts(starts_of_days(dates[0], dates[-1]), by_stream=False),
            dates,
            services.hub.labels or (),
        )
        names = dict.fromkeys([*coverages, *past.history.names()[0]])
        alerts = past.history.alerts(
            AlertQuery(since_ns=since_ns, until_ns=until_ns, limit=SHOWN_ALERTS)
        )
        for name in names:
            asked = EventQuery((name,), (), since_ns, until_ns, limit=LANE_EVENTS)
            events = past.history.events(asked)
            own = [alert for alert in alerts if alert.labels.get("stream", name) == name]
            missed = [
                alert
                for alert in without_those_fired(would_be, own)
                if alert.labels.get("stream", name) == name
            ]
            days.append(
                stream_day(name, coverages.get(name), events, own, since_ns, now_ns, missed)
            )
    except NoHistoryError as error:
        problem = str(error)
        days = [
            stream_day(name, coverage, [], [], since_ns, now_ns)
            for name, coverage in coverages.items()
        ]
    return render(
        request,
        "timeline.html",
        problem=problem,
        day=day,
        before=_day_address(day, -1),
        after=None if day >= today else _day_address(day, 1),
        today=today,
        day_s=(until_ns - since_ns) // NS_PER_SECOND,
        heat=heat,
        days=days,
        kinds={
            kind: words
            for kind, words in KIND_WORDS.items()
            if kind != "elsewhere" or services.settings.pool is not None
        },
        unasked=dict(sorted(covered.unasked.items())),
        zone=zone(since_ns),
        is_judged=is_judged and problem is None,
        judged_address=f"/timeline?day={day.isoformat()}&rules=now",
        events_address=EventFilter(day=day.isoformat()).address("/events"),
    )


def _day_address(day: date, by: int) -> str:
    try:
        return f"/timeline?day={(day + timedelta(days=by)).isoformat()}"
    except OverflowError:
        return "/timeline"


def heatmap(
    counts: Iterable[EventCount], dates: Sequence[date], labels: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a row for each class, the most frequent first, with a cell for each day.

    Args:
        labels: of the model's classes, for display.
    """
    names = {slug(label): label for label in labels}
    cells: Counter[tuple[str, date]] = Counter()
    totals: Counter[str] = Counter()
    for count in counts:
        cells[count.class_, local_time(count.start_ns).date()] += count.n_events
        totals[count.class_] += count.n_events
    classes = [name for name, _ in totals.most_common(HEATMAP_CLASSES)]
    most = max((cells[name, day] for name in classes for day in dates), default=0)
    rows = [
        {
            "class": names.get(name, name),
            "total": totals[name],
            "cells": [
                {
                    "n_events": cells[name, day],
                    "shade": shade(cells[name, day], most),
                    "address": EventFilter(class_=name, day=day.isoformat()).address("/events"),
                }
                for day in dates
            ],
        }
        for name in classes
    ]
    return {"dates": list(dates), "rows": rows, "n_hidden": len(totals) - len(classes)}


def shade(count: int, most: int) -> int:
    """Return the shade of a cell, 0 for no events; logarithmic, so that 1 shows beside 1000."""
    if count <= 0:
        return 0
    return 1 + round((_SHADES - 1) * math.log1p(count - 1) / math.log1p(max(most - 1, 1)))


def stream_day(
    name: str,
    coverage: Coverage | None,
    events: Sequence[EventRecord],
    alerts: Sequence[AlertRecord],
    since_ns: int,
    now_ns: int,
    would_be: Sequence[Alert] = (),
) -> StreamDay:
    """Return one day of a stream; the events may be in any order."""
    by_class: dict[tuple[str, str], list[EventRecord]] = {}
    for event in events:
        by_class.setdefault((event.label, event.class_), []).append(event)
    shown = sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0]))
    lanes = [
        TimelineLane(
            label, class_, [_event_bar(event, since_ns, now_ns) for event in own], len(own)
        )
        for (label, class_), own in shown[:LANES]
    ]
    return StreamDay(
        name=name,
        heard=None if coverage is None else coverage.heard,
        coverage=[] if coverage is None else coverage_bars(coverage.stretches, since_ns),
        lanes=lanes,
        alerts=[_alert_bar(alert, since_ns) for alert in alerts],
        would_be=[_alert_bar(alert, since_ns) for alert in would_be],
        is_cut=len(events) >= LANE_EVENTS or len(shown) > LANES,
    )


def coverage_bars(stretches: Iterable[Stretch], since_ns: int) -> list[Bar]:
    """Return a bar for each run of minutes of the same kind.

    A minute is shown as the worst kind in it, so that even a gap of a tenth of a second is visible.
    """
    minutes: dict[int, int] = {}
    reasons: dict[int, str | None] = {}
    for stretch in stretches:
        weight = _BY_WEIGHT.index(stretch.kind)
        first = (stretch.time_ns - since_ns) // (_MINUTE_S * NS_PER_SECOND)
        last = (stretch.stop_ns - 1 - since_ns) // (_MINUTE_S * NS_PER_SECOND)
        for minute in range(first, last + 1):
            if weight < minutes.get(minute, len(_BY_WEIGHT)):
                minutes[minute], reasons[minute] = weight, stretch.reason
    bars: list[Bar] = []
    for minute in sorted(minutes):
        kind, reason, start_s = _BY_WEIGHT[minutes[minute]], reasons[minute], minute * _MINUTE_S
        title = f"{KIND_WORDS[kind]}: {reason}" if reason else KIND_WORDS[kind]
        before = bars[-1] if bars else None
        follows = before is not None and before.start_s + before.duration_s == start_s
        if before is not None and follows and (before.kind, before.title) == (kind, title):
            bars[-1] = Bar(before.start_s, before.duration_s + _MINUTE_S, kind, title)
        else:
            bars.append(Bar(start_s, _MINUTE_S, kind, title))
    return bars


def _event_bar(event: EventRecord, since_ns: int, now_ns: int) -> Bar:
    stop_ns = now_ns if event.offset_ns is None else event.offset_ns
    duration_s = max(0.0, (stop_ns - event.onset_ns) / NS_PER_SECOND)
    title = f"{event.label} {clock(event.onset_ns)}, peak {event.peak:.2f}"
    start_s = (event.onset_ns - since_ns) / NS_PER_SECOND
    return Bar(round(start_s, 1), round(duration_s, 1), event.verdict or "event", title, event.id)


def without_those_fired(would_be: Iterable[Alert], fired: Sequence[AlertRecord]) -> Iterator[Alert]:
    """Yield the alerts that rules would have fired, except those that they did fire."""
    known: dict[str, list[int]] = {}
    for record in fired:
        known.setdefault(record.rule, []).append(record.started_ns)
    nearest_ns = SAME_ALERT_S * NS_PER_SECOND
    for alert in would_be:
        starts = known.get(alert.rule, [])
        if not any(abs(alert.started_ns - start_ns) <= nearest_ns for start_ns in starts):
            yield alert


def _alert_bar(alert: AlertRecord | Alert, since_ns: int) -> Bar:
    start_s = (alert.started_ns - since_ns) / NS_PER_SECOND
    title = f"{alert.rule} ({alert.severity}) {clock(alert.started_ns)}"
    event_id = alert.best or next(iter(alert.events), "")
    return Bar(round(start_s, 1), 0.0, alert.severity, title, event_id)


ROUTES: list[BaseRoute] = [Route("/timeline", timeline)]
