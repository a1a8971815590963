"""Measure all there is to know on a GPU, in ten minutes at most.

    .venv/bin/python scripts/gpu_figures.py [--out gpu.json] [--minutes 10] [--only STEP ...]

Each step is a process of its own with a time limit, so that one that fails, hangs or leaves the
GPU's context broken takes nothing from the others. All figures go to a JSON file after each step;
a short table comes last. Steps that no time is left for are named there. `--device cpu --small`
tries the steps without a GPU; what they measure then says nothing of one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEPS_FILE = Path(__file__).with_name("gpu_steps.py")
# seconds that each may take; what matters most comes first
LIMITS_S = {
    "facts": 40,
    "tests": 90,
    "ceilings": 30,
    "correctness": 90,
    "forward": 80,
    "float8": 60,
    "streams": 100,
    "transformers": 90,
    "detector": 60,
    "tick": 60,
    "attention": 40,
    "profile": 40,
    "features": 30,
    "training": 40,
    "compiled": 90,
}
SHOWN = 110  # characters of a line

Result = dict[str, Any]


def run_step(command: Sequence[str], limit_s: float) -> Result:
    """Return how a step ended, and its figures if it did well: the JSON on its last line."""
    began_s = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, limit_s))
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {limit_s:.0f} s", "seconds": round(limit_s, 1)}
    seconds = round(time.monotonic() - began_s, 1)
    if done.returncode != 0:
        return {"status": "failed", "seconds": seconds, "problem": done.stderr[-2000:]}
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    if "needs" in figures:
        return {"status": f"needs {figures['needs']}", "seconds": seconds}
    return {"status": "done", "seconds": seconds, "figures": figures}


def lines(step: str, result: Result) -> list[str]:
    """Return a step's result for people."""
    shown = [f"{step}: {result['status']} ({result['seconds']:g} s)"]
    if "problem" in result:
        shown += [f"  {line}" for line in result["problem"].strip().splitlines()[-2:]]
    for name, value in result.get("figures", {}).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            shown += [f"  {_flat(row)}" for row in value]
        else:
            shown.append(f"  {name} {_flat(value) if isinstance(value, dict) else value}")
    return [line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…" for line in shown]


def _flat(row: Result) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in row.items() if value is not None)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the steps and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model and few batches")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all steps together")
    parser.add_argument("--only", nargs="+", choices=LIMITS_S, help="these steps alone")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    end_s = time.monotonic() + 60 * options.minutes
    results: dict[str, Result] = {}
    for step in options.only or LIMITS_S:
        left_s = end_s - time.monotonic()
        command = [sys.executable, str(STEPS_FILE), step, "--device", options.device]
        command += ["--small"] if options.small else []
        if left_s > 1:
            print(f"{step} ...", file=sys.stderr, flush=True)
            results[step] = run_step(command, min(LIMITS_S[step], left_s))
        else:
            results[step] = {"status": "no time was left", "seconds": 0.0}
        options.out.write_text(json.dumps({"device": options.device, "steps": results}, indent=1))
    for step, result in results.items():
        print("\n".join(lines(step, result)))


if __name__ == "__main__":
    main()
