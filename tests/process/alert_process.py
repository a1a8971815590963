"""The alerts process on a feed that a test publishes; as a script it kills itself on request.

python alert_process.py CONFIG POINT     # SIGKILL at the first crossing of POINT
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feed_worker import Worker
from forked_command import ForkedCommand
from http_receiver import HttpReceiver
from pipeline import PATIENCE_S, wait_for
from whole_files import write_whole

from ast_stream.alerts.process import run_alerts
from ast_stream.messages.event import EventMessage
from ast_stream.runtime.lifecycle import stop_on_signals
from ast_stream.settings.load import load_file
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time

BOTH = {"firing", "resolved"}
RULE = {"alert": "dog", "match": {"class": "Bark"}, "actions": ["hook"]}


class AlertProcess:
    """A configuration, a feed, and alerts processes on them."""

    def __init__(self, alerts: dict[str, Any], rules: list[dict[str, Any]]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="asa-", dir="/tmp"))  # ipc paths are short
        self.config, self.rules = self.folder / "config.yaml", self.folder / "rules.yaml"
        self.write_rules(rules)
        settings = {
            "runtime_dir": str(self.folder),
            "state_dir": str(self.folder / "state"),
            "streams": [{"name": "porch", "source": {"type": "stdin"}}],
            "alerts": {"rules": ["rules.yaml"]} | alerts,
        }
        self.config.write_text(json.dumps(settings))  # JSON is YAML
        self.worker = Worker(self.folder, "b1")
        self.process: subprocess.Popen[bytes] | None = None
        self._began_ns = self._now_ns = time.time_ns()

    @property
    def log(self) -> str:
        """What the processes have written."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def write_rules(self, rules: list[dict[str, Any]]) -> None:
        """Put rules into the file."""
        groups = [{"name": "test", "rules": rules}]
        write_whole(self.rules, json.dumps({"version": 1, "groups": groups}))

    def start(self, point: str | None = None) -> None:
        """Start the alerts process, to be killed at `point`."""
        if point is None:
            self.process = ForkedCommand(["alerts", "-c", self.config], self.folder / "log")
            return
        command = [sys.executable, __file__, str(self.config), point]
        root, helpers = Path(__file__).parents[2], Path(__file__).parents[1] / "support"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": f"{root}:{helpers}"},
            )

    def wait(self) -> int:
        """Return the exit code once the process has ended."""
        assert self.process is not None
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the process and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def publish(self, n: int, *kinds: str, stream: str = "porch", name: str = "bark") -> None:
        """Publish messages of event `n`, each half a second later than the one before."""
        for kind in kinds:
            self._now_ns += NS_PER_SECOND // 2
            self.worker.publish(self.event(n, kind, stream, name))

    def probe(self, n: int) -> None:
        """Publish begin and end of event `n` as of now: stream time is not ahead of the clock."""
        self._now_ns = max(self._now_ns + 1, time.time_ns())
        for kind in ("begin", "end"):
            self.worker.publish(self.event(n, kind))

    def close(self) -> None:
        """Kill what still runs and remove the folder."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.worker.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def event(self, n: int, kind: str, stream: str = "porch", name: str = "bark") -> EventMessage:
        """Return a message about event `n`, as of now."""
        at = format_time(self._now_ns)
        body = {
            "id": f"e{n}",
            "type": kind,
            "stream": stream,
            "labels": {},
            "class": name,
            "label": name.capitalize(),
            "score": 0.9,
            "peak": 0.9,
            "onset": format_time(self._now_ns - NS_PER_SECOND // 4),
            "offset": at if kind == "end" else None,
            "captured": at,
            # samples go on with the clock, else it would seem to have been set
            "at_sample": (self._now_ns - self._began_ns) * SAMPLE_RATE // NS_PER_SECOND,
            "epoch": "aaaaaaaa",
        }
        return EventMessage.from_json(body)


@contextmanager
def alert_process(alerts: dict[str, Any], rules: list[dict[str, Any]]) -> Iterator[AlertProcess]:
    """Yield a configuration with a feed that is gone afterwards."""
    running = AlertProcess(alerts, rules)
    try:
        yield running
    finally:
        running.close()


def hook(receiver: HttpReceiver, **options: Any) -> dict[str, Any]:
    action: dict[str, Any] = {
        "type": "webhook",
        "url": receiver.url,
        "allow_private": True,
        "timeout_s": 5,
    }
    action["rate_limit"] = {"max": 10_000, "per_s": 1}
    return {"actions": {"hook": action | {"on": ["firing", "resolved"]} | options}}


def begin(one: AlertProcess, receiver: HttpReceiver) -> None:
    """Start the process, and wait until it stands on the feed: an event has come through."""
    one.start()
    # before that, each probe would only move stream time further ahead of the clock
    wait_for(lambda: "ready: " in one.log, "the start")
    probes = itertools.count(1000)

    def came_through() -> bool:
        one.probe(next(probes))
        time.sleep(0.1)
        return any(body["data"]["kind"] == "resolved" for body in bodies(receiver))

    wait_for(came_through, "the first alert")
    last = next(probes)
    one.probe(last)

    def are_all_through() -> bool:
        """Whether nothing is on its way: an action has several threads, and each may be late."""
        first = min(n for n in range(1000, last + 1) if kinds_of(receiver, n))
        return all(kinds_of(receiver, n) == BOTH for n in range(first, last + 1))

    wait_for(are_all_through, "all probes")


def bodies(receiver: HttpReceiver) -> list[dict[str, Any]]:
    return [message.body for message in receiver.got]


def kinds_of(receiver: HttpReceiver, n: int, rule: str | None = None) -> set[str]:
    """Return the kinds of notifications delivered about the alert that event `n` caused."""
    kinds = set()
    for body in bodies(receiver):
        alert = body["data"]["alert"]
        if f"e{n}" in alert["events"] and rule in (None, alert["rule"]):
            kinds.add(body["data"]["kind"])
            kinds |= {"firing"} if body["data"]["combined"] else set()
    return kinds


def run_until(config: Path, point: str) -> None:
    """Run the service and die like by kill -9 where it crosses `point` first."""

    def fault(crossed: str) -> None:
        if crossed == point:
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()  # nothing may run on in this thread meanwhile

    with stop_on_signals() as stop:
        run_alerts(load_file(config), stop, fault)


if __name__ == "__main__":
    run_until(Path(sys.argv[1]), sys.argv[2])
