"""The long form: run a box under faults for an hour, then print the comparison.

python tests/chaos/run.py --minutes 60 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # helpers that several tests share

from box import START_S, STREAMS, Box
from comparison import Comparison, compare
from faults import Fault, Group, kills_and_stops, surroundings
from http_receiver import http_receiver
from report import section

PLANS = ("kills", "surroundings", "all")


def chaos(
    seed: int,
    seconds: float,
    n_streams: int,
    plan: str,
    keep: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
    checkpoint: Path | None = None,
) -> Comparison:
    """Run a box under faults for `seconds`, and compare it with an undisturbed run.

    Args:
        plan: one of `PLANS`.
        keep: folder that the processes' files are copied to.
        report: called with what is done.
        checkpoint: in place of the bundled one, which takes most of the time of a short run.
    """
    with http_receiver() as receiver:
        box = Box(n_streams, seconds, receiver, is_live=plan != "kills", checkpoint=checkpoint)
        try:
            box.start()
            inject_faults(box, seed, seconds, plan, report)
            box.stop()
            return compare(box, receiver.got)
        finally:
            try:
                if keep is not None:
                    box.keep(keep)
            finally:
                box.close()


def inject_faults(
    box: Box, seed: int, seconds: float, plan: str, report: Callable[[str], None]
) -> None:
    """Inject faults for at least `seconds`, in whole rounds, and let the box recover at the end.

    Some faults come before it has recovered from earlier ones. Between rounds everything is killed.
    """
    rng = random.Random(seed)
    began_s = time.monotonic()
    is_first = True
    while is_first or time.monotonic() - began_s < seconds:
        groups = _round(rng, box, plan, is_long=seconds > 0)
        for faults in groups if is_first else [[Fault("kill", "run")], *groups]:
            if rng.random() < 0.5:
                box.wait_until_healthy(START_S)
            else:
                box.forget_recoveries()
            time.sleep(rng.uniform(0.2, 2.5))
            names = ", ".join(fault.name for fault in faults)
            report(f"{time.monotonic() - began_s:6.1f} s  {names}")
            box.inject(faults)
            if any(fault.kind == "full disk" for fault in faults):
                # a killed worker's unsaved messages are derived again if their audio survives
                box.wait_until_healthy(START_S)
        is_first = False
    box.wait_until_healthy(START_S)


def _round(rng: random.Random, box: Box, plan: str, *, is_long: bool) -> list[Group]:
    groups: list[Group] = []
    if plan != "surroundings":
        files = list(box.scenes)
        groups += kills_and_stops(rng, files, with_disk=box.has_own_disk, is_long=is_long)
    if plan != "kills":
        has_clocks = box.clocks is not None
        groups += surroundings(rng, box.streams, with_clocks=has_clocks, is_long=is_long)
    if plan == "all":
        rng.shuffle(groups)
    return groups


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run from the command line; exit code 0 only if everything is explained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=3, choices=range(1, len(STREAMS) + 1))
    parser.add_argument("--keep", type=Path, help="folder for the log of all processes")
    parser.add_argument("--plan", choices=PLANS, default="all")
    parser.add_argument("--report", type=Path, help="file for a section of RELIABILITY.md")
    args = parser.parse_args()
    comparison = chaos(
        args.seed, 60 * args.minutes, args.streams, args.plan, args.keep, report=_report
    )
    print(comparison.table())
    if args.report is not None:
        found = section(
            comparison,
            command=f"python tests/chaos/run.py {' '.join(sys.argv[1:])}",
            seed=args.seed,
            minutes=args.minutes,
            load=os.getloadavg()[2],
        )
        args.report.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if comparison.problems else 0


if __name__ == "__main__":
    sys.exit(main())
