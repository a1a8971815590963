"""The units as installed, under a real systemd: started, killed, stopped, reloaded, removed.

The tests share one container and are in the order of its life.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container import LENT, SOURCE, Container, missing_parts, obstacle, wait_until
from virtual_mic import SINK, virtual_mic

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
IN_CI = os.environ.get("CI") == "true"
PROGRAM = "/opt/ast-stream/bin/ast-stream"
CONFIG = "/etc/ast-stream/config.yaml"
HOOKS = "/root/hooks.jsonl"
OUTPUT = "/var/lib/ast-stream/program.jsonl"
MICROPHONE, NETWORK = "ast-stream-capture@porch.service", "ast-stream-capture-net.service"
WORKER, ALERTS = "ast-stream-worker.service", "ast-stream-alerts.service"
UNITS = (MICROPHONE, NETWORK, WORKER, ALERTS)
RULES = """version: 1
defaults: {cooldown: 0s}
groups:
  - name: g
    rules:
      - {alert: alarm, match: {class: "Smoke detector, smoke alarm"}, actions: [hook, program]}
"""
RECEIVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1], "ab") as file:
            file.write(body + b"\\n")
        self.send_response(204)
        self.end_headers()

HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


def settings(**changes: Any) -> dict[str, Any]:
    """Return a configuration with a process of every kind, and actions that leave traces."""
    hook = {"type": "webhook", "url": "http://127.0.0.1:8080/", "allow_private": True}
    program = {"type": "command", "argv": ["/bin/sh", "-c", f"(cat; echo; id -un) >> {OUTPUT}"]}
    return {
        "runtime_dir": "/run/ast-stream",
        "state_dir": "/srv/ast-stream",  # not where a service has its state by itself
        "model": {"hop_s": 1.0},  # other tests run beside this one
        "streams": [
            {"name": "porch", "source": {"type": "microphone", "device": "USB Audio"}},
            {"name": "scene", "source": {"type": "scene", "duration_s": 36000}},
        ],
        "alerts": {
            "rules": ["rules.yaml"],
            "allow_exec": True,
            "actions": {"hook": hook, "program": program},
        },
    } | changes


class Box(Container):
    """A container with our services."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._receiver: subprocess.Popen[bytes] | None = None

    def follow_how_to(self, n_block: int) -> None:
        """Run the lines of a block of the how-to on services."""
        page = (ROOT / "docs/how-to/service.md").read_text()
        block = re.findall(r"^```\n(.*?)^```", page, re.M | re.S)[n_block]
        for line in block.splitlines():
            if line.startswith("sudo apt-get "):
                continue  # what it installs is there, the network is not
            self.run(line, check=not line.startswith(f"sudo {PROGRAM} status"))
            if " -m venv " in line:
                self._lend_packages()

    def configure(self, config: dict[str, Any]) -> None:
        """Restart everything with another configuration, as a person does."""
        self.write(CONFIG, json.dumps(config))  # JSON is YAML
        self.run(f"{PROGRAM} install-units -c {CONFIG}")
        self.run("systemd-tmpfiles --create && systemctl daemon-reload")
        self.run("systemctl reset-failed; systemctl restart ast-stream.target")

    def is_healthy(self) -> bool:
        return bool(self.status().get("healthy"))

    def wait_until_healthy(self) -> None:
        try:
            wait_until(self.is_healthy, "everything to be healthy", every_s=1.0)
        except AssertionError as error:
            raise AssertionError(f"{self.status()}\n{self.journal()[-5000:]}") from error

    def main_pids(self) -> dict[str, int]:
        """Return the main process of each unit, as numbered in there."""
        return {unit: int(self.show(unit, "MainPID")["MainPID"]) for unit in UNITS}

    def n_restarts(self) -> dict[str, int]:
        return {unit: int(self.show(unit, "NRestarts")["NRestarts"]) for unit in UNITS}

    def hooks(self, rule: str = "alarm") -> list[dict[str, Any]]:
        """Return the alerts of a rule that the webhook got."""
        path = self.path(HOOKS)
        lines = path.read_text().splitlines() if path.exists() else []
        return [alert for alert in map(_alert, lines) if alert["rule"] == rule]

    def receive_hooks(self) -> None:
        """Start the receiver of webhooks; its network has ended with the last boot."""
        self._stop_receiver()
        self._receiver = self.start([sys.executable, "-c", RECEIVER, str(self.path(HOOKS))])

    def close(self) -> None:
        self._stop_receiver()
        super().close()

    def _stop_receiver(self) -> None:
        if self._receiver is not None:
            self._receiver.kill()
            self._receiver.wait()

    def _lend_packages(self) -> None:
        folders = self.run(f"ls -d {LENT}/*").stdout
        (site,) = self.path("/opt/ast-stream/lib").glob("python3*/site-packages")
        (site / "lent.pth").write_text(folders)
        for old in site.glob("setuptools*"):  # venv's own cannot build what is of today
            shutil.rmtree(old)


def _alert(line: str) -> dict[str, Any]:
    alert: dict[str, Any] = json.loads(line)["data"]["alert"]
    return alert


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    reason = missing_parts()
    if reason is not None and IN_CI:
        pytest.fail(reason)
    reason = obstacle() or reason
    if reason is not None:
        pytest.skip(reason)
    running = Box(tmp_path_factory.mktemp("box"))
    with virtual_mic() as mic:
        mic.folder.chmod(0o755)
        mic.pactl("load-module", "module-sine", f"sink={SINK}", "frequency=60")  # a room hums
        try:
            running.build()
            running.lend_microphone(mic.folder)
            running.boot()
            running.follow_how_to(0)
            running.receive_hooks()
            yield running
        finally:
            running.close()


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


@pytest.mark.skipif(
    shutil.which("prometheus") is None and not IN_CI,
    reason="prometheus (Debian package) is not installed",
)
def test_shipped_prometheus_configuration_fits_the_shipped_service(
    box: Box, tmp_path: Path
) -> None:
    config = ROOT / "configs/monitoring/prometheus.yml"
    options = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path}"]
    server = box.start(["prometheus", *options, "--web.listen-address=127.0.0.1:9090"])
    try:
        wait_until(
            lambda: len(_targets(box)) and "unknown" not in _targets(box).values(), "scrapes"
        )
        assert set(_targets(box).values()) == {"up"}
        processes = {
            sample["labels"]["process"] for sample in _ask(box, "query?query=ast_stream_up")
        }
        assert len(_targets(box)) == 3
        assert processes == {"worker", "alerts", "capture"}
    finally:
        server.kill()
        server.wait()


def test_alert_reaches_a_webhook_and_a_program_inside_the_sandbox(box: Box) -> None:
    box.write("/etc/ast-stream/rules.yaml", RULES)
    box.configure(settings())
    box.wait_until_healthy()
    wait_until(lambda: box.hooks() and box.path(OUTPUT).exists(), "an alert")
    wait_until(lambda: "ast-stream" in box.path(OUTPUT).read_text().splitlines(), "the program")
    alert = json.loads(box.path(OUTPUT).read_text().splitlines()[0])
    assert alert["alert"]["id"] == box.hooks()[0]["id"]
    assert "scene" in {hook["group"]["stream"] for hook in box.hooks()}


def test_killed_processes_are_back_and_everything_is_healthy_again(box: Box) -> None:
    before = box.main_pids()
    box.run(f"systemctl kill -s KILL {' '.join(UNITS)}")
    wait_until(lambda: all(n == 1 for n in box.n_restarts().values()), "restarts")
    box.wait_until_healthy()
    assert not set(box.main_pids().values()) & set(before.values())
    n_before = len(box.hooks())
    wait_until(lambda: len(box.hooks()) > n_before, "an alert")


def test_stopped_processes_are_replaced_by_the_watchdog(box: Box) -> None:
    before = box.main_pids()
    box.run(f"systemctl kill -s STOP {' '.join(UNITS)}")
    wait_until(lambda: all(n == 2 for n in box.n_restarts().values()), "the watchdogs")
    box.wait_until_healthy()
    assert not set(box.main_pids().values()) & set(before.values())
    for unit in UNITS:
        assert "Watchdog timeout" in box.journal(unit), unit


def test_reload_takes_a_good_file_and_refuses_a_broken_one(box: Box) -> None:
    before = box.main_pids()
    try:
        box.write(CONFIG, json.dumps(settings(detection=_detection(0.42))))
        box.run("systemctl reload ast-stream.target")
        wait_until(lambda: "onset_threshold changed" in box.journal(WORKER), "a reload")
        box.write(CONFIG, json.dumps(settings(detection=_detection(7))))
        box.write("/etc/ast-stream/rules.yaml", RULES.replace("match", "mach"))
        box.run("systemctl reload ast-stream.target")
        wait_until(lambda: "expected at most 1, got 7" in box.journal(WORKER), "a refusal")
        wait_until(lambda: "mach" in box.journal(ALERTS), "a refusal of the rules")
    finally:
        box.write("/etc/ast-stream/rules.yaml", RULES)
        box.write(CONFIG, json.dumps(settings()))
        box.run("systemctl reload ast-stream.target")
    box.wait_until_healthy()
    assert box.main_pids() == before


def test_stop_ends_the_worker_before_the_alerts_and_everything_cleanly(box: Box) -> None:
    since = _now(box)
    box.run("systemctl stop ast-stream.target")
    wait_until(lambda: _stopped(box, since) == set(UNITS), "the stop")
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
    wait_until(lambda: not _alive(box), "the stop")
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
    wait_until(lambda: f"{WORKER} has failed (exit-code, status 3)" in _critical(box), "the word")
    assert "and is down, next try in 3 s" in _critical(box)
    wait_until(lambda: box.hooks("ast_stream_unit_failed"), "an alert of it")
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
    wait_until(lambda: f"{WORKER} has failed (exit-code, status 78)" in _critical(box), "the word")
    assert f"mend the configuration, then systemctl restart {WORKER}" in _critical(box)
    time.sleep(4)  # longer than it waits with other failures
    state = box.show(WORKER, "ActiveState", "NRestarts")
    assert (state["ActiveState"], state["NRestarts"]) == ("failed", "0")
    box.configure(settings())
    box.wait_until_healthy()


def test_everything_is_healthy_after_a_reboot(box: Box) -> None:
    n_before = len(box.hooks())
    box.reboot()
    box.receive_hooks()
    box.wait_until_healthy()
    wait_until(lambda: len(box.hooks()) > n_before, "an alert")
    assert box.show(WORKER, "NRestarts")["NRestarts"] == "0"


def test_upgrade_of_the_readme_runs_the_new_version(box: Box) -> None:
    for name in ("ast_stream/version.py", "pyproject.toml"):
        path = box.path(f"{SOURCE}/{name}")
        path.write_text(path.read_text().replace('"0.1.0"', '"0.1.1"'))
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
    url = f"http://127.0.0.1:9090/api/v1/{what}"
    fetch = f"import urllib.request as r; print(r.urlopen('{url}').read().decode())"
    done = box.run(f'python3 -c "{fetch}"', check=False)
    if done.returncode != 0:
        return []
    data: dict[str, Any] = json.loads(done.stdout)["data"]
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
