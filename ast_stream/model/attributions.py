"""Whose recordings a checkpoint learnt from: the table beside its weights that licences ask for."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ast_stream.errors import CheckpointError

ATTRIBUTIONS = "ATTRIBUTIONS.csv"


def carry_attributions(sources: Sequence[Path], directory: Path) -> None:
    """Write to `directory` every row of the tables in the folders `sources`, once each.

    Folders without a table, and files, have none to carry.

    Raises:
        CheckpointError: a table cannot be read, or the new one not be written.
    """
    rows: list[dict[str, str]] = []
    path = directory / ATTRIBUTIONS
    try:
        for source in sources:
            path = source / ATTRIBUTIONS
            if path.is_file():
                with path.open(encoding="utf-8", newline="") as table:
                    rows += [row for row in csv.DictReader(table) if row not in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    write_attributions(rows, directory)


def write_attributions(rows: Sequence[Mapping[str, str]], directory: Path) -> None:
    """Write titles, authors, licences and sources as they were given; nothing without any.

    Raises:
        CheckpointError: the table cannot be written.
    """
    if not rows:
        return
    path = directory / ATTRIBUTIONS
    try:
        with path.open("w", encoding="utf-8", newline="") as table:
            columns = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
