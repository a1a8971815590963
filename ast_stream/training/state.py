"""The state of a training on disk, for resuming after a kill; metrics and their curves.

A state is written beside the old one and then takes its place: whatever happens, one of them is
whole. It ends with a checksum, so that a training run never resumes from a damaged one.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from ast_stream.errors import AstStreamError, CheckpointError, UsageError
from ast_stream.runtime.files import DamagedFileError, read_state, replace_file, warn_set_aside

STATE_FILE = "state.pt"
METRICS_FILE = "metrics.jsonl"
MAX_METRICS_BYTES = 256 * 1024 * 1024
MAX_SHOWN = 4  # differences named in a message
_TRAILER = b"sha256:%s\n"  # behind the archive, where torch does not look
_TRAILER_BYTES = len(_TRAILER % (b"0" * 64))
_PIECE_BYTES = 1 << 20

Metrics = dict[str, float]
# whole numbers stay whole, so that a file that is written again is the same
_REPORT: TypeAdapter[Metrics] = TypeAdapter(dict[str, int | float])
Identity = Mapping[str, Any]
"""What must not change between a start and its resumption: JSON values by what they are."""


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state in place of the one before.

    Raises:
        AstStreamError: it cannot be written; the state before is still there.
    """

    def write(path: Path) -> None:
        torch.save(dict(state), path)
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        with path.open("ab") as file:
            file.write(_TRAILER % checksum.encode())

    try:
        replace_file(folder / STATE_FILE, write, is_synced=True)
    except (OSError, RuntimeError) as error:  # torch wraps what goes wrong in closing its archive
        before = "the state before is kept" if (folder / STATE_FILE).is_file() else "nothing kept"
        raise AstStreamError(
            f"{folder / STATE_FILE}: cannot be written: {_reason(error)}; {before}, and the same "
            "command resumes from there"
        ) from error


def load_state(folder: Path, identity: Identity) -> dict[str, Any] | None:
    """Return the state in `folder`; None without a usable one.

    One that is damaged is set aside with a warning, and the training begins again.

    Raises:
        CheckpointError: it belongs to a training of another identity.
    """
    path = folder / STATE_FILE
    if not os.path.lexists(path):
        return None
    try:
        _expect_checksum(path)
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        _expect_fields(state)
        before = json.loads(state["identity"])
    except Exception as error:  # torch raises many kinds for what it did not write
        reason = error.strerror if isinstance(error, OSError) else str(error).split("\n")[0]
        warn_set_aside(path, "state of the training", str(reason), "beginning again")
        return None
    changes = differences(before, json.loads(json.dumps(identity)))
    if changes:
        more = f" and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
        raise CheckpointError(
            f"{path}: expected the settings of the training run there, got other "
            f"{', '.join(changes[:MAX_SHOWN])}{more}; choose another folder or delete this one"
        )
    return state


def _expect_checksum(path: Path) -> None:
    """Read the file once before torch does.

    Raises:
        OSError, DamagedFileError: it is not what was written.
    """
    if not path.is_file():
        raise DamagedFileError("expected a file, got something else")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = path.stat().st_size - _TRAILER_BYTES
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            digest.update(piece)
            left -= len(piece)
        if left != 0 or file.read() != _TRAILER % digest.hexdigest().encode():
            raise DamagedFileError("its checksum is another than that of its content")


def _expect_fields(state: object) -> None:
    match state:
        case {
            "step": int(step),
            "losses": list(),
            "student": dict(),
            "average": dict(),
            "optimizers": list(),
            "scaler": dict(),
            "identity": str(),
        } if step >= 0:
            return
    raise DamagedFileError("expected the state of a training, got something else")


def differences(before: Identity, now: Identity, prefix: str = "") -> list[str]:
    """Return the differences, each as `name (before, now after)`; long values by name only."""
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
            "the same command resumes from the last state"
        ) from error


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the reports written so far, oldest first; a line cut by a kill is left out.

    What lies in the place of the file and is none is set aside with a warning.
    """
    path = folder / METRICS_FILE
    lines = read_state(path, bytes.splitlines, MAX_METRICS_BYTES, "metrics of the training")
    reports: list[Metrics] = []
    for line in lines or []:
        with suppress(ValidationError):
            reports.append(_REPORT.validate_json(line))
    return [report for report in reports if "step" in report]


def forget_metrics(folder: Path) -> None:
    """Begin without the reports of a training before."""
    path = folder / METRICS_FILE
    if path.is_file() and not path.is_symlink():
        path.unlink()
    elif os.path.lexists(path):
        warn_set_aside(path, "metrics of the training", "expected a file, got something else")


def keep_metrics(folder: Path, reports: Sequence[Metrics]) -> None:
    """Let the metrics file hold exactly these reports."""
    lines = "".join(json.dumps(report) + "\n" for report in reports)
    replace_file(folder / METRICS_FILE, lines.encode())


def plot_curves(reports: Sequence[Metrics], path: Path) -> None:
    """Write a PNG with one panel per metric over the steps; does nothing without reports.

    Raises:
        UsageError: matplotlib (the extra `train`) is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("curves need matplotlib: pip install 'ast-stream[train]'") from error
    names = [name for name in dict.fromkeys(itertools.chain(*reports)) if name != "step"]
    if not names:
        return
    figure = Figure(figsize=(7, 2.2 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        points = [(report["step"], report[name]) for report in reports if name in report]
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=100)


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return "the disk is full"
    return (cause.strerror if isinstance(cause, OSError) else None) or str(error).split("\n")[0]
