"""A pseudo-terminal for programs under test."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading

COLUMNS = 80  # narrower than a JSON line
LIMIT_S = 60


class Terminal:
    """A pseudo-terminal and what was written to it."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        mode = termios.tcgetattr(self.theirs)
        mode[1] &= ~termios.OPOST  # a line ends as it was written
        termios.tcsetattr(self.theirs, termios.TCSANOW, mode)
        self._shown = bytearray()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    @property
    def size(self) -> int:
        """Bytes that were shown so far."""
        return len(self._shown)

    def text(self) -> str:
        """Return all that was shown, once nobody writes any more."""
        os.close(self.theirs)
        self._reading.join(LIMIT_S)
        os.close(self._ours)
        return self._shown.decode()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._ours, 1 << 16)
            except OSError:  # how Linux says that the other side is closed
                return
            if not part:
                return
            self._shown += part
