"""What Prometheus is shown by real processes, and that everything that is shipped for it fits."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from pipeline import Pipeline, pipeline, wait_for
from ports import free_ports
from reactive_model import save_reactive

from ast_stream.errors import StartupError
from ast_stream.runtime.metrics import MAX_CLIENTS, Metrics, figure

MONITORING = Path(__file__).parents[2] / "configs" / "monitoring"
RULES = "version: 1\ngroups: [{name: g, rules: [{alert: bark, match: {class: Bark}}]}]\n"
NAME = re.compile(r"\bast_stream_\w+")
ENDLESS = {"type": "scene", "duration_s": 3600}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and os.environ.get("CI") != "true",
    reason="promtool (Debian package prometheus) is not installed",
)


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def promtool(*args: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, args)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, cwd=MONITORING
    )


class Scrapes:
    """A running pipeline whose three processes show their figures."""

    def __init__(self, run: Pipeline, first: int) -> None:
        self.run = run
        self.first = first

    def __getitem__(self, process: str) -> str:
        return scrape(self.first + ("worker", "alerts", "capture").index(process))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrapes]:
    checkpoint = save_reactive(tmp_path_factory.mktemp("reactive"))
    first = free_ports(3)
    sections: dict[str, Any] = {
        "metrics": {"listen": f"127.0.0.1:{first}"},
        "alerts": {"rules": ["rules.yaml"]},
    }
    with pipeline(checkpoint, {"porch": dict(ENDLESS)}, **sections) as run:
        (run.folder / "rules.yaml").write_text(RULES)
        run.start_worker()
        run.start_capture("porch")
        run.start("alerts", "alerts")
        wait_for(lambda: "ready:" in run.log("alerts"), "alerts")
        scrapes = Scrapes(run, first)
        wait_for(lambda: "metrics at" in run.log("worker"), "worker")
        wait_for(lambda: "events_total{" in scrapes["worker"], "an event")
        wait_for(lambda: "_outbox_pending{" in scrapes["alerts"], "alerts' figures")
        yield scrapes


def test_every_process_shows_what_it_does(shown: Scrapes) -> None:
    listening = 'ast_stream_stream_state{state="listening",stream="porch"} 1.0'
    samples = re.compile(r'ast_stream_capture_samples_total{stream="porch"} [1-9]')
    # each renews its figures once a second, and a busy worker may have windows left out for a while
    wait_for(lambda: listening in shown["worker"], "the stream")
    wait_for(lambda: samples.search(shown["capture"]) is not None, "the figures of the capture")
    worker, capture = shown["worker"], shown["capture"]
    assert 'ast_stream_up{process="worker"} 1.0' in worker
    assert 'ast_stream_up{process="alerts"} 1.0' in shown["alerts"]
    assert re.search(r'ast_stream_stream_lag_seconds{stream="porch"} \d', worker)
    assert re.search(r"ast_stream_worker_windows_total [1-9]", worker)
    assert re.search(r'ast_stream_worker_stage_seconds_count{stage="model"} [1-9]', worker)
    assert re.search(r"ast_stream_worker_batch_windows_sum [1-9]", worker)
    assert re.search(r'ast_stream_feed_messages_total{kind="health"} [1-9]', worker)
    assert re.search(r'ast_stream_capture_data_age_seconds{stream="porch"} \d', capture)
    assert re.search(r'ast_stream_capture_level_dbfs{stream="porch"} -\d', capture)
    assert 'ast_stream_alerts_outbox_pending{action="feed"} ' in shown["alerts"]
    assert "process_resident_memory_bytes" in capture


@needs_promtool
@pytest.mark.parametrize("process", ["worker", "alerts", "capture"])
def test_prometheus_finds_nothing_wrong_with_names_and_types(shown: Scrapes, process: str) -> None:
    done = promtool("check", "metrics", stdin=shown[process])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_dashboard_and_alert_rules_use_figures_that_are_shown(shown: Scrapes) -> None:
    exported = {
        name for process in ("worker", "alerts", "capture") for name in NAME.findall(shown[process])
    }
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    rules = (MONITORING / "ast-stream-alerts.yml").read_text()
    used = set(NAME.findall("\n".join(expressions) + rules))
    assert used - exported == set()


def test_port_in_use_is_a_failed_start_with_one_sentence(shown: Scrapes) -> None:
    with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{shown.first}: "):
        Metrics("worker", ("127.0.0.1", shown.first))


@needs_promtool
def test_prometheus_accepts_configuration_and_rules_and_the_rules_pass_their_tests() -> None:
    for args in (
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "ast-stream-alerts.yml"),
        ("test", "rules", "ast-stream-alerts-tests.yml"),
    ):
        done = promtool(*args)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    rules = [
        {"record": f"panel:{panel['id']}_{target['refId']}", "expr": target["expr"]}
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_are_renewed_as_a_whole_and_end_with_the_process() -> None:
    port = free_ports()
    metrics = Metrics("worker", ("127.0.0.1", port))
    metrics.renew(
        [
            figure("ast_stream_a", "One.", {("x",): 1.5, ("y",): None}, ("stream",)),
            figure("ast_stream_b_total", "Two.", 2),
        ]
    )
    text = scrape(port)
    assert 'ast_stream_a{stream="x"} 1.5' in text
    assert 'stream="y"' not in text
    assert "ast_stream_b_total 2.0" in text
    metrics.renew([])
    assert "ast_stream_a" not in scrape(port)
    metrics.close()
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_nothing_listens_where_nothing_is_asked_for() -> None:
    metrics = Metrics("worker")
    assert not metrics.is_on
    metrics.close()


def test_clients_that_say_nothing_take_few_threads_and_do_not_keep_others_out() -> None:
    port = free_ports()
    metrics = Metrics("worker", ("127.0.0.1", port))
    n_threads = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        wait_for(lambda: threading.active_count() >= n_threads + MAX_CLIENTS, "the clients")
        assert threading.active_count() <= n_threads + MAX_CLIENTS
        wait_for(lambda: answers(port), "a place at the endpoint")
    finally:
        for server in silent:
            server.close()
        metrics.close()


def answers(port: int) -> bool:
    try:
        return "ast_stream_up" in scrape(port)
    except (OSError, HTTPException):
        return False
