"""Lines that children print, passed on without ever making a child wait.

Reading and writing are apart: a stopped terminal or a full pipe holds up the writer only, and what
does not fit the queue meanwhile is dropped and counted.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import IO, TextIO

from ast_stream.runtime.logging import LineFormat, foreign_line

MAX_LINE_BYTES = 8192  # longer lines are cut into pieces
MAX_QUEUED_LINES = 2000
_FLUSH_S = 1.0


class LineForwarder:
    """Write the lines of several children to one stream."""

    def __init__(self, stream: TextIO, format: LineFormat) -> None:
        self._stream = stream
        self._format = format
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_LINES)
        self._lock = threading.Lock()
        self._dropped = 0
        self._readers: list[threading.Thread] = []
        self._writer = threading.Thread(target=self._write, daemon=True, name="forward")
        self._writer.start()

    @property
    def n_dropped(self) -> int:
        """Lines dropped so far that no line has told of yet."""
        return self._dropped

    def follow(self, name: str, pipe: IO[bytes]) -> None:
        """Forward the lines of `pipe` under `name` until its end, then close it."""
        reader = threading.Thread(target=self._read, args=(name, pipe), daemon=True, name=name)
        self._readers = [one for one in self._readers if one.is_alive()] + [reader]
        reader.start()

    def close(self) -> None:
        """Write what children that have ended still said, for at most a second each way."""
        deadline_s = time.monotonic() + _FLUSH_S
        for reader in self._readers:
            reader.join(max(0.0, deadline_s - time.monotonic()))
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_FLUSH_S)
        self._writer.join(_FLUSH_S)

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        with pipe:
            while raw := pipe.readline(MAX_LINE_BYTES):
                line = raw.decode(errors="backslashreplace").rstrip("\r\n")
                self._put(foreign_line(self._format, name, line))

    def _put(self, line: str) -> None:
        with self._lock:
            try:
                if self._dropped:
                    told = f"{self._dropped} lines dropped: they came faster than they can be shown"
                    self._lines.put_nowait(foreign_line(self._format, "run", told))
                    self._dropped = 0
                self._lines.put_nowait(line)
            except queue.Full:
                self._dropped += 1

    def _write(self) -> None:
        # a closed stderr is no reason to stop reading from the children
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()
