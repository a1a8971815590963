"""The record of who listened to clips, in the form of that of who asked for audio, and of who
administrated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ast_stream.history.records import ClipRecord
from ast_stream.privacy.audit import Access, Act, AuditLog
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
            clip=clip.event_id,
        )
        with self._lock:
            self._log.record(access)

    def record_refusal(self, visitor: Visitor, event_id: str, reason: str) -> None:
        """Record that a visitor was not given a clip."""
        access = Access(
            time_ns=self._wall_ns(),
            who=visitor.name,
            account=visitor.account or visitor.name,
            stream="",
            outcome="refused",
            reason=reason,
            clip=event_id,
        )
        with self._lock:
            self._log.record(access)

    def record_act(self, visitor: Visitor, act: str) -> None:
        """Record what a visitor is about to change.

        Args:
            act: what, beginning with a verb.

        Raises:
            WireError: it cannot be recorded, so it must not take place.
        """
        line = Act(time_ns=self._wall_ns(), who=visitor.name, account=visitor.account, act=act)
        with self._lock:
            self._log.record_act(line)

    def write_repeats(self) -> None:
        """Write the repeats whose minute is over; to be called once in a while."""
        with self._lock:
            self._log.write_repeats()

    def close(self) -> None:
        """Write what waits to be written."""
        with self._lock:
            self._log.close()
