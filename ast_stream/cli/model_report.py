"""The output of `ast-stream model`: tables for people, objects for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ast_stream.cli.output import json_line
from ast_stream.cli.terminal import console, plain_table
from ast_stream.errors import CheckpointError
from ast_stream.model.audioset import window_remark
from ast_stream.model.description import describe
from ast_stream.model.hf_config import CONFIG, MODEL_TYPE, read_json
from ast_stream.settings.detection import DEFAULT_CONFIRM_S, DEFAULT_FRAME_CONFIRM_S

if TYPE_CHECKING:
    from ast_stream.model.checkpoint import Checkpoint

PIPED_COLUMNS = 100
MEGA = 1_000_000
TIMES = ("confirm_s", "smoothing_s", "rise_on_s", "rise_off_s")


def row_of(reference: str, folder: Path | None) -> dict[str, Any]:
    """Return a checkpoint, or the problem with it, for one row; `folder`: where it lies."""
    try:
        if folder and read_json(folder / CONFIG).get("model_type") != MODEL_TYPE:
            return {"checkpoint": reference, "problem": "not an Audio Spectrogram Transformer"}
        checkpoint = describe(str(folder or reference))
    except CheckpointError as error:
        return {"checkpoint": reference, "problem": str(error)}
    return {
        "checkpoint": reference,
        "window_s": checkpoint.window_s,
        "classes": len(checkpoint.labels),
        "params": checkpoint.n_params,
        "licence": checkpoint.metadata.licence or "not stated",
    }


def facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    metadata, dims = checkpoint.metadata, checkpoint.dims
    return {
        "checkpoint": checkpoint.origin,
        "hash": checkpoint.hash,
        "licence": metadata.licence or "not stated",
        "window_s": checkpoint.window_s,
        "window_remark": window_remark(checkpoint.window_s, dims, checkpoint.labels),
        "hop_s": metadata.hop_s,
        "scores": f"by {checkpoint.scoring}",
        "frames": _frame_facts(checkpoint),
        "params": _n_params(checkpoint),
        "dims": {**asdict(dims), "n_tokens": dims.n_tokens},
        "normalization": asdict(checkpoint.normalization),
        "self_check": "golden scores" if metadata.golden else "compared with fp32 at start",
        "background": metadata.background,
        "provenance": metadata.provenance,
        "classes": [_class_facts(checkpoint, label) for label in checkpoint.labels],
    }


def summary(checkpoint: Checkpoint) -> str:
    return (
        f"an AST of {_n_params(checkpoint) / MEGA:.1f} M parameters, "
        f"{len(checkpoint.labels)} classes, window {checkpoint.window_s:g} s"
    )


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    sizes = ("window", "classes", "params")
    table = plain_table("checkpoint", *sizes, "licence or problem", right=sizes)
    for row in rows:
        cells = ["", "", "", row.get("problem", "")]
        if "problem" not in row:
            cells = [f"{row['window_s']:g} s", str(row["classes"])]
            cells += [f"{row['params'] / MEGA:.1f} M", row["licence"]]
        table.add_row(row["checkpoint"], *cells)
    _console().print(table)


def show_facts(facts: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    labels = {row["label"] for row in facts["classes"]}
    for name, value in facts.items():
        if name != "classes":
            table.add_row(name, _shown(_without_records(value, labels)))
    out = _console()
    out.print(table)
    out.print(_class_table(facts["classes"]))


def _frame_facts(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return how a frame head decides, None for a checkpoint that decides by windows."""
    frames, dims = checkpoint.metadata.frames, checkpoint.dims
    if frames is None:
        return None
    return {
        "frame_s": dims.time_patch_s,
        "frames_per_window": dims.n_time_patches,
        "delay_s": frames.delay_s,
    }


def _class_facts(checkpoint: Checkpoint, label: str) -> dict[str, Any]:
    metadata = checkpoint.metadata
    if (frames := metadata.frames) is not None:  # they need no rise times
        return {
            "label": label,
            "onset_threshold": frames.onset_threshold(label),
            "confirm_s": frames.confirm_s.get(label, DEFAULT_FRAME_CONFIRM_S),
            "smoothing_s": frames.smoothing_s.get(label, 0.0),
            "rise_on_s": None,
            "rise_off_s": None,
            "rise_assumed": False,
            "onset_within_s": None,
            "makes_events": label not in metadata.background,
            "on_by_default": label not in metadata.off,
        }
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
        "on_by_default": label not in metadata.off,
    }


def _class_table(classes: list[dict[str, Any]]) -> Table:
    figures = ("onset threshold", "confirm", "average", "rise on", "rise off")
    table = plain_table("class", *figures, "", right=figures)
    for row in classes:
        notes = ["rise assumed"] if row["rise_assumed"] else []
        if row["onset_within_s"]:
            notes.append(f"onsets by score, nine in ten within {row['onset_within_s']:.2f} s")
        notes += [] if row["makes_events"] else ["makes no events"]
        notes += [] if row["on_by_default"] else ["off by default"]
        seconds = ["-" if row[name] is None else f"{row[name]:.2f} s" for name in TIMES]
        table.add_row(row["label"], f"{row['onset_threshold']:.2f}", *seconds, ", ".join(notes))
    return table


def _n_params(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.state_dict.values())


def _without_records(value: object, labels: set[str]) -> object:
    """Return a value without what was noted of each class: pages of it, if there are many."""
    if not isinstance(value, dict):
        return value
    if value and labels.issuperset(value) and all(isinstance(of, dict) for of in value.values()):
        return f"of {len(value)}, see --json"
    return {key: _without_records(part, labels) for key, part in value.items()}


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return json_line(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _console() -> Console:
    return console(stderr=False, piped_width=PIPED_COLUMNS)
