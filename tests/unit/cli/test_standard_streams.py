from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile

from ast_stream.soundscape.scene import generate_scene
from ast_stream.units import SAMPLE_RATE

LIMIT_S = 60
FULL = "cannot write the output: No space left on device"
CLOSED = "cannot write the output: it is closed"
# the ways to print: typer's help, rich, `print`, and a recording's events
COMMANDS = (["--help"], ["scan", "--help"], ["model", "list"], ["schema"], ["status", "--json"])


def ast_stream(args: Sequence[str], redirected: str) -> tuple[int, str]:
    """Return exit code and standard error of a command whose streams the shell redirects."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m ast_stream.cli "$@" {redirected}', sys.executable, *args],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("redirected", "sentence"),
    [(">&-", CLOSED), ("1</dev/null", CLOSED), (">/dev/full", FULL)],
)
def test_output_that_is_closed_or_full_is_one_sentence_and_no_success(
    args: list[str], redirected: str, sentence: str
) -> None:
    assert ast_stream(args, redirected) == (1, f"ast-stream: {sentence}\n")


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(("redirected", "sentence"), [(">&-", CLOSED), (">/dev/full", FULL)])
def test_scan_whose_events_cannot_be_written_is_no_success(
    as_json: bool, redirected: str, sentence: str, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "a.wav", generate_scene(1, 20.0).pcm, SAMPLE_RATE)
    args = ["scan", *(["--json"] if as_json else []), str(tmp_path / "a.wav")]
    code, said = ast_stream(args, redirected)
    assert (code, said.splitlines()[-1]) == (1, f"ast-stream: {sentence}")


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("with_messages", [False, True])
def test_reader_that_has_gone_ends_a_command_quietly(args: list[str], with_messages: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ast_stream.cli", *args],
        stdout=writer, stderr=writer if with_messages else subprocess.PIPE,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr or b"") == (0, b"")


@pytest.mark.parametrize("redirected", ["0<&-", "2>&-", "2>/dev/full"])
def test_command_that_has_its_output_needs_no_other_stream(redirected: str) -> None:
    assert ast_stream(["schema"], f"{redirected} >/dev/null") == (0, "")
    code, _ = ast_stream(["check-config", "/nowhere.yaml"], redirected)
    assert code == 78


def test_messages_that_nobody_reads_keep_no_result_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("streams: 3\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ast_stream.cli", "check-config", str(tmp_path / "config.yaml")],
        stdout=subprocess.DEVNULL, stderr=writer, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 78


def test_output_that_does_not_wait_for_its_reader_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen([sys.executable, "-m", "ast_stream.cli", "schema"], stdout=writer)
    os.close(writer)
    pieces: list[bytes] = []

    def read() -> None:
        with open(reader, "rb") as pipe:
            pieces.append(pipe.read())

    thread = threading.Thread(target=read)
    # the schema is longer than the pipe: it has to wait for us in any case
    thread.start()
    assert process.wait(LIMIT_S) == 0
    thread.join(LIMIT_S)
    assert pieces[0].endswith(b"}\n")
