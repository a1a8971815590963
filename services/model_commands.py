"""`ast-stream model`: list, inspect, fetch, convert and average checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ast_stream.errors import CheckpointError, UsageError
from ast_stream.model import hub
from ast_stream.model.attributions import carry_attributions
from ast_stream.model.averaging import average_checkpoints
from ast_stream.model.checkpoint import (
    BUNDLED,
    Checkpoint,
    StoredPrecision,
    folder_of,
    load_checkpoint,
    save_checkpoint,
)
from ast_stream.model.golden import golden_for
from ast_stream.model.hub_config import CONFIG, MODEL_TYPE, read_json
from ast_stream.model.metadata import write_metadata
from ast_stream.settings.schema import DEFAULT_CONFIRM_S

PIPED_COLUMNS = 100
MEGA = 1_000_000
TIMES = ("confirm_s", "smoothing_s", "rise_on_s", "rise_off_s")

app = typer.Typer(no_args_is_help=True, epilog="Example: ast-stream model list")

AsJson = Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")]
Reference = Annotated[
    str,
    typer.Argument(help="bundled, a directory, a .safetensors, .bin, .pth or .pt file, a hub id."),
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
    rows = [_row(reference, path) for reference, path in _found(directories or [])]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for heading in ("window", "classes", "params"):
        table.add_column(heading, justify="right")
    table.add_column("hash or problem", overflow="fold")
    for row in rows:
        if "problem" in row:
            table.add_row(row["checkpoint"], "", "", "", row["problem"])
            continue
        sizes = (f"{row['window_s']:g} s", str(row["classes"]), f"{row['params'] / MEGA:.1f} M")
        table.add_row(row["checkpoint"], *sizes, row["hash"])
    _console().print(table)


@app.command()
def info(reference: Reference = BUNDLED, as_json: AsJson = False) -> None:
    """Say everything about one checkpoint: sizes, window, labels, thresholds, licence, hash.

    Example: ast-stream model info bundled
    """
    facts = _facts(load_checkpoint(reference))
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    console = _console()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    classes = facts.pop("classes")
    for name, value in facts.items():
        table.add_row(name, _shown(value))
    console.print(table)
    console.print(_class_table(classes))


@app.command()
def fetch(
    hub_id: Annotated[str, typer.Argument(help="organisation/name on the Hugging Face Hub.")],
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; default: the name, here.")
    ] = None,
) -> None:
    """Download a checkpoint from the Hugging Face Hub into a folder, and check it.

    Example: ast-stream model fetch MIT/ast-finetuned-audioset-10-10-0.4593 -o models/ast
    """
    if not hub.is_hub_id(hub_id):
        raise UsageError(f"fetch: expected organisation/name, got '{hub_id}'")
    target = directory or Path(hub_id.split("/")[1])
    _refuse_to_overwrite(target)
    folder = hub.download(hub_id, target)  # shows its own progress
    checkpoint = load_checkpoint(str(folder))
    _say(f"fetched {_summary(checkpoint)}")
    typer.echo(str(folder))


@app.command()
def convert(
    reference: Reference,
    directory: Annotated[Path, typer.Argument(help="Folder to write.")],
    precision: Annotated[
        StoredPrecision, typer.Option(help="How weights are stored; fp16 halves the size.")
    ] = "fp32",
) -> None:
    """Write any checkpoint as a folder that this program and transformers can load.

    Scores for the self-check at start are added, computed from the weights as stored.

    Example: ast-stream model convert audioset_0.4593.pth models/ast --precision fp16
    """
    _refuse_to_overwrite(directory)
    _say(f"reading {reference}")
    checkpoint = load_checkpoint(reference)
    provenance = {
        **checkpoint.metadata.provenance,
        "converted_from": {"origin": checkpoint.origin, "hash": checkpoint.hash},
    }
    metadata = checkpoint.metadata.model_copy(update={"provenance": provenance})
    _write(directory, replace(checkpoint, metadata=metadata), precision, [reference])


@app.command()
def average(
    references: Annotated[
        list[str], typer.Argument(help="Checkpoints of the same model, two or more.")
    ],
    directory: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    precision: Annotated[
        StoredPrecision, typer.Option(help="How weights are stored; fp16 halves the size.")
    ] = "fp16",
) -> None:
    """Write the mean of the weights of checkpoints that were trained on from one another.

    It has no thresholds: `calibrate` measures them.

    Example: ast-stream model average runs/4/checkpoint runs/5/checkpoint -o runs/mean
    """
    if len(references) < 2:
        raise UsageError(f"average: expected two checkpoints or more, got {len(references)}")
    _refuse_to_overwrite(directory)
    checkpoints = [load_checkpoint(reference) for reference in references]
    _write(directory, average_checkpoints(checkpoints, str(directory)), precision, references)


def _write(
    directory: Path, checkpoint: Checkpoint, precision: StoredPrecision, references: list[str]
) -> None:
    """Write the checkpoint, made from others, with their attributions and a self-check.

    The scores of that are those of the weights as they are stored.
    """
    metadata = checkpoint.metadata.model_copy(update={"golden": None})
    _say(f"writing {_summary(checkpoint)} in {precision}")
    save_checkpoint(directory, replace(checkpoint, metadata=metadata), precision)
    carry_attributions([one for one in map(folder_of, references) if one is not None], directory)
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
        folders = [directory] if _is_checkpoint(directory) else sorted(directory.iterdir())
        for folder in folders:
            if _is_checkpoint(folder):
                yield str(folder), folder
    try:
        yield from hub.cached()
    except CheckpointError:
        _say("the hub's cache is not listed: huggingface_hub is not installed")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _row(reference: str, folder: Path | None) -> dict[str, Any]:
    try:
        if folder and read_json(folder / CONFIG).get("model_type") != MODEL_TYPE:
            return {"checkpoint": reference, "problem": "not an Audio Spectrogram Transformer"}
        checkpoint = load_checkpoint(str(folder or reference))
    except CheckpointError as error:
        return {"checkpoint": reference, "problem": str(error)}
    return {
        "checkpoint": reference,
        "window_s": checkpoint.window_s,
        "classes": len(checkpoint.labels),
        "params": _n_params(checkpoint),
        "hash": checkpoint.hash,
    }


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    metadata, dims = checkpoint.metadata, checkpoint.dims
    return {
        "checkpoint": checkpoint.origin,
        "hash": checkpoint.hash,
        "licence": metadata.licence or "not stated",
        "window_s": checkpoint.window_s,
        "hop_s": metadata.hop_s,
        "params": _n_params(checkpoint),
        "dims": {**asdict(dims), "n_tokens": dims.n_tokens},
        "normalization": asdict(checkpoint.normalization),
        "self_check": "golden scores" if metadata.golden else "compared with fp32 at start",
        "background": metadata.background,
        "provenance": metadata.provenance,
        "classes": [_class_facts(checkpoint, label) for label in checkpoint.labels],
    }


def _class_facts(checkpoint: Checkpoint, label: str) -> dict[str, Any]:
    metadata = checkpoint.metadata
    rise, fit = metadata.rise(label, checkpoint.window_s), metadata.onset_fits.get(label)
    return {
        "label": label,
        "onset_threshold": metadata.onset_threshold(label),
        "confirm_s": metadata.confirm_s.get(label, DEFAULT_CONFIRM_S),
        "smoothing_s": metadata.smoothing_s.get(label, 0.0),
        "rise_on_s": rise.on_s,
        "rise_off_s": rise.off_s,
        "rise_assumed": rise.assumed,
        "onset_within_s": fit and fit.within_s,
        "makes_events": label not in metadata.background,
    }


def _class_table(classes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("class", overflow="fold")
    for heading in ("onset threshold", "confirm", "average", "rise on", "rise off"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in classes:
        notes = ["rise assumed"] if row["rise_assumed"] else []
        if row["onset_within_s"]:
            notes.append(f"onsets by score, nine in ten within {row['onset_within_s']:.2f} s")
        notes += [] if row["makes_events"] else ["makes no events"]
        seconds = [f"{row[name]:.2f} s" for name in TIMES]
        table.add_row(row["label"], f"{row['onset_threshold']:.2f}", *seconds, ", ".join(notes))
    return table


def _refuse_to_overwrite(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"expected a new or empty folder, got '{directory}'")


def _n_params(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.state_dict.values())


def _summary(checkpoint: Checkpoint) -> str:
    return (
        f"an AST of {_n_params(checkpoint) / MEGA:.1f} M parameters, "
        f"{len(checkpoint.labels)} classes, window {checkpoint.window_s:g} s"
    )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_COLUMNS)


def _say(text: str) -> None:
    typer.echo(text, err=True)
