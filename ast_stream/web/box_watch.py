"""How all processes are, asked in a thread of its own while somebody looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.box_status import WorkersStatus, WorkersStatusClient
from ast_stream.settings.schema import Settings

EVERY_S = 3.0
FIRST_S = 6.0  # that a page waits for the first answer
ANSWER_S = 1.5  # for each process: the alerts process says how it is once a second
LINGER_S = 20.0  # without anybody who looks


@dataclass(frozen=True)
class Look:
    """What the processes answered last."""

    found: WorkersStatus
    time_ns: int


class BoxWatch:
    """Keeps what the processes answered last; any number of pages cost them the same.

    Args:
        wall_ns: the time of day.
    """

    def __init__(self, settings: Settings, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._settings = settings
        self._wall_ns = wall_ns
        self._wanted_s = 0.0
        self._latest: Look | None = None
        self._has_looked = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def latest(self) -> Look | None:
        """Return the last answers, waiting for the first; None: there are none yet."""
        with self._has_looked:
            self._wanted_s = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="box", daemon=True)
                self._thread.start()
            self._has_looked.wait_for(lambda: self._latest is not None, FIRST_S)
            return self._latest

    def close(self) -> None:
        """Stop to ask."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(ANSWER_S)

    def _watch(self) -> None:
        client = WorkersStatusClient(
            self._settings, timeout_s=ANSWER_S, is_stopped=self._stop.is_set
        )
        with client:
            while not self._is_over():
                found = client.ask()
                with self._has_looked:
                    self._latest = Look(found, self._wall_ns())
                    self._has_looked.notify_all()
                self._stop.wait(EVERY_S)

    def _is_over(self) -> bool:
        with self._has_looked:
            if self._stop.is_set() or time.monotonic() - self._wanted_s > LINGER_S:
                self._thread = self._latest = None
                return True
        return False
