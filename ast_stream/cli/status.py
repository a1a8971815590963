"""`ast-stream status`: all processes and streams at a glance, and as a health check."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ast_stream.cli.live import console, level_text
from ast_stream.cli.output import json_line
from ast_stream.cli.status_report import TIMEOUT_S, Enquiry, Report
from ast_stream.cli.subscribe import default_settings
from ast_stream.runtime.lifecycle import EXIT_CRASH, stop_on_signals
from ast_stream.settings.load import load_settings
from ast_stream.units import samples_to_seconds

REFRESH_S = 1.0


def status(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="The configuration they run from."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for each process.")
    ] = TIMEOUT_S,
) -> None:
    """Show how all processes and streams are; exit 0 only if everything is healthy, else 1.

    Without a configuration only the worker at the usual endpoint is asked.

    Example: ast-stream status -c /etc/ast-stream/config.yaml
    """
    settings = default_settings() if config is None else load_settings(config)
    with stop_on_signals() as stop:
        enquiry = Enquiry(
            settings, is_complete=config is not None, timeout_s=timeout, is_stopped=stop.is_set
        )
        try:
            report = _follow(enquiry, stop, as_json=as_json) if watch else enquiry.ask()
        finally:
            enquiry.close()
    if not watch:
        _print(report, as_json=as_json)
    raise typer.Exit(EXIT_CRASH if report.problems else 0)


def _follow(enquiry: Enquiry, stop: threading.Event, *, as_json: bool) -> Report:
    """Show reports until `stop`; return the last one that was not cut short."""
    report = enquiry.ask()
    if as_json or not sys.stdout.isatty():
        while not stop.is_set():
            _print(report, as_json=as_json)
            stop.wait(REFRESH_S)
            report = report if stop.is_set() else enquiry.ask()
        return report
    with Live(view(report), auto_refresh=False, console=console(stderr=False)) as live:
        while not stop.wait(REFRESH_S):
            latest = enquiry.ask()
            if not stop.is_set():
                report = latest
                live.update(view(report), refresh=True)
    return report


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json_line(report.as_json()), flush=True)
    else:
        console(stderr=False).print(view(report), crop=False)


def view(report: Report) -> RenderableType:
    """Return the tables of processes and streams, and what is not well."""
    parts: list[RenderableType] = [_processes(report)]
    if report.streams:
        parts.append(_streams(report))
    # not wrapped: what is not well is looked for, and holds paths
    parts += [
        Text(problem, style="red", no_wrap=True, overflow="ignore") for problem in report.problems
    ]
    if not report.problems:
        parts.append(Text("everything is healthy", style="green"))
    return Group(*parts)


def _processes(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("process", "state", "what it does"):
        table.add_column(column, overflow="fold")
    worker = report.worker
    if worker is None:
        table.add_row("worker", _state("no answer", is_well=False), "")
    else:
        table.add_row("worker", _state("scoring", is_well=True), worker_text(worker))
    for name, capture in report.captures.items():
        if capture is None:
            is_over = not any(f"of {name} does" in problem for problem in report.problems)
            state = _state("ended" if is_over else "no answer", is_well=is_over)
            table.add_row(f"capture {name}", state, "")
        else:
            state = _state(capture["state"], is_well=capture["state"] in ("listening", "ended"))
            table.add_row(f"capture {name}", state, _capture_text(capture))
    if report.alerts is not None:
        is_well = report.alerts["hears"]
        state = _state("listening" if is_well else "hears nothing", is_well=is_well)
        table.add_row("alerts", state, alerts_text(report.alerts))
    elif report.has_alerts:
        table.add_row("alerts", _state("no answer", is_well=False), "")
    return table


def worker_text(worker: dict[str, Any]) -> str:
    """Return what a worker says of itself, in a line."""
    lag_s = worker.get("lag_s")
    return ", ".join(
        [
            f"{worker.get('device')} {worker.get('precision')} {worker.get('attention')}",
            f"{worker.get('windows_per_s', 0):g} windows/s",
            "no audio yet" if lag_s is None else f"lag {lag_s:.1f} s",
            f"up {_duration(worker.get('uptime_s', 0))}",
        ]
    )


def alerts_text(alerts: dict[str, Any]) -> str:
    """Return what an alerts process says of itself, in a line."""
    return f"{alerts['rules']} rules, {alerts['pending']} to deliver"


def _capture_text(capture: dict[str, Any]) -> str:
    audio = _duration(samples_to_seconds(capture["samples"]))
    waiting_s = samples_to_seconds(capture["unacknowledged"])
    return capture["detail"] or f"{audio} of audio, {waiting_s:.1f} s not yet decided"


def _streams(report: Report) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stream", "state", "level", "lag", "open events", "gaps", "lost"):
        table.add_column(column, justify="left" if column in ("stream", "state") else "right")
    for name, health in report.streams.items():
        lag_s, opened = health["lag_s"], [one for one in report.events if one["stream"] == name]
        table.add_row(
            name,
            _state(health["state"], is_well=health["state"] not in ("missing", "degraded")),
            level_text(health["level_dbfs"]),
            "" if lag_s is None else f"{lag_s:.1f} s",
            ", ".join(one["label"] for one in opened) or "none",
            str(health["gaps"]),
            f"{samples_to_seconds(health['lost_samples']):.1f} s",
        )
    return table


def _state(word: str, *, is_well: bool) -> Text:
    return Text(word, style="green" if is_well else "red")


def _duration(seconds: float) -> str:
    """Return a duration as people say it: 42 s, 5 min, 3.2 h, 2.5 d."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
