"""The state folder has one format: taken up, migrated, or refused untouched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ast_stream.errors import ConfigError, StartupError
from ast_stream.runtime.state_format import (
    FILE,
    MIGRATIONS,
    Migration,
    check_state_dir,
    prepare_state_dir,
)
from ast_stream.version import __version__

CONFIG = "config.yaml"


def set_format(folder: Path, number: int, version: str = "9.1.0") -> str:
    text = json.dumps({"format": number, "version": version})
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(text)
    return text


def format_of(folder: Path) -> object:
    return json.loads((folder / FILE).read_text())


def note(number: int) -> Migration:
    """Return a migration that notes in the folder that it has run."""

    def migrate(folder: Path) -> None:
        with (folder / "notes").open("a") as notes:
            notes.write(f"{number} ")

    return migrate


def test_new_folder_gets_the_format_of_this_version(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    prepare_state_dir(folder, CONFIG)
    assert format_of(folder) == {"format": len(MIGRATIONS), "version": __version__}


def test_folder_from_before_there_was_a_format_goes_on(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    prepare_state_dir(tmp_path, CONFIG)
    assert format_of(tmp_path) == {"format": len(MIGRATIONS), "version": __version__}
    check_state_dir(tmp_path, CONFIG)


def test_older_folder_is_migrated_once_step_by_step(tmp_path: Path) -> None:
    set_format(tmp_path, 1)
    steps = [note(0), note(1), note(2)]
    prepare_state_dir(tmp_path, CONFIG, steps)
    prepare_state_dir(tmp_path, CONFIG, steps)
    assert (tmp_path / "notes").read_text() == "1 2 "
    assert format_of(tmp_path) == {"format": 3, "version": __version__}


def test_migration_that_fails_is_done_again_by_the_next_start(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    before = set_format(tmp_path, 1)
    with pytest.raises(StartupError, match="No space left on device"):
        prepare_state_dir(tmp_path, CONFIG, [note(0), fail])
    assert (tmp_path / FILE).read_text() == before
    prepare_state_dir(tmp_path, CONFIG, [note(0), note(1)])
    assert (tmp_path / "notes").read_text() == "1 "


def test_folder_of_a_later_version_is_refused_in_a_sentence_and_not_touched(
    tmp_path: Path,
) -> None:
    before = set_format(tmp_path, len(MIGRATIONS) + 1)
    for use in (prepare_state_dir, check_state_dir):
        with pytest.raises(ConfigError) as refusal:
            use(tmp_path, CONFIG)
        text = str(refusal.value)
        assert text.startswith(f"config.yaml: state_dir: {tmp_path} has the format ")
        assert f"of ast-stream 9.1.0, where this is {__version__} with format " in text
        assert "or set another state_dir" in text
        assert len(text.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_text() == before


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format": true, "version": ""}', b"\xff"]
)
def test_damaged_format_is_set_aside_and_prevents_no_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    prepare_state_dir(tmp_path, CONFIG)
    assert format_of(tmp_path) == {"format": len(MIGRATIONS), "version": __version__}
    assert (tmp_path / f"{FILE}.damaged-1").read_bytes() == content


def test_full_disk_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ast_stream.runtime.state_format.replace_file", refuse)
    prepare_state_dir(tmp_path, CONFIG)
    assert "No space left on device" in caplog.text


def test_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="set state_dir to a folder"):
        prepare_state_dir(tmp_path / "file", CONFIG)


@pytest.mark.parametrize("command", ["worker", "alerts", "coverage", "outbox list"])
def test_every_command_that_uses_the_folder_refuses_one_of_a_later_version(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "rules.yaml").write_text("groups: [{name: g, rules: [{alert: a, match: {}}]}]\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"runtime_dir: {tmp_path}/run\nstate_dir: {tmp_path}/state\n"
        "streams: [{name: s, source: {type: scene}}]\nalerts: {rules: [rules.yaml]}\n"
    )
    before = set_format(tmp_path / "state", 99)
    arguments = [*command.split(), "-c", str(config)]
    done = subprocess.run(
        [sys.executable, "-m", "ast_stream.cli", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 78
    (sentence,) = [line for line in done.stderr.splitlines() if "state_dir" in line]
    assert "has the format 99 of ast-stream 9.1.0" in sentence
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE]
    assert (tmp_path / "state" / FILE).read_text() == before
