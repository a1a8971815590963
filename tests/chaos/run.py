"""The long form: run a box under faults for an hour, then print the comparison.

python tests/chaos/run.py --minutes 60 --seed 1
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # helpers that several tests share

from chaos import STREAMS, Box, inject_faults
from comparison import Comparison, compare
from http_receiver import http_receiver


def chaos(
    seed: int, seconds: float, n_streams: int, keep: Path | None = None, *, is_shown: bool = False
) -> Comparison:
    """Run a box under faults for `seconds`, and compare it with an undisturbed run.

    Args:
        keep: folder that the processes' files are copied to.
    """
    with http_receiver() as receiver:
        box = Box(n_streams, seconds, receiver)
        try:
            box.start()
            inject_faults(box, seed, seconds, _report if is_shown else lambda text: None)
            box.stop()
            return compare(box, receiver.got)
        finally:
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                for path in box.folder.iterdir():
                    if path.is_file() and path.suffix != ".wav":
                        shutil.copy(path, keep)
                shutil.copytree(box.state, keep / "state", dirs_exist_ok=True)
            box.close()


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run from the command line; exit code 0 only if everything is explained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=3, choices=range(1, len(STREAMS) + 1))
    parser.add_argument("--keep", type=Path, help="folder for the log of all processes")
    args = parser.parse_args()
    comparison = chaos(args.seed, 60 * args.minutes, args.streams, args.keep, is_shown=True)
    print(comparison.table())
    return 1 if comparison.problems else 0


if __name__ == "__main__":
    sys.exit(main())
