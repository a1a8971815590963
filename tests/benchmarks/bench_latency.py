"""Onset to publish for the demo's scene, with its parts: p50 and p95 over several seeds.

    .venv/bin/python tests/benchmarks/bench_latency.py [--seeds 1 2 3] [--hop 0.25]

Runs `ast-stream demo --json` for each seed: real processes, real time, 40 s each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys


def main() -> None:
    """Print one line for each seed, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--hop", default="0.25")
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    totals: dict[str, list[float]] = {}
    print("seed  found  p50_s  p95_s  decided_p50_s  scored_p50_s  published_p50_s  onset_error_s")
    for seed in options.seeds:
        command = [sys.executable, "-m", "ast_stream.cli", "demo", "--json", "--seed", str(seed)]
        command += ["--hop", options.hop, "--model", options.model]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1) or not done.stdout:
            raise SystemExit(done.stderr)
        report = json.loads(done.stdout)
        latency = report["latency_s"]
        errors = [
            abs(sound["onset_error_s"]) for sound in report["sounds"] if sound["onset_error_s"]
        ]
        figures = {
            "p50": latency["onset_to_published"]["p50"],
            "p95": latency["onset_to_published"]["p95"],
            "decided": latency["decided"]["p50"],
            "scored": latency["scored"]["p50"],
            "published": latency["published"]["p50"],
            "error": statistics.median(errors),
        }
        for name, value in figures.items():
            totals.setdefault(name, []).append(value)
        shown = "  ".join(f"{value:.3f}" for value in figures.values())
        print(f"{seed:4d}  {report['found']}/{report['planted']}  {shown}", flush=True)
    medians = "  ".join(f"{statistics.median(values):.3f}" for values in totals.values())
    print(f"median      {medians}")


if __name__ == "__main__":
    main()
