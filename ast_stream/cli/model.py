"""`ast-stream model`: list, inspect, fetch, convert and average checkpoints.

What needs torch is imported by the commands that read weights: a list is there at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ast_stream.cli.model_report import facts_of, row_of, show_facts, show_rows, summary
from ast_stream.cli.options import json_option
from ast_stream.cli.output import json_line, say
from ast_stream.errors import CheckpointError, UsageError
from ast_stream.model import hub
from ast_stream.model.description import BUNDLED, folder_of
from ast_stream.model.dims import StoredPrecision
from ast_stream.model.hf_config import CONFIG
from ast_stream.model.metadata import write_metadata

if TYPE_CHECKING:
    from ast_stream.model.checkpoint import Checkpoint

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream model list")

AsJson = Annotated[bool, json_option("JSON lines on standard output.")]
Precision = Annotated[
    StoredPrecision, typer.Option(help="How weights are stored; fp16 halves the size.")
]
Reference = Annotated[
    str,
    typer.Argument(
        help="bundled, a folder, a .safetensors, .bin, .pth, .pt or .ckpt file, a hub id."
    ),
]


@app.command("list")
def list_models(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoints, or folders with checkpoints in them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the checkpoints at hand: bundled, in the given folders, in the hub's cache.

    Example: ast-stream model list ~/models
    """
    rows = [row_of(reference, path) for reference, path in _found(directories or [])]
    if as_json:
        for row in rows:
            typer.echo(json_line(row))
        return
    show_rows(rows)


@app.command()
def info(reference: Reference = BUNDLED, as_json: AsJson = False) -> None:
    """Say everything about one checkpoint: sizes, window, labels, thresholds, licence, hash.

    Example: ast-stream model info bundled
    """
    from ast_stream.model.checkpoint import load_checkpoint

    facts = facts_of(load_checkpoint(reference))
    if as_json:
        typer.echo(json_line(facts))
        return
    show_facts(facts)


@app.command()
def fetch(
    hub_id: Annotated[str, typer.Argument(help="organisation/name on the Hugging Face Hub.")],
    directory: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write. (default: the model's name)"),
    ] = None,
) -> None:
    """Download a checkpoint from the Hugging Face Hub into a folder, and check it.

    Example: ast-stream model fetch MIT/ast-finetuned-audioset-10-10-0.4593 -o models/ast
    """
    from ast_stream.model.checkpoint import load_checkpoint

    if not hub.is_hub_id(hub_id):
        raise UsageError(f"fetch: expected organisation/name, got '{hub_id}'")
    target = directory or Path(hub_id.split("/")[1])
    _refuse_to_overwrite(target)
    folder = hub.download(hub_id, target)  # shows its own progress
    checkpoint = load_checkpoint(str(folder))
    _say(f"fetched {summary(checkpoint)}")
    typer.echo(str(folder))


@app.command()
def convert(
    reference: Reference,
    directory: Annotated[Path, typer.Argument(help="Folder to write.")],
    precision: Precision = "fp32",
) -> None:
    """Write any checkpoint as a folder that this program and transformers can load.

    Scores for the self-check at start are added, computed from the weights as stored.

    Example: ast-stream model convert audioset_0.4593.pth models/ast --precision fp16
    """
    from ast_stream.model.checkpoint import load_checkpoint

    _refuse_to_overwrite(directory)
    _say(f"reading {reference}")
    checkpoint = load_checkpoint(reference)
    source = {"converted_from": {"origin": checkpoint.origin, "hash": checkpoint.hash}}
    update = {"provenance": checkpoint.metadata.provenance | source}
    metadata = checkpoint.metadata.model_copy(update=update)
    _write(directory, replace(checkpoint, metadata=metadata), precision, [reference])


@app.command()
def average(
    references: Annotated[
        list[str], typer.Argument(help="Checkpoints of the same model, two or more.")
    ],
    directory: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    precision: Precision = "fp16",
) -> None:
    """Write the mean of the weights of checkpoints that were trained on from one another.

    It has no thresholds: `calibrate` measures them.

    Example: ast-stream model average runs/4/checkpoint runs/5/checkpoint -o runs/mean
    """
    from ast_stream.model.checkpoint import average_checkpoints, load_checkpoint

    if len(references) < 2:
        raise UsageError(f"average: expected two checkpoints or more, got {len(references)}")
    _refuse_to_overwrite(directory)
    checkpoints = [load_checkpoint(reference) for reference in references]
    _write(directory, average_checkpoints(checkpoints, str(directory)), precision, references)


def _write(
    directory: Path, checkpoint: Checkpoint, precision: StoredPrecision, references: list[str]
) -> None:
    """Write the checkpoint, made from others, with their attributions and a self-check.

    The scores of the self-check are those of the weights as they are stored.
    """
    from ast_stream.model.checkpoint import carry_attributions, load_checkpoint, save_checkpoint
    from ast_stream.model.selfcheck import golden_for

    metadata = checkpoint.metadata.model_copy(update={"golden": None})
    _say(f"writing {summary(checkpoint)} in {precision}")
    save_checkpoint(directory, replace(checkpoint, metadata=metadata), precision)
    carry_attributions(
        [path for reference in references if (path := folder_of(reference))], directory
    )
    written = load_checkpoint(str(directory))
    _say("computing the scores of its self-check")
    write_metadata(directory, metadata.model_copy(update={"golden": golden_for(written)}))
    typer.echo(str(directory))


def _found(directories: list[Path]) -> Iterator[tuple[str, Path | None]]:
    """Yield reference and folder of every checkpoint that can be listed."""
    yield BUNDLED, None
    for directory in directories:
        if not directory.is_dir():
            raise UsageError(f"list: expected a folder, got '{directory}'")
        is_one = (directory / CONFIG).is_file()
        for folder in [directory] if is_one else sorted(directory.iterdir()):
            if (folder / CONFIG).is_file():
                yield str(folder), folder
    try:
        yield from hub.cached()
    except CheckpointError:
        _say("the hub's cache is not listed: huggingface_hub is not installed")


def _refuse_to_overwrite(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"expected a new or empty folder, got '{directory}'")


def _say(text: str) -> None:
    say(text, err=True)
