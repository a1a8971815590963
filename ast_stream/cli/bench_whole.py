"""Commands of `ast-stream bench` that measure all stages together."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.bench_report import print_report
from ast_stream.cli.options import json_option
from ast_stream.cli.output import say
from ast_stream.errors import UsageError
from ast_stream.runtime.lifecycle import stop_on_signals
from ast_stream.settings.explain import with_options
from ast_stream.settings.schema import ModelSettings

Model = Annotated[str, typer.Option(help="Checkpoint.")]
Hop = Annotated[float, typer.Option(min=0.05, help="Seconds between windows.")]
Recordings = Annotated[
    Path | None,
    typer.Option(help="Hear the recordings of this folder, not generated scenes."),
]
SCENE_S = 40.0
N_SCENES = 8  # that streams of `tick` hear

AsJson = Annotated[bool, json_option("All figures as one JSON object.")]


def box(
    streams: Annotated[
        list[int], typer.Option(min=1, max=4096, help="Live streams; each number is a run.")
    ] = [16, 64],  # noqa: B006
    seconds: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds measured, after the start.")
    ] = 30.0,
    model: Model = "bundled",
    hop: Hop = 0.5,
    recordings: Recordings = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of what is heard.")] = 1,
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
    from ast_stream.cli.box_bench import COLUMNS, BoxOptions, BoxRun, write_recordings

    options = BoxOptions(seconds, _checked(model, hop), hop, recordings, seed)
    rows = []
    with (
        stop_on_signals() as stop,
        tempfile.TemporaryDirectory(prefix="ast-stream-box-", dir="/tmp") as name,
    ):
        files = write_recordings(Path(name), max(streams), options)
        for n_streams in streams:
            folder = Path(name) / str(n_streams)
            folder.mkdir()
            run = BoxRun(n_streams, files, options, folder)
            figures = run.run(stop.is_set, lambda text: say(text, err=True))
            rows += [] if figures is None else [asdict(figures)]
    if not rows:
        raise UsageError("stopped before anything was measured")
    print_report({"model": model, "hop_s": hop}, rows, COLUMNS, as_json=as_json)


def tick(
    streams: Annotated[
        list[int], typer.Option(min=1, max=4096, help="Live streams; each number is a run.")
    ] = [16, 64, 256],  # noqa: B006
    seconds: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Seconds of sound of each stream.")
    ] = 10.0,
    model: Model = "bundled",
    classes: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Take a model of next to no work, of so many."),
    ] = None,
    hop: Hop = 0.5,
    as_json: AsJson = False,
) -> None:
    """Time the worker's turns, all stages but the sockets, as if streams were live.

    Figures are milliseconds of CPU time for one second of sound of all streams, on a clock of its
    own: they do not depend on what else the machine does meanwhile, and 1000 are one core.

    Example: ast-stream bench tick --streams 64 --streams 256
    """
    from ast_stream.cli.tick_bench import COLUMNS, blank_tagger, time_turns
    from ast_stream.model.loading import load_model
    from ast_stream.soundscape.scene import generate_scene

    if classes is None:
        tagger = load_model(ModelSettings(checkpoint=_checked(model, hop)))
    else:
        tagger = blank_tagger(classes)
    sounds = [generate_scene(seed, SCENE_S).pcm for seed in range(min(N_SCENES, max(streams)))]
    rows = []
    for n_streams in streams:
        with tempfile.TemporaryDirectory(prefix="ast-stream-tick-") as name:
            figures = time_turns(tagger, n_streams, hop, seconds, sounds, Path(name))
        rows.append(asdict(figures))
    named = {"model": model} if classes is None else {"classes": classes}
    print_report({**named, "hop_s": hop}, rows, COLUMNS, as_json=as_json)


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
    hop: Hop = 0.5,
    as_json: AsJson = False,
) -> None:
    """Time the scanner on recordings, decoding included.

    A generated recording of a tenth of the length is scanned and one of the whole: memory must not
    grow from one to the other.

    Example: ast-stream bench scan --recordings sounds
    """
    from ast_stream.cli.scan_bench import COLUMNS, some_recordings, time_scan, write_scene
    from ast_stream.model.loading import load_model
    from ast_stream.scanner import Scanner

    tagger = load_model(ModelSettings(checkpoint=_checked(model, hop)))
    rows = []
    with tempfile.TemporaryDirectory(prefix="ast-stream-scan-") as name:
        sets = [
            (f"scene of {length:g} min", [write_scene(Path(name) / f"{length}.flac", 60 * length)])
            for length in (minutes / 10, minutes)
        ]
        if recordings is not None:
            sets.append((recordings.name, some_recordings(recordings, at_most)))
        for each, paths in sets:
            figures = time_scan(each, paths, lambda: Scanner(tagger, hop_s=hop))
            rows.append(asdict(figures))
    print_report({"model": model, "hop_s": hop}, rows, COLUMNS, as_json=as_json)


def _checked(model: str, hop_s: float) -> str:
    """Return the checkpoint for processes in another folder.

    Raises:
        UsageError: it or the hop cannot be used.
    """
    with_options(
        ModelSettings(), {"checkpoint": ("bench: --model", model), "hop_s": ("bench: --hop", hop_s)}
    )
    return str(Path(model).resolve()) if model != "bundled" and Path(model).exists() else model
