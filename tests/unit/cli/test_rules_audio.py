"""Backtests of recordings: rules receive what the detector finds, on one time line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from reactive_model import save_reactive, tones_and_noise

from ast_stream.cli.app import run_command_line
from ast_stream.units import SAMPLE_RATE


@pytest.mark.slow
def test_backtest_of_recordings_fires_for_the_events_that_scan_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_reactive(tmp_path / "model"))
    recordings = [tmp_path / "First Night.wav", tmp_path / "second.wav"]
    for recording in recordings:
        soundfile.write(recording, tones_and_noise(35.0), SAMPLE_RATE)
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "defaults: {group_by: [stream, class]}\n"
        "groups: [{name: all, rules: [{alert: any, match: {}}]}]\n"
    )
    assert run_command_line(["scan", str(recordings[0]), "--json", "--model", model]) == 0
    n_scanned = len(capsys.readouterr().out.splitlines())
    assert n_scanned > 1

    command = ["rules", "backtest", str(rules), "--model", model, "--json"]
    command += ["--start", "2026-01-01T00:00:00Z"]
    for recording in recordings:
        command += ["--audio", str(recording)]
    assert run_command_line(command) == 0
    captured = capsys.readouterr()
    assert " event messages over 0.0 h, " in captured.err
    per_day = n_scanned * 2 * 86_400 / 70.0  # of both recordings, from their begin to their end
    assert f" {per_day:.1f}/day " in captured.err
    alerts = [json.loads(line) for line in captured.out.splitlines()]
    fired = [alert for alert in alerts if alert["state"] == "firing"]
    by_stream = [alert["group"]["stream"] for alert in fired]
    assert by_stream == ["first-night"] * n_scanned + ["second"] * n_scanned
    assert len(alerts) == 2 * len(fired)
    assert fired[0]["started"] < "2026-01-01T00:00:35" < fired[-1]["started"]


def test_backtest_refuses_a_start_without_offset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, recording = tmp_path / "rules.yaml", tmp_path / "a.wav"
    rules.write_text("groups: [{name: all, rules: [{alert: any, match: {}}]}]\n")
    soundfile.write(recording, tones_and_noise(2.0), SAMPLE_RATE)
    command = ["rules", "backtest", str(rules), "--audio", str(recording), "--start", "2026-01-01"]
    assert run_command_line(command) == 2
    assert "--start: expected a time with its offset from UTC" in capsys.readouterr().err


def test_backtest_takes_a_folder_and_says_which_recording_is_not_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_reactive(tmp_path / "model"))
    folder = tmp_path / "nights"
    folder.mkdir()
    for name in ("a.flac", "b.flac"):
        soundfile.write(folder / name, tones_and_noise(30.0), SAMPLE_RATE)
    content = (folder / "a.flac").read_bytes()
    (folder / "a.flac").write_bytes(content[: len(content) // 2])
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "defaults: {group_by: [stream, class]}\n"
        "groups: [{name: all, rules: [{alert: any, match: {}}]}]\n"
    )
    command = ["rules", "backtest", str(rules), "--model", model, "--json", "--audio", str(folder)]
    assert run_command_line(command) == 1
    printed = capsys.readouterr()
    fired = [json.loads(line)["group"]["stream"] for line in printed.out.splitlines()]
    assert set(fired) == {"a", "b"}
    assert "a.flac: expected 30.00 s, as its header says, got" in printed.err
    assert "b.flac" not in printed.err
