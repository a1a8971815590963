"""`ast-stream doctor` says what works, what does not, and changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny_model import TINY_DIMS, save_tiny, tiny_checkpoint
from typer.testing import CliRunner, Result

from ast_stream.capture.sound_cards import InputDevice
from ast_stream.capture.sources import microphone
from ast_stream.cli import doctor_checks
from ast_stream.cli.doctor import doctor
from ast_stream.errors import StartupError, UsageError
from ast_stream.model.selfcheck import golden_for
from ast_stream.settings.retention import MAX_MIB
from ast_stream.settings.schema import Settings
from ast_stream.transport.sockets import Sockets

app = typer.Typer()
app.command()(doctor)


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    golden = golden_for(tiny_checkpoint()).model_dump()
    return save_tiny(tmp_path / "tiny", golden=golden)


@pytest.fixture(autouse=True)
def microphones(monkeypatch: pytest.MonkeyPatch) -> list[InputDevice]:
    """The devices that PortAudio would list."""
    found: list[InputDevice] = []
    monkeypatch.setattr(microphone, "list_devices", lambda: found)
    return found


def _doctor(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), catch_exceptions=False)


def _checks(*args: str, expect: int) -> dict[str, dict[str, Any]]:
    result = _doctor(*args, "--json")
    assert result.exit_code == expect, result.stdout
    return {found["check"]: found for found in map(json.loads, result.stdout.splitlines())}


def test_a_working_installation_passes(tiny: Path, runtime_dir: Path) -> None:
    checks = _checks("--model", str(tiny), "--device", "cpu", "--precision", "fp32", expect=0)
    assert checks["summary"]["ok"] is True
    assert checks["model"]["hash"] == tiny_checkpoint().hash
    assert (checks["device"]["device"], checks["device"]["precision"]) == ("cpu", "fp32")
    assert {found["name"] for found in checks["attention"]["candidates"]} == {"flash", "math"}
    assert checks["features"]["max_error"] < 1e-4
    assert checks["self-check"]["against"] == "golden"
    assert checks["speed"]["ms_per_window"] > 0
    assert checks["versions"]["torchaudio"].startswith("2.")
    assert checks["runtime_dir"]["mode"] == "0750"
    assert checks["sockets"]["status"] == "ok"
    assert checks["microphones"]["status"] == "warning"  # none needed for files and streams
    assert list(runtime_dir.iterdir()) == []


def test_people_get_a_readable_list(tiny: Path, runtime_dir: Path) -> None:
    result = _doctor("--model", str(tiny), "--device", "cpu", "--attention", "math")
    assert result.exit_code == 0
    assert "math, of " in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1].rstrip() == "everything that is required works"
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_missing_checkpoint_fails_and_the_rest_is_still_checked(
    tmp_path: Path, runtime_dir: Path
) -> None:
    checks = _checks("--model", str(tmp_path / "nowhere"), expect=1)
    assert "no such file" in checks["model"]["text"]
    assert "self-check" not in checks
    assert checks["query endpoint"]["status"] == "ok"
    assert checks["summary"] == {"check": "summary", "ok": False, "failed": 1}


def test_a_model_that_scores_wrongly_fails(tmp_path: Path, runtime_dir: Path) -> None:
    golden = golden_for(tiny_checkpoint(seed=1)).model_dump()
    wrong = save_tiny(tmp_path / "wrong", seed=0, golden=golden)
    checks = _checks("--model", str(wrong), "--device", "cpu", expect=1)
    assert checks["self-check"]["status"] == "failed"
    assert "differs from its golden scores" in checks["self-check"]["text"]
    assert checks["speed"]["status"] == "ok"


def test_features_that_differ_from_torchaudio_fail(
    tiny: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checks, "MAX_FEATURE_ERROR", -1.0)
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=1)
    assert checks["features"]["status"] == "failed"


def test_found_microphones_are_named(
    tiny: Path, runtime_dir: Path, microphones: list[InputDevice]
) -> None:
    device = InputDevice(0, "USB Audio", "usb-1", (), "ALSA", 1, 48_000.0, is_default=True)
    microphones.append(device)
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=0)
    assert checks["microphones"] == {
        "check": "microphones",
        "status": "ok",
        "text": "1 input devices: usb-1",
        "devices": ["usb-1"],
    }


def test_a_missing_portaudio_is_a_warning(
    tiny: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_devices() -> list[InputDevice]:
        raise StartupError("PortAudio cannot be loaded; on Debian: apt install libportaudio2")

    monkeypatch.setattr(microphone, "list_devices", list_devices)
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=0)
    assert checks["microphones"]["status"] == "warning"
    assert "apt install libportaudio2" in checks["microphones"]["text"]


@pytest.fixture
def running_worker(runtime_dir: Path) -> Iterator[Path]:
    sockets = Sockets()
    sockets.bind("pub", f"ipc://{runtime_dir}/feed.sock", hwm=10)
    yield runtime_dir
    sockets.close()


def test_a_running_worker_is_seen_and_left_alone(tiny: Path, running_worker: Path) -> None:
    before = sorted(running_worker.iterdir())
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=0)
    assert checks["feed endpoint"]["in_use"] is True
    assert "a worker is running" in checks["feed endpoint"]["text"]
    assert checks["audio endpoint"]["in_use"] is False
    assert sorted(running_worker.iterdir()) == before


def test_an_endpoint_left_by_a_dead_worker_is_free(tiny: Path, runtime_dir: Path) -> None:
    sockets = Sockets()
    sockets.bind("pub", f"ipc://{runtime_dir}/feed.sock", hwm=10)
    sockets.close()
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=0)
    assert checks["feed endpoint"]["in_use"] is False


def test_a_runtime_folder_for_everyone_is_a_warning(tiny: Path, runtime_dir: Path) -> None:
    runtime_dir.chmod(0o755)
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=0)
    assert checks["runtime_dir"]["status"] == "warning"
    assert "mode 0755" in checks["runtime_dir"]["text"]


def test_a_runtime_folder_that_is_not_there_is_not_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "not" / "yet"))
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=0)
    assert "can be made" in checks["runtime_dir"]["text"]
    assert not (tmp_path / "not").exists()


def test_a_runtime_folder_that_is_a_file_fails(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "file"))
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=1)
    assert checks["runtime_dir"]["status"] == "failed"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_runtime_folder_of_another_user_fails(tiny: Path, runtime_dir: Path) -> None:
    runtime_dir.chmod(0o500)
    checks = _checks("--model", str(tiny), "--device", "cpu", expect=1)
    assert checks["runtime_dir"]["status"] == "failed"


def test_the_model_of_a_configuration_is_checked(
    tiny: Path, tmp_path: Path, runtime_dir: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "streams: [{name: porch, source: {type: stdin}}]\n"
        f"model: {{checkpoint: {tiny}, device: cpu, precision: bf16}}\n"
    )
    checks = _checks("--config", str(config), expect=0)
    assert checks["device"]["precision"] == "bf16"
    assert (
        _checks("-c", str(config), "--precision", "fp32", expect=0)["device"]["precision"] == "fp32"
    )


def test_a_wrong_option_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"--precision: .*got 'fp4'"):
        _doctor("--precision", "fp4")


def test_keys_that_cannot_be_used_fail_the_check(
    tiny: Path, runtime_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "streams: [{name: a, source: {type: scene}}]\n"
        "transport:\n  audio: tcp://127.0.0.1:5555\n"
        f"  curve: {{server_key: {tmp_path}/no.key, client_secret: {tmp_path}/no.key_secret}}\n"
    )
    result = _doctor("-c", str(config), "--model", str(tiny), "--json")
    assert result.exit_code == 1
    texts = [
        line["text"]
        for line in map(json.loads, result.stdout.splitlines())
        if line["check"] == "keys"
    ]
    for key in ("client_secret", "server_key"):
        assert any(text.startswith(f"transport.curve.{key}: ") for text in texts)


def _state_checks(state_dir: Path, **retention: Any) -> list[doctor_checks.Check]:
    stream = {"name": "porch", "source": {"type": "microphone"}}
    sections = {"state_dir": str(state_dir), "retention": retention}
    settings = Settings.model_validate({"streams": [stream]} | sections)
    return list(doctor_checks.check_state_dirs(settings, Path("config.yaml")))


def test_a_state_folder_says_what_may_come_to_lie_there(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "new"
    (check,) = _state_checks(folder)
    assert check.status == "ok"
    assert check.facts["max_bytes"] > check.facts["used_bytes"] == 0
    assert not folder.parent.exists(), "nothing is changed"


def test_a_disk_that_cannot_hold_what_is_to_be_kept_is_a_warning(tmp_path: Path) -> None:
    (check,) = _state_checks(tmp_path, events={"max_mib": MAX_MIB}, coverage={"max_mib": MAX_MIB})
    assert check.status == "warning"
    assert "may become full" in check.text


def test_a_state_folder_that_cannot_be_used_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (check,) = _state_checks(tmp_path / "file" / "state")
    assert (check.status, check.text) == (
        "failed",
        f"cannot write to {tmp_path}/file/state: {tmp_path}/file is no folder",
    )
    later = tmp_path / "later"
    later.mkdir()
    (later / "format.json").write_text('{"format": 99, "version": "9.0"}')
    (check,) = _state_checks(later)
    assert check.status == "failed"
    assert "format 99 of ast-stream 9.0" in check.text


def test_the_small_model_of_a_cascade_is_checked_too(
    tiny: Path, runtime_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    model = {"checkpoint": str(tiny), "cascade": {"checkpoint": str(tiny)}, "precision": "fp32"}
    config.write_text(
        f"streams: [{{name: a, source: {{type: scene}}}}]\nstate_dir: {tmp_path}/state\n"
        f"model: {json.dumps(model)}\n"
    )
    checks = _checks("-c", str(config), "--device", "cpu", expect=0)
    assert checks["cascade"]["text"] == f"{tiny} hears all windows, knows 3 of 3 classes"
    assert checks["cascade self-check"]["against"] == "golden"
    assert checks["cascade speed"]["ms_per_window"] > 0

    four = save_tiny(tmp_path / "four", dims=replace(TINY_DIMS, n_classes=4))
    small = ("--cascade", str(four))
    checks = _checks("--model", str(tiny), *small, "--device", "cpu", expect=1)
    assert checks["cascade"]["status"] == "failed"
    assert "got none of them" in checks["cascade"]["text"]


def test_files_of_another_owner_in_a_state_folder_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events").mkdir(mode=0o700)
    (tmp_path / "alerts.sqlite").write_text("")
    (tmp_path / "alerts.sqlite").chmod(0o640)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr("ast_stream.cli.doctor_checks.why_not_writable", lambda folder: None)
    found = {check.status: check for check in _state_checks(tmp_path)}
    assert f"may not change {tmp_path}/alerts.sqlite, {tmp_path}/events, of" in found["failed"].text
