"""`ast-stream fleet status`: all boxes of a fleet, as seen from its centre."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ast_stream.cli.fleet_centre import CONNECT_S, ReadingOptions, connected_store, mqtt_output
from ast_stream.cli.options import json_option, with_option_groups
from ast_stream.cli.output import json_line, say
from ast_stream.cli.terminal import console, plain_table
from ast_stream.fleet.mqtt_reports import MqttReports
from ast_stream.fleet.overview import FoundBox, duration, overview, read_expected
from ast_stream.fleet.rollout import known_boxes
from ast_stream.messages.fleet import BoxReport
from ast_stream.runtime.lifecycle import EXIT_CRASH, stop_on_signals
from ast_stream.runtime.nats import NatsError
from ast_stream.units import counted

REFRESH_S = 5.0
_STYLES = {"well": "green", "unwell": "red"}
_MODEL_CHARACTERS = 19  # of a hash: sha256: and 12 digits
_DIGITS = 8  # of the hash of a configuration
_PROBLEMS_SHOWN = 3  # of each box; all of them with --json

Ask = Callable[[], list[FoundBox]]


@with_option_groups
def status(
    centre: ReadingOptions,
    site: Annotated[
        list[str] | None, typer.Option(metavar="SITE", help="Only the boxes of this site.")
    ] = None,
    expect: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Boxes that should be there, site/box a line."),
    ] = None,
    max_age: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="A box that has not reported for so long is silent. "
            "(2.5 times as long as it promises, and a minute at least)",
        ),
    ] = None,
    as_json: Annotated[bool, json_option("One JSON object, with the whole reports.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show all boxes of a fleet: exit 0 only if all are there and report no problem, else 1.

    Boxes that are silent, or expected and have never reported, come first, then those with
    problems. Nothing is asked of the boxes: what they have sent last is shown, with its age.

    Example: ast-stream fleet status --nats tls://centre.example --creds reader.creds
    """
    expected = [] if expect is None else read_expected(expect)

    def shown(boxes: Sequence[FoundBox]) -> None:
        if as_json:
            healthy = _are_well(boxes)
            content = {"healthy": healthy, "boxes": [box.to_json() for box in boxes]}
            print(json_line(content), flush=True)
        else:
            console(stderr=False, piped_width=200).print(view(boxes), crop=False)

    with _reports(centre, site or [], expected, max_age) as ask:
        if not watch:
            found = ask()
            shown(found)
        else:
            with stop_on_signals() as stop:
                found = _follow(ask, stop, shown, is_live=not as_json and sys.stdout.isatty())
    raise typer.Exit(0 if _are_well(found) else EXIT_CRASH)


def _are_well(boxes: Sequence[FoundBox]) -> bool:
    """Return whether boxes are there, and none has a problem: a site that is misspelt has none."""
    return bool(boxes) and not any(box.problems for box in boxes)


@contextmanager
def _reports(
    centre: ReadingOptions,
    sites: Sequence[str],
    expected: Sequence[str],
    max_age_s: float | None,
) -> Iterator[Ask]:
    """Yield what reads the newest reports."""
    if (found := mqtt_output(centre)) is not None:
        broker, prefix = found
        reports = MqttReports(broker, prefix, CONNECT_S)
        try:
            yield lambda: _of_mqtt(reports, expected, sites, max_age_s)
        finally:
            reports.close()
        return
    with connected_store(centre, "ast-stream fleet status") as store:
        yield lambda: overview(
            known_boxes(store.reports()), expected=expected, sites=sites, max_age_s=max_age_s
        )


def _of_mqtt(
    reports: MqttReports, expected: Sequence[str], sites: Sequence[str], max_age_s: float | None
) -> list[FoundBox]:
    boxes, offline = reports.read()
    return overview(boxes, offline=offline, expected=expected, sites=sites, max_age_s=max_age_s)


def _follow(
    ask: Ask, stop: threading.Event, shown: Callable[[Sequence[FoundBox]], None], *, is_live: bool
) -> list[FoundBox]:
    """Show reports until `stop`, through outages of the centre; return the last ones."""
    found = ask()
    with (
        Live(view(found), auto_refresh=False, console=console(stderr=False))
        if is_live
        else (nullcontext()) as live
    ):
        while not stop.is_set():
            if live is None:
                shown(found)
            else:
                live.update(view(found), refresh=True)
            stop.wait(REFRESH_S)
            try:
                found = found if stop.is_set() else ask()
            except NatsError as error:
                say(str(error), err=True)
    return found


def view(boxes: Sequence[FoundBox]) -> RenderableType:
    """Return the table of all boxes, and what is not well."""
    parts: list[RenderableType] = [_table(boxes)]
    for box in boxes:
        shown = box.problems[:_PROBLEMS_SHOWN]
        more = len(box.problems) - len(shown)
        shown += [f"and {counted(more, 'more problem')}"] if more else []
        # not wrapped: problems hold names and paths, and are searched for
        parts += [
            Text(f"{box.site}/{box.name}: {text}", style="red", no_wrap=True, overflow="ignore")
            for text in shown
        ]
    unwell = sum(bool(box.problems) for box in boxes)
    words = (
        f"{len(boxes)} {'box' if len(boxes) == 1 else 'boxes'}, {unwell or 'none'} with problems"
    )
    if not boxes:
        words = "no boxes: none has reported here, or none of this --site"
    parts.append(Text(words, style="green" if _are_well(boxes) else "red"))
    return Group(*parts)


def _table(boxes: Sequence[FoundBox]) -> Table:
    figures = ("seen", "lag", "heard 24 h", "to send", "clock")
    placed = [None if (known := box.box) is None else _placed(known.report) for box in boxes]
    more = ("workers of the pool",) if any(placed) else ()
    table = plain_table(
        "site", "box", "state", *figures, "version", "model", "config", *more, right=figures
    )
    for box, workers in zip(boxes, placed, strict=True):
        state = Text(box.state, style=_STYLES.get(box.state, "yellow"))
        known = box.box
        age = "" if known is None or known.age_s is None else f"{duration(known.age_s)} ago"
        report = None if known is None else known.report
        cells = [""] * 7 if report is None else _cells(report)
        table.add_row(box.site, box.name, state, age, *cells, *([workers or ""] if more else []))
    return table


def _placed(report: BoxReport | None) -> str | None:
    """Return how many streams of a box each worker of its pool has; None without a pool."""
    if report is None:
        return None
    placements = [stream.placement for stream in report.streams if stream.placement is not None]
    counts = Counter(placement.worker or "none" for placement in placements)
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or None


def _cells(report: BoxReport) -> list[str]:
    heard, offset_s = report.heard, report.clock.offset_s
    waiting = [output.waiting for output in report.outputs if output.waiting is not None]
    models = [model[:_MODEL_CHARACTERS] for model in report.models]
    return [
        "" if report.lag_s is None else f"{report.lag_s:.1f} s",
        "" if heard is None else f"{math.floor(heard * 10_000) / 100:.2f} %",
        str(max(waiting)) if waiting else "",
        clock_cell(report) if offset_s is None else f"{offset_s:+.3f} s",
        report.version,
        ", ".join(models) or "none",
        (report.configuration or "").removeprefix("sha256:")[:_DIGITS],
    ]


def clock_cell(report: BoxReport) -> str:
    """Return what is known of a clock that was not measured."""
    return {True: "synchronised", False: "unsynchronised", None: ""}[report.clock.is_synchronised]
