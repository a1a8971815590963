"""The figures of a chaos run as a section of RELIABILITY.md: see scripts/make_reliability.py."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from comparison import Comparison, n_recovered, percentiles

from ast_stream.units import SAMPLE_RATE
from ast_stream.version import __version__

_MAX_CHARACTERS = 300
_HOW = (
    "Real processes of one box run under a seeded plan of faults: captures of scenes, of a "
    "(virtual) sound card and of a radio station (MP3 over HTTP), the worker with the bundled "
    "checkpoint, alerts with a webhook, and two readers of the feed. The result is compared "
    "with the detector alone on the same audio. Every event that the rings cover must be the "
    "same, to the sample; lost audio must be in gap records and in the ledger, to the sample; "
    "every event has one begin and one end, and is delivered once."
)
_RECOVERY = (
    "Recovery time is measured from the end of a fault (a kill ends at once) until all "
    "affected streams are scored with less than 2 s of backlog and, if alerts was hit, it "
    "receives the worker's messages again. Health is published once a second, so each figure "
    "may be up to a second too long. Only faults that are not followed by another one are "
    "timed; after all others the box must have recovered in the end. A worker that died has "
    "to load its model again."
)


def section(
    comparison: Comparison, *, command: str, seed: int, minutes: float, load: float
) -> dict[str, Any]:
    """Return the section.

    Args:
        minutes: that faults were injected.
        load: mean number of processes that wanted a processor, at the end.
    """
    figures = comparison.figures
    done = sum(map(len, comparison.recoveries.values()))
    recovered = sum(map(n_recovered, comparison.recoveries.values()))
    explained = sum(comparison.explained.values())
    return {
        "order": 10,
        "title": "Faults",
        "command": command,
        "measured": datetime.now(UTC).date().isoformat(),
        "facts": {
            "seed": seed,
            "minutes": round(minutes, 1),
            "ast-stream": __version__,
            "Python": platform.python_version(),
            "torch": version("torch"),
            "device": f"CPU, {os.cpu_count()} cores, 15-minute load {load:.1f} at the end",
        },
        "text": [_HOW, _RECOVERY],
        "tables": [
            {
                "columns": ["total", ""],
                "rows": [
                    ["faults injected", done],
                    ["recovered", recovered],
                    ["events", figures["events"]],
                    [
                        "event messages equal to those of an undisturbed run",
                        figures["event messages equal to the undisturbed ones"],
                    ],
                    [
                        "windows with equal scores",
                        figures["windows with equal scores"],
                    ],
                    ["samples listened to", figures["samples listened"]],
                    ["samples lost, explained by a fault", explained],
                    ["samples lost, unexplained", comparison.unexplained],
                    [
                        "alerts delivered",
                        f"{figures['alerts delivered']} of {figures['alerts expected']}",
                    ],
                    [
                        "alerts sent again after a kill, with the same id",
                        figures["alerts repeated after a kill, with the same id"],
                    ],
                    ["duplicate messages and unexplained differences", len(comparison.problems)],
                ],
            },
            {
                "columns": ["fault", "injected", "recovered", "timed", "p50 s", "p95 s", "max s"],
                "rows": [
                    _fault_row(name, found) for name, found in sorted(comparison.recoveries.items())
                ],
            },
            {
                "columns": ["reason of the loss", "samples", "seconds"],
                "rows": [
                    [reason, n, round(n / SAMPLE_RATE, 1)]
                    for reason, n in sorted(comparison.explained.items())
                ],
            },
        ],
        "problems": [shortened(problem) for problem in comparison.problems],
    }


def shortened(text: str) -> str:
    """Return a text that fits a page."""
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 3] + "..."


def _fault_row(name: str, found: list[Any]) -> list[Any]:
    timed = sum(each.is_timed and each.seconds is not None for each in found)
    times = [f"{seconds:.1f}" for seconds in percentiles(found)] or ["", "", ""]
    return [name, len(found), n_recovered(found), timed, *times]
