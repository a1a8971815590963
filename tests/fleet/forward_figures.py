"""Measure the forwarder: bytes on the wire, messages a second when it catches up, processor time.

    python tests/fleet/forward_figures.py --days 7 --events 2000

Publishes so many days of events into the log of a box without a model, each with a begin, some
updates and an end as a worker sends them, and lets a forwarder catch up with a real nats-server
through a proxy that counts. Then it is measured while nothing but an event now and then happens.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/support")]

from forward_box import ForwardBox, forward_box, nats_output, wait_until  # noqa: E402
from nats_server import nats_server  # noqa: E402
from sample_messages import event_message  # noqa: E402

from ast_stream.messages.event import EventMessage  # noqa: E402
from ast_stream.units import SAMPLE_RATE  # noqa: E402

PATIENCE_S = 900.0
LABELS = ("Bark", "Speech", "Siren", "Door", "Vehicle horn, car horn, honking")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CountingProxy:
    """Forwards connections to a port, and counts the bytes of both directions."""

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for pair, name in (((near, far), "up"), ((far, near), "down")):
                    threading.Thread(target=self._copy, args=(*pair, name), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, name: str) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                setattr(self, name, getattr(self, name) + len(data))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def day(n_events: int, n_updates: int, choose: random.Random) -> list[EventMessage]:
    """Return the messages of a day of events that begin, go on and end, one after the other."""
    found = []
    for _ in range(n_events):
        at, id = choose.randrange(24 * 3600 * SAMPLE_RATE), f"{choose.getrandbits(120):024x}"
        label = choose.choice(LABELS)
        kinds = ["begin", *["update"] * n_updates, "end"]
        for step, kind in enumerate(kinds):
            changes: dict[str, Any] = {
                "label": label,
                "labels": {"room": "porch"},
                "index": 74,
                "score": 0.8312,
                "peak": 0.9127,
                "uncertainty_s": 0.25,
                "onset_sample": at,
                "at_sample": at + step * SAMPLE_RATE,
                "epoch": "659d5a5122a4d2177af0d26ae1a6e8f4",
                "scored_ns": 1_700_000_000_000_000_000 + step,
                "model": f"sha256:{'2a5ab5978fa59876' * 4}",
            }
            if kind == "end":
                changes |= {"mean": 0.5127, "offset_ns": 1_700_000_004_000_000_000}
                changes |= {"duration_s": 4.0, "offset_sample": at + 4 * SAMPLE_RATE}
                changes["reason"] = "quiet"
            found.append(event_message(id, kind, **changes))
    return found


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def measure(folder: Path, days: int, n_events: int, n_updates: int, steady_s: float) -> Any:
    """Return the figures."""
    choose = random.Random(1)
    with nats_server(folder) as server:
        proxy = CountingProxy(server.port)
        with forward_box([nats_output(f"nats://127.0.0.1:{proxy.port}")]) as box:
            for _ in range(days):
                box.worker.publish(*day(n_events, n_updates, choose))
            bodies = sum(
                path.stat().st_size for path in (box.folder / "events").glob("events-*.jsonl")
            )
            n_messages = len(box.expected())
            began_s = time.monotonic()
            box.start()
            pid = box.process.pid if box.process is not None else 0
            wait_until(lambda: _is_behind(box), "the week", PATIENCE_S)
            took_s, used_s = time.monotonic() - began_s, cpu_s(pid)
            found = {
                "messages": n_messages,
                "log_bytes": bodies,
                "wire_up": proxy.up,
                "wire_down": proxy.down,
                "bytes_per_message": round((proxy.up + proxy.down) / n_messages),
                "catch_up_s": round(took_s, 1),
                "messages_per_s": round(n_messages / took_s),
                "cpu_s": round(used_s, 1),
                "cpu_ms_per_message": round(1000 * used_s / n_messages, 3),
            }
            up, down = proxy.up, proxy.down
            time.sleep(steady_s)
            idle_s = cpu_s(pid) - used_s
            idle_bytes = proxy.up + proxy.down - up - down
            found["idle_cpu_percent"] = round(100 * idle_s / steady_s, 2)
            found["idle_bytes_per_day"] = round(idle_bytes * 86_400 / steady_s)
            return found


def _is_behind(box: ForwardBox) -> bool:
    last = list(box.worker.publisher.durable_position)
    return bool(box.position().get("sources", {}).get("feed") == last)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--events", type=int, default=2000, help="a day")
    parser.add_argument("--updates", type=int, default=3, help="of each event")
    parser.add_argument("--steady", type=float, default=60.0, help="seconds of doing nothing")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asx-", dir="/tmp") as folder:
        numbers = (chosen.days, chosen.events, chosen.updates, chosen.steady)
        print(json.dumps(measure(Path(folder), *numbers)))


if __name__ == "__main__":
    main()
