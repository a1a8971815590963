"""The record of who listened to clips: in the same form as that of who asked for audio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ast_stream.history.records import ClipRecord
from ast_stream.privacy.audit import Access, AuditLog
from ast_stream.units import format_time, samples_to_ns
from ast_stream.web.rights import Visitor


class ClipAudit:
    """Writes accesses to clips before they take place; from any thread.

    Args:
        log: closed with this.
        wall_ns: the time of day.
    """

    def __init__(self, log: AuditLog, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._log = log
        self._wall_ns = wall_ns
        self._lock = threading.Lock()

    def record(self, visitor: Visitor, clip: ClipRecord) -> None:
        """Record that a visitor is given a clip.

        Raises:
            WireError: it cannot be recorded, so it must not be given.
        """
        samples = clip.stop_sample - clip.start_sample
        access = Access(
            time_ns=self._wall_ns(),
            who=visitor.name,
            account=visitor.account or visitor.name,
            stream=clip.stream,
            start=format_time(clip.start_ns),
            stop=format_time(clip.start_ns + samples_to_ns(samples)),
            outcome="granted",
            samples=samples,
        )
        with self._lock:
            self._log.record(access)

    def close(self) -> None:
        """Write what waits to be written."""
        with self._lock:
            self._log.close()
