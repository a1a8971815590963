from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from ast_stream.errors import UsageError
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.reload import Reloader, changes
from ast_stream.settings.load import LoadedSettings, load_file, load_settings

BASE = "streams: [{name: porch, source: {type: microphone}}]\n"


class Reload:
    """A reloader on a file, what it sent to the service manager, and what it applied."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "a.yaml"
        self.file.write_text(BASE)
        self.sent: list[str] = []
        self.applied: list[LoadedSettings] = []
        self.requested = threading.Event()
        self.reloader = Reloader(
            self.requested,
            self.file,
            load_settings(self.file),
            "worker",
            parts=lambda new: new.model_dump(include={"detection", "model", "streams"}),
            live=frozenset({"detection"}),
            apply=self.apply,
        )

    def apply(self, loaded: LoadedSettings) -> None:
        if loaded.settings.detection.gate_dbfs == -1:
            raise UsageError("this gate does not fit")
        if loaded.settings.detection.gate_dbfs == -2:
            raise OverflowError("a fault of ours")
        self.applied.append(loaded)

    def poll(self) -> None:
        self.reloader.poll(Notifier(lambda message: self.sent.append(message) is None, 1.0))

    def request(self, text: str) -> str:
        """Return what the service manager is sent about a file with `text`."""
        self.file.write_text(BASE + text)
        self.requested.set()
        self.poll()
        assert self.sent[-2].startswith("RELOADING=1\n")
        return self.sent[-1]


@pytest.fixture
def reload(tmp_path: Path) -> Reload:
    return Reload(tmp_path)


def test_nothing_happens_until_it_is_requested(reload: Reload) -> None:
    reload.poll()
    assert reload.sent == []
    assert "nothing changed" in reload.request("")
    reload.poll()
    assert len(reload.sent) == 2


def test_live_settings_are_reported_once_and_others_until_the_restart(reload: Reload) -> None:
    text = "detection: {gate_dbfs: -50}\nmodel: {hop_s: 0.25}\n"
    first = reload.request(text)
    assert "read again: detection.gate_dbfs changed; a restart is needed for model.hop_s" in first
    assert reload.applied[-1].settings.detection.gate_dbfs == -50
    second = reload.request(text)
    assert "read again: nothing changed; a restart is needed for model.hop_s" in second
    assert "detection.gate_dbfs changed" in reload.request("")


def test_file_with_mistakes_changes_nothing_and_is_named_with_its_line(reload: Reload) -> None:
    status = reload.request("logging: {level: debug}\ndetection: {gate: -50}\n")
    assert f"kept as they were: {reload.file}:3: detection.gate: unknown key" in status
    assert reload.applied == []
    assert logging.getLogger().level != logging.DEBUG
    reload.file.unlink()
    reload.requested.set()
    reload.poll()
    assert "kept as they were" in reload.sent[-1]


def test_settings_that_the_process_refuses_change_nothing(reload: Reload) -> None:
    status = reload.request("detection: {gate_dbfs: -1}\nlogging: {level: debug}\n")
    assert status.endswith("kept as they were: this gate does not fit")
    assert logging.getLogger().level != logging.DEBUG


def test_whatever_a_reload_raises_leaves_the_settings_in_force(reload: Reload) -> None:
    status = reload.request("detection: {gate_dbfs: -2}\nlogging: {level: debug}\n")
    assert status.endswith(f"kept as they were: {reload.file}: OverflowError: a fault of ours")
    assert logging.getLogger().level != logging.DEBUG
    aliases = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]" for n in range(900))
    assert "levels of nesting" in reload.request(aliases)
    assert "hold_s: expected at most" in reload.request("detection: {defaults: {hold_s: 1e300}}")
    reload.file.unlink()
    os.mkfifo(reload.file)
    reload.requested.set()
    reload.poll()
    assert "expected a file, got a pipe" in reload.sent[-1]
    reload.file.unlink()
    assert "detection.gate_dbfs changed" in reload.request("detection: {gate_dbfs: -50}\n")


def test_a_disk_that_hangs_does_not_hold_up_the_loop(
    reload: Reload, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()
    monkeypatch.setattr(
        "ast_stream.runtime.reload.load_file", lambda path: disk.wait() and load_file(path)
    )
    reload.file.write_text(BASE + "detection: {gate_dbfs: -50}\n")
    reload.requested.set()
    for _ in range(3):
        reload.poll()
    assert [message.split("\n")[0] for message in reload.sent] == ["RELOADING=1"]
    disk.set()
    while len(reload.sent) < 2:
        reload.poll()
    assert "detection.gate_dbfs changed" in reload.sent[-1]
    assert len(reload.applied) == 1


def test_log_level_changes_everywhere(reload: Reload) -> None:
    assert "logging.level changed" in reload.request("logging: {level: debug}\n")
    assert logging.getLogger().level == logging.DEBUG


def test_changes_are_the_smallest_paths_that_differ() -> None:
    old = {"a": [1, {"b": 2}], "c": {}, "d": [1]}
    assert changes(old, {"a": [1, {"b": 3}], "c": {"x": 0}, "d": [1, 2]}) == [
        ("a", 1, "b"),
        ("c",),
        ("d",),
    ]
    assert changes(old, old) == []
