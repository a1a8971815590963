"""The data-protection sheet says what the settings make the processes do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from page_process import add_users

from ast_stream.cli.app import run_command_line
from ast_stream.cli.privacy_checks import check_privacy
from ast_stream.privacy.sheet import sheet
from ast_stream.settings.retention import MIB
from ast_stream.settings.schema import PrivacyMode, Settings
from ast_stream.settings.storage import undeclared

STREAM = {"name": "porch", "source": {"type": "microphone"}, "ring_s": 60.0}


def settings(**sections: Any) -> Settings:
    folders = {"runtime_dir": "/run/x", "state_dir": "/var/lib/x"}
    return Settings.model_validate({"streams": [STREAM]} | folders | sections)


def test_the_sheet_follows_the_retention_that_is_set() -> None:
    found = sheet(settings(retention={"events": {"max_mib": 8, "max_days": 2.5}}))
    (events,) = (row for row in found.files if row.what == "events")
    assert (events.max_bytes, events.where) == (8 * MIB, "/var/lib/x/events/events-*.jsonl")
    assert events.until == "2.5 days, and until 8 MiB are full"


@pytest.mark.parametrize("mode", ["off", "speech", "sensor"])
def test_the_sheet_says_who_may_have_audio(mode: PrivacyMode) -> None:
    found = sheet(settings(privacy=mode))
    (audio,) = (row for row in found.sockets if row.what == "queries for audio")
    assert (audio.readers == "nobody") == (mode == "sensor")
    (ring,) = (row for row in found.memory if row.what == "ring of porch")
    assert (ring.readers == "the worker process alone") == (mode != "off")
    assert ring.max_bytes == 60 * 16_000 * 2
    held = [row.what for row in found.memory if row.what.startswith("last minute")]
    assert bool(held) == (mode != "sensor")


def test_sheet_and_doctor_look_at_the_sockets_of_every_worker(tmp_path: Path) -> None:
    streams = [STREAM, STREAM | {"name": "yard"}]
    workers = {"front": {"streams": ["porch"]}, "back": {"streams": ["yard"]}}
    folders = {"runtime_dir": str(tmp_path / "run"), "state_dir": str(tmp_path / "state")}
    both = settings(streams=streams, workers=workers, privacy="sensor", **folders)
    queries = [row.where for row in sheet(both).sockets if row.what == "queries for audio"]
    assert queries == [f"ipc://{tmp_path}/run/{name}/query.sock" for name in workers]
    warned = [check.text for check in check_privacy(both) if check.status == "warning"]
    assert warned == [
        f"sensor: no worker {name} answers, so that it could not be tried" for name in workers
    ]


def test_the_sheet_names_what_leaves_the_box_and_no_secret() -> None:
    actions = {
        "hook": {"type": "webhook", "url": "https://example.org/a?token=Geheim42"},
        "broker": {"type": "mqtt", "host": "broker.lan", "username": "u", "password_env": "P"},
        "phone": {"type": "apprise", "urls_env": "PHONE"},
        "note": {"type": "log"},
    }
    found = sheet(
        settings(
            alerts={"actions": actions, "heartbeat": {"action": "hook"}},
            metrics={"listen": "0.0.0.0:9464"},
        )
    )
    assert found.outgoing == [
        "alerts of the action hook: to https://example.org",
        "alerts of the action broker: to the MQTT broker broker.lan:1883, not encrypted",
        "alerts of the action phone: to the services whose addresses are in $PHONE",
        "a sign of life through the action hook",
        "metrics, unencrypted, to anyone who asks: 0.0.0.0:9464",
    ]
    assert "Geheim42" not in json.dumps(found.to_json())
    assert sheet(settings(metrics={"listen": "127.0.0.1:9464"})).outgoing == []


def test_the_command_prints_markdown_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(json.dumps({"streams": [STREAM], "runtime_dir": "r", "privacy": "sensor"}))
    assert run_command_line(["privacy", "-c", str(config)]) == 0
    text = capsys.readouterr().out
    assert "`privacy: sensor`: nobody can get audio" in text
    assert "| ring of porch | capture process | sound | 60 s | 1.8 MiB |" in text
    assert run_command_line(["privacy", "-c", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["privacy"] == "sensor"


def test_files_of_no_declared_kind_are_noticed() -> None:
    files = {
        "/var/lib/x/events/events-000000000001.jsonl": True,
        "/var/lib/x/events/segment.damaged-1": True,
        "/run/x/worker-journal.jsonl.damaged-2": True,
        "/run/x/ring.porch.sock.lock": True,
        "/run/x/watch.12": True,  # of `run`, where its processes report that they work
        "/run/x/watch": False,
        "/var/lib/x/events/clip.jsonl": False,
        "/var/lib/x/alerts.sqlite.damaged-1-wal": True,
        "/var/lib/x/alerts.sqlite.engine-damaged": True,
        "/var/lib/x/clip.wav": False,
        "/run/x/dump": False,
    }
    found = set(undeclared(settings(alerts={"rules": ["rules.yaml"]}), map(Path, files)))
    assert found == {Path(file) for file, is_declared in files.items() if not is_declared}


def test_the_sheet_says_who_may_do_what_on_the_page(tmp_path: Path) -> None:
    on_loopback = sheet(settings(web={"listen": "127.0.0.1:8080", "without_login": ["view"]}))
    readers = {row.what: row.readers for row in on_loopback.sockets}
    assert readers["page"] == "anyone who can connect on this box"
    assert readers["page: clips"] == "nobody"
    assert not any("page" in line for line in on_loopback.outgoing)
    add_users(tmp_path / "users.json", {"anna": ["view", "listen"]})
    tls = {"certificate": "a.pem", "private_key": "b.pem"}
    web = {"listen": "0.0.0.0:8443", "users_file": str(tmp_path / "users.json"), **tls}
    found = sheet(settings(web=web, privacy="sensor"))
    readers = {row.what: row.readers for row in found.sockets}
    assert readers["page"] == "users with the right view"
    assert readers["page: clips"] == "nobody"
    assert found.users[0].startswith("anna: view (")
    assert found.users[1] == "with privacy: sensor the right listen grants nothing"
    assert found.outgoing == [
        "the page, encrypted, to users who have logged in: https://0.0.0.0:8443"
    ]
    assert "users of the page" in {row.what for row in found.files}
