"""`fleet status` on real servers: who is missing comes first, and nothing that is sent acts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_centre import put
from mqtt_broker import MOSQUITTO, Broker
from nats_server import NatsServer, nats_server, needs_nats, wait_for
from sample_messages import box_report

from ast_stream.cli.app import run_command_line
from ast_stream.forward.to_mqtt import MqttForwarder
from ast_stream.messages.fleet import BoxReport, ClockReport, OutputReport
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import MqttOutput

needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None and not os.environ.get("CI"), reason="needs mosquitto"
)


def report(box: str, site: str = "farm", **changes: Any) -> BoxReport:
    return box_report(site=site, box=box, time_ns=time.time_ns(), **changes)


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        for one in (
            report("barn"),
            report("attic", "home", problems=["the disk is \x1b[31mfull"]),
            report("cellar", "home", clock=ClockReport(offset_s=-3600.0, uncertainty_s=0.1)),
        ):
            put(server.url, f"{one.site}.{one.box}", one.encode())
        output = OutputReport(name="centre", is_connected=True, waiting=412)
        put(server.url, "farm.mill", report("mill", outputs=[output]).encode())
        put(server.url, "farm.pond", b'{"v":1,"site":"\xff"}')
        put(server.url, "farm.shed", report("barn").encode())  # a box that says it is another
        yield server


def run(*arguments: str) -> int:
    return run_command_line(["fleet", "status", *arguments])


@needs_nats
def test_boxes_that_need_somebody_come_first(
    centre: NatsServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    expected = tmp_path / "boxes.txt"
    expected.write_text("farm/barn\nfarm/gone  # since Monday\n\n")
    assert run("--nats", centre.url, "--expect", str(expected)) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[:3] for line in lines[1:8]]
    assert rows == [
        ["farm", "gone", "missing"],
        ["farm", "pond", "unreadable"],
        ["farm", "shed", "unreadable"],
        ["home", "attic", "unwell"],
        ["farm", "barn", "well"],
        ["farm", "mill", "well"],
        ["home", "cellar", "well"],
    ]
    assert "412" in lines[6]
    assert "-3600.000 s" in lines[7]
    assert "farm/gone: it has never reported" in lines
    assert "home/attic: the disk is \\x1b[31mfull" in lines
    assert lines[-1] == "7 boxes, 4 with problems"


@needs_nats
def test_programs_get_whole_reports(centre: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--nats", centre.url, "--site", "home", "--json") == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text
    found = json.loads(text)
    assert not found["healthy"]
    assert [(box["box"], box["state"]) for box in found["boxes"]] == [
        ("attic", "unwell"),
        ("cellar", "well"),
    ]
    assert BoxReport.from_json(found["boxes"][0]["report"], "box report").box == "attic"
    assert 0 <= found["boxes"][0]["age_s"] < 600


@needs_nats
def test_boxes_that_are_well_make_it_0(
    centre: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    put(centre.url, "good.a", report("a", "good").encode())
    assert run("--nats", centre.url, "--site", "good") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 box, none with problems"
    time.sleep(1.1)
    assert run("--nats", centre.url, "--site", "good", "--max-age", "1") == 1
    assert "good/a: it has not reported for" in capsys.readouterr().out


@needs_nats
def test_a_site_without_boxes_is_not_well(
    centre: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--nats", centre.url, "--site", "frm") == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("no boxes: ")


COMMANDS = [
    ["status"],
    ["rollout", "status"],
    ["rollout", "return"],
    ["rollout", "run"],
]


def test_a_pool_of_listed_members_has_no_report_to_show(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    audio, rings = "tcp://10.0.0.5:5555", "tcp://10.0.0.5:5559"
    member = {"name": "gpu-1", "audio": audio, "rings": rings, "key": "gpu-1.key"}
    settings = {"pool": {"name": "city", "members": [member]}}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    assert run_command_line(["fleet", "pool", "-c", str(tmp_path / "config.yaml")]) == 2
    assert "pool: expected nats, where workers report their state, got a list of members" in (
        capfd.readouterr().err
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_centre_that_does_not_answer_is_said_once(
    command: list[str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nats")
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ast_stream.cli.fleet_centre.CONNECT_S", 1.0)
            assert run_command_line(["fleet", *command, "--nats", url]) == 3
    assert capfd.readouterr().err.count(url) == 1
    assert not caplog.records


def test_a_pool_whose_server_does_not_answer_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nats")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{taken.getsockname()[1]}"
        settings = {"pool": {"name": "city", "nats": {"servers": [url]}}}
        (tmp_path / "config.yaml").write_text(json.dumps(settings))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ast_stream.cli.fleet_pool.CONNECT_S", 1.0)
            code = run_command_line(["fleet", "pool", "-c", str(tmp_path / "config.yaml")])
    assert code == 3
    assert capfd.readouterr().err.count(url) == 1
    assert not caplog.records


@needs_nats
def test_a_configuration_names_its_centre(
    centre: NatsServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = {"name": "centre", "type": "nats", "servers": [centre.url]}
    settings = {
        "streams": [{"name": "a", "source": {"type": "scene"}}],
        "forward": [output],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    run("--config", str(tmp_path / "config.yaml"), "--site", "farm")
    assert "farm  mill" in capsys.readouterr().out


@needs_nats
def test_watching_goes_on_through_an_outage_of_the_centre(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        put(server.url, "farm.barn", report("barn").encode())
        command = [sys.executable, "-m", "ast_stream.cli", "fleet", "status", "--watch", "--json"]
        log = tmp_path / "out"
        with log.open("wb") as out:
            process = subprocess.Popen([*command, "--nats", server.url], stdout=out, stderr=out)
        try:
            wait_for(lambda: log.read_text().count('"well"') >= 1, "the first report")
            server.kill()
            wait_for(lambda: "127.0.0.1" in log.read_text(), "a word about the outage")
            n_before = log.read_text().count('"well"')
            server.start()
            wait_for(lambda: log.read_text().count('"well"') > n_before, "a report after it")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "expected --nats URL, or --config FILE"),
        (["--nats", "http://a"], 2, "--nats: expected nats or tls scheme"),
        (["--nats", "nats://me:secret@a"], 2, "expected an address without user and password"),
        (["--mqtt", "mqtt://me:secret@a"], 2, "expected an address without user and password"),
        (["--nats", "nats://a", "--creds", "/none"], 3, "fleet: cannot read /none"),
        (["--nats", "nats://a", "--expect", "/none"], 2, "--expect: cannot read /none"),
        (["--mqtt", "mqtt://127.0.0.1:1"], 3, "the MQTT broker 127.0.0.1:1, not encrypted: "),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "secret" not in shown


def test_expected_boxes_that_are_none_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "boxes").write_text("farm/barn\nfarm barn\n")
    assert run("--nats", "nats://a", "--expect", str(tmp_path / "boxes")) == 2
    assert "boxes:2: expected a box as site/box, got 'farm barn'" in capsys.readouterr().err


@needs_mosquitto
def test_a_broker_keeps_reports_and_says_who_has_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = Broker(tmp_path)
    broker.start()
    try:
        settings = MqttOutput(name="hub", type="mqtt", host="127.0.0.1", port=broker.port)
        boxes = {
            name: MqttForwarder(settings, BoxIdentity("farm", name)) for name in ("barn", "mill")
        }
        for name, forwarder in boxes.items():
            forwarder.start()
            forwarder.publish_status(report(name).encode())
        url = f"mqtt://127.0.0.1:{broker.port}"

        def shown() -> str:
            run("--mqtt", url)
            return capsys.readouterr().out

        wait_for(lambda: shown().count(" well ") == 2, "both boxes")
        boxes["mill"].close()
        wait_for(
            lambda: "farm/mill: it has stopped, or has lost its connection" in shown(),
            "the last words of one",
        )
        assert shown().splitlines()[1].split()[:3] == ["farm", "mill", "offline"]
        boxes["barn"].close()
    finally:
        broker.kill()
