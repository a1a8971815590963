"""What a training leaves on the disk: its state, to go on after a kill, and its reports.

A state is written beside the old one and then takes its place: whatever happens, one of them is
whole.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ast_stream.errors import AstStreamError, CheckpointError

STATE_FILE = "state.pt"
METRICS_FILE = "metrics.jsonl"
SHOWN = 4  # differences named in a message

Metrics = dict[str, float]
Identity = Mapping[str, Any]
"""What must not change between a start and its resumption: JSON values by what they are."""


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state in place of the one before.

    Raises:
        AstStreamError: it cannot be written; the state before is still there.
    """
    partial = folder / (STATE_FILE + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / STATE_FILE)
    except (OSError, RuntimeError) as error:  # torch wraps what goes wrong in closing its archive
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        before = "the state before is kept" if (folder / STATE_FILE).is_file() else "nothing kept"
        raise AstStreamError(
            f"{folder / STATE_FILE}: cannot be written: {_reason(error)}; {before}, and the same "
            "command goes on from there"
        ) from error


def load_state(folder: Path, identity: Identity) -> dict[str, Any] | None:
    """Return the state in `folder`, None if there is none.

    Raises:
        CheckpointError: it is damaged, or belongs to a training of another identity.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        before = json.loads(state["identity"])
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(
            f"{path}: expected the state of a training, got a damaged file or something else; "
            "delete it to begin again"
        ) from error
    changes = differences(before, json.loads(json.dumps(identity)))
    if changes:
        more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        raise CheckpointError(
            f"{path}: expected the same training as was begun there, got other "
            f"{', '.join(changes[:SHOWN])}{more}; choose another folder or delete this one"
        )
    return state


def differences(before: Identity, now: Identity, prefix: str = "") -> list[str]:
    """Return what differs, each as `name (before, now after)`; long values by name alone."""
    found = []
    for name in sorted({*before, *now}):
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            found += differences(was, is_now, f"{prefix}{name}.")
        elif was != is_now:
            texts = [json.dumps(value, ensure_ascii=False) for value in (was, is_now)]
            are_short = max(map(len, texts)) <= 40
            found.append(
                f"{prefix}{name}" + (f" ({texts[0]}, now {texts[1]})" if are_short else "")
            )
    return found


def append_metrics(folder: Path, report: Metrics) -> None:
    """Add one report to the metrics file.

    Raises:
        AstStreamError: it cannot be written.
    """
    try:
        with (folder / METRICS_FILE).open("a") as metrics:
            metrics.write(json.dumps(report) + "\n")
    except OSError as error:
        raise AstStreamError(
            f"{folder / METRICS_FILE}: cannot be written: {_reason(error)}; "
            "the same command goes on from the last state"
        ) from error


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the reports written so far, oldest first; a line cut by a kill is left out."""
    path = folder / METRICS_FILE
    reports: list[Metrics] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            reports.append(json.loads(line))
    return reports


def keep_metrics(folder: Path, reports: Sequence[Metrics]) -> None:
    """Let the metrics file hold exactly these reports."""
    (folder / METRICS_FILE).write_text("".join(json.dumps(report) + "\n" for report in reports))


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return "the disk is full"
    return (cause.strerror if isinstance(cause, OSError) else None) or str(error).split("\n")[0]
