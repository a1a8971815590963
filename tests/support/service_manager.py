"""A service manager for tests: the socket that a process tells its state to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60.0


class ServiceManager:
    """Listens as systemd does; `environ` is what a process needs to speak to it.

    It takes messages at once, whatever the test does meanwhile: the kernel holds few of them, and
    a process that does not wait for room would lose what it says then.
    """

    def __init__(self, folder: Path, watchdog_s: float) -> None:
        path = str(folder / "notify")
        self.environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(round(watchdog_s * 1e6))}
        self._came: list[str] = []
        self._n_seen = 0
        self._has_come = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    @property
    def messages(self) -> list[str]:
        """All messages up to the last one that was waited for."""
        return self._came[: self._n_seen]

    def listen(self, duration_s: float) -> list[str]:
        """Return what comes within `duration_s`."""
        n_before = len(self._came)
        time.sleep(duration_s)
        self._n_seen = len(self._came)
        return self._came[n_before : self._n_seen]

    def wait_for_silence(self, message: str, duration_s: float) -> None:
        """Wait until a message does not come for `duration_s`."""
        end_s = time.monotonic() + PATIENCE_S
        while message in self.listen(duration_s):
            assert time.monotonic() < end_s, f"{message} comes again and again"

    def wait_for(self, is_it: Callable[[str], bool], what: str) -> str:
        """Return the first message, of those not waited for yet, for which `is_it`."""
        end_s = time.monotonic() + PATIENCE_S
        with self._has_come:
            while True:
                while self._n_seen < len(self._came):
                    self._n_seen += 1
                    if is_it(message := self._came[self._n_seen - 1]):
                        return message
                if not self._has_come.wait(end_s - time.monotonic()):
                    raise AssertionError(f"no {what} in\n" + "\n".join(dict.fromkeys(self._came)))

    def close(self) -> None:
        """Close the socket."""
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()

    def _receive(self) -> None:
        while message := self._socket.recv(4096).decode():
            with self._has_come:
                self._came.append(message)
                self._has_come.notify_all()


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
