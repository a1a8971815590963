"""Write BENCHMARKS.md: the model beside transformers, on the machine that this runs on.

    .venv/bin/python scripts/make_benchmarks.py --recordings FOLDER [--rounds 9]

Each table comes from `ast-stream bench model`; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = {
    "ast-base": ("AST-base: 10.24 s, stride 10, 1 214 tokens, random weights", [1, 4]),
    "bundled": ("The bundled checkpoint: 2.56 s, 130 tokens, its clip head", [1, 8, 64]),
}
HEAD = """# Benchmarks

Written by `scripts/make_benchmarks.py`. Features are included: waveforms in, logits out. The ways
run in turn, {rounds} rounds; a figure is the median over the rounds, and "times as fast" the median
of the ratios within a round, to transformers with sdpa in fp32. The difference is the largest one
of a score from that way's, over the beginnings of 200 recordings; top 5 is the share of its five
highest classes that are kept.

{date}, {machine}, load {load:.1f} before; {versions}.
"""


def measure(model: str, batches: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Return the report of `ast-stream bench model`."""
    command = [sys.executable, "-m", "ast_stream.cli", "bench", "model", "--model", model]
    command += ["--rounds", str(options.rounds), "--recordings", options.recordings, "--json"]
    command += [word for batch in batches for word in ("--batch", str(batch))]
    report: dict[str, Any] = json.loads(subprocess.check_output(command))
    return report


def table(report: dict[str, Any]) -> str:
    """Return the timings of a report as a table."""
    lines = [
        "| way | windows at once | ms a window | from - to | times as fast | difference | top 5 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["timings"]:
        lines.append(
            f"| {row['name']} | {row['batch']} | {row['ms']:.1f} | {row['low_ms']:.1f} - "
            f"{row['high_ms']:.1f} | {row['times_as_fast']:.2f} | {row['max_error']:.1e} | "
            f"{row['top_5']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--recordings", required=True, help="folder whose beginnings are scored")
    parser.add_argument("--out", type=Path, default=Path("BENCHMARKS.md"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    reports = {model: measure(model, batches, options) for model, (_, batches) in MODELS.items()}
    versions = reports["bundled"]["versions"]
    parts = [
        HEAD.format(
            rounds=options.rounds,
            date=datetime.date.today().isoformat(),
            machine=f"{_processor()}, {os.cpu_count()} cores",
            load=load,
            versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        )
    ]
    parts += [f"## {MODELS[model][0]}\n\n{table(report)}\n" for model, report in reports.items()]
    options.out.write_text("\n".join(parts))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
