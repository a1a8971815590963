"""A machine with our services, installed as the README says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import LENT, PROGRAMS, PYTHON, Machine

ROOT = Path(__file__).parents[2]
PROGRAM = "/opt/ast-stream/bin/ast-stream"
CONFIG = "/etc/ast-stream/config.yaml"
STATE = "/srv/ast-stream"  # not where a service has its state by itself
HOOKS = "/root/hooks.jsonl"
OUTPUT = "/var/lib/ast-stream/program.jsonl"
MICROPHONE, NETWORK = "ast-stream-capture@porch.service", "ast-stream-capture-net.service"
WORKER, ALERTS = "ast-stream-worker.service", "ast-stream-alerts.service"
UNITS = (MICROPHONE, NETWORK, WORKER, ALERTS)
RECORDER, FORWARDER = "ast-stream-record.service", "ast-stream-forward.service"
PAGE = "ast-stream-web.service"
ALL_UNITS = (*UNITS, RECORDER, FORWARDER, PAGE)
TAPE = "/srv/tape.wav"
RULES = """version: 1
defaults: {cooldown: 0s}
groups:
  - name: g
    rules:
      - {alert: alarm, match: {class: "Smoke detector, smoke alarm"}, actions: [hook, program]}
"""
_RECEIVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1], "ab") as file:
            file.write(body + b"\\n")
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments):
        pass

HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


def settings(**changes: Any) -> dict[str, Any]:
    """Return a configuration with a process of every kind, and actions that leave traces."""
    hook = {"type": "webhook", "url": "http://127.0.0.1:8080/", "allow_private": True}
    program = {"type": "command", "argv": ["/bin/sh", "-c", f"(cat; echo; id -un) >> {OUTPUT}"]}
    return {
        "runtime_dir": "/run/ast-stream",
        "state_dir": STATE,
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


def everything(**changes: Any) -> dict[str, Any]:
    """Return a configuration with every process there is, and a recording as well."""
    chosen = settings()
    tape = {"type": "file", "path": TAPE}
    chosen["streams"] = [*chosen["streams"], {"name": "tape", "source": tape}]
    centre = {"name": "centre", "type": "nats", "servers": ["nats://127.0.0.1:4222"]}
    return (
        chosen
        | {
            "recorder": {},
            "web": {"listen": "127.0.0.1:8088"},
            "fleet": {"site": "home", "box": "attic", "models": {"follow": True}},
            "forward": [centre | {"limits": {"max_gib": 1}}],
        }
        | changes
    )


class Box:
    """What tests do with a machine that runs our services.

    Attributes:
        machine: where they run; its `run`, `read`, `write`, `show`, `journal` are at hand here.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.run, self.show, self.journal = machine.run, machine.show, machine.journal
        self.read, self.write, self.exists = machine.read, machine.write, machine.exists

    def wait_until(self, condition: Callable[[], object], what: str, every_s: float = 0.3) -> None:
        self.machine.wait_until(condition, what, every_s)

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
        self.write("/etc/ast-stream/rules.yaml", RULES)
        self.run(f"{PROGRAM} install-units -c {CONFIG}")
        self.run("systemd-tmpfiles --create && systemctl daemon-reload")
        self.run("systemctl reset-failed; systemctl restart ast-stream.target")

    def status(self) -> dict[str, Any]:
        """Return what `ast-stream status` reports of the installed configuration."""
        done = self.run(f"{PROGRAM} status --json -c {CONFIG}", check=False)
        report: dict[str, Any] = json.loads(done.stdout or "{}")
        return report

    def is_healthy(self) -> bool:
        """Return whether nothing is wrong now but the clock, which nobody sets in there."""
        found = self.status()
        present = set(found.get("problems", ["no answer"])) - set(found.get("losses", []))
        return all(problem.startswith("the clock of this box") for problem in present)

    def wait_until_healthy(self) -> None:
        try:
            self.wait_until(self.is_healthy, "everything to be healthy", every_s=1.0)
        except AssertionError as error:
            raise AssertionError(f"{self.status()}\n{self.journal()[-5000:]}") from error

    def main_pids(self, units: Sequence[str] = UNITS) -> dict[str, int]:
        """Return the main process of each unit, as numbered in there."""
        return {unit: int(self.show(unit, "MainPID")["MainPID"]) for unit in units}

    def n_restarts(self, units: Sequence[str] = UNITS) -> dict[str, int]:
        return {unit: int(self.show(unit, "NRestarts")["NRestarts"]) for unit in units}

    def hooks(self, rule: str = "alarm") -> list[dict[str, Any]]:
        """Return the alerts of a rule that the webhook got."""
        alerts = [json.loads(line)["data"]["alert"] for line in self.read(HOOKS).splitlines()]
        return [alert for alert in alerts if alert["rule"] == rule]

    def receive_hooks(self) -> None:
        """Start the receiver of webhooks, which ends with each boot."""
        self.write("/root/receiver.py", _RECEIVER)
        self.machine.start("tests-hooks", f"{PYTHON}/bin/python3 /root/receiver.py {HOOKS}")

    def start_centre(self) -> None:
        """Start a NATS server, to which the box forwards."""
        options = "-a 127.0.0.1 -js -sd /root/nats"
        self.machine.start("tests-nats", f"{PROGRAMS}/nats-server {options}")

    def make_tape(self, seconds: int = 600) -> None:
        """Write a recording of soft noise: silence to the last bit is a fault."""
        make = (
            "import os, wave; second = bytes(b for x in os.urandom(16000) for b in (x, 0)); "
            f"tape = wave.open('{TAPE}', 'wb'); tape.setparams((1, 2, 16000, 0, 'NONE', '')); "
            f"tape.writeframes(second * {seconds}); tape.close()"
        )
        self.run(f'{PYTHON}/bin/python3 -c "{make}"')

    def fetch(self, url: str) -> str:
        """Return what a server of the machine answers; nothing if it does not."""
        get = f"import urllib.request as r; print(r.urlopen('{url}').read().decode())"
        return self.run(f'python3 -c "{get}"', check=False).stdout

    def _lend_packages(self) -> None:
        site = self.run("ls -d /opt/ast-stream/lib/python3*/site-packages").stdout.strip()
        self.write(f"{site}/lent.pth", self.run(f"ls -d {LENT}/*").stdout)
        self.run(f"rm -rf {site}/setuptools*")  # venv's own cannot build what is of today
