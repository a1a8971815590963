"""Text from outside is shown as it is: neither markup nor terminal escapes in it act."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text
from tiny_model import save_tiny

from ast_stream.cli.output import json_line, say
from ast_stream.cli.terminal import ProgressView, console
from ast_stream.cli.train import TrainingProgress
from ast_stream.labels import printable

COMMANDS = Path(__file__).parents[3] / "ast_stream" / "cli"
HOSTILE = "[red]a[/] :dog: \x1b[2Jb\x9b3mc\x07\u202ed\r"
SHOWN = r"[red]a[/] :dog: \x1b[2Jb\x9b3mc\x07\u202ed\r"
LIMIT_S = 60


def test_printable_text_stays_as_it_is() -> None:
    for text in ("Baby cry, infant cry", "狗叫 🐕", "Ça va ?", "a\nb"):
        assert printable(text, keep="\n") == text


def test_what_a_terminal_acts_on_is_written_out() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\nb\udc80") == r"a\nb\udc80"


def test_a_console_shows_markup_and_escapes_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    for shown in (HOSTILE, Text(HOSTILE, style="bold"), table):
        console(stderr=False, piped_width=200).print(shown)
        printed = capsys.readouterr().out
        plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
        assert SHOWN.replace(r"\x07", "").replace(r"\r", "") in plain  # rich leaves these out
        assert not re.search(r"\x1b\[2J|[\x9b\x07\u202e\r]", printed)


def test_a_progress_bar_takes_no_markup_from_names() -> None:
    column = TextColumn("{task.description}")
    view = ProgressView(column)
    view.add_task("[/nothing] 1.wav", total=1)
    assert column.render(view.tasks[0]).plain == "[/nothing] 1.wav"


def test_the_measurement_after_a_training_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(every_s=0.0) as progress:
        progress.phase("measuring [the] checkpoint")
        for ratio in (0.25, 0.5, 1.0):
            progress.measured(ratio)
    errors = capsys.readouterr().err
    assert "25 % measured\n50 % measured\n" in errors


def test_lines_and_json_hold_nothing_that_acts(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{HOSTILE}\nnext")
    assert capsys.readouterr().out == f"{SHOWN}\nnext\n"
    line = json_line({"name": HOSTILE, "狗": "\udc80"})
    assert "狗" in line
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
    assert json.loads(line) == {"name": HOSTILE, "狗": "\udc80"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "info"])
def test_a_checkpoint_cannot_act_on_the_terminal(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "[red]models \x1b[2J"
    save_tiny(folder, licence=HOSTILE, provenance={"by": HOSTILE})
    args = [str(folder)] if command == "info" else [str(tmp_path)]
    code, printed = _on_terminal("model", command, *args)
    assert code == 0
    plain = "".join(re.sub(r"\x1b\[[\d;]*m", "", printed).split())
    assert "[red]models" in plain
    assert "[red]a[/]:dog:" in plain
    assert "\x1b[2J" not in printed
    assert "\x9b" not in printed


@pytest.mark.slow
def test_an_error_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    code, printed = _on_terminal("model", "info", str(tmp_path / "[/] \x1b[2J"))
    assert code == 3
    assert r"[/] \x1b[2J: no such file or directory" in printed
    assert "\x1b" not in printed


@pytest.mark.slow
def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    save_tiny(tmp_path / os.fsdecode(b"caf\xe9"))
    ran = subprocess.run(
        [sys.executable, "-m", "ast_stream.cli", "model", "list", str(tmp_path), "--json"],
        capture_output=True, timeout=LIMIT_S, check=True,
    )  # fmt: skip
    names = [json.loads(line)["checkpoint"] for line in ran.stdout.splitlines()]
    assert any(name.endswith("caf\udce9") for name in names)


def test_only_one_module_makes_consoles() -> None:
    makers = [path.name for path in COMMANDS.glob("*.py") if "Console(" in path.read_text()]
    assert makers == ["terminal.py"]


def _on_terminal(*args: str) -> tuple[int, str]:
    """Run a command on a pseudo-terminal; return its exit code and all that it wrote."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ast_stream.cli", *args]
    environ = os.environ | {"COLUMNS": "200", "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as ran:
        os.close(theirs)
        written = bytearray()
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        return ran.wait(LIMIT_S), written.decode()
