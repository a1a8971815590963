"""A server of others that a test starts, kills, stops for a while and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

PATIENCE_S = 60.0


class ServerProcess:
    """One server on one port, with its files in one folder.

    Args:
        host: address that it listens at.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self.host = host
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return what it is started with."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether it takes connections."""
        raise NotImplementedError

    @property
    def log(self) -> Path | None:
        """What it writes; None: nothing is kept."""
        return None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end_s = time.monotonic() + PATIENCE_S
        while not self.answers():
            said = "" if self.log is None else self.log.read_text()
            assert self._process.poll() is None, f"{self.command()[0]} has ended: {said}"
            assert time.monotonic() < end_s, f"{self.command()[0]} does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it, so that connections stay and nothing is answered."""
        self.signal(signal.SIGSTOP)
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # until then its threads answer

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
