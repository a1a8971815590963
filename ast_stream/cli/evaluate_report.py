"""The report folder of `evaluate`: one self-contained page, the figures as JSON, the plots."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ast_stream.cli.evaluate_tables import class_table, details, summary
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.evaluation.plan import Settings
from ast_stream.evaluation.plots import plots
from ast_stream.evaluation.report import Evaluation, as_json, jsonable
from ast_stream.version import __version__

PLOT_TITLES = {
    "confusion": "Clips: true class (rows) and named class (columns)",
    "recall": "Streams: recall against false events per hour, as the threshold falls; the dot is "
    "the checkpoint's threshold",
    "times": "Streams: onsets and offsets, as published and before the correction for the window",
    "delays": "Streams: time to detect, from a sound's onset until its event was published",
}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .15rem .6rem }
th { text-align: right; border-bottom: 1px solid #888 } td { text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) td { background: #f4f6f8 }
img { max-width: 100%; height: auto }
pre { white-space: pre-wrap; background: #f4f6f8; padding: .6rem }
.note { background: #fff4d6; padding: .4rem .6rem }
"""


def check_folder(folder: Path, option: str) -> None:
    """Make the folder, so that hours of measuring are not lost for want of one.

    Raises:
        UsageError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"{option}: expected a folder that can be written to, got {folder} "
            f"({error.strerror or error})"
        ) from error


def write_report(
    folder: Path, evaluation: Evaluation, settings: Settings, command: str, notes: Sequence[str]
) -> None:
    """Write report.html, report.json and the plots as PNG.

    Raises:
        UsageError: matplotlib is not installed.
        AstStreamError: a file cannot be written.
    """
    pictures = plots(evaluation)
    for name, png in pictures.items():
        _write(folder / f"{name}.png", png)
    content = {
        "command": command,
        "versions": versions(),
        "notes": list(notes),
        "settings": jsonable(settings),
        **as_json(evaluation),
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    _write(folder / "report.json", f"{text}\n".encode())
    page = _page(evaluation, settings, pictures, content)
    _write(folder / "report.html", page.encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise AstStreamError(f"{path}: cannot be written: {error.strerror or error}") from error


def versions() -> dict[str, str]:
    """Return what the figures were made with."""
    return {
        "ast-stream": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def _page(
    evaluation: Evaluation,
    settings: Settings,
    pictures: Mapping[str, bytes],
    content: Mapping[str, Any],
) -> str:
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Evaluation</title>",
        f"<style>{STYLE}</style><h1>Evaluation</h1>",
        *(f"<p class='note'>{escape(note)}</p>" for note in content["notes"]),
        "<h2>In short</h2>",
        *(f"<p>{escape(line.strip())}</p>" for line in summary(evaluation, settings)),
        "<h2>By class</h2>",
        _table(*class_table(evaluation)),
        "<p>found, recall, false/h: streams with sounds, at the checkpoint's thresholds; at 0.5/h: "
        "recall at the best threshold with at most 0.5 false events per hour; onset s, offset s: "
        "median errors; detect s: median time to detect, misses counted as never; quiet/h: events "
        "per hour of streams without any.</p>",
    ]
    for name, png in pictures.items():
        encoded = base64.b64encode(png).decode("ascii")
        title = escape(PLOT_TITLES[name])
        parts.append(f"<h2>{title}</h2><img alt='{title}' src='data:image/png;base64,{encoded}'>")
    parts += [
        "<h2>Details</h2>",
        _table(*details(evaluation)),
        "<h2>Models</h2>",
        _table(
            ["model", "hash", "window s", "hop s", "folds", "clips"],
            [
                [
                    one.name,
                    one.hash,
                    f"{one.window_s:g}",
                    f"{one.hop_s:g}",
                    ", ".join(one.folds),
                    str(one.n_clips),
                ]
                for one in evaluation.models
            ],
        ),
        "<h2>Settings</h2>",
        f"<pre>{escape(content['command'])}</pre>",
        f"<pre>{escape(json.dumps(content['settings'], indent=1))}</pre>",
        f"<pre>{escape(json.dumps(content['versions'], indent=1))}</pre></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
