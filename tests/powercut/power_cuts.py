"""Cut the power after each operation of a busy minute, and say what was lost.

    python tests/powercut/power_cuts.py --seconds 60 --states 3
    python tests/powercut/power_cuts.py --recorder

For each operation that the box does to its files the disk is left in several states that POSIX
permits, and the box is started on each: with all that is not synced lost, with nothing lost, and
with some of it, in blocks, torn and out of order.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # helpers that several tests share

import promises
import recorder_promises
import recording
from disk_states import Disk, Loss, put
from recording import Operation

RESTARTED_NS = 1_700_000_600_000_000_000  # ten minutes after the busy one began


class Told(Protocol):
    """What was told to anyone until a moment."""

    def note(self, mark: dict[str, Any]) -> None:
        """Add a mark."""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        broken: promises that were broken, with where: operation, loss and seed.
    """

    n_operations: int = 0
    n_cuts: int = 0
    n_states: int = 0
    broken: list[str] = field(default_factory=list)


def record(durability: str, seconds: float) -> list[Operation]:
    """Return what a busy minute of a worker and its alerts does to their files."""
    return _record("busy_minute.py", durability, str(seconds))


def record_recorder(seconds: float) -> list[Operation]:
    """Return what a minute of a recorder does to its files."""
    return _record("recorded_minute.py", str(seconds))


def _record(script: str, *arguments: str) -> list[Operation]:
    with tempfile.TemporaryDirectory(prefix="pc-", dir="/tmp") as folder:
        root = Path(folder) / "box"
        root.mkdir()
        program = str(recording.HERE / script)
        return recording.read(recording.under_shim(Path(folder), root, program, *arguments))


def cut_everywhere(
    operations: list[Operation],
    *,
    syncs_first: bool,
    states: int,
    share: float = 1.0,
    seed: int = 0,
) -> Outcome:
    """Cut the power after operations, and check what is promised.

    Args:
        states: for each operation; the first two lose everything and nothing, others some.
        share: of the operations that are looked at.
    """
    told = promises.Told()

    def check(folder: Path) -> list[str]:
        return promises.broken(folder, told, RESTARTED_NS, syncs_first=syncs_first)

    return cut_power(operations, told, check, states=states, share=share, seed=seed)


def cut_recorder(
    operations: list[Operation], *, states: int, share: float = 1.0, seed: int = 0
) -> Outcome:
    """Cut the power of a recorder, see `cut_everywhere`."""
    known = recorder_promises.Known()

    def check(folder: Path) -> list[str]:
        return recorder_promises.broken(folder, known)

    return cut_power(operations, known, check, states=states, share=share, seed=seed)


def cut_power(
    operations: list[Operation],
    told: Told,
    check: Callable[[Path], list[str]],
    *,
    states: int,
    share: float = 1.0,
    seed: int = 0,
) -> Outcome:
    """Cut the power after operations.

    Args:
        told: takes the marks, up to each operation.
        check: returns what is wrong with a folder as the power cut has left it.
        states, share: see `cut_everywhere`.
    """
    outcome, disk = Outcome(), Disk()
    choices = random.Random(seed)
    for number, operation in enumerate(operations):
        if operation.kind == "M":
            told.note(operation.mark)
            continue
        disk.apply(operation)
        outcome.n_operations += 1
        if choices.random() >= share:
            continue
        outcome.n_cuts += 1
        for state in range(states):
            loss: Loss = ("everything", "nothing", "some")[min(state, 2)]
            outcome.n_states += 1
            files = disk.after_cut(loss, seed + 1000 * number + state)
            for text in _check(files, check):
                outcome.broken.append(f"operation {number}, {loss} lost ({state}): {text}")
    return outcome


def _check(files: dict[str, bytes | None], check: Callable[[Path], list[str]]) -> list[str]:
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="pc-", dir=memory if memory.is_dir() else None)
    try:
        put(files, Path(folder))
        return check(Path(folder))
    except Exception as error:  # one boundary: nothing on a disk may keep a box from starting
        return [f"does not start: {type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder)


def section_of(
    outcome: Outcome, n_syncs: int, command: str, title: str, text: str
) -> dict[str, Any]:
    """Return what came of it as a section of RELIABILITY.md (see scripts/make_reliability.py)."""
    return {
        "order": 15,
        "title": f"Power cuts, {title}",
        "command": command,
        "measured": datetime.now(UTC).date().isoformat(),
        "text": [text],
        "tables": [
            {
                "columns": ["total", ""],
                "rows": [
                    ["operations", outcome.n_operations],
                    ["syncs among them", n_syncs],
                    ["operations followed by a power cut", outcome.n_cuts],
                    ["disks on which the box was started", outcome.n_states],
                    ["promises broken", len(outcome.broken)],
                ],
            }
        ],
        "problems": outcome.broken[:20],
    }


_OF_WORKER = (
    "Every write, sync, rename and removal of a busy minute is recorded below the real "
    "worker, alert engine, outbox and SQLite. After each chosen operation, the disk is left "
    "in a state that POSIX permits: everything that was not synced is lost, or nothing, or "
    "some of it, in blocks, torn and out of order. The box is started on each of these disks: "
    "what was acknowledged must be there, nothing may come twice under another id, every "
    "begin must get its end, and the ledger must not claim audio that was not heard."
)
_OF_RECORDER = (
    "The same for a minute of the real recorder, with its history, clips, score log and a "
    "person who gives verdicts. It is started on each disk, beside a worker that has no more "
    "audio. The history must open without repair and have every published event, end and gap "
    "and every confirmed verdict; each clip that was listed must be complete, sample by "
    "sample; files and index must agree; and each event must have its clip or the reason why "
    "not."
)


def main() -> int:
    """Run from the command line; exit code 0 only if no promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the busy minute")
    parser.add_argument("--states", type=int, default=4, help="for each operation")
    parser.add_argument("--share", type=float, default=1.0, help="of the operations, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--durability", choices=("each_event", "1_s"), default="each_event")
    parser.add_argument("--out", type=Path, help="write the section of RELIABILITY.md here")
    parser.add_argument("--recorder", action="store_true", help="cut that of a recorder")
    args = parser.parse_args()
    began_s = time.monotonic()
    options = {"states": args.states, "share": args.share, "seed": args.seed}
    if args.recorder:
        operations = record_recorder(args.seconds)
        title, text = "recorder", _OF_RECORDER
        outcome = cut_recorder(operations, **options)
    else:
        operations = record(args.durability, args.seconds)
        title, text = f"durability: {args.durability.replace('_', ' ')}", _OF_WORKER
        syncs_first = args.durability == "each_event"
        outcome = cut_everywhere(operations, syncs_first=syncs_first, **options)
    for promise in outcome.broken[:50]:
        print(promise)
    kinds = Counter(operation.kind for operation in operations)
    if args.out is not None:
        command = ["python tests/powercut/power_cuts.py", *sys.argv[1:]]
        section = section_of(outcome, kinds["S"], " ".join(command), title, text)
        args.out.write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n")
    print(
        f"{outcome.n_operations} operations ({kinds['S']} syncs), {outcome.n_states} states, "
        f"{len(outcome.broken)} promises broken, {time.monotonic() - began_s:.0f} s"
    )
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
