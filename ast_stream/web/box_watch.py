"""The status of all processes, polled in a thread while a page shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.box_status import WorkersStatus, WorkersStatusClient
from ast_stream.settings.schema import Settings

EVERY_S = 3.0
FIRST_S = 6.0  # longest wait of a page for the first answers
ANSWER_S = 1.5  # for each process: the alerts process publishes its status once a second
LINGER_S = 20.0  # polling continues for so long after the last page has asked


@dataclass(frozen=True)
class Look:
    """The last answers of the processes, and when they came."""

    found: WorkersStatus
    time_ns: int


class BoxWatch:
    """Polls the processes and keeps their last answers, however many pages show them.

    Args:
        wall_ns: wall clock.
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
        """Return the last answers, waiting for the first ones; None: there are none yet."""
        with self._has_looked:
            self._wanted_s = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="box", daemon=True)
                self._thread.start()
            self._has_looked.wait_for(lambda: self._latest is not None, FIRST_S)
            return self._latest

    def close(self) -> None:
        """Stop polling."""
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
