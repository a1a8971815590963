"""`ast-stream demo`: the whole pipeline on a generated scene, planted against detected."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ast_stream.alerts.model_facts import model_facts
from ast_stream.cli.terminal import console, level_bar, level_text
from ast_stream.errors import StartupError
from ast_stream.feed import FeedMessage, Missed, Subscriber
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import EventMessage
from ast_stream.messages.status import Health
from ast_stream.runtime.lifecycle import start_command, stop_on_signals
from ast_stream.runtime.temporary import temporary_folder
from ast_stream.settings.explain import with_options
from ast_stream.settings.model import ModelSettings
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.soundscape.scene import generate_scene
from ast_stream.units import NS_PER_SECOND, samples_to_seconds

STREAM = "demo"
MARGIN_S = 60.0  # beyond the scene: loading the model, last windows, shutdown
SHUTDOWN_S = 10.0
LOG_LINES_SHOWN = 15
ALERT_FIELDS = ("rule", "severity", "annotations", "fired")  # in JSON
ALARMS = ("Smoke detector, smoke alarm", "Siren")
TELEPHONES = ("Telephone bell ringing", "Telephone dialing, DTMF")
LINES_SHOWN = 8
PLAIN_EVERY_S = 10.0
TOLERANCE_S = 1.0  # an event of the right class counts if it overlaps the sound within this


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
        temporary_folder("demo", Path("/tmp")) as folder,
    ):
        # its path is short: those of sockets end at 107 bytes
        config = _write_configuration(folder, seed, duration, hop, model)
        with (LiveDemoView if sys.stderr.isatty() else DemoView)(duration) as view:
            detected, alerts = _run_pipeline(folder, config, view, stop.is_set, duration)
        if stop.is_set():
            raise typer.Exit(1)
    report = compare(truth, detected)
    if as_json:
        bodies = [alert.to_json() for alert in alerts]
        shown = [{name: body[name] for name in ALERT_FIELDS} for body in bodies]
        print(json.dumps(report.to_json() | {"alerts": shown}, indent=2))
    else:
        console().print(report_table(report))
        lines = [summary(report), *map(alert_line, alerts)]
        console().print("\n".join(lines), soft_wrap=True)
    raise typer.Exit(0 if report.is_complete else 1)


def _write_configuration(
    folder: Path, seed: int, duration_s: float, hop_s: float, model: str
) -> Path:
    source = {"type": "scene", "seed": seed, "duration_s": duration_s}
    settings: dict[str, Any] = {
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "streams": [{"name": STREAM, "source": source}],
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
    rules: list[dict[str, Any]] = []
    for name, severity, classes, summary, trigger in (
        (
            # the pauses between groups of beeps are no end
            "alarm_sounding", "high", ALARMS, "{{ label }} in the demo", {"keep_firing_for": "3s"},
        ),
        (
            "telephone_again", "low", TELEPHONES, "a telephone twice within 30 s",
            {"count": {"min": 2, "within": "30s"}},
        ),
    ):  # fmt: skip
        if known := [label for label in classes if labels is None or label in labels]:
            rule = {"alert": name, "match": {"any_of": known}, "severity": severity}
            rules.append(rule | trigger | {"annotations": {"summary": summary}})
    groups = [{"name": "demo", "actions": [], "rules": rules}]  # the demo reads the feed
    return {"version": 1, "groups": groups} if rules else None


def _run_pipeline(
    folder: Path, config: Path, view: DemoView, is_stopped: Callable[[], bool], duration_s: float
) -> tuple[list[DetectedEvent], list[Alert]]:
    """Run the pipeline until the scene has ended; return its events, and the alerts that fired.

    Raises:
        StartupError: the pipeline failed; its last log lines are shown.
    """
    log = folder / "log"
    with log.open("wb") as log_file:
        process = start_command(["run", "-c", str(config)], stdout=log_file, stderr=log_file)
    detected: dict[str, DetectedEvent] = {}
    fired: dict[str, Alert] = {}
    deadline_s = time.monotonic() + duration_s + MARGIN_S
    feed = Subscriber(f"ipc://{folder}/run/feed.sock", topics=("event/", "health/"), after="oldest")
    alerts = Subscriber(f"ipc://{folder}/run/alerts.sock", topics=("alert/",))
    try:
        with feed, alerts:
            while not is_stopped() and time.monotonic() < deadline_s:
                is_over = process.poll() is not None
                while (message := feed.receive(0.2)) is not None:
                    _on_message(message, detected, view)
                while (alert := alerts.receive(0.0)) is not None:
                    _on_alert(alert, fired, view)
                if is_over:
                    break
    finally:
        _end(process)
    if process.returncode and not is_stopped():
        last = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        raise StartupError("demo: the pipeline failed; its last lines:\n" + "\n".join(last))
    return list(detected.values()), list(fired.values())


def _on_message(
    message: FeedMessage | Missed, detected: dict[str, DetectedEvent], view: DemoView
) -> None:
    content = message.content() if isinstance(message, FeedMessage) else None
    if isinstance(content, Health):
        view.show_health(content)
    elif isinstance(content, EventMessage):
        detected.setdefault(content.id, DetectedEvent(content, content)).last = content
        if content.type != "update":
            view.show_line(event_line(content))


def _on_alert(message: FeedMessage | Missed, fired: dict[str, Alert], view: DemoView) -> None:
    alert = message.content() if isinstance(message, FeedMessage) else None
    if isinstance(alert, Alert) and alert.id not in fired:
        fired[alert.id] = alert
        view.show_line(alert_line(alert))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class DemoView:
    """Plain lines; what is shown where the output is no terminal."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self.console = console()
        self._printed_s = 0.0

    def __enter__(self) -> DemoView:
        self.console.print("demo: starting capture, worker and alerts", soft_wrap=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def show_health(self, health: Health) -> None:
        audio_s = health.audio_s or 0.0
        if audio_s - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = audio_s
            level = level_text(health.level_dbfs)
            self.console.print(f"demo: {audio_s:.0f} of {self.duration_s:.0f} s, {level}")

    def show_line(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


class LiveDemoView(DemoView):
    """Redrawn in place."""

    def __init__(self, duration_s: float) -> None:
        super().__init__(duration_s)
        self._live = Live(
            console=self.console, refresh_per_second=8, transient=True, redirect_stdout=False
        )
        self._health: Health | None = None
        self._lines: deque[str] = deque(maxlen=LINES_SHOWN)

    def __enter__(self) -> DemoView:
        self._live.start()
        self._draw()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show_health(self, health: Health) -> None:
        self._health = health
        self._draw()

    def show_line(self, line: str) -> None:
        self._lines.append(line)
        self._draw()

    def _draw(self) -> None:
        health = self._health
        audio_s = (None if health is None else health.audio_s) or 0.0
        state = "starting" if health is None else health.state
        shown = Group(
            Text(f"generated scene, {audio_s:4.0f} of {self.duration_s:.0f} s, {state}"),
            ProgressBar(total=self.duration_s, completed=min(audio_s, self.duration_s)),
            level_bar(None if health is None else health.level_dbfs),
            Text("\n".join(self._lines)),
        )
        self._live.update(shown)


def event_line(event: EventMessage) -> str:
    sample = event.onset_sample if event.type == "begin" else event.offset_sample
    at_s = samples_to_seconds(sample or 0)
    return f"{at_s:7.2f} s  {event.type:<5}  {event.label:<32} peak {event.peak:.2f}"


def alert_line(alert: Alert) -> str:
    summary = alert.annotations.get("summary", "")
    return f"    alert  {alert.severity:<6} {alert.rule}: {summary}"


def report_table(report: DemoReport) -> Table:
    """Return planted against detected, one row for each planted sound."""
    table = Table(title="planted against detected", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("sound", max_width=24, no_wrap=True)
    for heading in ("planted at", "detected", "error", "peak", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        found, error_s, latency = row.detected, row.onset_error_s, row.latency
        cells: list[str | Text] = [Text("missed", style="red")]
        if found is not None and error_s is not None and latency is not None:
            cells = [f"{found.onset_s:.2f} s", f"{error_s:+.2f} s", f"{found.last.peak:.2f}"]
            cells.append(f"{latency['onset_to_published']:.2f} s")
        table.add_row(row.planted.label, f"{row.planted.onset_s:.2f} s", *cells)
    return table


def summary(report: DemoReport) -> str:
    lines = [f"{report.n_found} of {len(report.rows)} planted sounds found"]
    latency = report.latency_summary()
    if latency:
        total = latency["onset_to_published"]
        lines[0] += f"; onset to published: median {total['p50']:.2f} s, p95 {total['p95']:.2f} s"
        parts = (f"{name} {values['p50']:.3f} s" for name, values in latency.items())
        lines.append("medians: " + ", ".join(parts))
    lines += [
        f"also heard: {detected.begin.label} at {detected.onset_s:.1f} s, which was not planted"
        for detected in report.extra
    ]
    return "\n".join(lines)


@dataclass
class DetectedEvent:
    """One event as published: its first and its latest message; times from the scene's start."""

    begin: EventMessage
    last: EventMessage

    @property
    def onset_s(self) -> float:
        return samples_to_seconds(self.begin.onset_sample or 0)

    @property
    def offset_s(self) -> float | None:
        sample = self.last.offset_sample
        return None if sample is None else samples_to_seconds(sample)


@dataclass(frozen=True)
class PlantedSound:
    """One planted sound and the event that found it, if any."""

    planted: ReferenceEvent
    detected: DetectedEvent | None

    @property
    def onset_error_s(self) -> float | None:
        """Detected minus planted onset."""
        return None if self.detected is None else self.detected.onset_s - self.planted.onset_s

    @property
    def latency(self) -> dict[str, float] | None:
        """Seconds from the sound's onset to its `begin` message, and of the parts of that.

        Decided: audio that had to be heard until a window was sure; scored: from the capture of
        that window's end to its scores; published: from these to the feed.
        """
        begin = None if self.detected is None else self.detected.begin
        if begin is None or begin.at_sample is None:
            return None
        if begin.scored_ns is None or begin.published_ns is None:
            return None
        parts = {
            "decided": samples_to_seconds(begin.at_sample) - self.planted.onset_s,
            "scored": (begin.scored_ns - begin.captured_ns) / NS_PER_SECOND,
            "published": (begin.published_ns - begin.scored_ns) / NS_PER_SECOND,
        }
        return {"onset_to_published": sum(parts.values()), **parts}

    def to_json(self) -> dict[str, Any]:
        detected = self.detected
        return {
            "label": self.planted.label,
            "onset_s": round(self.planted.onset_s, 3),
            "offset_s": round(self.planted.offset_s, 3),
            "detected_onset_s": _rounded(None if detected is None else detected.onset_s),
            "detected_offset_s": _rounded(None if detected is None else detected.offset_s),
            "onset_error_s": _rounded(self.onset_error_s),
            "peak": None if detected is None else detected.last.peak,
        }


@dataclass(frozen=True)
class DemoReport:
    """All planted sounds, and the events that belong to none of them."""

    rows: list[PlantedSound]
    extra: list[DetectedEvent]

    @property
    def n_found(self) -> int:
        return sum(row.detected is not None for row in self.rows)

    @property
    def is_complete(self) -> bool:
        return self.n_found == len(self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "planted": len(self.rows),
            "found": self.n_found,
            "extra": [
                {"label": detected.begin.label, "onset_s": round(detected.onset_s, 3)}
                for detected in self.extra
            ],
            "sounds": [row.to_json() for row in self.rows],
            "latency_s": self.latency_summary(),
        }

    def latency_summary(self) -> dict[str, dict[str, float]]:
        """Return p50 and p95 of onset to publish and of its parts, in seconds."""
        found = [row.latency for row in self.rows if row.latency is not None]
        return (
            {name: _percentiles([delays[name] for delays in found]) for name in found[0]}
            if found
            else {}
        )


def compare(planted: list[ReferenceEvent], detected: list[DetectedEvent]) -> DemoReport:
    """Match each planted sound with the first unmatched event of its class that overlaps it.

    Others that overlap it are parts of the same sound: beeps with pauses may be several events.
    """
    rest = sorted(detected, key=lambda event: event.onset_s)
    rows = []
    for sound in planted:
        found = next((event for event in rest if _overlaps(sound, event)), None)
        if found is not None:
            rest.remove(found)
        rows.append(PlantedSound(sound, found))
    extra = [event for event in rest if not any(_overlaps(sound, event) for sound in planted)]
    return DemoReport(rows, extra)


def _overlaps(sound: ReferenceEvent, detected: DetectedEvent) -> bool:
    offset_s = detected.onset_s if detected.offset_s is None else detected.offset_s
    return (
        detected.begin.label == sound.label
        and detected.onset_s <= sound.offset_s + TOLERANCE_S
        and offset_s >= sound.onset_s - TOLERANCE_S
    )


def _percentiles(values: list[float]) -> dict[str, float]:
    p95 = quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
    return {"p50": round(median(values), 3), "p95": round(p95, 3)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
