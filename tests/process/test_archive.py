"""Archives scanned by real processes that are killed, stopped, and run by Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prove_archive
import pytest
import soundfile
from archive_rows import make_archive, rows_of, scan
from forked_command import ForkedCommand, run_command
from reactive_model import tones_and_noise

from ast_stream.archive import archive_state
from ast_stream.archive.folders import DiskFolder
from ast_stream.archive.manifest import ShardManifest
from ast_stream.units import SAMPLE_RATE

PATIENCE_S = 120.0
pytestmark = pytest.mark.timeout(3 * PATIENCE_S)  # Ray alone takes ten seconds to begin
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def parts_of(out: Path) -> int:
    """Return how many whole parts the only shard has."""
    folders = list(out.glob("shard-*"))
    manifest = ShardManifest.read(DiskFolder(folders[0])) if folders else None
    return 0 if manifest is None else len(manifest.parts)


def wait_for_parts(out: Path, n_parts: int, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until the only shard has so many parts, or until a process has ended."""
    until_s = time.monotonic() + PATIENCE_S
    while parts_of(out) < n_parts and (process is None or process.poll() is None):
        assert time.monotonic() < until_s, f"waited in vain for {n_parts} parts"
        time.sleep(0.02)


def test_shards_killed_at_random_moments_have_the_rows_of_one_scan(
    checkpoint: Path, tmp_path: Path
) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number in range(5):
        soundfile.write(sounds / f"{number}.flac", tones_and_noise(10.0, seed=number), SAMPLE_RATE)
    args = Namespace(
        sounds=sounds, hours=0.1, shards=2, kills=1, seed=3, hop=0.25, model=str(checkpoint),
        part_hours=0.02, actors=0,
    )  # fmt: skip
    report = prove_archive.prove(args, tmp_path)
    assert report["differences"] == []
    assert report["ways"]["shards"]["kills"] >= 1  # a quick machine may be done before the next
    assert report["events"] > 20
    assert min(report["statuses"].values()) > 0


def test_a_shard_that_is_stopped_goes_on_later(
    checkpoint: Path, tmp_path: Path, processes: list[subprocess.Popen[Any]]
) -> None:
    archive = make_archive(tmp_path / "archive", n_recordings=20)
    out = tmp_path / "out"
    command: list[str | Path] = [
        "scan", "--model", checkpoint, "--hop", "0.02", archive, "--out", out,
        "--part-recordings", "2", "--json",
    ]  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        before, log = parts_of(out), tmp_path / f"{number}.log"
        process = ForkedCommand(command, log)
        processes.append(process)
        wait_for_parts(out, before + 1)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 128 + number, log.read_text()
        assert "Traceback" not in log.read_text()
    assert archive_state(out).unfinished == (0,)
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["state"], last["recordings"], last["total"]) == ("complete", 24, 24)
    assert "of 24 done before" in done.stderr
    assert archive_state(out, has_sums=True).why_not_whole is None


def test_ray_has_the_rows_of_a_scan_though_its_actor_is_killed(
    checkpoint: Path, tmp_path: Path, socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    archive = make_archive(tmp_path / "archive", n_recordings=20)
    by_ray, one = tmp_path / "ray", tmp_path / "one"
    process = subprocess.Popen(
        [
            sys.executable, "-c", prove_archive.RAY_MAIN, str(socket_dir), "2", "100000000",
            str(prove_archive.RAY), str(archive), "--out", str(by_ray), "--model", str(checkpoint),
            "--hop", "0.02", "--batch", "1", "--part-hours", "0.002",
        ],
        env=ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    processes.append(process)
    killed = 0
    with read_in_background(process) as said:
        wait_for_parts(by_ray, 1, process)
        for pid, command in descendants(process.pid):
            if command.startswith("ray::MapWorker"):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        code = process.wait(PATIENCE_S)
    assert code == 0, "".join(said)[-4000:]
    assert killed >= 1
    args = ["--hop", "0.02", archive, "--out", one, "--part-hours", "0.002"]
    assert scan(checkpoint, *args) == 0
    assert rows_of(by_ray) == rows_of(one)
    files = [sorted(path.read_bytes() for path in out.rglob("*.parquet")) for out in (by_ray, one)]
    assert files[0] == files[1]


@contextmanager
def read_in_background(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    """Yield what a process has said so far; it never waits for a reader."""
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
    reader.start()
    yield said
    reader.join(PATIENCE_S)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the processes below a process, and their command lines."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    below = [pid]
    while below:
        for child in parents.get(below.pop(), []):
            below.append(child)
            try:
                yield child, Path(f"/proc/{child}/cmdline").read_text()
            except OSError:
                continue
