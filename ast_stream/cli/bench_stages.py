"""Commands of `ast-stream bench` that time one stage: model, features, decision, alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.bench_report import print_report
from ast_stream.cli.options import json_option
from ast_stream.cli.terminal import ProgressView

Rounds = Annotated[int, typer.Option(min=1, help="Each way runs once per round, in turn.")]
AsJson = Annotated[bool, json_option("All figures as one JSON object.")]


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

    The implementations run in turn; times are medians over the rounds, and `times as fast` counts
    from transformers' default, sdpa in fp32. `difference` is the largest difference of a score
    from the first implementation's; `top 5` is how much of its five highest classes is kept.

    Example: ast-stream bench model --model ast-base --batch 1 --batch 8
    """
    from ast_stream.cli.model_bench import COLUMNS, time_model  # torch: the help needs none of it

    with _progress(rounds * len(batch)) as advance:
        timings = time_model(
            model, batch, rounds, device, advance, recordings, at_most, with_eager=eager
        )
    rows = [asdict(timing) for timing in timings]
    print_report({"model": model}, rows, COLUMNS, as_json=as_json)


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
    from ast_stream.cli.features_bench import COLUMNS, time_features

    with _progress(rounds * len(streams)) as advance:
        rows = [
            asdict(timing)
            for n_streams in streams
            for timing in time_features(n_streams, window, hop, rounds, advance)
        ]
    print_report({"window_s": window, "hop_s": hop}, rows, COLUMNS, as_json=as_json)


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
    from ast_stream.cli.decision_bench import COLUMNS, time_decision

    with _progress(rounds) as advance:
        timings = time_decision(streams, classes, events, rounds, advance)
    print_report({}, [asdict(timing) for timing in timings], COLUMNS, as_json=as_json)


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
    from ast_stream.cli.alerts_bench import COLUMNS, time_alerts

    with _progress(rounds) as advance:
        timings = time_alerts(rules, rounds, advance)
    print_report({}, [asdict(timing) for timing in timings], COLUMNS, as_json=as_json)


@contextmanager
def _progress(n_rounds: int) -> Iterator[Callable[[], None]]:
    """Show how many rounds are done, and yield what to call after each."""
    with ProgressView() as progress:
        task = progress.add_task("timing", total=n_rounds)
        yield lambda: progress.advance(task)
