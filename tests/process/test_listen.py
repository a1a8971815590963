"""`ast-stream listen` on a real (virtual) microphone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked_command import ForkedCommand
from pseudo_terminal import Terminal
from reactive_model import save_reactive, tones_and_noise
from virtual_mic import VirtualMic

pytestmark = pytest.mark.virtual_mic
LIMIT_S = 60


def start(
    mic: VirtualMic,
    model: Path,
    *args: str,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    return ForkedCommand(
        ["listen", "--model", model, *args],
        stdout,
        stderr,
        text=True,
        env={**os.environ, **mic.environment},
    )


@pytest.mark.parametrize("is_cascade", [False, True])
def test_listen_tells_level_scores_and_events_until_it_is_stopped(
    mic: VirtualMic, tmp_path: Path, is_cascade: bool
) -> None:
    model = save_reactive(tmp_path)
    cascade = ["--cascade", str(model)] if is_cascade else []
    with start(mic, model, "--json", "--top", "2", *cascade) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())  # digital silence is scored, too
        assert set(first) == {"level_dbfs", "scores"} | ({"asked"} if is_cascade else set())
        assert len(first["scores"]) == 2
        mic.play(tones_and_noise(6.0))
        lines = [first]
        while lines[-1].get("event") != "begin":
            lines.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()  # communicate() would leave out what is buffered
        err = process.stderr.read()
    assert process.returncode == 0, err
    lines += [json.loads(line) for line in out.splitlines()]
    if is_cascade:  # of which the small model is the same
        begins = [line for line in lines if line.get("event") == "begin"]
        assert all(0 < line["watcher_score"] <= 1 for line in begins)
        assert all(0 < line["asked"] <= 1 for line in lines if "asked" in line)
    assert max(line["level_dbfs"] for line in lines if "scores" in line) > -20


def test_device_that_is_not_there_is_one_sentence(mic: VirtualMic, tmp_path: Path) -> None:
    process = start(mic, save_reactive(tmp_path), "--device", "USB Audio")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3
    assert "USB Audio" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("output", ["file", "terminal"])
@pytest.mark.parametrize("form", ["--json", "text"])
def test_lines_are_whole_where_errors_go_to_a_terminal(
    mic: VirtualMic, tmp_path: Path, form: str, output: str
) -> None:
    model = save_reactive(tmp_path / "model")
    errors, terminal = Terminal(), Terminal()
    args = ["--json"] if form == "--json" else []
    with (tmp_path / "out").open("wb") as out:
        stdout = out.fileno() if output == "file" else terminal.theirs
        process = start(mic, model, *args, stdout=stdout, stderr=errors.theirs)
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s and not (tmp_path / "out").stat().st_size + terminal.size:
        if form == "text" and output == "terminal" and errors.size:
            break  # bars are drawn, on standard error
        time.sleep(0.1)
    mic.play(tones_and_noise(4.0))
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 0
    shown, seen = errors.text(), terminal.text()
    text = (tmp_path / "out").read_text() if output == "file" else seen
    assert "\x1b" not in text
    if form == "--json":
        assert all(json.loads(line) for line in text.splitlines())
        assert "\x1b" not in shown
    if form == "--json" or output == "file":
        assert text
