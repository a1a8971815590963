"""The spool of health summaries: one per minute, on disk until every output has sent it.

It is a bounded log of its own, because the health messages on the feeds, one per second and stream,
are not stored anywhere.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ast_stream.errors import WireError
from ast_stream.messages.codec import add_checksum, decode_json, encode_json, has_checksum
from ast_stream.runtime.files import DamagedFileError
from ast_stream.runtime.logging import Outage
from ast_stream.runtime.segments import LineFile, SegmentFolder
from ast_stream.settings.storage import DAY_S, MAX_SPOOL_BYTES, MAX_SPOOL_DAYS

SEGMENTS = "health"
MAX_LINE_BYTES = 1024 * 1024
SEGMENT_BYTES = 2 * 1024 * 1024
MAX_UNWRITTEN = 1000  # summaries in memory while the disk cannot be written; not sent meanwhile
_SEQ = re.compile(rb'\{"crc":"[0-9a-f]{8}","seq":(\d{1,15}),')
_WHAT = "health spool"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """One stored summary.

    Attributes:
        seq: its number, from 1, without gaps.
        key: unique on this box.
        time_ns: end of the minute.
    """

    seq: int
    key: str
    time_ns: int
    data: Mapping[str, Any]

    def encode_line(self) -> bytes:
        """Return it as a line of JSON that begins with a CRC-32."""
        body = {"seq": self.seq, "key": self.key, "time_ns": self.time_ns, "data": self.data}
        return add_checksum(encode_json(body))


class _SpoolSegment(LineFile):
    MAX_LINE_BYTES = MAX_LINE_BYTES

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.first = self.last = 0  # numbers of its summaries

    def read(self, max_bytes: int) -> list[Summary]:
        """Return the summaries on disk; damaged ones are skipped.

        Raises:
            OSError: the file cannot be read.
            DamagedFileError: it is not a file.
        """
        found = []
        for _, line in self.lines(max_bytes):
            summary = _decoded(line)
            if summary is None:
                self.damaged += 1
            else:
                found.append(summary)
        if found:
            self.first, self.last = found[0].seq, found[-1].seq
        return found


class HealthSpool:
    """Stores summaries; written by one thread, read by several.

    Args:
        folder: created if missing, used by one process at a time.

    Attributes:
        outage: whether and why it cannot be written.

    Raises:
        StartupError: another process uses the folder.
    """

    def __init__(
        self, folder: Path, max_bytes: int = MAX_SPOOL_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.outage = Outage(logger, f"the {_WHAT} {folder} is written again")
        self._lock = threading.Lock()
        self._segment_bytes = segment_bytes
        self._folder = SegmentFolder(
            folder, SEGMENTS, _WHAT, _SpoolSegment, max_bytes, segment_bytes,
            MAX_SPOOL_DAYS * DAY_S, outage=self.outage,
        )  # fmt: skip
        self._unwritten: deque[tuple[str, int, Mapping[str, Any]]] = deque(maxlen=MAX_UNWRITTEN)
        self._last = 0
        try:
            self._folder.open(self._scan)
        except OSError as error:
            self.outage.failed("the %s %s cannot be read: %s", _WHAT, folder, error)

    @property
    def last(self) -> int:
        """Number of the newest summary; 0: there is none."""
        return self._last

    @property
    def first(self) -> int:
        """Number of the oldest stored summary, or of the next one if there is none."""
        with self._lock:
            kept = [segment.first for segment in self._folder.segments if segment.first]
            return min(kept, default=self._last + 1)

    def append(self, key: str, time_ns: int, data: Mapping[str, Any]) -> None:
        """Store a summary, durably if the disk can be written."""
        with self._lock:
            self._unwritten.append((key, time_ns, data))
            self._write()

    def retry(self) -> None:
        """Write what waits in memory, and delete what is too old."""
        with self._lock:
            self._write()
            self._folder.purge()

    def after(self, seq: int, limit: int) -> list[Summary]:
        """Return at most `limit` summaries on disk after a number.

        Raises:
            OSError: they cannot be read now.
        """
        with self._lock:
            found: list[Summary] = []
            for segment in self._folder.segments:
                if segment.last > seq and len(found) < limit:
                    found += _behind(segment, seq)
        return found[:limit]

    def close(self) -> None:
        """Write what waits in memory, if the disk can be written, and release the folder."""
        with self._lock:
            self._write()
            self._folder.close()

    def _scan(self, segment: _SpoolSegment, max_bytes: int) -> None:
        segment.read(max_bytes)
        self._last = max(self._last, segment.last)

    def _write(self) -> None:
        n_waiting = len(self._unwritten)
        try:
            while self._unwritten:
                summary = Summary(self._last + 1, *self._unwritten[0])
                segment, _ = self._folder.write(summary.encode_line())
                segment.first, segment.last = segment.first or summary.seq, summary.seq
                self._last = summary.seq
                self._unwritten.popleft()
            if n_waiting:
                self._folder.sync()
        except OSError as error:
            path = self._folder.path
            self.outage.failed("the %s %s cannot be written: %s", _WHAT, path, error)
        else:
            self.outage.worked()


def _behind(segment: _SpoolSegment, seq: int) -> list[Summary]:
    """Return the summaries of a segment after a number."""
    found = []
    with suppress(FileNotFoundError, DamagedFileError):
        for _, line in LineFile(segment.path).lines(segment.size):
            number = _SEQ.match(line)
            if number is not None and int(number[1]) > seq:
                found.append(_decoded(line))
    return [summary for summary in found if summary is not None]


def _decoded(line: bytes) -> Summary | None:
    if not has_checksum(line):
        return None
    try:
        body = decode_json(line, _WHAT, MAX_LINE_BYTES)
    except WireError:
        return None
    match body:
        case {"seq": int(seq), "key": str(key), "time_ns": int(time_ns), "data": dict(data)}:
            return Summary(seq, key, time_ns, data)
    return None
