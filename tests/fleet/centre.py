"""The centre of a fleet: the consumer of examples/, as a process that is killed now and then."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples/centre"
SUBJECTS = "ast_stream.*.*.{}.>"
KINDS = ("event", "gap", "alert", "coverage", "health", "lost")
Body = dict[str, Any]


class Consumer:
    """A consumer of examples/centre; `start` it again after `kill`.

    Attributes:
        kills: how often it was killed.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._arguments = arguments
        self._log = folder / "consumer.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, str(EXAMPLE / "consumer.py"), *self._arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.kills += 1

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def received(self) -> tuple[int, int]:
        """How many messages it has kept, and how many of them it had not had before."""
        counts = re.findall(r"messages: (\d+), of them for the first time: (\d+)", self.log)
        return sum(int(n) for n, _ in counts), sum(int(n) for _, n in counts)


def cloud_event(n: int, *, kind: str = "gap", box: str = "attic", **data: Any) -> Body:
    """Return a message as a box sends it, one of many."""
    return {
        "specversion": "1.0",
        "id": f"{n}.{kind}",
        "source": f"/home/{box}/porch",
        "type": f"org.ast-stream.{kind}",
        "time": f"2026-11-20T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}Z",
        "datacontenttype": "application/json",
        "data": {"v": 1, "seq": n, "score": n / 7, **data},
    }


def encoded(event: Body) -> bytes:
    return json.dumps(event).encode()
