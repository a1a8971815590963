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

Written by `scripts/make_benchmarks.py`, each table by the command above it. What is compared runs
in turn, so that whatever else the machine does meets all of it; a figure is the median over the
rounds, with the lowest and the highest, and ratios are medians of the ratios within a round.

{date}, {machine}, load {load:.1f} before; {versions}.
"""
MODEL_TEXT = """Features are included: waveforms in, logits out. "Times as fast" counts from
transformers' default, sdpa in fp32. The difference is the largest one of a score from that way's,
over the beginnings of {n} recordings; top 5 is the share of its five highest classes that are kept.
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
        + "Random weights score all sounds nearly alike, so that here the top 5 says little.",
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
        "Milliseconds of the processor. transformers' extractor computes each window anew; of a "
        "stream\nonly the frames are computed that are new.",
    ),
    Section(
        "Decisions on a window of 2 000 streams",
        "decision --streams 2000 --classes 527 --events 700 --rounds 15",
        decision.COLUMNS,
        "Milliseconds of one core.",
    ),
    Section(
        "Alert rules",
        "alerts --rules 10 --rules 100 --rounds 20",
        alerts.COLUMNS,
        "Messages that one core takes through rules of all kinds, the state stored once a second.",
    ),
    Section(
        "Scanning, bundled checkpoint, a window every 0.5 s",
        "scan --minutes 10 --recordings {recordings}",
        scan.COLUMNS,
        'Decoding included. "A core" is the length by the CPU time of all threads.',
    ),
    Section(
        "A worker's turns, bundled checkpoint, a window every 0.5 s",
        "tick --streams 16 --streams 64 --streams 256",
        tick.COLUMNS,
        "Milliseconds of CPU time for a second of sound of all streams; 1000 are one core.",
    ),
    Section(
        "A whole box, bundled checkpoint, a window every 0.5 s",
        "box --streams 16 --streams 64 --seconds 30 --recordings {recordings}",
        latency.COLUMNS,
        "Real processes, recordings in real time. Lag is from the end of a window to its result on "
        "the\nfeed, onset from the onset of a sound to the begin of its event, in seconds; CPU is "
        "in cores.",
    ),
    Section(
        "One capture process of many streams",
        "capture --kind file --kind http --streams 1 --streams 8 --streams 32 --streams 64 "
        "--seconds 15 --ring 10",
        capture.COLUMNS,
        "Recordings of 16 kHz in real time, and stations (MP3, 44.1 kHz, two channels) of this "
        "machine. Each:\nwhat a stream takes beyond the first, with its ring of 10 s (0.3 MiB).\n"
        "Opening stations counts in so short a run; over 100 s they take 0.5 % each\n"
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
