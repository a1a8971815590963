"""A service manager for tests: the socket that a process tells its state to."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60.0


class ServiceManager:
    """Listens as systemd does; `environ` is what a process needs to speak to it."""

    def __init__(self, folder: Path, watchdog_s: float) -> None:
        path = str(folder / "notify")
        self.environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(round(watchdog_s * 1e6))}
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)

    def listen(self, duration_s: float) -> list[str]:
        """Return what comes within `duration_s`."""
        n_before = len(self.messages)
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._receive(left_s)
        return self.messages[n_before:]

    def wait_for(self, is_it: Callable[[str], bool], what: str) -> str:
        """Return the first message from now on for which `is_it`."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            message = self._receive(0.1)
            if message is not None and is_it(message):
                return message
        raise AssertionError(f"no {what} in\n" + "\n".join(dict.fromkeys(self.messages)))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self, timeout_s: float) -> str | None:
        self._socket.settimeout(timeout_s)
        try:
            message = self._socket.recv(4096).decode()
        except TimeoutError:
            return None
        self.messages.append(message)
        return message


@contextmanager
def service_manager(folder: Path, watchdog_s: float = 0.2) -> Iterator[ServiceManager]:
    """Yield a service manager whose watchdog wants to be fed every `watchdog_s` at the latest."""
    manager = ServiceManager(folder, watchdog_s)
    try:
        yield manager
    finally:
        manager.close()


def is_ready(message: str) -> bool:
    """Whether a message says that start-up has finished."""
    return "READY=1" in message.splitlines()
