"""What `demo` shows while the scene plays: progress, level and the events as they come."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ast_stream.cli.demo_report import Report, Row
from ast_stream.cli.live import console, level_bar, level_text, stacked
from ast_stream.units import samples_to_seconds

EVENTS_SHOWN = 8
PLAIN_EVERY_S = 10.0


class DemoView:
    """Plain lines; what is shown where the output is no terminal."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self.console = console()
        self._said_s = 0.0

    def __enter__(self) -> DemoView:
        self.console.print("demo: starting capture, worker and alerts", soft_wrap=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def show_health(self, body: dict[str, Any]) -> None:
        """Take a health message of the stream."""
        audio_s = body["audio_s"] or 0.0
        if audio_s - self._said_s >= PLAIN_EVERY_S:
            self._said_s = audio_s
            level = level_text(body["level_dbfs"])
            self.console.print(f"demo: {audio_s:.0f} of {self.duration_s:.0f} s, {level}")

    def show_event(self, body: dict[str, Any]) -> None:
        """Take the begin or end of an event."""
        self.console.print(event_line(body), soft_wrap=True)

    def show_alert(self, body: dict[str, Any]) -> None:
        """Take an alert that has fired."""
        self.console.print(alert_line(body), soft_wrap=True)


class LiveDemoView(DemoView):
    """Redrawn in place."""

    def __init__(self, duration_s: float) -> None:
        super().__init__(duration_s)
        self._live = Live(
            console=self.console, refresh_per_second=8, transient=True, redirect_stdout=False
        )
        self._health: dict[str, Any] = {"state": "starting", "level_dbfs": None, "audio_s": None}
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)

    def __enter__(self) -> DemoView:
        self._live.start()
        self._draw()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show_health(self, body: dict[str, Any]) -> None:
        self._health = body
        self._draw()

    def show_event(self, body: dict[str, Any]) -> None:
        self._events.append(event_line(body))
        self._draw()

    def show_alert(self, body: dict[str, Any]) -> None:
        self._events.append(alert_line(body))
        self._draw()

    def _draw(self) -> None:
        audio_s = self._health["audio_s"] or 0.0
        shown: list[RenderableType] = [
            Text(
                f"generated scene, {audio_s:4.0f} of {self.duration_s:.0f} s, "
                f"{self._health['state']}"
            ),
            ProgressBar(total=self.duration_s, completed=min(audio_s, self.duration_s)),
            level_bar(self._health["level_dbfs"]),
            Text("\n".join(self._events)),
        ]
        self._live.update(stacked(*shown))


def demo_view(duration_s: float) -> DemoView:
    """Return the view that fits where the output goes."""
    return (LiveDemoView if sys.stderr.isatty() else DemoView)(duration_s)


def event_line(body: dict[str, Any]) -> str:
    """Return one begin or end as a line."""
    begins = body["type"] == "begin"
    sample = body["onset_sample"] if begins else body["offset_sample"]
    return (
        f"{samples_to_seconds(sample):7.2f} s  {body['type']:<5}  {body['label']:<32} "
        f"peak {body['peak']:.2f}"
    )


def alert_line(body: dict[str, Any]) -> str:
    """Return an alert that has fired as a line."""
    words = body["annotations"].get("summary", "")
    return f"    alert  {body['severity']:<6} {body['rule']}: {words}"


def report_table(report: Report) -> Table:
    """Return planted against detected, one row for each planted sound."""
    table = Table(title="planted against detected", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("sound", max_width=24, no_wrap=True)
    for heading in ("planted at", "detected", "error", "peak", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(row.planted.label, f"{row.planted.onset_s:.2f} s", *_found_cells(row))
    return table


def _found_cells(row: Row) -> list[str | Text]:
    error, latency = row.onset_error_s, row.latency
    if row.heard is None or error is None or latency is None:
        return [Text("missed", style="red"), "", "", ""]
    return [
        f"{row.heard.onset_s:.2f} s",
        f"{error:+.2f} s",
        f"{row.heard.peak:.2f}",
        f"{latency.total_s:.2f} s",
    ]


def summary(report: Report) -> str:
    """Return the result in words."""
    lines = [f"{report.n_found} of {len(report.rows)} planted sounds found"]
    latency = report.latency_summary()
    if latency:
        total = latency["onset_to_published"]
        lines[0] += f"; onset to published: median {total['p50']:.2f} s, p95 {total['p95']:.2f} s"
        parts = (f"{name} {values['p50']:.3f} s" for name, values in latency.items())
        lines.append("medians: " + ", ".join(parts))
    lines += [
        f"also heard: {heard.label} at {heard.onset_s:.1f} s, which was not planted"
        for heard in report.extra
    ]
    return "\n".join(lines)
