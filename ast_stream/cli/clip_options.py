"""Options that `train`, `evaluate` and `calibrate` share: which clips, which folds, which cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.dataset.annotations import Clip
from ast_stream.dataset.clips import read_clips
from ast_stream.dataset.tables import Columns
from ast_stream.errors import UsageError

DEFAULT_THREADS = os.cpu_count() or 1

Data = Annotated[Path, typer.Argument(help="Folder with a sub-folder per class, or a CSV.")]
FileColumn = Annotated[str, typer.Option(help="CSV column of the file name.")]
LabelColumn = Annotated[str, typer.Option(help="CSV column of the label.")]
FoldColumn = Annotated[
    str | None, typer.Option(help="CSV column of the fold. (default: fold, if there is one)")
]
OnsetColumn = Annotated[
    str | None,
    typer.Option(
        help="CSV column of a section's start in seconds. (default: onset, if there is one)"
    ),
]
OffsetColumn = Annotated[
    str | None,
    typer.Option(
        help="CSV column of a section's end in seconds. (default: offset, if there is one)"
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Take only rows with COLUMN=VALUE[,VALUE...]; may be repeated."),
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


def clip_columns(
    file: str,
    label: str,
    fold: str | None,
    onset: str | None,
    offset: str | None,
    where: Sequence[str] | None,
) -> Columns:
    """Return the columns that the options name.

    Raises:
        UsageError: a condition that is not COLUMN=VALUE[,VALUE...].
    """
    return Columns(file, label, fold, accepted_values(where or []), onset, offset)


def accepted_values(where: Sequence[str]) -> dict[str, list[str]]:
    """Return the accepted values of each column that `--where` names.

    Raises:
        UsageError: a condition that is not COLUMN=VALUE[,VALUE...], or a second one of a column.
    """
    accepted: dict[str, list[str]] = {}
    for condition in where:
        column, is_one, values = condition.partition("=")
        if not is_one or not column:
            raise UsageError(f"--where: expected COLUMN=VALUE[,VALUE...], got {condition!r}")
        if column in accepted:
            raise UsageError(
                f"--where: expected one condition for column {column!r}, its values parted by "
                f"commas, got a second one: {condition!r}"
            )
        accepted[column] = values.split(",")
    return accepted


def clips_of_folds(data: Path, columns: Columns, folds: Sequence[str]) -> list[Clip]:
    """Return the labelled files of `data` in the given folds; all of them without any fold.

    Raises:
        ConfigError: the source is missing or empty, or the table cannot be understood.
        UsageError: a fold that no clip has.
    """
    clips = read_clips(data, columns)
    known = {clip.fold for clip in clips if clip.fold is not None}
    for fold in folds:
        if fold not in known:
            there = ", ".join(sorted(known)) or "no folds"
            raise UsageError(f"--test-fold: expected a fold of {data} ({there}), got {fold!r}")
    return [clip for clip in clips if not folds or clip.fold in folds]
