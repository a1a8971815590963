"""Standard output at a terminal, in a file and in a pipe stays whole, whatever else is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
from feed_worker import Worker, event
from pseudo_terminal import Terminal
from reactive_model import save_reactive, tones_and_noise

from ast_stream.cli.app import run_command_line

ROOT = Path(__file__).parents[3]
LIMIT_S = 170


@pytest.fixture(autouse=True)
def colourful_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def run(*args: str, stdout: int, stderr: int) -> int:
    """Run a command in this process, which has torch already, with other standard streams."""
    with (
        open(os.dup(stdout), "w") as out,
        open(os.dup(stderr), "w") as errors,
        mock.patch.multiple(sys, stdout=out, stderr=errors),
    ):
        return run_command_line(list(args))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a recording, labelled clips and rules."""
    folder = tmp_path_factory.mktemp("material")
    save_reactive(folder / "model")
    soundfile.write(folder / "night.wav", tones_and_noise(30.0), 16_000, subtype="PCM_16")
    rng = np.random.default_rng(0)
    lines = ["file,label,fold"]
    for number in range(8):
        name, label = f"{number}.wav", ("Bark", "Siren")[number % 2]
        sound = rng.standard_normal(8_000) if number % 2 else np.sin(np.arange(8_000))
        soundfile.write(folder / name, 0.2 * sound, 16_000)
        lines.append(f"{name},{label},{number // 4}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "rules.yaml").write_text(
        "version: 1\ngroups:\n  - name: a\n    rules:\n"
        + "".join(
            f"      - {{alert: {name.lower()}, match: {{class: {name}}}}}\n"
            for name in ("Bark", "Siren")
        )
    )
    (folder / "tests.yaml").write_text(
        "version: 1\nrules: [rules.yaml]\ntests:\n  - name: bark\n    sounds:\n"
        "      - {at: 1s, class: Bark, dur: 2s, stream: a}\n    expect: []\n"
    )
    return folder


SHOWN_MEANWHILE = ("scan --json", "rules backtest --json", "doctor --json", "status --json")
QUICK = ("--repeats", "1", "--negative-hours", "0.005", "--threads", "1")
MACHINE: dict[str, tuple[str, ...]] = {
    "scan --json": ("scan", "{}/night.wav", "--model", "{}/model", "--json"),
    "rules backtest --json": (
        "rules", "backtest", "{}/rules.yaml", "--audio", "{}/night.wav", "--model", "{}/model",
        "--json",
    ),
    "evaluate --json": (
        "evaluate", "{}/labels.csv", "--test-fold", "1", "--model", "{}/model", *QUICK, "--json",
    ),
    "calibrate --json": (
        "calibrate", "{}/model", "--data", "{}/labels.csv", "--unseen", "--negative-hours", "0.001",
        "--json",
    ),
    "doctor --json": ("doctor", "--model", "{}/model", "--json"),
    "model list --json": ("model", "list", "{}", "--json"),
    "model info --json": ("model", "info", "{}/model", "--json"),
    "status --json": ("status", "--json", "--timeout", "0.2"),
    "schema": ("schema",),
}  # fmt: skip
TEXT: dict[str, tuple[str, ...]] = {
    "scan": ("scan", "{}/night.wav", "--model", "{}/model"),
    "scan --labels audacity": (
        "scan", "{}/night.wav", "--model", "{}/model", "--labels", "audacity",
    ),
    "scan --labels csv": ("scan", "{}/night.wav", "--model", "{}/model", "--labels", "csv"),
    "rules backtest": (
        "rules", "backtest", "{}/rules.yaml", "--audio", "{}/night.wav", "--model", "{}/model",
    ),
    "rules test": ("rules", "test", "{}/tests.yaml", "--model", "{}/model"),
}  # fmt: skip


def filled(args: tuple[str, ...], folder: Path) -> list[str]:
    return [arg.replace("{}", str(folder)) for arg in args]


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return all(isinstance(json.loads(line), dict) for line in text.splitlines())
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINE)
def test_json_in_a_file_is_whole_while_progress_is_shown_at_a_terminal(
    name: str, material: Path, tmp_path: Path
) -> None:
    terminal = Terminal()
    with (tmp_path / "out").open("wb") as out:
        run(*filled(MACHINE[name], material), stdout=out.fileno(), stderr=terminal.theirs)
    shown = terminal.text()
    text = (tmp_path / "out").read_text()
    assert text, shown
    assert is_json(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN_MEANWHILE)
def test_json_at_a_terminal_is_neither_wrapped_nor_mixed_with_progress(
    name: str, material: Path
) -> None:
    errors, output = Terminal(), Terminal()
    run(*filled(MACHINE[name], material), stdout=output.theirs, stderr=errors.theirs)
    text = output.text()
    errors.text()
    assert is_json(text)
    assert "\x1b" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT)
def test_lines_in_a_file_are_the_same_whether_or_not_progress_is_shown(
    name: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = filled(TEXT[name], material)
    terminal = Terminal()
    with (tmp_path / "out").open("wb") as out:
        run(*args, stdout=out.fileno(), stderr=terminal.theirs)
    terminal.text()
    text = (tmp_path / "out").read_text()
    assert "\x1b" not in text
    run_command_line(args)
    assert text == capsys.readouterr().out
    assert text


@pytest.mark.slow
def test_on_one_terminal_every_event_is_a_line_of_its_own(material: Path) -> None:
    terminal = Terminal()
    args = filled(MACHINE["scan --json"], material)
    assert run(*args, stdout=terminal.theirs, stderr=terminal.theirs) == 0
    lines = terminal.text().replace("\r", "\n").splitlines()
    events = [line for line in lines if '"onset_s"' in line]
    found = [json.loads(line[line.index("{") :]) for line in events]
    assert len(found) >= 3
    assert all(line.endswith("}") for line in events)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["scan --labels csv", "rules backtest --json", "model info --json"]
)
def test_a_reader_that_leaves_after_the_first_line_ends_it_quietly(
    name: str, material: Path
) -> None:
    args = filled((MACHINE | TEXT)[name], material)
    terminal = Terminal()
    process = subprocess.Popen(
        [sys.executable, "-m", "ast_stream.cli", *args],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal.theirs,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    process.wait(LIMIT_S)
    shown = terminal.text()
    assert "Traceback" not in shown
    assert "Broken pipe" not in shown


@pytest.mark.slow
def test_training_writes_nothing_to_standard_output_but_its_result(
    material: Path, tmp_path: Path
) -> None:
    args = ["train", f"{material}/labels.csv", "--out", str(tmp_path / "out"), "--steps", "2"]
    args += ["--hold-out", "0", "--negative-hours", "0", "--window", "0.5", "--threads", "1"]
    args += [
        "--width",
        "64",
        "--layers",
        "1",
        "--batch-size",
        "2",
        "--generated-backgrounds",
        "1",
        "--generated",
        "0",
    ]
    terminal = Terminal()
    with (tmp_path / "text").open("wb") as out:
        code = run(*args, stdout=out.fileno(), stderr=terminal.theirs)
    shown = terminal.text()
    assert code == 0, shown
    assert "step" in shown
    assert all("step" not in line for line in (tmp_path / "text").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("outputs", ["file", "terminal"])
def test_the_feed_is_json_lines_whatever_is_shown_beside_it(
    outputs: str, socket_dir: Path, tmp_path: Path
) -> None:
    worker = Worker(socket_dir, "b1")
    errors, output = Terminal(), Terminal()
    try:
        for number in range(3):
            worker.publish(event(number))
        args = ["subscribe", "--endpoint", f"ipc://{socket_dir}/feed.sock", "--json", "--replay"]
        args += ["--query", f"ipc://{socket_dir}/query.sock", "--count", "3"]
        with (tmp_path / "feed").open("wb") as out:
            stdout = out.fileno() if outputs == "file" else output.theirs
            process = subprocess.Popen(
                [sys.executable, "-m", "ast_stream.cli", *args],
                cwd=ROOT, stdout=stdout, stderr=errors.theirs,
            )  # fmt: skip
            process.wait(LIMIT_S)
    finally:
        worker.close()
    errors.text()
    shown = output.text()
    text = (tmp_path / "feed").read_text() if outputs == "file" else shown
    assert len(text.splitlines()) == 3
    assert is_json(text)
