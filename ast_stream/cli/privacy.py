"""`ast-stream privacy`: the data-protection sheet of a configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli.options import config_option, json_option
from ast_stream.labels import printable
from ast_stream.privacy.sheet import PrivacySheet, Row, sheet
from ast_stream.settings.load import load_settings
from ast_stream.settings.retention import MIB

_COLUMNS = ("what", "where", "holds", "kept", "at most", "who may read it")


def privacy(
    config: Annotated[Path, config_option()],
    as_json: Annotated[bool, json_option("One JSON object.")] = False,
) -> None:
    """Show what is stored, where and for how long, who can read it, and what leaves this box.

    A data-protection sheet for this configuration, in Markdown. `ast-stream doctor` checks that
    the running processes comply with it.

    Example: ast-stream privacy -c /etc/ast-stream/config.yaml > data-protection.md
    """
    found = sheet(load_settings(config))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        typer.echo(printable("\n".join(markdown(found)), keep="\n"))


def markdown(found: PrivacySheet) -> Iterator[str]:
    """Yield the lines of the sheet."""
    yield "# Data protection of this ast-stream"
    yield ""
    yield f"`privacy: {found.privacy}`: {found.meaning}."
    yield from _list("Where sound comes from", found.sources)
    yield from _table("In memory while it runs", found.memory)
    yield from _table("Files", found.files)
    yield from _table("What can be asked for", found.sockets)
    yield from _list("Who has keys for tcp", found.keys or ["nobody: no endpoint has keys"])
    if found.users:
        yield from _list("Who may log in to the page", found.users)
    yield from _list("What leaves this box", found.outgoing or ["nothing"])
    yield from _list("What this program cannot exclude", found.not_covered)


def _list(title: str, items: Sequence[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield from (f"* {item}" for item in items)


def _table(title: str, rows: Sequence[Row]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{'---|' * len(_COLUMNS)}"
    for row in rows:
        cells = (row.what, row.where, row.holds, row.until, _size(row.max_bytes), row.readers)
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _size(n_bytes: int | None) -> str:
    if not n_bytes:
        return "-"
    return f"{n_bytes / MIB:.1f} MiB" if n_bytes >= MIB else f"{n_bytes} bytes"
