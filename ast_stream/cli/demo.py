"""`ast-stream demo`: the whole pipeline on a generated scene, planted against detected."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ast_stream.alerts.model_facts import model_facts
from ast_stream.cli.terminal import console, level_bar, level_text, stacked
from ast_stream.errors import StartupError
from ast_stream.feed import FeedMessage, Missed, Subscriber
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import EventMessage
from ast_stream.messages.status import Health
from ast_stream.runtime.lifecycle import child_environment, stop_on_signals
from ast_stream.settings.explain import with_options
from ast_stream.settings.schema import ModelSettings
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.soundscape.scene import generate_scene
from ast_stream.units import NS_PER_SECOND, samples_to_seconds

STREAM = "demo"
MARGIN_S = 60.0  # beyond the scene: loading the model, last windows, shutdown
SHUTDOWN_S = 10.0
LOG_LINES_SHOWN = 15
ALARMS = ("Smoke detector, smoke alarm", "Siren")
TELEPHONES = ("Telephone bell ringing", "Telephone dialing, DTMF")
EVENTS_SHOWN = 8
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
        tempfile.TemporaryDirectory(prefix="ast-stream-demo-", dir="/tmp") as name,
    ):
        folder = Path(name)  # short: paths of sockets end at 107 bytes
        config = _write_configuration(folder, seed, duration, hop, model)
        with demo_view(duration) as view:
            detected, alerts = _run_pipeline(folder, config, view, stop.is_set, duration)
        if stop.is_set():
            raise typer.Exit(1)
    report = compare(truth, detected)
    if as_json:
        print(
            json.dumps(
                report.to_json() | {"alerts": [_alert_json(alert) for alert in alerts]}, indent=2
            )
        )
    else:
        console().print(report_table(report))
        console().print(summary(report), soft_wrap=True)
        for alert in alerts:
            console().print(alert_line(alert), soft_wrap=True)
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
        annotations = {"summary": "{{ label }} in the demo"}
        rule = {"alert": "alarm_sounding", "match": {"any_of": alarms}, "severity": "high"}
        rules.append(rule | {"annotations": annotations})
    if telephones := known(TELEPHONES):
        annotations = {"summary": "a telephone twice within 30 s"}
        rule = {"alert": "telephone_again", "match": {"any_of": telephones}, "severity": "low"}
        rules.append(rule | {"count": {"min": 2, "within": "30s"}, "annotations": annotations})
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
    command = [sys.executable, "-m", "ast_stream.cli", "run", "--config", str(config)]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            env=child_environment(),
        )
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
    if isinstance(message, Missed):
        return
    content = message.content()
    if isinstance(content, Health):
        view.show_health(content)
    elif isinstance(content, EventMessage):
        event = detected.setdefault(content.id, DetectedEvent.from_begin(content))
        event.update(content)
        if content.type != "update":
            view.show_event(content)


def _on_alert(message: FeedMessage | Missed, fired: dict[str, Alert], view: DemoView) -> None:
    alert = message.content() if isinstance(message, FeedMessage) else None
    if isinstance(alert, Alert) and alert.id not in fired:
        fired[alert.id] = alert
        view.show_alert(alert)


def _alert_json(alert: Alert) -> dict[str, Any]:
    body = alert.to_json()
    return {name: body[name] for name in ("rule", "severity", "annotations", "fired")}


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
        """Show the health of the stream."""
        audio_s = health.audio_s or 0.0
        if audio_s - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = audio_s
            level = level_text(health.level_dbfs)
            self.console.print(f"demo: {audio_s:.0f} of {self.duration_s:.0f} s, {level}")

    def show_event(self, event: EventMessage) -> None:
        """Show the begin or end of an event."""
        self.console.print(event_line(event), soft_wrap=True)

    def show_alert(self, alert: Alert) -> None:
        """Show an alert that has fired."""
        self.console.print(alert_line(alert), soft_wrap=True)


class LiveDemoView(DemoView):
    """Redrawn in place."""

    def __init__(self, duration_s: float) -> None:
        super().__init__(duration_s)
        self._live = Live(
            console=self.console, refresh_per_second=8, transient=True, redirect_stdout=False
        )
        self._health: Health | None = None
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)

    def __enter__(self) -> DemoView:
        self._live.start()
        self._draw()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show_health(self, health: Health) -> None:
        self._health = health
        self._draw()

    def show_event(self, event: EventMessage) -> None:
        self._events.append(event_line(event))
        self._draw()

    def show_alert(self, alert: Alert) -> None:
        self._events.append(alert_line(alert))
        self._draw()

    def _draw(self) -> None:
        health = self._health
        audio_s = (None if health is None else health.audio_s) or 0.0
        state = "starting" if health is None else health.state
        shown: list[RenderableType] = [
            Text(f"generated scene, {audio_s:4.0f} of {self.duration_s:.0f} s, {state}"),
            ProgressBar(total=self.duration_s, completed=min(audio_s, self.duration_s)),
            level_bar(None if health is None else health.level_dbfs),
            Text("\n".join(self._events)),
        ]
        self._live.update(stacked(*shown))


def demo_view(duration_s: float) -> DemoView:
    """Return the view that fits where the output goes."""
    return (LiveDemoView if sys.stderr.isatty() else DemoView)(duration_s)


def event_line(event: EventMessage) -> str:
    """Return one begin or end as a line."""
    sample = event.onset_sample if event.type == "begin" else event.offset_sample
    at_s = samples_to_seconds(sample or 0)
    return f"{at_s:7.2f} s  {event.type:<5}  {event.label:<32} peak {event.peak:.2f}"


def alert_line(alert: Alert) -> str:
    """Return an alert that has fired as a line."""
    summary = alert.annotations.get("summary", "")
    return f"    alert  {alert.severity:<6} {alert.rule}: {summary}"


def report_table(report: DemoReport) -> Table:
    """Return planted against detected, one row for each planted sound."""
    table = Table(title="planted against detected", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("sound", max_width=24, no_wrap=True)
    for heading in ("planted at", "detected", "error", "peak", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(row.planted.label, f"{row.planted.onset_s:.2f} s", *_found_cells(row))
    return table


def _found_cells(row: PlantedSound) -> list[str | Text]:
    error, latency = row.onset_error_s, row.latency
    if row.detected is None or error is None or latency is None:
        return [Text("missed", style="red"), "", "", ""]
    return [
        f"{row.detected.onset_s:.2f} s",
        f"{error:+.2f} s",
        f"{row.detected.peak:.2f}",
        f"{latency.total_s:.2f} s",
    ]


def summary(report: DemoReport) -> str:
    """Return the result in words."""
    lines = [f"{report.n_found} of {len(report.rows)} planted sounds found"]
    latency = report.latency_summary()
    if latency:
        total = latency["onset_to_published"]
        lines[0] += f"; onset to published: median {total['p50']:.2f} s, p95 {total['p95']:.2f} s"
        parts = (f"{name} {values['p50']:.3f} s" for name, values in latency.items())
        lines.append("medians: " + ", ".join(parts))
    lines += [
        f"also heard: {detected.label} at {detected.onset_s:.1f} s, which was not planted"
        for detected in report.extra
    ]
    return "\n".join(lines)


@dataclass
class DetectedEvent:
    """One event as published, times in seconds from the start of the scene."""

    id: str
    label: str
    onset_s: float
    offset_s: float | None
    peak: float
    begin: EventMessage

    @classmethod
    def from_begin(cls, begin: EventMessage) -> DetectedEvent:
        """Return the event that began with a message."""
        onset_s = samples_to_seconds(begin.onset_sample or 0)
        return cls(begin.id, begin.label, onset_s, None, begin.peak, begin)

    def update(self, message: EventMessage) -> None:
        """Apply a later message of the same event."""
        self.peak = message.peak
        if message.offset_sample is not None:
            self.offset_s = samples_to_seconds(message.offset_sample)


@dataclass(frozen=True)
class Latency:
    """Seconds from the sound's onset to its `begin` message, and where they went."""

    decided_s: float  # audio that had to be detected until a window was sure
    scored_s: float  # from capture of that window's end to its scores
    published_s: float  # from the scores to the feed

    @property
    def total_s(self) -> float:
        """Onset to publish."""
        return self.decided_s + self.scored_s + self.published_s


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
    def latency(self) -> Latency | None:
        """Where the time from onset to publish went."""
        if self.detected is None:
            return None
        begin = self.detected.begin
        if begin.scored_ns is None or begin.published_ns is None or begin.at_sample is None:
            return None
        return Latency(
            decided_s=samples_to_seconds(begin.at_sample) - self.planted.onset_s,
            scored_s=(begin.scored_ns - begin.captured_ns) / NS_PER_SECOND,
            published_s=(begin.published_ns - begin.scored_ns) / NS_PER_SECOND,
        )


@dataclass(frozen=True)
class DemoReport:
    """All planted sounds, and the events that belong to none of them."""

    rows: list[PlantedSound]
    extra: list[DetectedEvent]

    @property
    def n_found(self) -> int:
        """How many planted sounds were found."""
        return sum(row.detected is not None for row in self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether every planted sound was found."""
        return self.n_found == len(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "planted": len(self.rows),
            "found": self.n_found,
            "extra": [
                {"label": detected.label, "onset_s": round(detected.onset_s, 3)}
                for detected in self.extra
            ],
            "sounds": [_row_json(row) for row in self.rows],
            "latency_s": self.latency_summary(),
        }

    def latency_summary(self) -> dict[str, dict[str, float]]:
        """Return p50 and p95 of onset to publish and of its parts, in seconds."""
        found = [row.latency for row in self.rows if row.latency is not None]
        parts = {
            "onset_to_published": [latency.total_s for latency in found],
            "decided": [latency.decided_s for latency in found],
            "scored": [latency.scored_s for latency in found],
            "published": [latency.published_s for latency in found],
        }
        return {name: _percentiles(values) for name, values in parts.items() if values}


def compare(planted: list[ReferenceEvent], detected: list[DetectedEvent]) -> DemoReport:
    """Match each planted sound with the first unmatched event of its class that overlaps it."""
    rest = sorted(detected, key=lambda event: event.onset_s)
    rows = []
    for sound in planted:
        found = next((event for event in rest if _overlaps(sound, event)), None)
        if found is not None:
            rest.remove(found)
        rows.append(PlantedSound(sound, found))
    return DemoReport(rows, rest)


def _overlaps(sound: ReferenceEvent, detected: DetectedEvent) -> bool:
    offset_s = detected.onset_s if detected.offset_s is None else detected.offset_s
    return (
        detected.label == sound.label
        and detected.onset_s <= sound.offset_s + TOLERANCE_S
        and offset_s >= sound.onset_s - TOLERANCE_S
    )


def _percentiles(values: list[float]) -> dict[str, float]:
    p95 = quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
    return {"p50": round(median(values), 3), "p95": round(p95, 3)}


def _row_json(row: PlantedSound) -> dict[str, Any]:
    detected, error = row.detected, row.onset_error_s
    return {
        "label": row.planted.label,
        "onset_s": round(row.planted.onset_s, 3),
        "offset_s": round(row.planted.offset_s, 3),
        "detected_onset_s": None if detected is None else round(detected.onset_s, 3),
        "detected_offset_s": None
        if detected is None or detected.offset_s is None
        else round(detected.offset_s, 3),
        "onset_error_s": None if error is None else round(error, 3),
        "peak": None if detected is None else detected.peak,
    }
