"""A box that forwards: a feed that a test publishes, and forwarder processes that it may kill."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feed_worker import Worker
from forked_command import ForkedCommand
from sample_messages import event_message, gap_message

from ast_stream.forward.cloud_events import of_feed
from ast_stream.messages.event import EventMessage, FeedMessage, GapMessage
from ast_stream.settings.fleet import BoxIdentity

PATIENCE_S = 120.0  # far beyond what a loaded machine needs
STREAMS = ("porch", "yard")
LABELS = ("Bark", "Siren", "Speech", "Baby cry, infant cry")
Key = tuple[str, str]


class ForwardBox:
    """One box, without audio and model, in a folder of its own.

    Args:
        outputs: the section `forward`.
        settings: other sections.
    """

    def __init__(
        self,
        outputs: list[dict[str, Any]],
        *,
        site: str = "home",
        box: str = "attic",
        **settings: Any,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="asf-", dir="/tmp"))  # ipc paths are short
        self.identity = BoxIdentity(site, box)
        self.config = self.folder / "config.yaml"
        self.settings: dict[str, Any] = {
            "runtime_dir": str(self.folder),
            "state_dir": str(self.folder),
            "streams": [{"name": name, "source": {"type": "stdin"}} for name in STREAMS[:1]],
            "fleet": {"site": site, "box": box},
            "forward": outputs,
        } | settings
        self.write()
        self.worker = Worker(self.folder, "boot1")
        self.process: subprocess.Popen[bytes] | None = None
        self.kills = 0
        self._n = 0
        self._random = random.Random(f"{site}/{box}")

    @property
    def log(self) -> str:
        """What the forwarders have written."""
        path = self.folder / "forward.log"
        return path.read_text() if path.exists() else ""

    def position(self, output: str = "centre") -> dict[str, Any]:
        """Return what is in the position file of an output; empty if it is not there."""
        path = self.folder / "forward" / f"{output}.json"
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def write(self, **settings: Any) -> None:
        """Write the configuration, with other sections."""
        self.settings |= settings
        self.config.write_text(json.dumps(self.settings))  # JSON is YAML

    def start(self, *wrapper: str, **environ: str) -> None:
        """Start a forwarder, through another program if one is named; otherwise as a fork."""
        if not wrapper and not environ:
            self.process = ForkedCommand(
                ["forward", "-c", self.config], self.folder / "forward.log"
            )
            return
        command = (*wrapper, sys.executable, "-m", "ast_stream.cli", "forward", "-c")
        with (self.folder / "forward.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.config)], stderr=log, stdout=log, env=os.environ | environ
            )

    def kill(self) -> None:
        """End the forwarder as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.kills += 1

    def stop(self) -> int:
        """End the forwarder in good order; return its exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def hang_up(self) -> None:
        """Have the forwarder read its configuration again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def publish(self, n_messages: int) -> None:
        """Publish the next messages of some events, updates and gaps, in a repeatable order."""
        for _ in range(n_messages):
            self._n += 1
            self.worker.publish(self._message(self._n))  # type: ignore[arg-type]

    def _message(self, n: int) -> EventMessage | GapMessage:
        choice, stream = self._random.random(), self._random.choice(STREAMS)
        if choice < 0.1:
            epoch = f"{self.identity.box}-{n // 100}"
            return gap_message(n * 16_000, stream=stream, epoch=epoch)
        # of three messages in a row one event: begin, update, end
        number, step = divmod(n, 3)
        kind = ("begin", "update", "end")[step]
        changes: dict[str, Any] = {"stream": stream, "label": LABELS[number % len(LABELS)]}
        return event_message(f"{self.identity.box}{number}", kind, at_sample=n * 100, **changes)

    def logged(self) -> list[FeedMessage]:
        """Return all durable messages in the log of the worker."""
        found = []
        for path in sorted((self.folder / "events").glob("events-*.jsonl")):
            lines = path.read_bytes().splitlines(keepends=True)
            found += [FeedMessage.decode_line(line) for line in lines]
        return [message for message in found if message.kind in ("event", "gap")]

    def expected(self) -> list[Key]:
        """Return the keys of all messages that the centre must have, in order."""
        found = [of_feed(message, self.identity) for message in self.logged()]
        return [(one.source, one.id) for one in found if one is not None]

    def close(self) -> None:
        self.kill()
        self.worker.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def nats_output(url: str, **settings: Any) -> dict[str, Any]:
    """Return the settings of an output to a server on this machine, of what a test publishes."""
    own = {"name": "centre", "type": "nats", "servers": [url], "timeout_s": 5}
    return own | {"kinds": ["event", "gap"]} | settings


@contextmanager
def forward_box(outputs: list[dict[str, Any]], **options: Any) -> Iterator[ForwardBox]:
    """Yield a box; its forwarder is not started."""
    box = ForwardBox(outputs, **options)
    try:
        yield box
    finally:
        box.close()


def once(keys: list[Key]) -> list[Key]:
    """Return keys in the order in which each came first, as the centre has them."""
    return list(dict.fromkeys(keys))


def wait_until(condition: Any, what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition()` holds; fail naming `what` if it never does."""
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.05)
