"""A week of events through `ast-stream rules backtest`: seconds, memory, and what fired.

    .venv/bin/python tests/benchmarks/bench_backtest.py [--events 20000] [--rules FILE]

The week is made from a seed: sounds of the bundled model's classes on four streams, more of them
by day, each with its begin, an update a second and its end, as the worker's log has them.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ast_stream.alerts.model_facts import model_facts
from ast_stream.labels import slug
from ast_stream.settings.model import ModelSettings
from ast_stream.units import NS_PER_SECOND, format_time, parse_time

START = parse_time("2026-03-23T00:00:00Z")  # the week in which European clocks change
WEEK_S = 7 * 86_400
STREAMS = {"hall": "home", "garden": "home", "bench": "workshop", "rack": "server_room"}
LATENCY_S, SMEAR_S = 1.6, 3.0
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Write the week, backtest it, and print the report and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="sounds in the week")
    parser.add_argument("--rules", type=Path, default=ROOT / "configs" / "alerts.yaml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ast-stream-bench-") as folder:
        log = Path(folder) / "week.jsonl"
        n_messages = write_week(log, options.events, options.seed)
        command = [sys.executable, "-m", "ast_stream.cli", "rules", "backtest", str(options.rules)]
        begun_s = time.perf_counter()
        done = subprocess.run(
            [*command, "--events", str(log)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        wall_s = time.perf_counter() - begun_s
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        core_s, most_mb = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        size_mb = log.stat().st_size / 2**20
    lines = done.stdout.splitlines()
    print("\n".join(line for line in lines if "firing" not in line and "resolved" not in line))
    print(
        f"{options.events} sounds, {n_messages} messages, {size_mb:.1f} MiB: {wall_s:.1f} s, "
        f"{core_s:.1f} s of one core, at most {most_mb:.0f} MiB"
    )


def write_week(path: Path, n_sounds: int, seed: int) -> int:
    """Write a week of messages in the order in which they are published; return how many."""
    rng = random.Random(seed)
    labels = model_facts(ModelSettings()).labels or ()
    messages = [message for n in range(n_sounds) for message in _sound(rng, n, labels)]
    messages.sort(key=lambda message: message[0])
    with path.open("w") as log:
        for _, body in messages:
            log.write(json.dumps(body, separators=(",", ":")) + "\n")
    return len(messages)


def _sound(
    rng: random.Random, number: int, labels: tuple[str, ...]
) -> Iterator[tuple[float, dict[str, Any]]]:
    onset_s = rng.uniform(0, WEEK_S)
    if rng.random() < 0.7:  # most of life is between seven and eleven in the evening
        onset_s = onset_s // 86_400 * 86_400 + rng.uniform(7, 23) * 3600
    length_s = min(rng.expovariate(1 / 6), 120)
    stream, label = rng.choice(list(STREAMS)), rng.choice(labels)
    begin_s, end_s = onset_s + LATENCY_S, onset_s + max(LATENCY_S, length_s + SMEAR_S)
    n_updates = int(end_s - begin_s)
    times = [("begin", begin_s), *(("update", begin_s + n) for n in range(1, n_updates))]
    peak = round(rng.uniform(0.6, 1), 4)
    for kind, at_s in [*times, ("end", end_s)]:
        is_end = kind == "end"
        yield (
            at_s,
            {
                "v": 1,
                "id": f"e{number}",
                "type": kind,
                "stream": stream,
                "labels": {"site": STREAMS[stream]},
                "class": slug(label),
                "label": label,
                "score": peak,
                "peak": peak,
                "onset": _time(onset_s),
                "offset": _time(onset_s + length_s) if is_end else None,
                "captured": _time(at_s),
            },
        )


def _time(seconds: float) -> str:
    return format_time(START + round(seconds * NS_PER_SECOND))


if __name__ == "__main__":
    main()
