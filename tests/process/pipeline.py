"""Run real capture and worker processes of one configuration, and read what they published."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile
from forked_command import ForkedCommand

from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import FeedMessage
from ast_stream.messages.query import ReplayPage
from ast_stream.transport.event_log import EventLog
from ast_stream.units import SAMPLE_RATE

Body = dict[str, Any]
PATIENCE_S = 120.0  # far beyond what a loaded machine needs


class Pipeline:
    """Processes of one configuration in a folder of their own."""

    def __init__(self, checkpoint: Path | str, streams: dict[str, Body], **sections: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="asp-", dir="/tmp"))  # ipc paths are short
        self.config = self.folder / "config.yaml"
        for source in streams.values():
            if source["type"] == "file":
                source["path"] = str(self.folder / source.get("path", "audio.wav"))
        wire = sections.pop("wire", {})
        model = {"device": "cpu", "precision": "fp32", "attention": "math", "hop_s": 0.25}
        settings = {
            "runtime_dir": str(self.folder / "run"),
            "state_dir": str(self.folder / "state"),
            "streams": [
                {"name": name, "source": options, "wire": wire} for name, options in streams.items()
            ],
            "model": {"checkpoint": str(checkpoint)} | model | sections.pop("model", {}),
        }
        self.config.write_text(json.dumps(settings | sections))  # JSON is YAML
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.env: dict[str, str] = {}

    @property
    def feed(self) -> str:
        """Endpoint of the feed."""
        return f"ipc://{self.folder}/run/feed.sock"

    def write_audio(self, pcm: Pcm16, name: str = "audio.wav", rate: int = SAMPLE_RATE) -> Path:
        """Write a recording into the folder."""
        path = self.folder / name
        soundfile.write(path, pcm, rate, subtype="PCM_16")
        return path

    def start(
        self, name: str, *args: str, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a sub-command as the process `name`; its stderr goes to a file.

        It is a fork, unless something is to be loaded into it, or it starts processes itself, or
        reads what the test writes.
        """
        path = self.folder / f"{name}.log"
        if not self.env and args[0] != "run" and stdin == subprocess.DEVNULL:
            command = ForkedCommand([*args, "--config", self.config], path)
            self.processes[name] = command
            return command
        log = path.open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "ast_stream.cli", *args, "--config", str(self.config)],
            stderr=log,
            stdout=log,
            stdin=stdin,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.env},
        )
        log.close()
        return self.processes[name]

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start the worker."""
        return self.start("worker", "worker")

    def start_capture(self, stream: str) -> subprocess.Popen[bytes]:
        """Start the capture process of `stream`."""
        return self.start(f"capture-{stream}", "capture", "--stream", stream)

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> int:
        """End a process with SIGTERM and return its exit code."""
        self.processes[name].send_signal(signal.SIGTERM)
        return self.wait(name)

    def wait(self, name: str) -> int:
        """Wait until a process ends by itself and return its exit code."""
        code = self.processes[name].wait(PATIENCE_S)
        del self.processes[name]  # one that does not end is killed by `close`
        return code

    def log(self, name: str) -> str:
        """Return what a process has written."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def ended_events(self) -> set[str]:
        """Return the ids of the events that workers, which may run, have logged the ends of."""
        found = set()
        for path in (self.folder / "state").rglob("events-*.jsonl"):
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # without a line that is being written
            messages = map(FeedMessage.decode_line, whole.splitlines(keepends=True))
            found |= {one.body["id"] for one in messages if one.body.get("type") == "end"}
        return found

    def published(self) -> list[tuple[str, Body]]:
        """Return topic and body of all durable messages; the worker must have ended."""
        event_log = EventLog(self.folder / "state" / "events")
        messages: list[tuple[str, Body]] = []
        after = None
        while True:
            page = event_log.replay(after)
            assert isinstance(page, ReplayPage)
            messages += [(message.topic, message.body) for message in page.messages]
            if not page.more:
                break
            after = page.messages[-1].position
        event_log.close()
        return messages

    def close(self) -> None:
        """Kill what still runs and remove the folder."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def pipeline(
    checkpoint: Path | str, streams: dict[str, Body], **sections: Any
) -> Iterator[Pipeline]:
    """Yield a pipeline of sources by stream name that is gone afterwards."""
    running = Pipeline(checkpoint, streams, **sections)
    try:
        yield running
    finally:
        running.close()


def wait_for(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds; fail naming `what` if it never does."""
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.02)


def essence(body: Body) -> tuple[Any, ...]:
    """Return what must be equal between two runs: all but ids, times of day and boots."""
    return (
        body["at_sample"],
        body["type"],
        body["label"],
        body["onset_sample"],
        body["offset_sample"],
        body["reason"],
        body["score"],
        body["peak"],
        body["mean"],
        body["uncertainty_s"],
        body.get("watcher_score"),
    )


def events_of(messages: list[tuple[str, Body]], stream: str) -> list[tuple[Any, ...]]:
    """Return the essence of all event messages of a stream, in order of decision."""
    return [
        essence(body)
        for topic, body in messages
        if topic.startswith("event/") and body["stream"] == stream
    ]
