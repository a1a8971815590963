"""`ast-stream status`: all processes and streams at a glance, usable as a health check."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ast_stream.box_status import (
    TIMEOUT_S,
    BoxStatus,
    WorkersStatus,
    WorkersStatusClient,
    follower_state,
)
from ast_stream.cli.options import config_option, json_option
from ast_stream.cli.output import json_line
from ast_stream.cli.subscribe import default_settings
from ast_stream.cli.terminal import console, level_text, plain_table
from ast_stream.fleet.clock import ClockWatch
from ast_stream.machine_clock import read_clocks
from ast_stream.messages.audio import RingReply
from ast_stream.messages.pool import Placement
from ast_stream.messages.status import (
    AlertsStatus,
    ForwardStatus,
    RecorderStatus,
    WorkerStatus,
)
from ast_stream.runtime.lifecycle import EXIT_CRASH, stop_on_signals
from ast_stream.settings.load import load_settings
from ast_stream.settings.retention import MIB
from ast_stream.settings.schema import Settings
from ast_stream.units import NS_PER_SECOND, counted, samples_to_seconds

REFRESH_S = 1.0


def status(
    config: Annotated[Path | None, config_option("The configuration they run from.")] = None,
    as_json: Annotated[bool, json_option("One JSON object.")] = False,
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
    with (
        stop_on_signals() as stop,
        WorkersStatusClient(
            settings,
            is_complete=config is not None,
            timeout_s=timeout,
            is_stopped=stop.is_set,
        ) as client,
    ):
        ask = _with_clock(client.ask, settings, has_config=config is not None)
        found = _follow(ask, stop, as_json=as_json) if watch else ask()
    if not watch:
        _print(found, as_json=as_json)
    raise typer.Exit(EXIT_CRASH if found.problems else 0)


def _with_clock(
    ask: Callable[[], WorkersStatus], settings: Settings, *, has_config: bool
) -> Callable[[], WorkersStatus]:
    """Return what also looks at the clock, of a box whose times others compare with theirs."""
    if not has_config or (settings.fleet.ntp is None and not settings.forward):
        return ask
    clock = ClockWatch(settings.fleet.ntp)
    clock.measure_once()  # then only as often as it may
    clock.start(measures_at_once=False)
    return lambda: replace(ask(), clock=clock.report())


def _follow(
    ask: Callable[[], WorkersStatus], stop: threading.Event, *, as_json: bool
) -> WorkersStatus:
    """Show reports until `stop`; return the last one that was not cut short."""
    box = ask()
    if as_json or not sys.stdout.isatty():
        while not stop.is_set():
            _print(box, as_json=as_json)
            stop.wait(REFRESH_S)
            box = box if stop.is_set() else ask()
        return box
    with Live(view_of_all(box), auto_refresh=False, console=console(stderr=False)) as live:
        while not stop.wait(REFRESH_S):
            latest = ask()
            if not stop.is_set():
                box = latest
                live.update(view_of_all(box), refresh=True)
    return box


def _print(found: WorkersStatus, *, as_json: bool) -> None:
    if as_json:
        print(json_line(found.as_json()), flush=True)
    else:
        console(stderr=False).print(view_of_all(found), crop=False)


def view_of_all(found: WorkersStatus) -> RenderableType:
    """Return the tables of each worker, with its streams, and the state of the clock."""
    problem = None if found.clock is None else found.clock.problem
    if None in found.boxes:
        parts = [view(found.boxes[None], is_rest_well=problem is None)]
    else:
        views = (
            (name, view(box, is_rest_well=problem is None)) for name, box in found.boxes.items()
        )
        parts = [
            part for name, shown in views for part in (Text(f"worker {name}", style="bold"), shown)
        ]
    if found.clock is not None:
        line = problem or f"clock: {found.clock.text}"
        parts.append(Text(line, style="green" if problem is None else "red"))
    return Group(*parts)


def view(box: BoxStatus, *, is_rest_well: bool = True) -> RenderableType:
    """Return the tables of processes and streams, and what is not well.

    Args:
        is_rest_well: nothing else is known that is not well, which is shown elsewhere.
    """
    parts: list[RenderableType] = [_processes(box)]
    if box.streams:
        parts.append(_streams(box))
    # not wrapped: problems hold paths, and are searched for
    parts += [
        Text(problem, style="red", no_wrap=True, overflow="ignore") for problem in box.problems
    ]
    parts += [
        Text(f"{process}: a restart is needed for {', '.join(keys)}", style="yellow")
        for process, keys in box.restart_needed.items()
    ]
    if not box.problems and is_rest_well:
        parts.append(Text("everything is healthy", style="green"))
    return Group(*parts)


def _processes(box: BoxStatus) -> Table:
    table = plain_table("process", "state", "what it does")

    def add(name: str, state: str, is_healthy: bool, text: str = "") -> None:
        table.add_row(name, _state(state, is_healthy=is_healthy), text)

    if not box.has_worker:
        add("worker", "elsewhere", True, "those of the pool, by stream")
    elif box.worker is None:
        add("worker", "no answer", False)
    else:
        add("worker", "scoring", True, worker_text(box.worker))
    for name, capture in box.captures.items():
        if capture is None:
            is_over = not any(f"of {name} does" in problem for problem in box.problems)
            add(f"capture {name}", "ended" if is_over else "no answer", is_over)
        else:
            is_healthy = capture.state in ("listening", "ended")
            add(f"capture {name}", capture.state, is_healthy, _capture_text(capture))
    if box.alerts is not None:
        follows = follower_state("listening", box.alerts.disk, hears=box.alerts.hears_worker)
        add("alerts", *follows, alerts_text(box.alerts))
    elif box.has_alerts:
        add("alerts", "no answer", False)
    if box.recorder is not None:
        follows = follower_state("recording", box.recorder.disk, hears=box.recorder.hears_workers)
        add("recorder", *follows, recorder_text(box.recorder))
    elif box.has_recorder:
        add("recorder", "no answer", False)
    if box.forward is not None:
        if any(output.error for output in box.forward.outputs):
            follows = "failing", False
        else:
            follows = follower_state("sending", box.forward.disk, hears=box.forward.hears_workers)
        add("forward", *follows, forward_text(box.forward))
    elif box.has_forward:
        add("forward", "no answer", False)
    if box.page is not None:
        add("page", "serving" if box.page_answers else "no answer", box.page_answers, box.page)
    return table


def worker_text(worker: WorkerStatus) -> str:
    lag = "no audio yet" if worker.lag_s is None else f"lag {worker.lag_s:.1f} s"
    n_windows, n_asked = (worker.counters.get(name) for name in ("windows", "windows_asked"))
    asked = "" if not n_windows or n_asked is None else f" ({n_asked / n_windows:.0%} asked)"
    return (
        f"{worker.device} {worker.precision} {worker.attention}, "
        f"{worker.windows_per_s:g} windows/s{asked}, {lag}, up {_duration(worker.uptime_s)}"
    )


def alerts_text(alerts: AlertsStatus) -> str:
    return f"{counted(alerts.n_rules, 'rule')}, {alerts.pending} to deliver"


def recorder_text(recorder: RecorderStatus) -> str:
    n_missing = recorder.counters.get("clips_missing", 0)
    missing = f", {n_missing} not to be had" if n_missing else ""
    at_work = f", {counted(recorder.events, 'event')} at work" if recorder.events else ""
    mib = recorder.clip_bytes / MIB
    return f"{counted(recorder.clips, 'clip')}, {mib:.1f} MiB{at_work}{missing}"


def forward_text(forward: ForwardStatus) -> str:
    def text(name: str, waiting: int, oldest_s: float | None, lost: int) -> str:
        age = "" if oldest_s is None else f" for {_duration(oldest_s)}"
        gone = f", {lost} lost" if lost else ""
        return f"{name} {waiting} waiting{age}{gone}"

    return "; ".join(
        text(output.name, output.waiting, output.oldest_s, output.lost)
        for output in forward.outputs
    )


def _capture_text(capture: RingReply) -> str:
    audio = _duration(samples_to_seconds(capture.next))
    waiting_s = samples_to_seconds(capture.next - capture.acked)
    text = capture.detail or f"{audio} of audio, {waiting_s:.1f} s not yet decided"
    return text if capture.placement is None else f"{text}, {placement_text(capture.placement)}"


def placement_text(placement: Placement) -> str:
    """Return which worker of a pool has a stream, since when, and how it came there."""
    if placement.worker is None:
        return "no worker has it"
    parts = [f"at {placement.worker}"]
    if placement.since_ns is not None:
        since_s = max(0, read_clocks().wall_ns - placement.since_ns) / NS_PER_SECOND
        parts[0] += f" for {_duration(since_s)}"
    if placement.takeovers:
        parts.append(counted(placement.takeovers, "take-over"))
    if placement.handover_s is not None:
        parts.append(f"the last change took {placement.handover_s:.1f} s")
    return ", ".join(parts)


def _streams(box: BoxStatus) -> Table:
    figures = ("level", "lag", "open events", "gaps", "lost")
    is_of_pool = any(health.placement is not None for health in box.streams.values())
    more = ("in the pool",) if is_of_pool else ()
    table = plain_table("stream", "state", *figures, *more, right=figures)
    for name, health in box.streams.items():
        placed = "" if health.placement is None else placement_text(health.placement)
        labels = [event.label for event in box.events if event.stream == name]
        table.add_row(
            name,
            _state(health.state, is_healthy=health.state not in ("missing", "degraded")),
            level_text(health.level_dbfs),
            "" if health.lag_s is None else f"{health.lag_s:.1f} s",
            ", ".join(labels) or "none",
            str(health.gaps),
            f"{samples_to_seconds(health.lost_samples):.1f} s",
            *([placed] if is_of_pool else []),
        )
    return table


def _state(word: str, *, is_healthy: bool) -> Text:
    return Text(word, style="green" if is_healthy else "red")


def _duration(seconds: float) -> str:
    """Return a duration in the largest unit that fits: 42 s, 5 min, 3.2 h, 2.5 d."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
