"""`ast-stream scan --shard I/N --out DIR`: a part of an archive, as Parquet."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, TextColumn

from ast_stream.archive.folders import ArchiveError
from ast_stream.archive.listing import Listing, ShardNumber, list_archive, names_in
from ast_stream.archive.manifest import Progress, ShardManifest
from ast_stream.archive.reader import archive_state
from ast_stream.archive.shard import PART_HOURS, PART_RECORDINGS, PartSize, ShardResults
from ast_stream.archive.stores import arrow
from ast_stream.cli.output import aligned, json_line, say
from ast_stream.cli.terminal import PacedLines, ProgressView
from ast_stream.errors import UsageError
from ast_stream.labels import printable
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.model import ModelSettings
from ast_stream.units import counted

if TYPE_CHECKING:
    from ast_stream.archive.batch_scanner import BatchScanner
    from ast_stream.archive.scan import ShardSpeed

STDIN = "-"
LINE_EVERY_S = 10.0
MANY_STARTS = 3  # without a whole part: something is wrong
_ARCHIVE, _RARELY = "Archives: to Parquet, part by part", "Archives: rarely needed"


def _option(help: str, *names: str, panel: str = _ARCHIVE, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, **more)


_rare_option = partial(_option, panel=_RARELY)


@dataclass(frozen=True)
class ArchiveOptions:
    """Options of `scan` for archives; see `docs/how-to/archive.md`."""

    out: Annotated[
        str | None,
        _option("Folder or URI for the results of all shards.", metavar="DIR"),
    ] = None
    shard: Annotated[
        str | None,
        _option("Scan part I of N, counted from 0; others run elsewhere, or later.", metavar="I/N"),
    ] = None
    list_file: Annotated[
        str | None,
        _option(
            "Recordings, one path or URI on each line (or before each NUL); - for stdin.",
            "--list",
            metavar="FILE",
        ),
    ] = None
    root: Annotated[
        str | None,
        _option("Folder or URI that the names of recordings are relative to.", metavar="DIR"),
    ] = None
    progress: Annotated[
        str | None,
        _option("Scan nothing: show how far the shards in DIR are.", metavar="DIR"),
    ] = None
    again: Annotated[bool, _rare_option("Delete what the shard has, begin afresh.", "--again")] = (
        False
    )
    skip: Annotated[
        list[str] | None,
        _rare_option("Leave a recording out, as if unreadable; may be repeated.", metavar="NAME"),
    ] = None
    with_scores: Annotated[
        bool, _rare_option("Also write the scores of all classes.", "--with-scores")
    ] = False
    part_hours: Annotated[
        float, _rare_option("Hours of sound in a part: what a kill may cost.", min=0.001)
    ] = PART_HOURS
    part_recordings: Annotated[int, _rare_option("Recordings in a part, at most.", min=1)] = (
        PART_RECORDINGS
    )
    readers: Annotated[int, _rare_option("Recordings read ahead.", min=1, max=64)] = 4
    together: Annotated[
        int | None,
        _rare_option(
            "Recordings heard at once. (default: 16 on a CPU, 1 on a GPU)", min=1, max=256
        ),
    ] = None

    @property
    def is_asked(self) -> bool:
        """Whether any of them was given."""
        return any(getattr(self, field.name) != field.default for field in dataclasses.fields(self))


def scan_archive(
    files: list[str],
    options: ArchiveOptions,
    model: ModelSettings,
    detection: DetectionSettings,
    *,
    channel: int | None,
    as_json: bool,
) -> None:
    """Scan a shard, or continue it.

    Raises:
        AstStreamError: as the parts of `ast_stream.archive` say.
    """
    if options.out is None:
        raise UsageError("scan: --shard: expected --out DIR for the results, got none")
    arrow()
    shard = ShardNumber.parse(options.shard or "0/1")
    listing = _listing(files, options, shard)
    listing = dataclasses.replace(listing, left_out=frozenset(options.skip or ()))
    scanner = _scanner(shard, options, model, detection, channel)
    from ast_stream.archive.scan import open_results, scan_shard  # imports torch

    size = PartSize(options.part_hours, options.part_recordings)
    results = open_results(scanner, options.out, shard, listing, size=size, is_again=options.again)
    with results:
        n_before = results.n_done
        if n_before:
            kept = counted(n_before, "recording")
            say(f"scan: shard {shard}: {kept} of {len(listing.names)} done before", err=True)
        if not results.is_complete and results.manifest.progress.starts > MANY_STARTS:
            say(_stuck(shard, results, listing), err=True)
        with _shown(shard, results.n_done, len(listing.names), as_json=as_json) as show:
            progress = scan_shard(scanner, results, listing, show)
        if as_json:
            print(json_line(_summary(results.manifest)), flush=True)
        say(f"scan: shard {shard}: {_in_words(progress)} in {results.folder.place}", err=True)


def show_progress(folder: str, *, as_json: bool) -> None:
    """Show how far the shards in a folder are, and all of them together.

    Raises:
        ArchiveError: there is none, or a manifest cannot be read.
    """
    state = archive_state(folder)
    rows = [_summary(manifest) for _, manifest in sorted(state.manifests.items())]
    total = _total(rows, state.n_shards, len(state.missing))
    total["problems"] = list(state.problems)
    if as_json:
        for row in (*rows, total):
            print(json_line(row))
        return
    heads = ("shard", "state", "recordings", "hours", "events", "unread", "hours/hour", "left")
    lines = [heads]
    lines += [(f"{row['shard']}/{row['of']}", row["state"], *_cells(row)) for row in rows]
    lines.append(("all", total["state"], *_cells(total)))
    for line in aligned(lines):
        say(line)
    for text in filter(None, [state.why_not_whole]):
        say(f"scan: {folder}: {text}", err=True)


def _scanner(
    shard: ShardNumber,
    options: ArchiveOptions,
    model: ModelSettings,
    detection: DetectionSettings,
    channel: int | None,
) -> BatchScanner:
    """Return what scans recordings, as the shard was begun with if it was."""
    from ast_stream.archive.batch_scanner import BatchScanner, BatchScanOptions  # imports torch
    from ast_stream.archive.scan import attention_before

    assert options.out is not None
    if model.attention == "auto" and not options.again:
        try:
            before = attention_before(options.out, shard)
        except ArchiveError as error:
            raise ArchiveError(f"scan: {error}; --again begins afresh") from error
        if before is not None:
            model = model.model_copy(update={"attention": before})
    return BatchScanner(
        model,
        detection,
        BatchScanOptions(
            channel="mix" if channel is None else channel,
            readers=options.readers,
            together=options.together,
            has_scores=options.with_scores,
        ),
    )


def _stuck(shard: ShardNumber, results: ShardResults, listing: Listing) -> str:
    """Return what to do with a shard that never finishes a part."""
    n_starts = results.manifest.progress.starts - 1
    name = listing.names[results.n_done]
    return (
        f"scan: warning: shard {shard}: begun {n_starts} times without finishing a part; smaller "
        f"parts (--part-hours 0.5 --part-recordings 20) need less time, and if a recording ends "
        f"the process each time, --together 1 --part-recordings 1 shows it: now it is {name} or "
        "one behind it, and --skip NAME leaves it out"
    )


def _listing(files: list[str], options: ArchiveOptions, shard: ShardNumber) -> Listing:
    if options.list_file is None:
        return list_archive(shard, files, root=options.root)
    if options.list_file == STDIN:
        if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
            raise UsageError("scan: --list -: expected a list on standard input, got none")
        names = names_in(sys.stdin.buffer)
        return list_archive(shard, files, root=options.root, names=names)
    try:
        with open(options.list_file, "rb") as lines:
            return list_archive(shard, files, root=options.root, names=names_in(lines))
    except OSError as error:
        raise UsageError(
            f"scan: --list: cannot read {options.list_file}: {error.strerror}"
        ) from error


@contextmanager
def _shown(
    shard: ShardNumber, n_done: int, total: int, *, as_json: bool
) -> Iterator[Callable[[ShardSpeed], None]]:
    """Yield what shows progress: JSON lines, a bar, or a line in some seconds."""
    if as_json:
        yield _JsonLines(shard).show
        return
    lines = PacedLines(LINE_EVERY_S)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
    with ProgressView(*columns) as view:
        bar = view.add_task(f"shard {shard}", total=total, completed=n_done, speed="")

        def show(speed: ShardSpeed) -> None:
            text = (
                f"{speed.recordings} of {speed.total} recordings, {speed.hours:.1f} h, "
                f"{_figure(speed.hours_per_hour)} hours per hour, {_left(speed.eta_s)} left"
            )
            view.update(bar, completed=speed.recordings, speed=text)
            if view.disable:
                lines.show(f"scan: shard {shard}: {text}")

        yield show


class _JsonLines:
    """Progress as a JSON line in some seconds, for the log of a job."""

    def __init__(self, shard: ShardNumber, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._shard = {"type": "progress", "shard": shard.index, "of": shard.count}
        self._monotonic = monotonic
        self._shown_s = monotonic()

    def show(self, speed: ShardSpeed) -> None:
        now_s = self._monotonic()
        if now_s - self._shown_s < LINE_EVERY_S:
            return
        self._shown_s = now_s
        figures = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in dataclasses.asdict(speed).items()
        }
        print(json_line(self._shard | figures), flush=True)


def _summary(manifest: ShardManifest) -> dict[str, Any]:
    figures = manifest.progress.model_dump()
    return {
        "type": "shard",
        "shard": manifest.shard,
        "of": manifest.of,
        "state": manifest.state,
        "total": manifest.input.of_shard,
        "parts": len(manifest.parts),
        "bytes": sum(file.bytes for part in manifest.parts for file in part.files.values()),
        **figures,
    }


def _total(rows: list[dict[str, Any]], n_shards: int, n_missing: int) -> dict[str, Any]:
    summed = {
        key: sum(row[key] for row in rows)
        for key in (
            "total", "parts", "bytes", "recordings", "hours", "events", "warned", "partial",
            "unreadable", "busy_s",
        )
    }  # fmt: skip
    going = [row for row in rows if row["state"] != "complete"]
    left = [row["eta_s"] for row in going]
    is_known = not n_missing and None not in left
    return {
        "type": "archive",
        "shards": n_shards,
        "complete": len(rows) - len(going),
        "missing": n_missing,
        "state": "unfinished" if going or n_missing else "complete",
        **summed,
        "hours_per_hour": round(sum(row["hours_per_hour"] or 0.0 for row in going), 3),
        "eta_s": max(left, default=0.0) if is_known else None,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['recordings']} of {row['total']}",
        f"{row['hours']:.1f}",
        str(row["events"]),
        str(row["unreadable"] + row["partial"]),
        _figure(row["hours_per_hour"]),
        "" if row["state"] == "complete" else _left(row["eta_s"]),
    )


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _left(eta_s: float | None) -> str:
    return "?" if eta_s is None else str(timedelta(seconds=round(eta_s)))


def _in_words(progress: Progress) -> str:
    """Return how a shard ended; what could not be read is a row and no failure."""
    text = (
        f"{counted(progress.recordings, 'recording')}, {progress.hours:.2f} h, "
        f"{counted(progress.events, 'event')}"
    )
    not_whole = [
        f"{count} {name}"
        for name, count in (
            ("unreadable", progress.unreadable),
            ("partial", progress.partial),
            ("warned", progress.warned),
        )
        if count
    ]
    if not_whole:
        text += f" ({', '.join(not_whole)}: see `sentence` in the coverage)"
    return printable(text)
