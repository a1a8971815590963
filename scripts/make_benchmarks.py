"""Write BENCHMARKS.md: what the parts cost on the machine that this runs on.

    .venv/bin/python scripts/make_benchmarks.py --recordings FOLDER [--only WORD] [--rounds N]

Each table comes from a command of `ast-stream bench`, in a process of its own; nothing else should
run meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_stream.benchmarks import (
    alerts,
    capture,
    decision,
    features,
    latency,
    model,
    scan,
    tick,
)
from ast_stream.benchmarks.report import TableColumn, cells

HEAD = """# Benchmarks

Written by `scripts/make_benchmarks.py`; each table is made by the command above it. Variants run
alternately, so that other load on the machine affects all of them. Figures are medians over the
rounds, with the minimum and the maximum; ratios are medians of the ratios within a round.

{date}, {machine}, load {load:.1f} before; {versions}.
"""
MODEL_TEXT = """\
Waveforms in, logits out, so features are included. The speed-up and the score differences are
relative to transformers' default, sdpa in fp32. The difference is the largest of any score, over
the beginnings of {n} recordings; top 5 is the ratio of the five highest classes kept.
"""


@dataclass(frozen=True)
class Section:
    """A heading of the page with a table.

    Attributes:
        command: words after `ast-stream bench`; `{recordings}` stands for the folder.
        columns: of the table, for the rows in the report's `timings`.
        text: what is to be known about the figures.
    """

    title: str
    command: str
    columns: Sequence[TableColumn]
    text: str = ""


SECTIONS = (
    Section(
        "AST-base: 10.24 s, stride 10, 1 214 tokens, random weights",
        "model --model ast-base --batch 1 --batch 2 --batch 4 --batch 8 --eager --rounds 3 "
        "--recordings {recordings} --at-most 10",
        model.COLUMNS,
        MODEL_TEXT.format(n=10)
        + "Random weights score all sounds nearly alike, so the top 5 means little here.",
    ),
    Section(
        "The bundled checkpoint: 2.56 s, 130 tokens, its clip head",
        "model --batch 1 --batch 8 --batch 64 --eager --rounds 9 --recordings {recordings}",
        model.COLUMNS,
        MODEL_TEXT.format(n=200),
    ),
    Section(
        "Features of live streams, windows of 10.24 s every 0.5 s",
        "features --streams 1 --streams 64 --rounds 9",
        features.COLUMNS,
        "CPU time in milliseconds. The extractor of transformers computes every window from "
        "scratch; for a\nstream, only the new frames are computed.",
    ),
    Section(
        "Decisions on a window of 2 000 streams",
        "decision --streams 2000 --classes 527 --events 700 --rounds 15",
        decision.COLUMNS,
        "CPU time in milliseconds on one core.",
    ),
    Section(
        "Alert rules",
        "alerts --rules 10 --rules 100 --rounds 20",
        alerts.COLUMNS,
        "Messages per second that one core evaluates with rules of all kinds, storing its state "
        "once a second.",
    ),
    Section(
        "Scanning, bundled checkpoint, a window every 0.5 s",
        "scan --minutes 10 --recordings {recordings}",
        scan.COLUMNS,
        'Decoding is included. "Per core" is the length divided by the CPU time of all threads.',
    ),
    Section(
        "A worker's turns, bundled checkpoint, a window every 0.5 s",
        "tick --streams 16 --streams 64 --streams 256",
        tick.COLUMNS,
        "Milliseconds of CPU time per second of audio of all streams; 1000 is one core.",
    ),
    Section(
        "A whole box, bundled checkpoint, a window every 0.5 s",
        "box --streams 16 --streams 64 --seconds 30 --recordings {recordings}",
        latency.COLUMNS,
        "Real processes, recordings in real time. In seconds: lag is from the end of a window to "
        "its result\non the feed, onset from the onset of a sound to the `begin` of its event. CPU "
        "is in cores.",
    ),
    Section(
        "One capture process of many streams",
        "capture --kind file --kind http --streams 1 --streams 8 --streams 32 --streams 64 "
        "--seconds 15 --ring 10",
        capture.COLUMNS,
        "16 kHz recordings in real time, and stations (MP3, 44.1 kHz, two channels) on the same "
        'machine.\n"Each" is the cost of one more stream, including its ring of 10 s (0.3 MiB). '
        "In so short a run the\nstart of a station counts; over 100 s a station takes 0.5 %\n"
        "([figures](docs/design/one-capture-process.md)).",
    ),
)


def measured(section: Section, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report of the section's command."""
    command = [sys.executable, "-m", "ast_stream.cli", "bench", *_words(section), "--json"]
    command = [word.format(recordings=options.recordings) for word in command]
    if options.rounds and "--rounds" in command:
        command += ["--rounds", str(options.rounds)]  # the last one counts
    began_s = time.monotonic()
    report: dict[str, Any] = json.loads(subprocess.check_output(command))
    print(f"{section.title}: {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return report


def table(columns: Sequence[TableColumn], report: dict[str, Any]) -> str:
    """Return the timings of a report as a table."""
    rows = [[column.title for column in columns]]
    rows.append(["---:" if column.is_figure else "---" for column in columns])
    rows += [cells(columns, row) for row in report["timings"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", required=True, help="folder whose beginnings are scored")
    parser.add_argument("--only", default="", help="sections whose command has this word")
    parser.add_argument("--rounds", type=int, help="of all sections; default: as each needs")
    parser.add_argument("--out", type=Path, default=Path("BENCHMARKS.md"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    sections = [each for each in SECTIONS if not options.only or options.only in _words(each)]
    if not sections:
        parser.error(f"--only: no section has '{options.only}'")
    reports = [measured(section, options) for section in sections]
    versions = reports[0]["versions"]
    parts = [
        HEAD.format(
            date=datetime.date.today().isoformat(),
            machine=f"{_processor()}, {os.cpu_count()} cores",
            load=load,
            versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        )
    ]
    for section, report in zip(sections, reports, strict=True):
        command = section.command.format(recordings="FOLDER")
        text = f"{section.text.rstrip()}\n\n" if section.text else ""
        figures = table(section.columns, report)
        parts.append(f"## {section.title}\n\n    ast-stream bench {command}\n\n{text}{figures}\n")
    options.out.write_text("\n".join(parts))


def _words(section: Section) -> list[str]:
    return shlex.split(section.command)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
