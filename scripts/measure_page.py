"""Measure what open pages cost a worker, and how late an event is on one.

    .venv/bin/python scripts/measure_page.py        # takes about two minutes; needs chromium

A scene is heard by real processes. Meanwhile no page, one and twenty are open (their connections:
an event stream and a WebSocket each), then one in Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from playwright.sync_api import sync_playwright
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ast_stream.units import parse_time

PORT = 8766
STREAM = "hall"
PHASE_S = 20.0
PAGES = (0, 1, 20)
SLOWER = 4
PROCESSES = ("worker", "capture", "record", "web")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class OpenPage:
    """The two connections of an open page, read as a browser does.

    Attributes:
        delays_ms: of the events that came, since they were published.
        n_bytes: of pictures that came.
    """

    def __init__(self) -> None:
        self.delays_ms: list[float] = []
        self.n_bytes = 0
        self._stream = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/live/events", timeout=60)
        origin = f"http://127.0.0.1:{PORT}"
        connection = connect(
            f"ws://127.0.0.1:{PORT}/live/pictures", additional_headers={"Origin": origin}
        )
        self._closing = ExitStack()
        self._socket = self._closing.enter_context(connection)
        self._socket.send(json.dumps({"streams": [STREAM]}))
        self._threads = [
            threading.Thread(target=read, daemon=True)
            for read in (self._read_events, self._read_pictures)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Go away."""
        self._closing.close()

    def _read_events(self) -> None:
        kind = ""
        with suppress(OSError, ValueError):
            for line in self._stream:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "event":
                    late_ns = time.time_ns() - parse_time(json.loads(value)["published"])
                    self.delays_ms.append(late_ns / 1e6)

    def _read_pictures(self) -> None:
        with suppress(OSError, ConnectionClosed):
            for message in self._socket:
                self.n_bytes += len(message)


def main() -> None:
    """Print the figures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("measure_page: needs the Debian package chromium")
    folder = Path(tempfile.mkdtemp(prefix="page-", dir="/tmp"))  # ipc paths are short
    try:
        with box(folder) as pids:
            for n_pages in PAGES:
                measure_phase(n_pages, pids)
            delays_ms = delays_in(chromium)
            print(
                f"in Chromium: an event is on the page {described(delays_ms)} after it is published"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def box(folder: Path) -> Iterator[dict[str, int]]:
    """Run all processes; give their ids by name as soon as the page answers."""
    source = {"type": "scene", "seed": 3, "duration_s": 600}
    settings = {
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "streams": [{"name": STREAM, "source": source}],
        "recorder": {},
        "web": {"listen": f"127.0.0.1:{PORT}"},
        "logging": {"level": "warning"},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "ast_stream.cli"]
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in PROCESSES:
            running[name] = subprocess.Popen(
                [*command, name, "-c", str(config)], env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        end_s = time.monotonic() + 60
        while not is_alive():
            if time.monotonic() > end_s:
                sys.exit("measure_page: the page does not answer")
            time.sleep(0.2)
        time.sleep(10)  # until all have started
        yield {name: process.pid for name, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()
            process.wait(30)


def is_alive() -> bool:
    """Return whether the page answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/alive", timeout=5):
            return True
    except urllib.error.URLError:
        return False


def measure_phase(n_pages: int, pids: dict[str, int]) -> None:
    """Print what some open pages cost."""
    with ExitStack() as closing:
        pages = [OpenPage() for _ in range(n_pages)]
        for page in pages:
            closing.callback(page.close)
        time.sleep(2)
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        n_bytes = sum(page.n_bytes for page in pages)
        time.sleep(PHASE_S)
        shares = {name: 100 * (cpu_s(pid) - before[name]) / PHASE_S for name, pid in pids.items()}
        rate = (sum(page.n_bytes for page in pages) - n_bytes) / PHASE_S / max(1, n_pages)
        delays_ms = [delay for page in pages for delay in page.delays_ms]
    costs = ", ".join(f"{name} {shares[name]:.1f} %" for name in ("worker", "web"))
    more = f"; {rate / 1000:.1f} kB/s each; events {described(delays_ms)} late" if pages else ""
    print(f"{n_pages} open pages: {costs} of a core{more}", flush=True)


def delays_in(chromium: str) -> list[float]:
    """Return how long after their publication events were on a page, milliseconds."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(base_url=f"http://127.0.0.1:{PORT}")
        slow = page.context.new_cdp_session(page)
        slow.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        for path in ("/", "/timeline", "/events"):
            page.goto(path, wait_until="load")
            load_ms = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
            print(f"in Chromium, {SLOWER} times as slow: {path} loads in {load_ms:.0f} ms")
        slow.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        page.goto("/")
        page.wait_for_timeout(2 * PHASE_S * 1000)
        found: list[float] = page.evaluate(
            """() => [...document.querySelectorAll("#happened li[data-shown-ms]")]
                .filter((line) => line.dataset.begunMs)
                .map((line) => Number(line.dataset.shownMs) - Number(line.dataset.begunMs))"""
        )
        browser.close()
    return found


def described(values_ms: Sequence[float]) -> str:
    """Return median and largest of some durations."""
    if not values_ms:
        return "(no events)"
    median = statistics.median(values_ms)
    return f"{median:.0f} ms (median of {len(values_ms)}; at most {max(values_ms):.0f} ms)"


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


if __name__ == "__main__":
    main()
