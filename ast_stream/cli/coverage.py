"""`ast-stream coverage`: what was listened to and what was not, to the sample."""

from __future__ import annotations

import importlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ast_stream.cli.options import MOMENT, config_option, json_option, moment, require_packages
from ast_stream.cli.output import json_line, say
from ast_stream.cli.subscribe import default_settings
from ast_stream.cli.terminal import console, plain_table
from ast_stream.coverage.ledger import read_all_spans
from ast_stream.coverage.spans import KINDS, Span
from ast_stream.coverage.timeline import Coverage, Others
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.pool.coverage import ANOTHER, ask_pool
from ast_stream.runtime.files import write_output_file
from ast_stream.runtime.lifecycle import EXIT_CRASH
from ast_stream.runtime.state_format import check_state_dir
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import coverage_ledger, unwritten_coverage
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.units import NS_PER_SECOND, format_time, samples_to_seconds

_COLOURS = {
    "listened": "#2a9d4a",
    "gated": "#9ccfa9",
    "degraded": "#e9b44c",
    "missing": "#b0b0b0",
    "gap": "#c8322b",
    "off": "#f0f0f0",
    "elsewhere": "#7aa6d8",
}
_DPI = 110


def coverage(
    streams: Annotated[
        list[str] | None, typer.Argument(metavar="STREAM", help="All, if none is named.")
    ] = None,
    config: Annotated[Path | None, config_option("The configuration of the worker.")] = None,
    since: Annotated[str | None, typer.Option(help=f"{MOMENT}.")] = None,
    until: Annotated[str | None, typer.Option(help=f"{MOMENT}.")] = None,
    at_least: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Exit with 1 if less than this of the accounted time of a stream was heard.",
        ),
    ] = None,
    as_json: Annotated[
        bool, json_option("One JSON object for each stream, with all its spans.")
    ] = False,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw a timeline (needs matplotlib).")
    ] = None,
) -> None:
    """Show for how long each stream was listened to, gated, degraded, missing or lost in gaps.

    In a pool of workers it is the coverage by all of them: each is asked for its part, which needs
    the right `feed` there. The time of one that cannot be asked is elsewhere, with its name.

    All time since the first record of a stream is one of these. Streams of the configuration are
    accounted for until now. Those whose source can end (a file that is not looped, standard input,
    a scene), and all without -c, are accounted for until their last record: what follows may be
    the end of the source or of its capture process; `status` shows which. With --until all are
    accounted for until then.

    Listened, gated and degraded time counts as heard: it was not lost. Time in which a stream is
    not in the configuration is off, and is left out, as is time elsewhere.

    Example: ast-stream coverage -c /etc/ast-stream/config.yaml --since 24h
    """
    if png is not None:
        require_packages("coverage --png", "matplotlib")
    settings = default_settings() if config is None else load_settings(config)
    parts = [of_worker(settings, name) for name in worker_names(settings)]
    if config is not None:
        for part in parts:
            check_state_dir(Path(part.state_dir), str(config))
    ledgers = [(coverage_ledger(part).folder, unwritten_coverage(part).path) for part in parts]
    found, unasked = _coverages(settings if config else None, ledgers, streams, since, until)
    for name, why in sorted(unasked.items()):
        say(f"warning: not asked of the pool: {name} ({why})", err=True)
    if png is not None:
        _write_png(png, found)
    if as_json:
        for report in found:
            shown = report.to_json()
            print(json_line(shown | ({"not_asked": unasked} if settings.pool else {})))
    else:
        console(stderr=False, piped_width=140).print(_table(found), crop=False)
        for report in found:
            for workers, count in report.reasons.get("elsewhere", {}).items():
                duration = _duration(samples_to_seconds(count))
                was = "may have been" if ANOTHER in unasked else "was"
                print(f"{report.stream} {was} at {workers} for {duration}")
    problems = [] if at_least is None else _check(found, at_least)
    if not any(report.stretches for report in found):
        places = " and ".join(str(folder) for folder, _ in ledgers)
        problems = [f"{places} {'has' if len(ledgers) == 1 else 'have'} no record of that time"]
    for problem in problems:
        say(problem, err=True)
    if problems:
        raise typer.Exit(EXIT_CRASH)


def _check(found: Sequence[Coverage], min_percent: float) -> list[str]:
    """Return which streams were heard for too little; warn of what the check cannot see."""
    problems = []
    for report in found:
        if report.ends_with_record and report.stretches:
            last = _second(report.stretches[-1].stop_ns)
            say(
                f"warning: {report.stream} is accounted for until its last record, {last}: the "
                "time since then is not in the check",
                err=True,
            )
        if report.elsewhere:
            say(
                f"warning: {report.stream} was elsewhere for "
                f"{_duration(samples_to_seconds(report.elsewhere))}: that is not in the check",
                err=True,
            )
        is_off = report.total == 0 and report.off > 0  # it was not to be listened to at any time
        if not is_off and 100 * (report.heard or 0.0) < min_percent:
            heard = percent(report.heard) or "none"
            problems.append(
                f"{report.stream}: heard for {heard} of the time, "
                f"expected at least {min_percent:g} %"
            )
    return problems


def _coverages(
    settings: Settings | None,
    ledgers: Sequence[tuple[Path, Path]],
    wanted: Sequence[str] | None,
    since: str | None,
    until: str | None,
) -> tuple[list[Coverage], Mapping[str, str]]:
    """Return the coverage of the streams in a configuration and of those that were recorded.

    Also which workers of its pool were not asked, and why.

    Raises:
        UsageError: a stream or a time that cannot be meant.
        AstStreamError: the ledger cannot be read.
    """
    now_ns = time.time_ns()
    since_ns, until_ns = moment(since, "--since", now_ns), moment(until, "--until", now_ns)
    if since_ns is not None and since_ns >= (now_ns if until_ns is None else until_ns):
        raise UsageError("--since: expected a time before --until, or before now")
    try:
        spans = read_all_spans(ledgers)
    except OSError as error:
        raise AstStreamError(
            f"cannot read the coverage ledger {error.filename}: {error.strerror}"
        ) from error
    with ExitStack() as stack:
        others: Callable[[str], Others] = _nobody_else
        unasked: Mapping[str, str] = {}
        if settings is not None and settings.pool is not None:
            pool = stack.enter_context(ask_pool(settings, spans, since_ns, until_ns))
            spans, others, unasked = pool.joined(), pool.others(), pool.unasked
            for name, worker in pool.unseen().items():
                say(f"warning: {name} is at {worker} alone: it is not shown", err=True)
        return _of_spans(settings, spans, wanted, now_ns, since_ns, until_ns, others), unasked


def _nobody_else(stream: str) -> Others:
    return lambda *_: ()


def _of_spans(
    settings: Settings | None,
    spans: Mapping[str, Sequence[Span]],
    wanted: Sequence[str] | None,
    now_ns: int,
    since_ns: int | None,
    until_ns: int | None,
    others: Callable[[str], Others],
) -> list[Coverage]:
    """Return the coverage of streams with these spans, and of those in a configuration.

    Raises:
        UsageError: a stream that cannot be meant.
    """
    configured = [] if settings is None else settings.streams
    lasting = {stream.name for stream in configured if not stream.source.can_end}
    names = [stream.name for stream in configured]
    names += [name for name in sorted(spans) if name not in names]
    for name in wanted or ():
        if name not in names:
            known = ", ".join(names) or "none yet"
            raise UsageError(f"expected a stream that was recorded ({known}), got {name!r}")
    return [
        Coverage.of(
            name,
            spans.get(name, []),
            now_ns,
            is_expected=name in lasting,
            since_ns=since_ns,
            until_ns=until_ns,
            others=others(name),
        )
        for name in names
        if not wanted or name in wanted
    ]


def _table(found: Sequence[Coverage]) -> Table:
    left_out = [
        kind
        for kind in ("off", "elsewhere")
        if any(stretch.kind == kind for report in found for stretch in report.stretches)
    ]
    figures = (*KINDS, *left_out, "heard")
    table = plain_table("stream", "from", "to", *figures, right=figures)
    for report in found:
        if not report.stretches:
            table.add_row(report.stream, "nothing recorded")
            continue
        first, last = (
            _second(ns) for ns in (report.stretches[0].time_ns, report.stretches[-1].stop_ns)
        )
        last += ", its last record" if report.ends_with_record else ""
        counts: dict[str, int] = dict(report.samples.items())
        counts |= {"off": report.off, "elsewhere": report.elsewhere}
        durations = (_duration(samples_to_seconds(counts[kind])) for kind in (*KINDS, *left_out))
        table.add_row(report.stream, first, last, *durations, percent(report.heard))
    return table


def percent(ratio: float | None) -> str:
    """Return a ratio in percent, rounded down: 100 % is all of it."""
    return "" if ratio is None else f"{math.floor(ratio * 10_000) / 100:.2f} %"


def _second(time_ns: int) -> str:
    return format_time(time_ns // NS_PER_SECOND * NS_PER_SECOND).replace(".000000", "")


def _duration(seconds: float) -> str:
    """Return a duration exactly enough to add up: 0, 0.350 s, 12.3 s, 4:05:06."""
    if seconds < 100:
        digits = 3 if seconds < 1 else 1
        return "0" if seconds == 0 else f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _write_png(path: Path, found: Sequence[Coverage]) -> None:
    """Draw a line for each stream, coloured by kind.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 1.4 + 0.4 * max(1, len(found))), layout="constrained")
    axes = figure.subplots()
    for row, coverage in enumerate(found):
        for kind in _COLOURS:
            bars = [
                (_days(stretch.time_ns), _days(stretch.stop_ns - stretch.time_ns))
                for stretch in coverage.stretches
                if stretch.kind == kind
            ]
            # a second of a day that was lost is seen, too
            width = 0.8 if kind in ("missing", "gap") else 0
            axes.broken_barh(bars, (row - 0.4, 0.8), color=_COLOURS[kind], linewidth=width)
    labels = [f"{report.stream}  {percent(report.heard)}" for report in found]
    axes.set_yticks(range(len(found)), labels)
    axes.invert_yaxis()
    axes.xaxis_date()
    dates: Any = importlib.import_module("matplotlib.dates")  # it has no types
    locator = dates.AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes.set_xlabel("UTC")
    handles = [Patch(color=colour, label=kind) for kind, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    try:
        write_output_file(path, buffer.getvalue())
    except OSError as error:
        raise UsageError(f"--png: cannot write {path}: {error.strerror}") from error


def _days(duration_ns: int) -> float:
    """Return nanoseconds, of a duration or since 1970, as matplotlib counts them."""
    return duration_ns / (86_400 * NS_PER_SECOND)
