"""`ast-stream fleet rollout`: another model for all boxes, one of them first."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from ast_stream.cli.fleet_centre import CentreOptions, connected_store
from ast_stream.cli.options import json_option, with_option_groups
from ast_stream.cli.output import json_line, say
from ast_stream.cli.terminal import ProgressView, console, plain_table
from ast_stream.errors import CheckpointError, UsageError
from ast_stream.fleet.buckets import FleetStore
from ast_stream.fleet.model_folder import describe_files
from ast_stream.fleet.overview import box_key
from ast_stream.fleet.rollout import (
    KnownBox,
    Rollout,
    RolloutError,
    Terms,
    box_name,
    known_boxes,
)
from ast_stream.labels import is_stream_name
from ast_stream.messages.rollout import ENDED, PIECE_BYTES, CheckpointManifest, RolloutPlan
from ast_stream.runtime.lifecycle import EXIT_CRASH, stop_on_signals
from ast_stream.runtime.nats import NatsError
from ast_stream.units import format_time

STEP_S = 2.0
_PROGRAM = "ast-stream fleet rollout"
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d)?\Z")
_UNITS_S = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_MAX_S = 30 * 86_400.0

Factor = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="N",
        help="So many times more or fewer events of a class than before are worse; 0: not judged.",
    ),
]

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream fleet rollout status")


@dataclass(frozen=True)
class TermOptions:
    """How a roll-out is to go."""

    canary: Annotated[
        str, typer.Option(metavar="SITE/BOX", help="The box that uses the model first.")
    ] = ""
    after: Annotated[
        str, typer.Option(metavar="TIME", help="How long the canary has to be good: 90s, 30m, 6h.")
    ] = "1h"
    site: Annotated[
        str | None, typer.Option(help="Only the boxes of this site. (all that follow)")
    ] = None
    batch: Annotated[int, typer.Option(min=1, help="How many of the others follow at a time.")] = 10
    settle: Annotated[
        str, typer.Option(metavar="TIME", help="How long each batch has to be good.")
    ] = "1m"
    max_failures: Annotated[
        int, typer.Option(min=0, help="How many of the others may fail, before all return.")
    ] = 0


@app.command("start")
@with_option_groups
def start(
    checkpoint: Annotated[
        Path, typer.Argument(help="The checkpoint, a folder with model.safetensors.")
    ],
    terms: TermOptions,
    centre: CentreOptions,
    events_factor: Factor = 3.0,
    until_done: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Decide here, until it is over.")
    ] = True,
) -> None:
    """Store a checkpoint at the centre, let one box use it, and the others once it was good there.

    A box that is worse with it than it was before makes all return to what they had: exit 1. What
    is under way is stored at the centre: after a kill or Ctrl-C the same command, or
    `fleet rollout run`, goes on with it. Without either nothing more is decided; boxes in which the
    model does not start return by themselves.

    Example: ast-stream fleet rollout start runs/barks/checkpoint --canary farm/barn --nats nats://centre
    """
    chosen = _terms(terms)
    with connected_store(centre, _PROGRAM) as store:
        store.create()
        rollout = Rollout(store, events_factor=events_factor, say=_tell)
        manifest = _described(checkpoint)
        upload(store, checkpoint, manifest)
        rollout.begin(manifest.content, manifest.model, str(checkpoint), chosen)
        if until_done:
            _run(rollout)


@app.command("run")
@with_option_groups
def run(
    centre: CentreOptions,
    events_factor: Factor = 3.0,
    forever: Annotated[
        bool, typer.Option("--forever", help="Then wait for the next one, as a service.")
    ] = False,
) -> None:
    """Go on with the roll-out that is under way, until it is over: exit 0 if done, 1 if returned.

    Example: ast-stream fleet rollout run --forever --nats nats://centre --creds operator.creds
    """
    with connected_store(centre, _PROGRAM) as store:
        _run(Rollout(store, events_factor=events_factor, say=_tell), forever=forever)


@app.command("return")
@with_option_groups
def give_up(
    centre: CentreOptions,
    reason: Annotated[str, typer.Option(help="Why, for those who read the plan.")] = (
        "an operator asked for it"
    ),
    until_done: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until all have that are there.")
    ] = True,
) -> None:
    """Let all boxes return to the model that they had before the newest roll-out, over or not.

    Example: ast-stream fleet rollout return --nats nats://centre --creds operator.creds
    """
    with connected_store(centre, _PROGRAM) as store:
        rollout = Rollout(store, say=_tell)
        rollout.give_up(reason)
        rollout.step()
        if until_done:
            _run(rollout, wanted="returned")


@app.command("status")
@with_option_groups
def status(
    centre: CentreOptions,
    as_json: Annotated[bool, json_option("One JSON object: the plan.")] = False,
) -> None:
    """Show the newest roll-out, and how far each box is; exit 1 if boxes have returned or failed.

    Example: ast-stream fleet rollout status --nats nats://centre
    """
    with connected_store(centre, _PROGRAM) as store:
        plan = Rollout(store).plan()
        boxes = known_boxes(store.reports())
    if plan is None:
        raise RolloutError("roll-out: expected one, got none: there was none yet")
    if as_json:
        print(json_line(plan.to_json()))
    else:
        console(stderr=False, piped_width=200).print(view(plan, boxes), crop=False)
    has_failed = any(progress.failed is not None for progress in plan.boxes.values())
    is_back = plan.stage in ("returning", "returned")
    raise typer.Exit(EXIT_CRASH if has_failed or is_back else 0)


def view(plan: RolloutPlan, boxes: dict[str, KnownBox]) -> RenderableType:
    """Return a plan for people."""
    since = format_time(plan.began_ns).partition(".")[0]
    where = "all boxes that follow" if plan.site is None else f"the boxes of {plan.site}"
    lines = [
        f"{plan.content} from {plan.origin}",
        f"model {plan.model}",
        f"for {where}, since {since}Z, canary {box_name(plan.canary)}",
        f"{plan.stage}" + (f": {plan.reason}" if plan.reason else ""),
    ]
    table = plain_table("box", "is", "says", "before")
    for key, progress in plan.boxes.items():
        known = boxes.get(key)
        report = None if known is None or known.report is None else known.report.rollout
        word = "waits" if progress.in_use_ns is None else "uses it"
        word = "failed" if progress.failed is not None else word
        detail = f": {report.detail}" if report is not None and report.detail else ""
        said = "" if report is None else f"{report.state}{detail}"
        before = progress.previous or "as configured"
        table.add_row(box_name(key), word, progress.failed or said, before)
    return Group(*map(Text, lines), table)


def upload(store: FleetStore, folder: Path, manifest: CheckpointManifest) -> None:
    """Store what is not stored yet of a checkpoint: pieces by their hashes, the manifest last."""
    if store.has_object(manifest.content):
        say(f"{manifest.content} is stored already", err=True)
        return
    pieces = [(file.name, index) for file in manifest.files for index in range(len(file.pieces))]
    digests = {
        (file.name, i): digest for file in manifest.files for i, digest in enumerate(file.pieces)
    }
    with ProgressView() as progress:
        task = progress.add_task("storing the checkpoint", total=len(pieces))
        for name, index in pieces:
            if not store.has_object(digests[name, index]):
                with (folder / name).open("rb") as file:
                    file.seek(index * PIECE_BYTES)
                    store.put_object(digests[name, index], file.read(PIECE_BYTES))
            progress.advance(task)
    store.put_object(manifest.content, manifest.encode())
    say(f"{manifest.content} is stored: {manifest.total_bytes / 1e6:.1f} MB", err=True)


def _described(checkpoint: Path) -> CheckpointManifest:
    """Return what a checkpoint is made of, after it was loaded once.

    Raises:
        CheckpointError: it cannot be loaded, or not be sent to boxes.
    """
    from ast_stream.model.checkpoint import load_checkpoint  # imports torch

    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: expected the folder of a checkpoint, got none")
    model = load_checkpoint(str(checkpoint)).hash
    try:
        return describe_files(checkpoint, model)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        reason = str(error).splitlines()[-2 if "\n" in str(error) else 0].strip()
        raise CheckpointError(f"{checkpoint}: cannot be sent to boxes: {reason}") from error


def _run(rollout: Rollout, *, forever: bool = False, wanted: str = "done") -> None:
    """Step until the roll-out is over, through outages of the centre.

    Raises:
        typer.Exit: 1: boxes have returned.
    """
    plan: RolloutPlan | None = None
    said: str | None = None
    with stop_on_signals() as stop:
        while not stop.is_set():
            try:
                plan, said = rollout.step(), None
            except NatsError as error:
                if str(error) != said:  # once in an outage
                    said = str(error)
                    say(said, err=True)
            is_over = said is None and (plan is None or plan.stage in ENDED)
            if is_over and not forever:
                break
            stop.wait(STEP_S)
    if plan is None:
        raise RolloutError("roll-out: expected one, got none")
    if plan.stage not in ENDED:
        say("the roll-out goes on where it was with: ast-stream fleet rollout run", err=True)
    raise typer.Exit(0 if plan.stage == wanted else EXIT_CRASH)


def _terms(options: TermOptions) -> Terms:
    """Return how a roll-out is to go.

    Raises:
        UsageError: an option cannot be used.
    """
    if not options.canary:
        raise UsageError("expected --canary SITE/BOX, the box that uses the model first")
    try:
        canary = box_key(options.canary)
    except ValueError as error:
        raise UsageError(f"--canary: {error}") from error
    if options.site is not None and not is_stream_name(options.site):
        raise UsageError(f"--site: expected the name of a site, got {options.site!r}")
    return Terms(
        canary=canary,
        site=options.site,
        after_s=_seconds("--after", options.after),
        batch=options.batch,
        settle_s=_seconds("--settle", options.settle),
        max_failures=options.max_failures,
    )


def _seconds(option: str, text: str) -> float:
    found = _DURATION.match(text)
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else -1.0
    if not 0 <= seconds <= _MAX_S:
        raise UsageError(f"{option}: expected a time such as 90s, 30m or 6h, got {text!r}")
    return seconds


def _tell(text: str) -> None:
    say(f"{time.strftime('%H:%M:%S')} {text}", err=True)
