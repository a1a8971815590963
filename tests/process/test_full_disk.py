"""A full disk: every process says so once, `status` too, and when it is over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pipeline import Pipeline, pipeline, wait_for
from reactive_model import save_reactive

DISK_BYTES = 2_000_000
FULL_S = 5.0
WORDS = ("No space left", "disk is full", "cannot be written")
RULES = """version: 1
groups:
  - name: g
    rules: [{alert: any, match: {}, group_by: [stream, class], cooldown: 0s, actions: [say]}]
"""


needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="nobody but root may mount a disk"
)


@contextmanager
def small_disk(folder: Path, n_bytes: int = DISK_BYTES) -> Iterator[None]:
    """Mount a disk of its own at a folder."""
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={n_bytes}"]
    mounted = subprocess.run(["mount", *options, "full-disk", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("nobody but root may mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Worker, capture and alerts whose state is on a small disk of their own."""
    checkpoint = save_reactive(tmp_path_factory.mktemp("reactive"))
    alerts = {"rules": ["rules.yaml"], "actions": {"say": {"type": "log"}}}
    scene = {"type": "scene", "duration_s": 3600}
    with (
        pipeline(checkpoint, {"porch": scene}, alerts=alerts) as run,
        small_disk(run.folder / "state"),
    ):
        try:
            (run.folder / "rules.yaml").write_text(RULES)
            run.start("alerts", "alerts")
            run.start_worker()
            run.start_capture("porch")
            wait_for(lambda: "any: stream porch" in run.log("alerts"), "an alert")
            yield run
        finally:
            for name in list(run.processes):
                run.kill(name)


def status_of(run: Pipeline) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ast_stream.cli", "status", "-c", str(run.config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def complaints(run: Pipeline, process: str) -> list[str]:
    lines = run.log(process).splitlines()
    return [line for line in lines if any(word in line for word in WORDS)]


@needs_mount
def test_each_process_reports_a_full_disk_once_and_when_it_is_over(running: Pipeline) -> None:
    filler = running.folder / "state" / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"\0" * 512):
            pass
    wait_for(lambda: bool(complaints(running, "worker")), "the worker's word")
    wait_for(lambda: bool(complaints(running, "alerts")), "the word of the alerts process")
    time.sleep(FULL_S)
    status = status_of(running)
    assert status.returncode == 1
    assert "cannot be written: " in " ".join(status.stdout.split())
    assert "the alerts process cannot write" in " ".join(status.stdout.split())
    assert "receives nothing from the worker" not in status.stdout
    for process, most in (("worker", 2), ("alerts", 1)):  # event log and journal; database
        found = complaints(running, process)
        assert len(found) <= most, "\n".join(found)
    filler.unlink()
    for process in ("worker", "alerts"):
        wait_for(lambda name=process: "written again after" in running.log(name), process)  # type: ignore[misc]
    wait_for(lambda: status_of(running).returncode == 0, "everything healthy")


@needs_mount
@pytest.mark.parametrize("command", ["worker", "alerts", "run"])
def test_a_read_only_state_folder_is_told_at_the_start(tmp_path: Path, command: str) -> None:
    state, config = tmp_path / "state", tmp_path / "config.yaml"
    (tmp_path / "rules.yaml").write_text(RULES)
    settings = {
        "runtime_dir": str(tmp_path / "run"),
        "state_dir": str(state),
        "streams": [{"name": "porch", "source": {"type": "scene"}}],
        "alerts": {"rules": ["rules.yaml"], "actions": {"say": {"type": "log"}}},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    with small_disk(state):
        subprocess.run(["mount", "-o", "remount,ro", state], check=True)
        ended = subprocess.run(
            [sys.executable, "-m", "ast_stream.cli", command, "-c", str(config)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert f"state_dir: cannot write to {state}: its disk is read-only; set state_dir to" in line
