"""The audit log of the web page: who listened to clips, and who changed something."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ast_stream.history.records import ClipRecord
from ast_stream.privacy.audit import Access, Act, AuditLog
from ast_stream.units import format_time, samples_to_ns
from ast_stream.web.rights import Visitor


class ClipAudit:
    """Records accesses to clips before they take place; for any thread.

    Args:
        log: closed together with this object.
        wall_ns: wall clock.
    """

    def __init__(self, log: AuditLog, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._log = log
        self._wall_ns = wall_ns
        self._lock = threading.Lock()

    def record(self, visitor: Visitor, clip: ClipRecord) -> None:
        """Record that a visitor gets a clip.

        Raises:
            WireError: it cannot be recorded, so access must be denied.
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
        """Record that a visitor was refused a clip."""
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
        """Record a change that a visitor is about to make.

        Args:
            act: a description that begins with a verb.

        Raises:
            WireError: it cannot be recorded, so the change must not be made.
        """
        line = Act(time_ns=self._wall_ns(), who=visitor.name, account=visitor.account, act=act)
        with self._lock:
            self._log.record_act(line)

    def write_repeats(self) -> None:
        """Write the repeated accesses whose minute is over; must be called regularly."""
        with self._lock:
            self._log.write_repeats()

    def close(self) -> None:
        """Write the pending entries, and close the log."""
        with self._lock:
            self._log.close()
