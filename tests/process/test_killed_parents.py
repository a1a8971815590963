"""Commands that start processes of their own, killed: nothing of them goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pipeline import wait_for

ROOT = Path(__file__).parents[2]
LIMIT_S = 60


def is_gone(pid: int) -> bool:
    # an orphan that was killed stays a zombie until its new parent looks after it
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def processes_below(pid: int) -> list[int]:
    """Return all processes that one has started, and those that these have started."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *processes_below(child)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "n_processes"),
    [
        (["bench", "capture", "--streams", "1"], 1),
        (["bench", "box", "--streams", "1"], 3),
        (["demo"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_that_is_killed_leaves_no_process_behind(
    args: Sequence[str], n_processes: int
) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "ast_stream.cli", *args],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: len(processes_below(command.pid)) >= n_processes, "its processes", LIMIT_S)
        started = processes_below(command.pid)
    finally:
        command.kill()
        command.wait()
    wait_for(lambda: all(map(is_gone, started)), "their end", LIMIT_S)


def test_processes_of_ours_are_started_in_one_place() -> None:
    command = re.compile(r'"-m",\s*"ast_stream\.cli')
    places = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "ast_stream").rglob("*.py"))
        if command.search(path.read_text())
    ]
    # `run` gives its command lines to the supervisor
    assert places == ["ast_stream/cli/run.py", "ast_stream/runtime/lifecycle.py"]
