"""Secrets in a configuration stay in it, whatever leaves the processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ports import free_ports
from processes import processes_of

pytest.importorskip("av")

LIMIT_S = 60
SECRETS = ("Geheim42", "Geheim%2342", "Geheim#42", "TopToken9x", "Kunde-77", "whsec_")
CONFIG = """
runtime_dir: run
state_dir: state
streams:
  - name: refused
    source: {{type: url, url: "rtsp://Kunde-77:Geheim%2342@127.0.0.1:{closed}/live", open_timeout_s: 2}}
  - name: query
    source: {{type: url, url: "http://127.0.0.1:{web}/flv?port=1935&user=Kunde-77&password=Geheim42"}}
  - name: token
    source: {{type: url, url: "http://127.0.0.1:{web}/a?token=TopToken9x", options: {{headers: "Authorization: Bearer TopToken9x"}}}}
alerts:
  rules: [rules.yaml]
  actions:
    hook: {{type: webhook, url: "http://127.0.0.1:{web}/hook?token=TopToken9x", allow_private: true, secret_env: HOOK}}
  heartbeat: {{action: hook, interval_s: 1}}
logging: {{level: debug}}
metrics: {{listen: "127.0.0.1:{metrics}"}}
"""  # noqa: E501
RULES = """
version: 1
groups: [{name: g, rules: [{alert: gone, level: {missing: true, for: 3s}, actions: [hook]}]}]
"""


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with a refusal."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        del format, arguments


def cli(*args: str) -> str:
    command = [sys.executable, "-m", "ast_stream.cli", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done.stdout + done.stderr


def test_no_secret_of_a_url_leaves_the_processes(tmp_path: Path) -> None:
    web = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    metrics = free_ports(3)  # of the three kinds of process
    config = tmp_path / "config.yaml"
    ports = {"closed": free_ports(), "web": web.server_port, "metrics": metrics}
    config.write_text(CONFIG.format(**ports))
    (tmp_path / "rules.yaml").write_text(RULES)
    outputs: dict[str, str] = {"check-config": cli("check-config", str(config), "--no-model")}
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-m", "ast_stream.cli", "run", "-c", str(config)]
    run = subprocess.Popen(
        command, stdout=log, stderr=log, env=os.environ | {"HOOK": "whsec_R2VoZWltNDI="}
    )
    try:
        end_s = time.monotonic() + LIMIT_S
        while outputs.get("status --json", "").count('"missing"') < 3 and time.monotonic() < end_s:
            outputs["status --json"] = cli("status", "-c", str(config), "--json")
        outputs["status"] = cli("status", "-c", str(config))
        outputs["feed"] = cli("subscribe", "-c", str(config), "health", "alerts", "--count", "8")
        outputs["outbox"] = cli("outbox", "list", "-c", str(config))
        outputs["processes"] = "".join(processes_of(config).values())
        end_s = time.monotonic() + LIMIT_S
        for port in (metrics, metrics + 1, metrics + 2):
            while f"metrics {port}" not in outputs:
                assert time.monotonic() < end_s, f"no metrics at {port}"
                with (
                    suppress(OSError),  # it has not begun yet
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer,
                ):
                    outputs[f"metrics {port}"] = answer.read().decode()
        run.send_signal(signal.SIGHUP)
        while "settings read again" not in (tmp_path / "log").read_text():
            assert time.monotonic() < end_s, "no reload"
            time.sleep(0.05)
    finally:
        run.terminate()
        run.wait(LIMIT_S)
        web.shutdown()
        web.server_close()
        log.close()
    outputs["log"] = (tmp_path / "log").read_text()
    for path in [*(tmp_path / "run").rglob("*"), *(tmp_path / "state").rglob("*")]:
        if path.is_file():
            outputs[str(path)] = path.read_bytes().decode(errors="replace")
    assert outputs["status --json"].count('"missing"') >= 3
    assert json.loads(outputs["feed"].splitlines()[0])
    assert "rtsp://***@127.0.0.1" in outputs["log"]
    leaks = {
        (place, secret) for place, text in outputs.items() for secret in SECRETS if secret in text
    }
    assert leaks == set()
