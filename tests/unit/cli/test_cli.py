from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from ast_stream import __version__
from ast_stream.cli import app as cli
from ast_stream.cli.app import COMMANDS, run_command_line
from ast_stream.errors import (
    AstStreamError,
    AudioError,
    CaptureError,
    CheckpointError,
    ConfigError,
    Problem,
    StartupError,
    UsageError,
    WireError,
)
from ast_stream.runtime.logging import setup_logging

SERVICES = Path(__file__).parents[3] / "services"

LIMIT_S = 60


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Put a function in the place of `ast-stream devices`."""

    def replace(function: Callable[..., Any]) -> None:
        monkeypatch.setattr(cli, "_load", lambda target: function)

    return replace


@pytest.fixture
def json_logging() -> StringIO:
    stream = StringIO()
    setup_logging("info", "json", process="worker", stream=stream)
    return stream


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--help"]) == 0
    out = capsys.readouterr().out
    for each in COMMANDS:
        assert each.name in out
        assert each.summary in out


@pytest.mark.parametrize("name", [each.name for each in COMMANDS])
def test_help_of_a_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([name, "--help"]) == 0
    assert f"ast-stream {name}" in capsys.readouterr().out.split("Example", 1)[1]


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("train", "the preset's or the start's"),
        ("evaluate", "bundled"),
        ("rules check", "bundled"),
        ("subscribe", "event and gap"),
        ("install-units", "if its driver is there"),
    ],
)
def test_help_shows_defaults_that_are_described_in_words(
    command: str, default: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line([*command.split(), "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"(default: {default})" in words


def test_version_is_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out == f"ast-stream {__version__}\n"


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["nope"], "No such command 'nope'"),
        (["check-confi"], "Did you mean 'check-config'?"),
        (["check-config"], "Missing argument"),
        (["run"], "Missing option"),
        (["run", "--nope"], "No such option"),
    ],
)
def test_wrong_usage_exits_2(
    args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(args) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError([Problem("a.yaml", 3, "model", "wrong")]), 78),
        (UsageError("impossible"), 2),
        (StartupError("in use"), 3),
        (CheckpointError("damaged"), 3),
        (WireError("nonsense"), 1),
        (CaptureError("unplugged"), 1),
        (AudioError("no audio"), 1),
        (AstStreamError("anything"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_is_one_sentence_and_its_exit_code(
    error: AstStreamError,
    code: int,
    command: Callable[[Callable[..., Any]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    command(fail)
    assert run_command_line(["devices"]) == code
    captured = capsys.readouterr()
    start = "" if isinstance(error, ConfigError) else "ast-stream: "
    assert (captured.out, captured.err) == ("", f"{start}{error}\n")


def test_error_goes_to_the_log_where_there_is_one(
    command: Callable[[Callable[..., Any]], None],
    json_logging: StringIO,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise ConfigError([Problem("a.yaml", n, "model", "wrong") for n in (1, 2)])

    command(fail)
    assert run_command_line(["devices"]) == 78
    lines = json_logging.getvalue().splitlines()
    assert len(lines) == 2
    assert '"message": "a.yaml:2: model: wrong"' in lines[1]
    assert capsys.readouterr().err == ""


def test_crash_shows_its_traceback_and_exits_1(
    command: Callable[[Callable[..., Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    command(fail)
    assert run_command_line(["devices"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: a bug" in err


def test_crash_is_one_line_in_a_json_log(
    command: Callable[[Callable[..., Any]], None], json_logging: StringIO
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    command(fail)
    assert run_command_line(["devices"]) == 1
    (line,) = json_logging.getvalue().splitlines()
    assert '"message": "crashed: a bug"' in line
    assert "ZeroDivisionError" in line


def test_interrupt_ends_quietly(
    command: Callable[[Callable[..., Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    command(fail)
    assert run_command_line(["devices"]) == 130
    assert capsys.readouterr().err == ""


def test_command_may_choose_its_exit_code(
    command: Callable[[Callable[..., Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def choose(code: Annotated[int, typer.Argument()]) -> None:
        raise typer.Exit(code)

    command(choose)
    assert run_command_line(["devices", "7"]) == 7


def test_imports_are_not_searched_for_garbage_and_what_follows_is() -> None:
    done = python(
        "import atexit, gc, sys\n"
        "sys.argv = ['ast-stream', 'schema']\n"
        "from ast_stream.cli.app import main\n"
        "searched = gc.isenabled()\n"
        "say = lambda: print(searched, gc.isenabled(), gc.get_freeze_count() > 10_000)\n"
        "atexit.register(say)\n"
        "main()"
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False True True")


@pytest.mark.slow
@pytest.mark.parametrize("args", [["schema"], ["model", "info", "bundled"]])
def test_reader_that_closes_the_pipe_is_no_error(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "ast_stream.cli", *args],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=LIMIT_S,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")


def test_broken_pipe_of_another_kind_is_a_crash(
    command: Callable[[Callable[..., Any]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise BrokenPipeError("a socket of ours")

    command(fail)
    assert run_command_line(["devices"]) == 1
    assert "a socket of ours" in capfd.readouterr().err


def test_path_that_cannot_be_used_is_one_sentence(
    tmp_path: Path,
    command: Callable[[Callable[..., Any]], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    command(lambda: (tmp_path / "file" / "clips").mkdir())
    assert run_command_line(["devices"]) == 1
    assert capfd.readouterr().err == f"ast-stream: {tmp_path}/file/clips: Not a directory\n"


def test_file_on_a_full_disk_is_one_sentence_and_not_taken_for_the_output(
    command: Callable[[Callable[..., Any]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/var/lib/scores.npz")

    command(fail)
    assert run_command_line(["devices"]) == 1
    said = "ast-stream: /var/lib/scores.npz cannot be written: No space left on device\n"
    assert capfd.readouterr().err == said


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "ast_stream.cli.app",
        "ast_stream.capture.process",
        "ast_stream.cli.run",
        "ast_stream.alerts.process",
        "ast_stream.cli.outbox",
        "ast_stream.feed",
        "ast_stream.settings.load",
        "ast_stream.detect.decision",
        "ast_stream.runtime.supervisor",
    ],
)
def test_module_starts_without_torch_and_portaudio(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "print([name for name in ('torch', 'torchaudio', 'sounddevice') if name in sys.modules])"
    )
    done = python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_help_starts_without_anything_heavy() -> None:
    code = (
        "import sys; from ast_stream.cli.app import build_app; build_app(['--help'])\n"
        "print([name for name in ('torch', 'numpy', 'zmq', 'yaml') if name in sys.modules])"
    )
    assert python(code).stdout == "[]\n"


HEAVY = ("torch", "torchaudio", "transformers", "scipy", "matplotlib", "pandas")
TORCH_FREE = [
    ["--help"],
    ["--version"],
    ["model", "list"],
    ["check-config", "--no-speed", "configs/default.yaml"],
    ["schema"],
    ["devices"],
    ["status", "-c", "configs/default.yaml"],
    ["coverage", "-c", "configs/default.yaml"],
    ["rules", "check", "configs/alerts.yaml"],
    ["rules", "explain", "configs/alerts.yaml"],
    ["outbox", "list", "-c", "configs/default.yaml"],
    ["ack", "-c", "configs/default.yaml", "nothing"],
    ["snooze", "-c", "configs/default.yaml", "nothing", "--for", "1h"],
    ["worker", "-c", "configs/nowhere.yaml"],
    ["worker", "-c", "configs/default.yaml", "--name", "nobody"],
    ["install-units", "-c", "configs/default.yaml", "--dry-run"],
    *(
        [name, "--help"]
        for name in (each.name for each in COMMANDS)
        if name not in ("train", "evaluate", "calibrate")  # they say their defaults
    ),
]
ONE_AFTER_ANOTHER = f"""
import sys
from ast_stream.cli.app import run_command_line
for args in {TORCH_FREE!r}:
    run_command_line(args)
    if heavy := [name for name in {HEAVY!r} if name in sys.modules]:
        sys.exit(f"{{args}} imports {{heavy}}")
print("nothing heavy")
"""


@pytest.mark.slow
def test_commands_that_score_nothing_import_nothing_heavy() -> None:
    ran = python(ONE_AFTER_ANOTHER)
    assert ran.stdout.splitlines()[-1:] == ["nothing heavy"], ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("process", ["alerts", "capture", "run", "worker"])
def test_services_has_an_entry_point_of_each_process(process: str) -> None:
    script = SERVICES / f"{process}.py"
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    )
    assert f"Usage: ast-stream {process} " in done.stdout
    assert len(script.read_text().splitlines()) <= 30
