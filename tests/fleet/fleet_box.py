"""One box of a fleet: all processes of `ast-stream run`, with a folder and network of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from network import Link
from processes import processes_of
from reactive_model import tones_and_noise
from wall_clocks import WallClocks

from ast_stream.alerts.alert_rows import AlertRows
from ast_stream.messages.event import FeedMessage, Identity
from ast_stream.units import SAMPLE_RATE

Body = dict[str, Any]

SITE = "farm"
SCENE_S = 60.0  # then it begins again
RING_S = 10.0  # a worker that is stopped for longer leaves gaps
STOP_S = 60.0
_READY = ("ready: model", "ready: forwards as")
PROCESSES = ("worker", "capture", "alerts", "forward")


@dataclass(frozen=True)
class Logged:
    """A durable message in the files of a box: what the first with its identity says."""

    kind: str
    identity: Identity
    body: Body


class FleetBox:
    """A box that plays scenes in real time, hears sounds in them all the time, and forwards them.

    Args:
        name: of the box in its site.
        checkpoint: a model whose scores go up and down with the scenes.
        output: settings of the output to the centre.
        has_clocks: the wall clocks of its processes can be set.
        url: of one more stream, which stalls now and then; None: there is none.
    """

    def __init__(
        self,
        name: str,
        n_streams: int,
        checkpoint: Path,
        link: Link,
        output: Body,
        *,
        has_clocks: bool = False,
        url: str | None = None,
    ) -> None:
        self.name = name
        self.link = link
        self.folder = Path(tempfile.mkdtemp(prefix="asf-", dir="/tmp"))  # ipc paths are short
        self.config = self.folder / "config.yaml"
        self.clocks = WallClocks(self.folder / "clocks", list(PROCESSES)) if has_clocks else None
        streams = [f"mic-{n}" for n in range(n_streams)]
        for n, stream in enumerate(streams):
            scene = tones_and_noise(SCENE_S, seed=100 * sum(map(ord, name)) + n)
            soundfile.write(self.folder / f"{stream}.wav", scene, SAMPLE_RATE, subtype="PCM_16")
        rule = {"alert": "tone", "match": {"class": ["Siren"]}, "cooldown": "20s"}
        rules = {"version": 1, "groups": [{"name": "fleet", "rules": [rule]}]}
        (self.folder / "rules.yaml").write_text(json.dumps(rules))
        settings = {
            "runtime_dir": str(self.folder / "run"),
            "state_dir": str(self.folder / "state"),
            "streams": [
                {"name": name, "source": source, "ring_s": RING_S}
                for name, source in _sources(streams, url).items()
            ],
            "model": {
                "checkpoint": str(checkpoint), "device": "cpu", "precision": "fp32",
                "attention": "math", "hop_s": 0.5,
            },
            "alerts": {"rules": ["rules.yaml"]},
            "fleet": {"site": SITE, "box": name},
            "forward": [output],
        }  # fmt: skip
        self.config.write_text(json.dumps(settings))  # JSON is YAML
        self.kills = 0
        # of files that are lost by now, too: what was in them may have been published again
        self.recorded: dict[Identity, list[Logged]] = {}
        self.lost_sources: set[str] = set()  # of which files were lost
        self._read: dict[Path, int] = {}
        self._n_ready: list[int] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all processes."""
        self._start("run")

    def kill(self, process: str) -> bool:
        """Kill a process by its command, and return whether it was there."""
        for pid, line in processes_of(self.config).items():
            if process in line.split("\0"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += process == "forward"
                    return True
        return False

    def pause(self, process: str, seconds: float) -> None:
        """Stop a process for a while, as a machine does that has no memory left."""
        for pid, line in processes_of(self.config).items():
            if process in line.split("\0"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(seconds)
                    os.kill(pid, signal.SIGCONT)

    def lose(self, source: str, process: str, *patterns: str) -> None:
        """Delete files of a process as a broken disk would, and end it before it writes again."""
        self.lost_sources.add(source)
        for pid, line in processes_of(self.config).items():
            if process in line.split("\0"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self.record()
                    for pattern in patterns:
                        for file in (self.folder / "state").glob(pattern):
                            file.unlink()
                            self._read.pop(file, None)
                    os.kill(pid, signal.SIGKILL)

    def record(self) -> None:
        """Take note of what the files have by now, each identity once."""
        for file in sorted((self.folder / "state" / "events").glob("*.jsonl")):
            content = file.read_bytes()
            begin = self._read.get(file, 0)
            end = content.rfind(b"\n") + 1
            self._read[file] = max(begin, end)
            for line in content[begin:end].splitlines(keepends=True):
                message = FeedMessage.decode_line(line)
                if message.identity is not None:
                    self._note(_logged(message))
        for logged in self._alerted():
            self._note(logged)

    def _note(self, logged: Logged) -> None:
        versions = self.recorded.setdefault(logged.identity, [])
        if logged not in versions:
            versions.append(logged)

    def stop(self) -> None:
        """Stop all processes in order, as an operator would."""
        self._stop("run")

    def start_to_deliver(self) -> None:
        """Start what sends the rest: without captures there is nothing new to hear.

        A worker that was killed closes the events that it left open, so that the log may grow.
        """
        self._n_ready = [self.log.count(line) for line in _READY]
        self._start("worker")
        self._start("forward")

    @property
    def is_delivering(self) -> bool:
        """Whether both have begun."""
        now = [self.log.count(line) for line in _READY]
        return all(n > before for n, before in zip(now, self._n_ready, strict=True))

    def stop_to_deliver(self) -> None:
        """Stop that again."""
        self._stop("forward")
        self._stop("worker")

    def _alerted(self) -> Iterator[Logged]:
        """Yield the alerts of its database."""
        file = self.folder / "state" / "alerts.sqlite"
        rows = AlertRows(file)
        try:
            while found := rows.read():
                for message in found:
                    yield Logged("alert", alert_identity(message.body), message.body)
        finally:
            rows.close()

    @property
    def log(self) -> str:
        """What all processes have written."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """Kill what still runs and remove the folder."""
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for process in self._processes.values():
                stack.callback(process.wait)
                stack.callback(process.kill)
        end_s = time.monotonic() + STOP_S
        while processes_of(self.config) and time.monotonic() < end_s:
            time.sleep(0.05)  # children die with `run`

    def _start(self, command: str) -> None:
        clocks = self.clocks.environment if self.clocks is not None else {}
        with (self.folder / "log").open("ab") as log:
            self._processes[command] = subprocess.Popen(
                [
                    *self.link.prefix, sys.executable, "-m", "ast_stream.cli", command,
                    "-c", str(self.config),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **clocks},
            )  # fmt: skip

    def _stop(self, command: str) -> None:
        process = self._processes.pop(command)
        process.terminate()
        assert process.wait(STOP_S) == 0, f"{self.name}: {command}: {self.log[-2000:]}"


def alert_identity(body: Body) -> Identity:
    """Return what tells an alert from others of its box, also where a database was begun anew."""
    return "alert", body["id"], body["state"], str(body["seq"])


def _sources(files: list[str], url: str | None) -> dict[str, Body]:
    """Return the sources of all streams."""
    found: dict[str, Body] = {
        name: {"type": "file", "path": f"{name}.wav", "loop": True} for name in files
    }
    if url is not None:
        found["line"] = {"type": "url", "url": url, "read_timeout_s": 2.0, "open_timeout_s": 3.0}
    return found


def _logged(message: FeedMessage) -> Logged:
    assert message.identity is not None
    return Logged(message.kind, message.identity, message.body)
