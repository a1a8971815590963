"""`ast-stream bench`: time parts on this machine, and soak-test all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ast_stream.benchmarks.capture import COLUMNS as CAPTURE_COLUMNS
from ast_stream.benchmarks.capture import Cost, Kind, measure
from ast_stream.benchmarks.report import Row, TableColumn, cells, versions
from ast_stream.benchmarks.soak import BOUNDS, Soak, SoakOptions, SoakResult
from ast_stream.cli.options import CascadeCheckpoint, cascade_settings, json_option
from ast_stream.cli.output import json_line, say
from ast_stream.cli.terminal import PacedLines, ProgressView, console, plain_table
from ast_stream.errors import UsageError
from ast_stream.runtime.lifecycle import EXIT_CRASH, stop_on_signals
from ast_stream.runtime.temporary import temporary_folder
from ast_stream.settings.explain import with_options
from ast_stream.settings.model import ModelSettings
from ast_stream.units import SAMPLE_RATE

WORST_SHOWN = 12

Rounds = Annotated[int, typer.Option(min=1, help="Each way runs once per round, in turn.")]
AsJson = Annotated[bool, json_option("All figures as one JSON object.")]
Model = Annotated[str, typer.Option(help="Checkpoint.")]
Hop = Annotated[float, typer.Option(min=0.05, help="Seconds between windows.")]
Recordings = Annotated[
    Path | None,
    typer.Option(help="Play the recordings of this folder, not generated scenes."),
]
SCENE_S = 40.0
N_SCENES = 8  # that streams of `tick` hear

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream bench soak --hours 2")


@app.command()
def model(
    model: Annotated[
        str, typer.Option(help="Checkpoint, or ast-base: random weights of the published shape.")
    ] = "bundled",
    batch: Annotated[list[int], typer.Option(min=1, max=64, help="Windows per batch.")] = [1],  # noqa: B006
    rounds: Rounds = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    eager: Annotated[
        bool, typer.Option("--eager", help="With transformers' eager attention, in fp32.")
    ] = False,
    recordings: Annotated[
        Path | None,
        typer.Option(help="Score the beginnings of recordings in this folder, not noise."),
    ] = None,
    at_most: Annotated[
        int, typer.Option(min=1, max=10_000, help="Recordings, from all over the folder.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Time the model, features included, beside transformers where that is installed.

    The implementations run alternately; times are medians over the rounds. `speed-up` is relative
    to transformers' default, sdpa in fp32; `difference` is the largest difference of any score
    from it, and `top 5` the ratio of its five highest classes that are kept.

    Example: ast-stream bench model --model ast-base --batch 1 --batch 8
    """
    from ast_stream.benchmarks.model import COLUMNS, time_model  # torch: the help needs none of it

    with _progress(rounds * len(batch)) as advance:
        timings = time_model(
            model, batch, rounds, device, advance, recordings, at_most, with_eager=eager
        )
    rows = [asdict(timing) for timing in timings]
    print_report({"model": model}, rows, COLUMNS, as_json=as_json)


@app.command()
def features(
    streams: Annotated[list[int], typer.Option(min=1, max=1000, help="Streams at once.")] = [1, 64],  # noqa: B006
    window: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds of a window.")] = 10.24,
    hop: Annotated[float, typer.Option(min=0.05, max=60, help="Seconds between windows.")] = 0.5,
    rounds: Rounds = 9,
    as_json: AsJson = False,
) -> None:
    """Time the features of live streams beside transformers' extractor where that is installed.

    Each hop brings every stream new sound, of which the model's input is made; a round is as many
    hops as make 16 windows. The extractor computes whole windows, ours the frames that are new.
    Figures are milliseconds of the processor for a stream and hop.

    Example: ast-stream bench features --streams 1 --streams 64 --hop 0.5
    """
    from ast_stream.benchmarks.features import COLUMNS, time_features

    with _progress(rounds * len(streams)) as advance:
        rows = [
            asdict(timing)
            for n_streams in streams
            for timing in time_features(n_streams, window, hop, rounds, advance)
        ]
    print_report({"window_s": window, "hop_s": hop}, rows, COLUMNS, as_json=as_json)


@app.command()
def decision(
    streams: Annotated[int, typer.Option(min=1, max=100_000, help="Streams.")] = 2000,
    classes: Annotated[int, typer.Option(min=1, max=10_000, help="Classes.")] = 527,
    events: Annotated[
        int, typer.Option(min=1, help="Events that begin in every second window.")
    ] = 700,
    rounds: Rounds = 9,
    as_json: AsJson = False,
) -> None:
    """Time the decision stage for a window of many streams, with and without events.

    Figures are milliseconds of one core for one window of every stream.

    Example: ast-stream bench decision --streams 2000 --events 700
    """
    from ast_stream.benchmarks.decision import COLUMNS, time_decision

    with _progress(rounds) as advance:
        timings = time_decision(streams, classes, events, rounds, advance)
    print_report({}, [asdict(timing) for timing in timings], COLUMNS, as_json=as_json)


@app.command()
def alerts(
    rules: Annotated[list[int], typer.Option(min=1, max=1000, help="Rules of all kinds.")] = [  # noqa: B006
        10,
        100,
    ],
    rounds: Rounds = 20,
    as_json: AsJson = False,
) -> None:
    """Time the engine of alert rules: messages a second of one core.

    A round is a second in which 2 000 begin and end messages of 50 classes come from 20 streams,
    and in which the state is exported once, as the service does.

    Example: ast-stream bench alerts --rules 100
    """
    from ast_stream.benchmarks.alerts import COLUMNS, time_alerts

    with _progress(rounds) as advance:
        timings = time_alerts(rules, rounds, advance)
    print_report({}, [asdict(timing) for timing in timings], COLUMNS, as_json=as_json)


@app.command()
def history(
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days that are remembered.")] = 365,
    rounds: Rounds = 20,
    as_json: AsJson = False,
) -> None:
    """Time the history: its size, the cost of a message, and the time of queries.

    A day is 2 000 events of 30 classes on 8 streams, with clips, verdicts, alerts and gaps.

    Example: ast-stream bench history --days 30
    """
    from ast_stream.benchmarks.history import COLUMNS, measure_history

    with _progress(days) as advance, temporary_folder("history") as folder:
        timing = measure_history(folder, days, rounds, advance)
    figures = asdict(timing)
    answers = figures.pop("answers")
    print_report(figures, answers, COLUMNS, as_json=as_json)


@contextmanager
def _progress(n_rounds: int) -> Iterator[Callable[[], None]]:
    """Show how many rounds are done, and yield what to call after each."""
    with ProgressView() as progress:
        task = progress.add_task("timing", total=n_rounds)
        yield lambda: progress.advance(task)


@app.command()
def box(
    streams: Annotated[
        list[int], typer.Option(min=1, max=4096, help="Live streams; each number is a run.")
    ] = [16, 64],  # noqa: B006
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds measured, after the start.")
    ] = 30.0,
    model: Model = "bundled",
    cascade: CascadeCheckpoint = None,
    hop: Hop = 0.5,
    recordings: Recordings = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of the sounds.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure how late the feed is by the number of live streams, through real processes.

    Each number is a run of all processes, with recordings read in real time. `lag` is the time from
    the end of a window to its result on the feed, `onset` that from the onset of a sound to its
    event, both in seconds; `degraded` is the part of the audio of which windows were left out
    because the model could not keep up, and `lost` what nobody has heard. CPU is in cores, memory
    without pages of files. Ctrl-C ends it early, with the runs so far.

    Example: ast-stream bench box --streams 16 --streams 64
    """
    from ast_stream.benchmarks.latency import (
        CASCADE_COLUMNS,
        COLUMNS,
        BoxOptions,
        BoxRun,
        write_recordings,
    )

    small = None if cascade is None else _elsewhere(cascade)
    options = BoxOptions(seconds, _checked(model, hop), small, hop, recordings, seed)
    rows = []
    with (
        stop_on_signals() as stop,
        temporary_folder("box", Path("/tmp")) as place,
    ):
        files = write_recordings(place, max(streams), options)
        for n_streams in streams:
            folder = place / str(n_streams)
            folder.mkdir()
            run = BoxRun(n_streams, files, options, folder)
            figures = run.run(stop.is_set, lambda text: say(text, err=True))
            rows += [] if figures is None else [asdict(figures)]
    if not rows:
        raise UsageError("stopped before anything was measured")
    columns = COLUMNS if cascade is None else (*COLUMNS, *CASCADE_COLUMNS)
    print_report(_named(model, cascade, hop), rows, columns, as_json=as_json)


@app.command()
def tick(
    streams: Annotated[
        list[int], typer.Option(min=1, max=4096, help="Live streams; each number is a run.")
    ] = [16, 64, 256],  # noqa: B006
    seconds: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Seconds of sound of each stream.")
    ] = 10.0,
    model: Model = "bundled",
    cascade: CascadeCheckpoint = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Use a dummy model with so many classes."),
    ] = None,
    hop: Hop = 0.5,
    read: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOPIC",
            help="Topics that are read besides events, gaps, health and status, e.g. scores.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time the worker's turns, all stages but the sockets, as if streams were live.

    Figures are milliseconds of CPU time for one second of sound of all streams, on a clock of its
    own: they do not depend on what else the machine does meanwhile, and 1000 are one core.

    Example: ast-stream bench tick --streams 64 --streams 256
    """
    from ast_stream.benchmarks.tick import (
        CASCADE_COLUMNS,
        COLUMNS,
        TOPICS,
        blank_tagger,
        time_turns,
    )
    from ast_stream.detect.cascade import load_cascade
    from ast_stream.model.loading import load_model
    from ast_stream.soundscape.scene import generate_scene

    if classes is not None and cascade is not None:
        raise UsageError("bench tick: expected --cascade or --classes, got both")
    chosen = ModelSettings(checkpoint=_checked(model, hop), cascade=cascade_settings(cascade))
    tagger = load_model(chosen) if classes is None else blank_tagger(classes)
    small = load_cascade(chosen)
    reads = (*TOPICS, *(f"{topic.rstrip('/')}/" for topic in read or ()))
    sounds = [generate_scene(seed, SCENE_S).pcm for seed in range(min(N_SCENES, max(streams)))]
    rows = []
    for n_streams in streams:
        with temporary_folder("tick") as place:
            figures = time_turns(
                tagger, n_streams, hop, seconds, sounds, place, reads, cascade=small
            )
        rows.append(asdict(figures))
    named = _named(model, cascade, hop) if classes is None else {"classes": classes, "hop_s": hop}
    columns = COLUMNS if cascade is None else (*COLUMNS, *CASCADE_COLUMNS)
    print_report({**named, "read": [*reads]}, rows, columns, as_json=as_json)


@app.command()
def scan(
    minutes: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="Length of a generated recording.")
    ] = 10.0,
    recordings: Annotated[
        Path | None, typer.Option(help="Scan recordings of this folder, too.")
    ] = None,
    at_most: Annotated[
        int, typer.Option(min=1, max=100_000, help="Recordings, from all over the folder.")
    ] = 200,
    model: Model = "bundled",
    cascade: CascadeCheckpoint = None,
    hop: Hop = 0.5,
    as_json: AsJson = False,
) -> None:
    """Time the scanner on recordings, decoding included.

    A generated recording of a tenth of the length is scanned and one of the whole: memory must not
    grow from one to the other.

    Example: ast-stream bench scan --recordings sounds
    """
    from ast_stream.benchmarks.scan import (
        CASCADE_COLUMNS,
        COLUMNS,
        some_recordings,
        time_scan,
        write_scene,
    )
    from ast_stream.detect.cascade import load_cascade
    from ast_stream.model.loading import load_model
    from ast_stream.scanner import Scanner

    chosen = ModelSettings(checkpoint=_checked(model, hop), cascade=cascade_settings(cascade))
    tagger = load_model(chosen)
    small = load_cascade(chosen)
    rows = []
    with temporary_folder("scan") as place:
        sets = [
            (f"scene of {length:g} min", [write_scene(place / f"{length}.flac", 60 * length)])
            for length in (minutes / 10, minutes)
        ]
        if recordings is not None:
            sets.append((recordings.name, some_recordings(recordings, at_most)))
        for each, paths in sets:
            figures = time_scan(each, paths, lambda: Scanner(tagger, hop_s=hop, cascade=small))
            rows.append(asdict(figures))
    columns = COLUMNS if cascade is None else (*COLUMNS, *CASCADE_COLUMNS)
    print_report(_named(model, cascade, hop), rows, columns, as_json=as_json)


def _checked(model: str, hop_s: float) -> str:
    """Return the checkpoint for processes in another folder.

    Raises:
        UsageError: it or the hop cannot be used.
    """
    with_options(
        ModelSettings(), {"checkpoint": ("bench: --model", model), "hop_s": ("bench: --hop", hop_s)}
    )
    return _elsewhere(model)


def _elsewhere(checkpoint: str) -> str:
    """Return how a checkpoint is named from another folder."""
    is_path = checkpoint != "bundled" and Path(checkpoint).exists()
    return str(Path(checkpoint).resolve()) if is_path else checkpoint


def _named(model: str, cascade: str | None, hop_s: float) -> dict[str, Any]:
    """Return what a report is about."""
    small = {} if cascade is None else {"cascade": cascade}
    return {"model": model, **small, "hop_s": hop_s}


@app.command()
def capture(
    streams: Annotated[list[int], typer.Option(min=1, max=2048, help="How many at a time.")] = [  # noqa: B006
        1,
        8,
        32,
        64,
    ],
    kind: Annotated[
        list[Kind], typer.Option(help="Recordings, stations, or recordings that are not there.")
    ] = [Kind.FILE],  # noqa: B006
    seconds: Annotated[
        float, typer.Option(min=2, help="For each number; more than the ring holds.")
    ] = 100.0,
    ring: Annotated[float, typer.Option(min=10, max=600, help="ring_s of each stream.")] = 90.0,
    as_json: Annotated[bool, json_option("All figures as one JSON object.")] = False,
) -> None:
    """Measure memory and processor time of one capture process of many streams.

    `each` is what a stream takes beyond those of the first row of its kind.

    Example: ast-stream bench capture --streams 1 --streams 64
    """
    lines = PacedLines(10.0)
    costs: list[Cost] = []
    for source_kind in kind:
        first: Cost | None = None
        for number in streams:
            lines.show(f"{number} x {source_kind}, {seconds:g} s")
            costs.append(measure(source_kind, number, seconds, ring, first))
            first = first or costs[-1]
    options = {"ring_s": ring, "seconds": seconds}
    print_report(options, [asdict(cost) for cost in costs], CAPTURE_COLUMNS, as_json=as_json)


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
        temporary_folder("soak", Path("/tmp")) as place,
    ):
        result = Soak(options, place).run(stop.is_set, show)
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


def print_report(
    options: Mapping[str, Any],
    rows: Sequence[Row],
    columns: Sequence[TableColumn],
    *,
    as_json: bool,
) -> None:
    """Print a benchmark's figures as a table, or with all they depend on as one JSON object."""
    if as_json:
        print(json_line({**options, "versions": versions(), "timings": rows}))
        return
    titles = [column.title for column in columns]
    right = [column.title for column in columns if column.is_figure]
    table = plain_table(*titles, right=right)
    for row in rows:
        table.add_row(*cells(columns, row))
    console(stderr=False, piped_width=120).print(table)
