"""`ast-stream run` with real processes: what an operator sees of starts, stops and kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_model import save_tiny

LIMIT_S = 120
RULES = "groups: [{name: g, rules: [{alert: any, match: {}, actions: [phone]}]}]\n"
ENDLESS = "{type: scene, duration_s: 86400}"


class Run:
    """One `ast-stream run` and the lines it has logged so far."""

    def __init__(self, config: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ast_stream.cli", "run", "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            for line in pipe:
                self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Return the matches of a pattern in the log once there are `count`."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            found = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"no {pattern!r} in\n" + "\n".join(self.lines)
            time.sleep(0.05)

    def end(self) -> int:
        """Return the exit code once the process has ended and its output has been read."""
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def start(socket_dir: Path, checkpoint: Path) -> Iterator[Callable[[str], Run]]:
    runs = []

    def start_run(source: str, model: str = str(checkpoint), alerts: str = "") -> Run:
        config = socket_dir / "a.yaml"
        config.write_text(
            f"runtime_dir: {socket_dir}/run\nstate_dir: {socket_dir}/state\n"
            f"streams: [{{name: scene, source: {source}}}]\n"
            f"model: {{checkpoint: {model}, device: cpu, precision: fp32, attention: math}}\n"
            f"{alerts}"
        )
        (socket_dir / "r.yaml").write_text(RULES)
        runs.append(Run(config))
        return runs[-1]

    yield start_run
    for run in runs:
        run.process.kill()
        run.end()


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    # an orphan that was killed stays a zombie until its new parent looks after it
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_run_of_a_finite_source_ends_by_itself(start: Callable[..., Run]) -> None:
    run = start("{type: scene, duration_s: 5, pace: fast}")
    assert run.end() == 0
    assert any("worker: stream scene: the source has ended" in line for line in run.lines)
    assert any("run: capture has finished" in line for line in run.lines)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", r"alerts: the action phone cannot be used: expected the environment variable NOT_SET"),
        (
            ", state_file: /proc/nowhere/a.sqlite",
            r"run: alerts ended with exit code 3; next try in",
        ),
    ],
)
def test_detection_goes_on_whatever_becomes_of_the_alerts(
    start: Callable[..., Run], more: str, expected: str
) -> None:
    phone = "{phone: {type: apprise, urls_env: NOT_SET}}"
    run = start(ENDLESS, alerts=f"alerts: {{rules: [r.yaml], actions: {phone}{more}}}\n")
    run.wait_for(expected)
    run.wait_for(r"worker: stream scene: epoch")
    assert run.process.poll() is None
    run.process.terminate()
    assert run.end() == 0
    assert not any("Traceback" in line for line in run.lines)


def test_killed_worker_is_replaced_a_second_run_refused_and_a_stop_is_clean(
    start: Callable[..., Run],
) -> None:
    run = start(ENDLESS)
    run.wait_for("worker: ready")
    second = start(ENDLESS)
    assert second.end() == 3
    assert len(second.lines) == 1
    assert "/run is in use by another process" in second.lines[0]

    (first_worker,) = run.wait_for(r"run: worker started pid=(\d+)")
    os.kill(int(first_worker[1]), signal.SIGKILL)
    run.wait_for(r"run: worker was killed by SIGKILL; next try in 0\.5 s")
    run.wait_for("worker: ready", count=2)
    pids = [int(match[1]) for match in run.wait_for(r"started pid=(\d+)", count=3)]

    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 0
    assert all(is_gone(pid) for pid in pids)


def test_recording_that_has_ended_stays_over_when_the_process_of_all_sources_is_killed(
    start: Callable[..., Run], socket_dir: Path
) -> None:
    short = "{name: short, source: {type: scene, duration_s: 5, pace: fast}}"
    run = start(f"{ENDLESS}}}, {short[:-1]}")
    run.wait_for("capture short: stopped: 80000 samples")
    (first,) = run.wait_for(r"run: capture started pid=(\d+)")
    os.kill(int(first[1]), signal.SIGKILL)
    run.wait_for("capture scene: capturing", count=2)
    run.wait_for("capture short: not started again: the source has already ended")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 0
    assert not list((socket_dir / "run").glob("ended.*"))
    second = start(f"{ENDLESS}}}, {short[:-1]}")
    second.wait_for("capture short: capturing")
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == 0


def test_children_do_not_outlive_a_run_that_is_killed(start: Callable[..., Run]) -> None:
    run = start(ENDLESS)
    pids = [int(match[1]) for match in run.wait_for(r"started pid=(\d+)", count=2)]
    run.wait_for("capture scene: capturing")
    run.process.kill()
    for pid in pids:
        wait_until_gone(pid)


def test_next_run_starts_at_once_after_a_run_and_all_its_children_were_killed(
    start: Callable[..., Run],
) -> None:
    first = start(ENDLESS)
    first.wait_for("worker: ready")
    first.process.kill()
    second = start(ENDLESS)
    second.wait_for("worker: ready")
    second.wait_for("capture scene: capturing")
    assert not [line for line in second.lines if "in use" in line]
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == 0


def test_hangup_is_passed_on_and_a_broken_file_is_not(
    start: Callable[..., Run], socket_dir: Path
) -> None:
    run = start(ENDLESS)
    run.wait_for("worker: ready")
    run.wait_for("capture scene: capturing")
    config = socket_dir / "a.yaml"
    good = config.read_text()
    config.write_text(good + "detection: {gate: -50}\n")
    run.process.send_signal(signal.SIGHUP)
    run.wait_for(r"error run: settings are kept as they were: .*a\.yaml:5: detection\.gate")
    config.write_text(good + "detection: {gate_dbfs: -50}\n")
    run.process.send_signal(signal.SIGHUP)
    run.wait_for(r"worker: settings read again: detection\.gate_dbfs changed")
    run.wait_for("capture: settings read again: nothing changed")
    assert not [line for line in run.lines if "worker: settings are kept" in line]
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 0


def test_run_whose_model_cannot_be_loaded_says_so_and_exits_3(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start(ENDLESS, model=f"{tmp_path}/nothing")
    assert run.end() == 3
    (line,) = [line for line in run.lines if "error worker:" in line]
    assert f"{tmp_path}/nothing" in line
    assert not any("Traceback" in line for line in run.lines)


def test_run_with_a_bad_configuration_lists_the_problems_and_exits_78(
    start: Callable[..., Run],
) -> None:
    run = start("{type: scene, duration: 5}")
    assert run.end() == 78
    assert len(run.lines) == 1
    assert "a.yaml:3: streams[0].source.duration: unknown key 'duration'" in run.lines[0]


def test_configuration_that_does_not_fit_the_model_ends_the_run_with_78(
    start: Callable[..., Run], checkpoint: Path
) -> None:
    run = start(ENDLESS, model=f"{checkpoint}, hop_s: 5.0")
    assert run.end() == 78
    run.wait_for(r"error worker: .*a\.yaml:4: model\.hop_s: expected at most the window of 1 s")
