"""Options of `train`, `evaluate` and `calibrate` that select clips and folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.dataset.tables import Columns
from ast_stream.errors import UsageError

Data = Annotated[Path, typer.Argument(help="Folder with a sub-folder per class, or a CSV.")]
Negatives = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[LABEL=]PATH",
        help="Recording, or folder of them, without any event; with LABEL= of that class alone, "
        "such as Speech=talk/, whose events are not false; may be repeated.",
    ),
]
ByWindows = Annotated[
    bool,
    typer.Option("--windows", help="Decide by windows, even if the checkpoint has a frame head."),
]
OnlyFolds = Annotated[
    list[str] | None, typer.Option(help="Only clips of this fold; may be repeated.")
]


@dataclass(frozen=True)
class ColumnOptions:
    """Which columns of a table of clips mean what, and which rows count."""

    file_column: Annotated[str, typer.Option(help="CSV column of the file name.")] = "file"
    label_column: Annotated[str, typer.Option(help="CSV column of the label.")] = "label"
    fold_column: Annotated[
        str | None, typer.Option(help="CSV column of the fold. (default: fold, if there is one)")
    ] = None
    onset_column: Annotated[
        str | None,
        typer.Option(
            help="CSV column of a section's start in seconds. (default: onset, if there is one)"
        ),
    ] = None
    offset_column: Annotated[
        str | None,
        typer.Option(
            help="CSV column of a section's end in seconds. (default: offset, if there is one)"
        ),
    ] = None
    where: Annotated[
        list[str] | None,
        typer.Option(help="Take only rows with COLUMN=VALUE[,VALUE...]; may be repeated."),
    ] = None

    def columns(self) -> Columns:
        """Return the columns that the options name.

        Raises:
            UsageError: a condition that is not COLUMN=VALUE[,VALUE...].
        """
        return Columns(
            file=self.file_column,
            label=self.label_column,
            fold=self.fold_column,
            onset=self.onset_column,
            offset=self.offset_column,
            where=accepted_values(self.where or []),
        )


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
