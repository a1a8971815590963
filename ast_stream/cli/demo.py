"""`ast-stream demo`: the whole pipeline on a generated scene, planted against detected."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ast_stream.alerts.rule_watch import model_facts
from ast_stream.cli.demo_report import Heard, compare
from ast_stream.cli.demo_view import DemoView, alert_line, demo_view, report_table, summary
from ast_stream.cli.live import console
from ast_stream.errors import StartupError
from ast_stream.feed import FeedMessage, Missed, Subscriber
from ast_stream.runtime.lifecycle import child_environment, stop_on_signals
from ast_stream.settings.explain import with_options
from ast_stream.settings.schema import ModelSettings
from ast_stream.soundscape.scene import generate_scene

STREAM = "demo"
MARGIN_S = 60.0  # beyond the scene: loading the model, last windows, shutdown
SHUTDOWN_S = 10.0
LOG_LINES_SHOWN = 15
ALARMS = ("Smoke detector, smoke alarm", "Siren")
TELEPHONES = ("Telephone bell ringing", "Telephone dialing, DTMF")


def demo(
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Which scene.")] = 1,
    duration: Annotated[
        float, typer.Option(min=10, max=86_400, help="Seconds of the scene.")
    ] = 40.0,
    hop: Annotated[float, typer.Option(min=0.05, help="Seconds between windows.")] = 0.25,
    model: Annotated[str, typer.Option(help="Checkpoint.")] = "bundled",
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Run a generated scene through capture, worker, feed and alerts, as real processes.

    Exit code 0 only if every planted sound was found.

    Example: ast-stream demo --seed 7
    """
    options = {"checkpoint": ("demo: --model", model), "hop_s": ("demo: --hop", hop)}
    with_options(ModelSettings(), options)
    truth = generate_scene(seed, duration).truth
    with (
        stop_on_signals() as stop,
        tempfile.TemporaryDirectory(prefix="ast-stream-demo-", dir="/tmp") as name,
    ):
        folder = Path(name)  # short: paths of sockets end at 107 bytes
        config = _write_configuration(folder, seed, duration, hop, model)
        with demo_view(duration) as view:
            heard, alerts = _hear(folder, config, view, stop.is_set, duration)
        if stop.is_set():
            raise typer.Exit(1)
    report = compare(truth, heard)
    if as_json:
        print(
            json.dumps(
                report.to_json() | {"alerts": [_alert_json(one) for one in alerts]}, indent=2
            )
        )
    else:
        console().print(report_table(report))
        console().print(summary(report), soft_wrap=True)
        for body in alerts:
            console().print(alert_line(body), soft_wrap=True)
    raise typer.Exit(0 if report.is_complete else 1)


def _write_configuration(
    folder: Path, seed: int, duration_s: float, hop_s: float, model: str
) -> Path:
    settings: dict[str, Any] = {
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "streams": [
            {
                "name": STREAM,
                "source": {"type": "scene", "seed": seed, "duration_s": duration_s},
            }
        ],
        "model": {"checkpoint": model, "hop_s": hop_s},
    }
    rules = _rules(model_facts(ModelSettings(checkpoint=model)).labels)
    if rules:
        (folder / "rules.yaml").write_text(json.dumps(rules))
        settings["alerts"] = {"rules": ["rules.yaml"]}
    path = folder / "demo.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def _rules(labels: tuple[str, ...] | None) -> dict[str, Any] | None:
    """Return two rules on what the scene may hold; None if the model knows nothing of it."""

    def known(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if labels is None or name in labels]

    rules: list[dict[str, Any]] = []
    if alarms := known(ALARMS):
        told = {"summary": "{{ label }} in the demo"}
        rule = {"alert": "alarm_sounding", "match": {"any_of": alarms}, "severity": "high"}
        rules.append(rule | {"annotations": told})
    if telephones := known(TELEPHONES):
        told = {"summary": "a telephone twice within 30 s"}
        rule = {"alert": "telephone_again", "match": {"any_of": telephones}, "severity": "low"}
        rules.append(rule | {"count": {"min": 2, "within": "30s"}, "annotations": told})
    groups = [{"name": "demo", "actions": [], "rules": rules}]  # the demo reads the feed
    return {"version": 1, "groups": groups} if rules else None


def _hear(
    folder: Path, config: Path, view: DemoView, is_stopped: Callable[[], bool], duration_s: float
) -> tuple[list[Heard], list[dict[str, Any]]]:
    """Run the pipeline until the scene has ended; return its events, and the alerts that fired.

    Raises:
        StartupError: the pipeline failed; its last log lines are shown.
    """
    log = folder / "log"
    command = [sys.executable, "-m", "ast_stream.cli", "run", "--config", str(config)]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            env=child_environment(),
        )
    heard: dict[str, Heard] = {}
    fired: dict[str, dict[str, Any]] = {}
    deadline_s = time.monotonic() + duration_s + MARGIN_S
    feed = Subscriber(f"ipc://{folder}/run/feed.sock", topics=("event/", "health/"), after="oldest")
    alerts = Subscriber(f"ipc://{folder}/run/alerts.sock", topics=("alert/",))
    try:
        with feed, alerts:
            while not is_stopped() and time.monotonic() < deadline_s:
                is_over = process.poll() is not None
                while (message := feed.receive(0.2)) is not None:
                    _take(message, heard, view)
                while (alert := alerts.receive(0.0)) is not None:
                    _take_alert(alert, fired, view)
                if is_over:
                    break
    finally:
        _end(process)
    if process.returncode and not is_stopped():
        last = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        raise StartupError("demo: the pipeline failed; its last lines:\n" + "\n".join(last))
    return list(heard.values()), list(fired.values())


def _take(message: FeedMessage | Missed, heard: dict[str, Heard], view: DemoView) -> None:
    if isinstance(message, Missed):
        return
    body = message.body
    if message.kind == "health":
        view.show_health(body)
        return
    if body["id"] not in heard:
        heard[body["id"]] = Heard.from_begin(body)
    heard[body["id"]].hear(body)
    if body["type"] != "update":
        view.show_event(body)


def _take_alert(
    message: FeedMessage | Missed, fired: dict[str, dict[str, Any]], view: DemoView
) -> None:
    if isinstance(message, FeedMessage) and message.body["id"] not in fired:
        fired[message.body["id"]] = message.body
        view.show_alert(message.body)


def _alert_json(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("rule", "severity", "annotations", "fired")}


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
