"""`ast-stream listen` on a real (virtual) microphone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from reactive_model import save_reactive, tones_and_noise
from virtual_mic import VirtualMic, virtual_mic

pytestmark = pytest.mark.virtual_mic
LIMIT_S = 60


@pytest.fixture
def mic() -> Iterator[VirtualMic]:
    with virtual_mic() as running:
        yield running


def start(mic: VirtualMic, model: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", "listen", "--model", str(model), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **mic.environment, "OMP_NUM_THREADS": "1"},
    )


def test_listen_tells_level_scores_and_events_until_it_is_stopped(
    mic: VirtualMic, tmp_path: Path
) -> None:
    with start(mic, save_reactive(tmp_path), "--json", "--top", "2") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())  # digital silence is heard, too
        assert set(first) == {"level_dbfs", "scores"}
        assert len(first["scores"]) == 2
        mic.play(tones_and_noise(6.0))
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()  # communicate() would leave out what is buffered
        err = process.stderr.read()
    lines = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0, err
    assert max(line["level_dbfs"] for line in lines if "scores" in line) > -20
    assert "begin" in {line.get("event") for line in lines}


def test_device_that_is_not_there_is_one_sentence(mic: VirtualMic, tmp_path: Path) -> None:
    process = start(mic, save_reactive(tmp_path), "--device", "USB Audio")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3
    assert "USB Audio" in err
    assert "Traceback" not in err
