"""Temporary folders of killed processes go with the next run; those in use stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ast_stream.runtime.temporary import temporary_folder

OWNER = """
import os, signal, sys
from pathlib import Path
from ast_stream.runtime.temporary import temporary_folder
with temporary_folder("test", Path(sys.argv[1])) as folder:
    (folder / "state").mkdir()
    (folder / "state" / "file").write_bytes(b"sound")
    print(folder, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def later() -> float:
    return time.time() + 3600


def owner(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process with a folder, which kills itself at the end of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_process_goes_with_the_next_run_and_that_of_a_live_one_stays(
    tmp_path: Path,
) -> None:
    (killed, left), (live, used) = owner(tmp_path), owner(tmp_path)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    with temporary_folder("test", tmp_path) as own:
        assert left.exists()  # it is new: its process may be about to lock it
    with temporary_folder("test", tmp_path, later) as own:
        assert sorted(tmp_path.iterdir()) == sorted([used, own])
        assert (used / "state" / "file").exists()
    live.communicate()
    with temporary_folder("other", tmp_path, later):
        assert used.exists()
    with temporary_folder("test", tmp_path, later):
        assert not used.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_none_of_ours_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "ast-stream-test-link").symlink_to(elsewhere)
    (tmp_path / "ast-stream-test-file").touch()
    os.mkfifo(tmp_path / "ast-stream-test-fifo")
    (tmp_path / "ast-stream-test-shared").mkdir(mode=0o755)
    before = sorted(tmp_path.iterdir())
    with temporary_folder("test", tmp_path, later):
        pass
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="nothing"),
        temporary_folder("test", tmp_path / "nothing"),
    ):
        pass
