"""Real-time factor and peak memory of `ast-stream scan` for recordings of different length.

    .venv/bin/python tests/benchmarks/bench_scan.py [--hours 1.0] [--model bundled]

Scans generated scenes of a tenth of the length and of the whole, each in a process of its own, and
prints one line each: memory must not grow with the length.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile
import torch

from ast_stream.soundscape.scene import SceneRenderer
from ast_stream.units import SAMPLE_RATE

BLOCK = 60 * SAMPLE_RATE


def write_scene(path: Path, duration_s: float) -> None:
    """Write the scene of seed 0 as 16-bit FLAC."""
    renderer = SceneRenderer(0, duration_s)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, subtype="PCM_16") as file:
        while len(pcm := renderer.render(BLOCK)):
            file.write(pcm)


def scan(path: Path, model: str) -> tuple[float, float, int]:
    """Return wall seconds, peak memory in MiB and the number of events of one scan."""
    command = [
        sys.executable,
        "-m",
        "ast_stream.cli",
        "scan",
        "--json",
        "--model",
        model,
        str(path),
    ]
    started_s = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed_s = time.monotonic() - started_s
        if status:
            raise SystemExit(f"scan failed with status {status}")
        out.seek(0)
        n_events = sum(1 for line in out if json.loads(line))
    return elapsed_s, peak_mib(usage), n_events


def peak_mib(usage: resource.struct_rusage) -> float:
    """Return the peak resident size; Linux counts in KiB."""
    return usage.ru_maxrss / 1024


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    print(
        f"# {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, model {options.model}"
    )
    print("audio_s  wall_s  real_time_factor  peak_mib  events")
    with tempfile.TemporaryDirectory(prefix="bench-scan-") as folder:
        for duration_s in (360 * options.hours, 3600 * options.hours):
            path = Path(folder) / f"{duration_s:.0f}.flac"
            write_scene(path, duration_s)
            elapsed_s, mib, n_events = scan(path, options.model)
            print(
                f"{duration_s:7.0f} {elapsed_s:7.1f} {elapsed_s / duration_s:17.4f} "
                f"{mib:9.0f} {n_events:7d}",
                flush=True,
            )


if __name__ == "__main__":
    main()
