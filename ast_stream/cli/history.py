"""`ast-stream history`: list, export and query the history, and try other settings on it."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ast_stream.alerts.model_facts import model_facts
from ast_stream.alerts.trials import compare, open_trials, snippet
from ast_stream.cli.options import (
    MOMENT,
    config_option,
    json_option,
    moment,
    require_packages,
    with_option_groups,
)
from ast_stream.cli.output import aligned, json_line, say
from ast_stream.errors import AstStreamError, CheckpointError, UsageError
from ast_stream.history.database import History
from ast_stream.history.export import (
    FORMATS,
    Format,
    as_json,
    audacity_lines,
    csv_lines,
    raven_lines,
    write_parquet,
)
from ast_stream.history.records import VERDICTS, EventQuery, EventRecord, Verdict
from ast_stream.labels import did_you_mean, printable, slug
from ast_stream.runtime.files import write_output_file
from ast_stream.runtime.state_format import check_state_dir
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import history_database
from ast_stream.units import NS_PER_SECOND, counted

STDOUT = "-"
_SUFFIXES: dict[str, Format] = {".csv": "csv", ".parquet": "parquet"}
_MAX_CELL = 60  # characters of a table

app = typer.Typer(
    no_args_is_help=True, epilog="Example: ast-stream history list -c config.yaml --class bark"
)

ConfigOption = Annotated[Path, config_option()]


@dataclass
class Filters:
    """Which events are meant."""

    since: Annotated[str | None, typer.Option(help=f"{MOMENT}.")] = None
    until: Annotated[str | None, typer.Option(help=f"{MOMENT}.")] = None
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Only events of this class; repeatable.")
    ] = None
    streams: Annotated[
        list[str] | None, typer.Option("--stream", help="Only this stream; repeatable.")
    ] = None
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the highest score of the event.")
    ] = None
    with_clip: Annotated[bool, typer.Option("--with-clip", help="Only those with a clip.")] = False
    verdicts: Annotated[
        list[str] | None,
        typer.Option("--verdict", help=f"Only with this verdict: {', '.join(VERDICTS)}."),
    ] = None

    def query(self, settings: Settings, history: History) -> EventQuery:
        """Return what to ask for.

        Raises:
            UsageError: a time, class, stream or verdict that cannot be meant.
        """
        now_ns = time.time_ns()
        streams, classes = history.names()
        streams += [stream.name for stream in settings.streams]
        classes += _classes_of(settings)
        verdicts: list[Verdict] = []
        for name in self.verdicts or ():
            if name not in VERDICTS:
                raise UsageError(f"--verdict: expected {', '.join(VERDICTS)}, got {name!r}")
            verdicts.append(name)
        return EventQuery(
            streams=tuple(_known("--stream", self.streams, streams)),
            classes=tuple(_known("--class", [slug(name) for name in self.classes or ()], classes)),
            since_ns=moment(self.since, "--since", now_ns),
            until_ns=moment(self.until, "--until", now_ns),
            min_score=self.min_score,
            has_clip=True if self.with_clip else None,
            verdicts=tuple(verdicts),
        )


@app.command("list")
@with_option_groups
def list_events(
    config: ConfigOption,
    filters: Filters,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    as_json_lines: Annotated[bool, json_option("One JSON object for each event.")] = False,
) -> None:
    """List events, the newest last.

    Example: ast-stream history list -c config.yaml --class smoke_alarm --since 7d
    """
    with _open(config) as (settings, history):
        query = filters.query(settings, history)
        events = [*_first(history.all_events(query), limit)][::-1]
    if as_json_lines:
        for event in events:
            print(json_line(as_json(event)))
    elif events:
        for line in aligned([_HEADINGS, *(_cells(event) for event in events)]):
            say(line)
    else:
        say("no such events", err=True)


@app.command("export")
@with_option_groups
def export_events(
    out: Annotated[str, typer.Argument(help="The file to write, or - for standard output.")],
    config: ConfigOption,
    filters: Filters,
    form: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(FORMATS)}. (default: by the file's name)"),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="For audacity and raven: when the recording began that the seconds are "
            "counted in. (default: --since)"
        ),
    ] = None,
) -> None:
    """Export events, oldest first: CSV, Parquet, an Audacity label track, a Raven selection table.

    Example: ast-stream history export night.csv -c config.yaml --since 24h
    """
    chosen = _format(out, form)
    if chosen == "parquet":
        require_packages("history export", "pyarrow")
        if out == STDOUT:
            raise UsageError("history export: parquet: expected the name of a file, got -")
    now_ns = time.time_ns()
    start_ns = moment(start or filters.since, "--start", now_ns)
    if chosen in ("audacity", "raven") and start_ns is None:
        raise UsageError(
            f"history export: {chosen}: expected --start or --since, for times are seconds of a "
            "recording, got neither"
        )
    n_events = 0

    def noted(events: Iterable[EventRecord]) -> Iterator[EventRecord]:
        nonlocal n_events
        for event in events:
            n_events += 1
            yield event

    with _open(config) as (settings, history):
        query = filters.query(settings, history)
        events = noted(history.all_events(_oldest_first(query)))
        if chosen == "parquet":
            _write(Path(out), partial(write_parquet, events))
        else:
            lines = _lines(chosen, events, start_ns or 0)
            if out == STDOUT:
                for line in lines:
                    sys.stdout.write(line)
            else:
                _write(Path(out), partial(_write_lines, lines))
    say(f"{counted(n_events, 'event')} in {out}", err=True)


@app.command("query")
def query_sql(
    sql: Annotated[
        str, typer.Argument(help="One statement that reads (docs/reference/history.md).")
    ],
    config: ConfigOption,
    as_json_lines: Annotated[bool, json_option("One JSON object for each row.")] = False,
) -> None:
    """Ask the history in SQL; nothing can be changed.

    Example: ast-stream history query "SELECT class, count(*) FROM events GROUP BY 1" -c config.yaml
    """
    with _open(config) as (_, history):
        path = history.path
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            db.execute("PRAGMA query_only = ON")
            rows = db.execute(sql)
            names = [name for name, *_ in rows.description or ()]
            if as_json_lines:
                for row in rows:
                    print(json_line(dict(zip(names, map(_json_value, row), strict=True))))
                return
            for line in aligned([names, *([_shown(value) for value in row] for row in rows)]):
                say(line)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise UsageError(f"history query: {error}") from error


@app.command("trial")
def trial(
    config: ConfigOption,
    name: Annotated[str, typer.Option("--class", help="Class whose settings are tried.")],
    since: Annotated[str, typer.Option(help=f"{MOMENT}.")] = "24h",
    until: Annotated[str | None, typer.Option(help=f"{MOMENT}.")] = None,
    streams: Annotated[
        list[str] | None, typer.Option("--stream", help="Only this stream; repeatable.")
    ] = None,
    onset_threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="Score at which it begins.")
    ] = None,
    confirm: Annotated[float | None, typer.Option(min=0, help="confirm_s, in seconds.")] = None,
    hold: Annotated[float | None, typer.Option(min=0, help="hold_s, in seconds.")] = None,
    min_duration: Annotated[
        float | None, typer.Option(min=0, help="min_duration_s, in seconds.")
    ] = None,
    as_json_lines: Annotated[bool, json_option("One JSON object for each event.")] = False,
) -> None:
    """Show what would have been reported of a class with other settings; changes nothing.

    The scores that the recorder has kept (`recorder.history.scores`) are decided again. What is
    printed last can be put into the configuration.

    Example: ast-stream history trial -c config.yaml --class bark --threshold 0.7 --since 7d
    """
    settings = _settings(config)
    now_ns = time.time_ns()
    since_ns = moment(since, "--since", now_ns) or 0
    until_ns = now_ns if until is None else moment(until, "--until", now_ns) or now_ns
    changes = {
        key: value
        for key, value in {
            "onset_threshold": onset_threshold,
            "confirm_s": confirm,
            "hold_s": hold,
            "min_duration_s": min_duration,
        }.items()
        if value is not None
    }
    trials, history = open_trials(settings)
    with history:
        own = trials.changed(name, **changes)
        label = trials.label(name)
        known = [*trials.reader.streams(), *(stream.name for stream in settings.streams)]
        chosen = _known("--stream", streams, known)
        if trials.reader.span_ns() is None:
            raise AstStreamError(f"there are no scores in {trials.reader.folder}")
        tried = trials.parameters_with({label: own})
        before, after = (
            trials.run(parameters, since_ns, until_ns, classes=[label], streams=chosen)
            for parameters in (trials.parameters, tried)
        )
        verdicts = _verdicts(history, label, since_ns, until_ns)
    found = compare(
        (event for result in before for event in result.events),
        (event for result in after for event in result.events),
    )
    changed = [("gained", event) for event in found.gained]
    changed += [("lost", event) for event in found.lost]
    everything = [("kept", event) for event in found.kept] + changed
    for what, event in sorted(everything, key=lambda pair: pair[1].key):
        verdict = verdicts.get(event.id)
        if as_json_lines:
            print(json_line({"trial": what} | as_json(event) | {"verdict": verdict}))
        elif what != "kept":
            said = "" if verdict is None else f"  {verdict}"
            say(f"{what:<6}  {'  '.join(_cells(event)[:5])}{said}")
    for remark in trials.remarks():
        say(f"warning: {remark}", err=True)
    for result in after:
        for line in _remarks(result.stream, result.n_windows, result.n_foreign, result.holes):
            say(line, err=True)
    n_before = sum(len(result.events) for result in before)
    say(
        f"{label}: {counted(n_before, 'event')} as configured, "
        f"{len(found.kept) + len(found.gained)} as tried: {len(found.gained)} gained, "
        f"{len(found.lost)} lost",
        err=True,
    )
    if changes:
        say("\n" + snippet(label, own).rstrip(), err=as_json_lines)


def _remarks(
    stream: str, n_windows: int, n_foreign: int, holes: list[tuple[int, int]]
) -> Iterator[str]:
    """Yield what a trial could not judge."""
    if not n_windows:
        yield f"warning: {stream}: there are no scores of this model in that time"
    if n_foreign:
        yield f"warning: {stream}: {n_foreign} windows of another model or hop are not judged"
    if holes:
        lost_s = sum(stop - start for start, stop in holes) / NS_PER_SECOND
        yield f"warning: {stream}: {lost_s:.0f} s without scores in {len(holes)} places"


def _verdicts(history: History, label: str, since_ns: int, until_ns: int) -> dict[str, str]:
    query = EventQuery(
        classes=(slug(label),), since_ns=since_ns, until_ns=until_ns, has_verdict=True
    )
    return {event.id: str(event.verdict) for event in history.all_events(query)}


class _Opened:
    """The history of a configuration, and the configuration."""

    def __init__(self, config: Path) -> None:
        self.settings = _settings(config)
        self._history = History.open_read_only(Path(history_database(self.settings).path))

    def __enter__(self) -> tuple[Settings, History]:
        return self.settings, self._history

    def __exit__(self, *_: object) -> None:
        self._history.close()


def _open(config: Path) -> _Opened:
    return _Opened(config)


def _settings(config: Path) -> Settings:
    settings = load_settings(config)
    check_state_dir(Path(settings.state_dir), str(config))
    return settings


def _classes_of(settings: Settings) -> list[str]:
    try:
        return [slug(label) for label in model_facts(settings.model).labels or ()]
    except CheckpointError:
        return []


def _known(option: str, wanted: list[str] | None, known: Iterable[str]) -> list[str]:
    """Return the names that are wanted.

    Raises:
        UsageError: one of them is not known.
    """
    names = sorted(set(known))
    for name in wanted or ():
        if name not in names:
            hint = did_you_mean(name, names)
            raise UsageError(f"{option}: expected one that there is, got {name!r}{hint}")
    return wanted or []


def _oldest_first(query: EventQuery) -> EventQuery:
    return EventQuery(**vars(query) | {"newest_first": False})


def _first(events: Iterator[EventRecord], limit: int) -> Iterator[EventRecord]:
    for _, event in zip(range(limit), events, strict=False):
        yield event


_HEADINGS = ("onset", "stream", "class", "duration", "peak", "verdict", "clip", "id")


def _cells(event: EventRecord) -> tuple[str, ...]:
    at = datetime.fromtimestamp(event.onset_ns / NS_PER_SECOND).astimezone()
    return (
        f"{at:%Y-%m-%d %H:%M:%S}",
        event.stream,
        event.class_,
        "goes on" if event.duration_s is None else f"{event.duration_s:.1f} s",
        f"{event.peak:.2f}",
        event.verdict or "",
        "clip" if event.has_clip else "",
        event.id,
    )


def _format(out: str, form: str | None) -> Format:
    if form is None:
        chosen = _SUFFIXES.get(Path(out).suffix.lower())
    else:
        chosen = next((known for known in FORMATS if known == form), None)
    if chosen is None:
        got = f"{out!r}" if form is None else repr(form)
        raise UsageError(
            f"history export: expected --format {', '.join(FORMATS)}, or a file that ends in "
            f".csv or .parquet, got {got}"
        )
    return chosen


def _lines(
    form: Format,
    events: Iterable[EventRecord],
    start_ns: int,
) -> Iterator[str]:
    match form:
        case "audacity":
            return audacity_lines(events, start_ns)
        case "raven":
            return raven_lines(events, start_ns)
    return csv_lines(events)


def _write_lines(lines: Iterable[str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def _write(path: Path, write: Any) -> None:
    try:
        write_output_file(path, write)
    except OSError as error:
        raise UsageError(f"history export: cannot write {path}: {error.strerror}") from error


def _json_value(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _shown(value: object) -> str:
    if value is None:
        return ""
    text = printable(f"{value:g}" if isinstance(value, float) else str(_json_value(value)))
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"
