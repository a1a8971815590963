"""Training as a user has it: killed, stopped or refused, and going on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_stream.units import SAMPLE_RATE

PATIENCE_S = 240.0
pytestmark = pytest.mark.timeout(2 * PATIENCE_S)  # several trainings, on a machine that may be busy
STEPS = 60
OPTIONS = (
    "--steps", str(STEPS), "--save-every", "10", "--batch-size", "4", "--width", "64",
    "--layers", "1", "--window", "1.28", "--generated", "0", "--generated-backgrounds", "2",
    "--negative-hours", "0", "--threads", "1", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three clips each: tones and noise."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for number in range(3):
        tone = 0.2 * np.sin(np.arange(SAMPLE_RATE) * (0.3 + 0.02 * number))
        for label, sound in (("Whistle", tone), ("Hiss", 0.1 * rng.standard_normal(SAMPLE_RATE))):
            (folder / label).mkdir(exist_ok=True)
            soundfile.write(folder / label / f"{number}.wav", sound, SAMPLE_RATE)
    return folder


@pytest.fixture(scope="module")
def undisturbed(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed")
    with _training(sounds, out) as process:
        assert process.wait(PATIENCE_S) == 0
    return out


# stops itself when its state is saved for the first time: so soon that it cannot end before a kill
STOPS_ITSELF = """
import os, signal
from ast_stream.cli.app import main
from ast_stream.training import trainer
save = trainer.save_state
def save_and_stop(*args):
    save(*args)
    trainer.save_state = save
    os.kill(os.getpid(), signal.SIGSTOP)
trainer.save_state = save_and_stop
main()
"""


@contextmanager
def _training(
    data: Path, out: Path, *options: str, stops_itself: bool = False
) -> Iterator[subprocess.Popen[str]]:
    program = ["-c", STOPS_ITSELF] if stops_itself else ["-m", "ast_stream.cli"]
    command = [sys.executable, *program, "train", str(data), "-o", str(out)]
    with subprocess.Popen(
        [*command, *OPTIONS, *options],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def _wait_for_state(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until a training has stopped itself with its state saved."""
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert found.si_status == signal.SIGSTOP, process.communicate()[1]
    assert (out / "state.pt").is_file()


def _assert_equal(out: Path, undisturbed: Path) -> None:
    metrics = (out / "metrics.jsonl").read_text()
    assert metrics == (undisturbed / "metrics.jsonl").read_text()
    assert len(metrics.splitlines()) == STEPS // 10
    weights = [folder / "checkpoint" / "model.safetensors" for folder in (out, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_killed_training_goes_on_with_the_same_curve_and_weights(
    sounds: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with _training(sounds, tmp_path, stops_itself=True) as process:
        _wait_for_state(process, tmp_path)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not (tmp_path / "checkpoint").exists()
    with _training(sounds, tmp_path) as process:
        assert process.wait(PATIENCE_S) == 0
    _assert_equal(tmp_path, undisturbed)


def test_a_stopped_training_says_how_to_go_on_and_does(
    sounds: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with _training(sounds, tmp_path, stops_itself=True) as process:
        _wait_for_state(process, tmp_path)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        errors = process.communicate(timeout=PATIENCE_S)[1]
        assert process.returncode == 130
    last = errors.splitlines()[-1]
    assert last.startswith("ast-stream: stopped after step ")
    assert last.endswith(f"of {STEPS}; the state is saved, and the same command resumes from there")
    assert "Traceback" not in errors
    with _training(sounds, tmp_path) as process:
        assert process.wait(PATIENCE_S) == 0
    _assert_equal(tmp_path, undisturbed)


def test_all_problems_of_the_data_are_reported_before_the_first_step(
    sounds: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    whistle = sounds / "Whistle" / "0.wav"
    table.write_text(f"file,label\n{whistle},Whistle\nnowhere.wav,Hiss\n{whistle},Hiss\n")
    with _training(table, tmp_path / "out", "--backgrounds", str(tmp_path / "no.wav")) as process:
        errors = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 78
    assert f"{table}:3: nowhere.wav: No such file or directory" in errors
    assert f"{tmp_path / 'no.wav'}: file is missing" in errors
    assert "Whistle: expected at least 2 clips of a class, got 1" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_reports_are_json_with_step_loss_and_rate(undisturbed: Path) -> None:
    reports = [
        json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()
    ]
    assert [report["step"] for report in reports] == list(range(10, STEPS + 1, 10))
    assert all({"step", "loss", "lr"} <= report.keys() for report in reports)
    assert (undisturbed / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_verdicts_are_learnt_from_and_known_to_the_checkpoint(sounds: Path, tmp_path: Path) -> None:
    reviewed, out = tmp_path / "reviewed", tmp_path / "out"
    (reviewed / "clips").mkdir(parents=True)
    rows = ["file,label,group,event"]
    rng = np.random.default_rng(1)
    for number in range(8):
        kind = ("Whistle", "Hiss", "Kettle", "-")[number % 4]
        pcm = 0.1 * rng.standard_normal(SAMPLE_RATE)
        soundfile.write(reviewed / "clips" / f"e{number}.flac", pcm, SAMPLE_RATE)
        rows.append(f"e{number}.flac,{kind},evening {number // 2},e{number}")
    (reviewed / "clips.csv").write_text("\n".join(rows) + "\n")
    with _training(sounds, out, "--verdicts", str(reviewed), "--steps", "5") as process:
        _, text = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, text
    checkpoint = out / "checkpoint"
    provenance = json.loads((checkpoint / "ast_stream.json").read_text())["provenance"]
    assert 4 <= len(provenance["verdicts"]) <= 8  # others are held out
