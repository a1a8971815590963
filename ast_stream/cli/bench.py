"""`ast-stream bench`: time parts on this machine, and soak-test all processes."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ast_stream.cli import bench_stages, bench_whole, capture_bench
from ast_stream.cli.bench_report import versions
from ast_stream.cli.options import json_option
from ast_stream.cli.output import json_line, say
from ast_stream.cli.soak import BOUNDS, Soak, SoakOptions, SoakResult
from ast_stream.cli.terminal import PacedLines, console, plain_table
from ast_stream.errors import UsageError
from ast_stream.runtime.lifecycle import EXIT_CRASH, stop_on_signals
from ast_stream.settings.explain import with_options
from ast_stream.settings.schema import ModelSettings
from ast_stream.units import SAMPLE_RATE

WORST_SHOWN = 12

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream bench soak --hours 2")
app.command("model")(bench_stages.model)
app.command("features")(bench_stages.features)
app.command("decision")(bench_stages.decision)
app.command("alerts")(bench_stages.alerts)
app.command("scan")(bench_whole.scan)
app.command("tick")(bench_whole.tick)
app.command("box")(bench_whole.box)
app.command("capture")(capture_bench.capture)


@app.command("soak")
def soak(
    streams: Annotated[
        int, typer.Option(min=1, max=62, help="Streams read as fast as the worker goes.")
    ] = 4,
    hours: Annotated[
        float, typer.Option(min=0.01, max=10_000, help="Hours of audio of each stream.")
    ] = 1.0,
    model: Annotated[str, typer.Option(help="Checkpoint.")] = "bundled",
    hop: Annotated[float, typer.Option(min=0.05, help="Seconds between windows.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of sounds and outages.")] = 1,
    outage_every: Annotated[
        float, typer.Option(min=0, help="Mean seconds between outages; 0: none.")
    ] = 60.0,
    sample_every: Annotated[
        float, typer.Option(min=0.2, help="Seconds between two samples of memory and the like.")
    ] = 5.0,
    gate: Annotated[
        float | None, typer.Option(max=0, help="dBFS; quieter windows are not scored.")
    ] = None,
    as_json: Annotated[bool, json_option("All figures as one JSON object.")] = False,
) -> None:
    """Run all processes for hours of audio with outages, and fail if anything grows.

    Real processes: captures, the worker and alerts, with a reader of the feed.
    The streams are recordings, read as fast as the worker goes; one more is in real time, and its
    lag is judged. Processes are killed and stopped. Memory, descriptors, threads, lag, pending
    deliveries and files are watched; the exit code is 1 if one of them grew by more than its limit
    within one process, if samples are not accounted for, or if anything crashed. Ctrl-C ends the
    run early, with its report.

    Example: ast-stream bench soak --streams 4 --hours 168
    """
    with_options(
        ModelSettings(), {"checkpoint": ("bench: --model", model), "hop_s": ("bench: --hop", hop)}
    )
    if model != "bundled" and Path(model).exists():
        model = str(Path(model).resolve())
    options = SoakOptions(streams, hours, model, hop, seed, outage_every, sample_every, gate)
    lines = PacedLines(30.0)

    def show(done_hours: float, speed: float) -> None:
        lines.show(f"{done_hours:.2f} of {hours:g} h of each stream, {speed:.0f} x real time")

    with (
        stop_on_signals() as stop,
        tempfile.TemporaryDirectory(prefix="ast-stream-soak-", dir="/tmp") as name,
    ):
        result = Soak(options, Path(name)).run(stop.is_set, show)
    if not result.hours:
        raise UsageError("stopped before anything was measured")
    if as_json:
        print(json_line(result_json(result)))
    else:
        console(stderr=False, piped_width=120).print(_table(result))
        for line in _summary(result):
            say(line)
    for problem in result.problems:
        say(problem, err=True)
    if result.problems:
        raise typer.Exit(EXIT_CRASH)


def result_json(result: SoakResult) -> dict[str, Any]:
    """Return all figures of a run, and what it ran on."""
    return {
        "options": asdict(result.options),
        "versions": versions(),
        "wall_s": round(result.wall_s, 1),
        "hours": {name: round(value, 3) for name, value in result.hours.items()},
        "speed": round(result.speed, 1),
        "outages": dict(result.outages),
        "messages": result.n_messages,
        "missed": result.n_missed,
        "samples": dict(result.samples),
        "unaccounted_samples": result.unaccounted,
        "figures": [growth.to_json() for growth in result.growths],
        "files": {
            name: {"largest_mib": round(size, 2), "bound_mib": BOUNDS[name]}
            for name, size in result.sizes_mib.items()
        },
        "problems": result.problems,
    }


def _table(result: SoakResult) -> Table:
    table = plain_table(
        "figure", "level", "growth", "limit", "judged", right=("level", "growth", "limit", "judged")
    )
    for growth in result.growths[:WORST_SHOWN]:
        unit = f" {growth.unit}" if growth.unit else ""
        table.add_row(
            growth.name,
            f"{growth.level:.1f}{unit}",
            f"{growth.growth:+.2f}",
            f"{growth.limit:.2f}",
            f"{growth.span_s:.0f} s" if growth.span_s else "too short",
        )
    return table


def _summary(result: SoakResult) -> list[str]:
    least = min(result.hours.values())
    outages = ", ".join(f"{n} x {kind}" for kind, n in sorted(result.outages.items())) or "none"
    hours = ", ".join(
        f"{kind} {n / SAMPLE_RATE / 3600:.2f}" for kind, n in sorted(result.samples.items())
    )
    files = ", ".join(
        f"{name} {size:.1f} of {BOUNDS[name]:g}" for name, size in result.sizes_mib.items()
    )
    judged = sum(growth.span_s > 0 for growth in result.growths)
    return [
        "",
        f"{len(result.hours)} streams, {least:.2f} h of each, {result.speed:.0f} x real time",
        f"outages: {outages}",
        f"messages: {result.n_messages}, missed: {result.n_missed}",
        f"hours in the ledger: {hours or 'none'}; samples it lacks: {result.unaccounted}",
        f"MiB of files: {files}",
        f"figures judged: {judged} of {len(result.growths)}, "
        f"too much growth: {sum(growth.is_too_much for growth in result.growths)}",
    ]
