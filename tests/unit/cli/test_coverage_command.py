"""`ast-stream coverage`: as a table, as a check, and for programs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from coverage_spans import span

from ast_stream.cli.app import run_command_line
from ast_stream.cli.coverage import percent
from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time

HOUR = 3600 * SAMPLE_RATE


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A box that listened to `porch` until three hours ago, but for a gap of 36 s in ten hours."""
    (tmp_path / "run").mkdir()
    ledger = CoverageLedger(
        tmp_path / "state" / "coverage", tmp_path / "run" / "unwritten-coverage.jsonl"
    )
    began_ns = time.time_ns() - 13 * 3600 * NS_PER_SECOND
    lost = HOUR // 100
    for one in (
        span(0, 4 * HOUR),
        span(4 * HOUR, 8 * HOUR, "gated"),
        span(8 * HOUR, 8 * HOUR + lost, "gap", reason="overflow"),
        span(8 * HOUR + lost, 10 * HOUR, "degraded"),
    ):
        moved_ns = began_ns + one.start_sample * NS_PER_SECOND // SAMPLE_RATE
        ledger.add(one.model_copy(update={"time_ns": moved_ns}))
    ledger.close()
    file = tmp_path / "config.yaml"
    settings = {
        "runtime_dir": str(tmp_path / "run"),
        "state_dir": str(tmp_path / "state"),
        "streams": [
            {"name": "porch", "source": {"type": "microphone"}},
            {"name": "song", "source": {"type": "file", "path": "song.wav"}},
        ],
    }
    file.write_text(json.dumps(settings))
    return file


def ago(hours: float) -> str:
    return format_time(time.time_ns() - round(hours * 3600 * NS_PER_SECOND))


def test_table_has_a_line_for_each_stream_and_what_it_was_heard(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["coverage", "-c", str(config), "--until", ago(3.01)]) == 0
    head, porch, song = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "stream",
        "from",
        "to",
        "listened",
        "gated",
        "degraded",
        "missing",
        "gap",
        "heard",
    ]
    assert porch.split()[3:5] == ["4:00:00", "4:00:00"]
    assert porch.split()[-5:] == ["0", "36.0", "s", "99.89", "%"]
    assert song.split() == ["song", "nothing", "recorded"]


def test_nobody_listening_until_now_is_missing_where_the_configuration_names_the_stream(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["coverage", "-c", str(config), "--json", "--since", "2h"]) == 0
    porch, song = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert porch["samples"]["missing"] == porch["samples"]["total"]
    assert abs(porch["samples"]["total"] - 2 * HOUR) <= 1
    assert porch["heard"] == 0.0
    assert song["samples"]["total"] == 0


def test_check_fails_with_a_sentence_where_a_stream_was_heard_too_little(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["coverage", "-c", str(config), "porch", "--until", ago(3.01), "--at-least"]
    assert run_command_line([*check, "99"]) == 0
    assert run_command_line([*check, "99.95"]) == 1
    assert capsys.readouterr().err == (
        "porch: heard for 99.89 % of the time, expected at least 99.95 %\n"
    )


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["attic"], "expected a stream that was recorded (porch, song), got 'attic'"),
        (["--since", "yesterday"], "--since: expected a time with its offset from UTC"),
        (["--until", "2026-11-20T10:00:00"], "--until: expected a time with its offset"),
        (["--since", "1h", "--until", "2h"], "--since: expected a time before --until"),
        (["--png", "/nowhere/x.png"], "--png: cannot write /nowhere/x.png: No such file"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_one_sentence(
    config: Path, capsys: pytest.CaptureFixture[str], args: list[str], problem: str
) -> None:
    assert run_command_line(["coverage", "-c", str(config), *args]) == 2
    assert problem in capsys.readouterr().err


def test_a_stream_that_is_accounted_for_until_its_last_record_says_so(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.read_text()
    config.write_text(text.replace('"type": "microphone"', '"type": "file", "path": "porch.wav"'))
    check = ["coverage", "-c", str(config), "porch", "--at-least", "99"]
    assert run_command_line(check) == 0
    shown = capsys.readouterr()
    assert ", its last record" in shown.out
    assert shown.err.startswith("warning: porch is accounted for until its last record, ")
    assert run_command_line([*check, "--until", ago(0)]) == 1
    shown = capsys.readouterr()
    assert "its last record" not in shown.out
    assert shown.err.startswith("porch: heard for ")
    config.write_text(text)
    assert run_command_line([*check, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ends_with_record"] is False


def test_percent_is_rounded_down_so_that_all_is_all() -> None:
    assert [percent(ratio) for ratio in (1.0, 0.999_999, 0.0, None)] == [
        "100.00 %",
        "99.99 %",
        "0.00 %",
        "",
    ]
