"""Make the pictures of the page in docs/images/, from real processes that hear generated scenes.

    .venv/bin/python scripts/make_screenshots.py        # takes about two minutes; needs chromium

The days before are made up, with fixed seeds: events, gaps and hours in which nobody listened are
written into the history and the coverage ledger as the recorder and the worker would.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.coverage.spans import Kind, Span
from ast_stream.history.database import History
from ast_stream.labels import slug
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import EventMessage, FeedMessage, Stamp
from ast_stream.settings.load import load_settings
from ast_stream.settings.storage import coverage_ledger, history_database, unwritten_coverage
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, seconds_to_ns

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SIZES = {1440: 900, 390: 844}  # width: height, in pixels
STREAMS = ("hall", "porch")
PORT = 8765
DAYS = 13
DAY_S = 86_400
LIVE_S = 45.0  # of the scenes before the pictures are taken
QUALITY = 82
# label: events a day, the hour around which they are, hours of spread
HABITS = {
    "Bark": (14, 17.0, 3.0),
    "Knock": (3, 13.0, 3.5),
    "Baby cry, infant cry": (5, 4.0, 2.5),
    "Siren": (4, 12.0, 6.0),
    "Smoke detector, smoke alarm": (0.3, 18.0, 1.0),
    "Shatter": (0.5, 20.0, 2.0),
}
RULES = """version: 1
groups:
  - name: home
    rules:
      - alert: smoke_alarm
        match: {class: "Smoke detector, smoke alarm"}
        severity: critical
        actions: []
        annotations: {summary: "Smoke alarm on {{ stream.name }}"}
      - alert: siren
        match: {class: Siren}
        severity: medium
        actions: []
        annotations: {summary: "Siren on {{ stream.name }}"}
"""


def main() -> None:
    """Make all pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("make_screenshots: needs the Debian package chromium")
    folder = Path(tempfile.mkdtemp(prefix="shots-", dir="/tmp"))  # ipc paths are short
    try:
        config = write_configuration(folder)
        make_past(config)
        run = [sys.executable, "-m", "ast_stream.cli", "run", "-c", str(config)]
        process = subprocess.Popen(run, env=os.environ | {"OMP_NUM_THREADS": "2"})
        try:
            wait_for_page(process)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox"]
                )
                for width, height in SIZES.items():
                    context = browser.new_context(
                        base_url=f"http://127.0.0.1:{PORT}",
                        viewport={"width": width, "height": height},
                        color_scheme="light" if width > 1000 else "dark",
                    )
                    take_pictures(context.new_page(), width)
                    context.close()
                browser.close()
        finally:
            process.terminate()
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_configuration(folder: Path) -> Path:
    """Write the configuration of a box with two streams and a page."""
    (folder / "rules.yaml").write_text(RULES)
    streams = [
        {"name": name, "source": {"type": "scene", "seed": seed, "duration_s": 600}}
        for seed, name in enumerate(STREAMS, 3)
    ]
    settings = {
        "version": 1,
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "streams": streams,
        "alerts": {"rules": ["rules.yaml"]},
        "recorder": {},
        "web": {"listen": f"127.0.0.1:{PORT}"},
        "logging": {"level": "warning"},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    return config


def make_past(config: Path) -> None:
    """Write what the days before could have been."""
    settings = load_settings(config)
    now_ns = time.time_ns()
    rng = np.random.default_rng(7)
    spans = {stream: past_spans(rng, stream, now_ns) for stream in STREAMS}
    with History(history_database(settings).path) as history:
        history.add_messages(past_events(rng, now_ns, spans))
    Path(settings.runtime_dir or "").mkdir(parents=True, exist_ok=True)
    ledger = CoverageLedger(coverage_ledger(settings).folder, unwritten_coverage(settings).path)
    for of_stream in spans.values():
        for span in of_stream:
            ledger.add(span)
    ledger.close()


def past_events(
    rng: np.random.Generator, now_ns: int, spans: dict[str, list[Span]]
) -> list[FeedMessage]:
    """Return the ends of the events of the days before, oldest first."""
    found = []
    midnight_ns = now_ns // (DAY_S * NS_PER_SECOND) * DAY_S * NS_PER_SECOND
    for day in range(-DAYS, 1):
        for label, (n_mean, hour, spread) in HABITS.items():
            for _ in range(rng.poisson(n_mean)):
                hours = float(rng.normal(hour, spread)) % 24
                onset_ns = midnight_ns + seconds_to_ns(day * DAY_S + hours * 3600)
                duration_s = float(rng.gamma(2.0, 1.5)) + 0.3
                if onset_ns + seconds_to_ns(duration_s) < now_ns - seconds_to_ns(600):
                    found.append(ended(rng, label, onset_ns, duration_s))
    found = [event for event in found if was_heard(event, spans[event.stream])]
    found.sort(key=lambda event: event.onset_ns)
    return [
        FeedMessage.of(event, Stamp("past", seq, Moment(event.captured_ns, 0), previous=seq - 1))
        for seq, event in enumerate(found, 1)
    ]


def ended(rng: np.random.Generator, label: str, onset_ns: int, duration_s: float) -> EventMessage:
    """Return the end of one event."""
    onset = (onset_ns - onset_ns // (DAY_S * NS_PER_SECOND) * DAY_S * NS_PER_SECOND) // 62_500
    offset = onset + round(duration_s * SAMPLE_RATE)
    peak = round(float(rng.uniform(0.55, 0.99)), 4)
    return EventMessage(
        id=f"past{onset_ns:x}{slug(label)}",
        type="end",
        stream=STREAMS[int(rng.integers(len(STREAMS)))],
        class_=slug(label),
        label=label,
        score=peak,
        peak=peak,
        mean=round(peak * 0.8, 4),
        onset_ns=onset_ns,
        offset_ns=onset_ns + seconds_to_ns(duration_s),
        duration_s=round(duration_s, 3),
        uncertainty_s=0.25,
        onset_sample=onset,
        offset_sample=offset,
        at_sample=offset,
        epoch="past",
        reason="quiet",
        captured_ns=onset_ns + seconds_to_ns(duration_s + 1.0),
    )


def was_heard(event: EventMessage, spans: list[Span]) -> bool:
    """Return whether the stream was listened to then; before its first span it was."""
    during = [span for span in spans if span.time_ns <= event.onset_ns < span.stop_ns]
    return event.onset_ns < spans[0].time_ns or any(one.kind == "listened" for one in during)


def past_spans(rng: np.random.Generator, stream: str, now_ns: int) -> list[Span]:
    """Return three days of a stream that was not always listened to."""
    found: list[Span] = []
    at_ns = now_ns - seconds_to_ns(3 * DAY_S)
    sample = 0
    while at_ns < now_ns - seconds_to_ns(900):
        kinds: list[tuple[Kind, float, str | None]] = [
            ("listened", float(rng.uniform(2, 6)) * 3600, None),
            ("gap", float(rng.uniform(1, 60)), "overflow"),
            ("listened", float(rng.uniform(1, 5)) * 3600, None),
            ("degraded", float(rng.uniform(200, 2000)), None),
            ("missing", float(rng.uniform(300, 5000)), "device_lost"),
        ]
        for kind, length_s, reason in kinds:
            samples = round(length_s * SAMPLE_RATE)
            found.append(
                Span(
                    stream=stream,
                    epoch="past",
                    kind=kind,
                    start_sample=sample,
                    samples=samples,
                    time_ns=at_ns,
                    reason=reason,
                )
            )
            sample += samples
            at_ns += seconds_to_ns(length_s)
    return [span for span in found if span.stop_ns < now_ns]


def wait_for_page(process: subprocess.Popen[bytes]) -> None:
    """Return when the page answers."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/alive", timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    sys.exit("make_screenshots: the page does not answer")


def take_pictures(page: Page, width: int) -> None:
    """Take a picture of each page."""
    page.goto("/")
    page.wait_for_selector("#happened [data-type='end'][data-shown-ms]", timeout=120_000)
    page.wait_for_timeout(LIVE_S * 1000 if width == max(SIZES) else 13_000)
    save(page, "now", width)
    page.goto("/events?clip=1")
    page.locator("#rows th a").last.click()  # its scores are written by now
    page.wait_for_selector("#wave[data-ready=true]")
    page.wait_for_selector("#scores[data-points]")
    page.wait_for_timeout(1000)
    save(page, "event", width)
    page.goto("/timeline")
    page.click("a[rel=prev]")
    save(page, "timeline", width)


def save(page: Page, name: str, width: int) -> None:
    """Write what is on the screen as WebP."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}-{width}.webp"
    Image.open(io.BytesIO(page.screenshot())).save(path, quality=QUALITY, method=6)
    print(f"{path.relative_to(IMAGES.parent.parent)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
