"""What a process tells its service manager in the course of its life, and when.

Start-up, ready, reloading and stopping are told at once; the status line at most once a second and
only if it says something new; the watchdog is fed by whoever did work, never by a timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ast_stream.runtime.lifecycle import notify, watchdog_interval_s

STATUS_EVERY_S = 1.0


class Notifier:
    """Speaks for one process; without a service manager it says nothing and costs nothing.

    Args:
        send: tells the service manager; False where there is none.
        watchdog_s: how often the watchdog is fed; None: as the service manager asks.
        now_s: a clock that only goes forward.
    """

    def __init__(
        self,
        send: Callable[[str], bool] = notify,
        watchdog_s: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._now_s = now_s
        self._watchdog_s = watchdog_interval_s() if watchdog_s is None else watchdog_s
        self._is_ready = False
        self._shown: str | None = None
        self._next_status_s = self._next_watchdog_s = float("-inf")

    def starting(self, status: str, timeout_s: float) -> None:
        """Say what start-up is busy with, and that it may take `timeout_s` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(timeout_s * 1e6)}\nSTATUS={_line(status)}")

    def turn(self, status: Callable[[], str], *, is_working: bool) -> None:
        """Tell what is due after one turn of the loop; the first turn makes the process ready.

        Args:
            status: how the process is, in words; called only when a line may be sent.
            is_working: this turn, or one since the last call, did work or had none to do.
        """
        now_s = self._now_s()
        if not self._is_ready:
            self._is_ready = True
            self._say_status(status(), now_s, "READY=1\n")
        elif now_s >= self._next_status_s:
            self._say_status(status(), now_s)
        if is_working and self._watchdog_s is not None and now_s >= self._next_watchdog_s:
            self._next_watchdog_s = now_s + self._watchdog_s
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that the settings are being read again; `reloaded` must follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, status: str) -> None:
        """Say that the process goes on, with new settings or with the old ones."""
        self._say_status(status, self._now_s(), "READY=1\n")

    def stopping(self, status: str = "stopping") -> None:
        """Say that the process shuts down."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def _say_status(self, text: str, now_s: float, before: str = "") -> None:
        self._next_status_s = now_s + STATUS_EVERY_S
        line = _line(text)
        if before or line != self._shown:
            self._shown = line
            self._send(f"{before}STATUS={line}")


def _line(text: str) -> str:
    """Return `text` on one line: a line of its own would be another assignment."""
    return " ".join(text.split())
