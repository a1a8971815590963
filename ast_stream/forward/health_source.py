"""The source of health: summaries of health messages, written to a spool and read back."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ast_stream.errors import WireError
from ast_stream.feed import FeedMessage, Missed
from ast_stream.forward.cloud_events import lost, of_health
from ast_stream.forward.health_spool import HealthSpool
from ast_stream.forward.source import Cursor, Item
from ast_stream.messages.status import STREAM_REMOVED, Health, WorkerStatus
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.units import NS_PER_SECOND, format_time

MINUTE_NS = 60 * NS_PER_SECOND
TOPICS = ("health/", "status/worker/")
_DELETED = "the health spool no longer has them"
_COUNTED = ("gaps", "lost_samples", "overflows", "ring_timeouts")  # since the worker's start

logger = logging.getLogger(__name__)


class _StreamMinute:
    """The health messages of a stream in one minute."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self._levels: list[float] = []
        self._max: dict[str, float] = {}
        self._last: Health | None = None

    def add(self, health: Health) -> None:
        self.states[health.state] += 1
        self._last = health
        if health.level_dbfs is not None:
            self._levels.append(health.level_dbfs)
        for name in ("lag_s", "hop_s", "silence_s"):
            if (value := getattr(health, name)) is not None:
                self._max[name] = max(value, self._max.get(name, value))

    def to_json(self) -> dict[str, Any]:
        """Return the number of messages in each state, extremes, and the last counters."""
        found: dict[str, Any] = {"states": dict(self.states)}
        if self._levels:
            mean = sum(self._levels) / len(self._levels)
            found["level_dbfs"] = {"mean": round(mean, 1), "max": round(max(self._levels), 1)}
        found |= {f"max_{name}": round(value, 3) for name, value in self._max.items() if value}
        if self._last is not None:
            found |= {name: value for name in _COUNTED if (value := getattr(self._last, name))}
            if self._last.detail:
                found["detail"] = self._last.detail
        return found


class HealthMinutes:
    """Makes a summary of each minute of wall time, and appends it to the spool.

    There is no summary of a minute in which this program did not run, and only part of one of the
    minute in which it started.

    Args:
        wall_ns: wall clock.
    """

    def __init__(self, spool: HealthSpool, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._spool = spool
        self._wall_ns = wall_ns
        self._limited_log = LimitedLog(logger)
        self._begin()

    def add(self, item: FeedMessage | Missed, worker: str | None) -> None:
        """Count a message of a worker's feed."""
        if isinstance(item, Missed):
            return
        try:
            content = item.content()
        except WireError as error:
            self._limited_log.warning("%s", error)
            return
        if isinstance(content, Health) and content.detail != STREAM_REMOVED:
            self._streams.setdefault(content.stream, _StreamMinute()).add(content)
        elif isinstance(content, WorkerStatus):
            self._workers[worker] = content

    def tick(self) -> None:
        """End the minute if it is over; must be called often."""
        now_ns = self._wall_ns()
        if now_ns // MINUTE_NS == self._minute:
            return
        # setting the clock back also begins another minute
        if self._streams or self._workers:
            stop_ns = (self._minute + 1) * MINUTE_NS
            self._spool.append(secrets.token_hex(8), stop_ns, self._summary(stop_ns))
        else:
            self._spool.retry()
        self._begin()

    def _begin(self) -> None:
        self._began_ns = self._wall_ns()
        self._minute = self._began_ns // MINUTE_NS
        self._streams: dict[str, _StreamMinute] = {}
        self._workers: dict[str | None, WorkerStatus] = {}

    def _summary(self, stop_ns: int) -> dict[str, Any]:
        workers = {
            name or "": {
                "model": status.model,
                "windows_per_s": round(status.windows_per_s, 2),
                "lag_s": status.lag_s,
                "uptime_s": round(status.uptime_s, 1),
                **({} if status.disk is None else {"disk": status.disk}),
            }
            for name, status in self._workers.items()
        }
        return {
            "from": format_time(stop_ns - MINUTE_NS),
            "to": format_time(stop_ns),
            "observed_s": round(max(0, stop_ns - self._began_ns) / NS_PER_SECOND, 1),
            "workers": workers,
            "streams": {name: minute.to_json() for name, minute in sorted(self._streams.items())},
        }


class HealthSource:
    """Reads the spool.

    Args:
        cursor: number and key of the last confirmed summary; None: begin with the oldest.
    """

    name = "health"

    def __init__(self, spool: HealthSpool, cursor: Cursor, identity: BoxIdentity) -> None:
        self._spool = spool
        self._seq, self._key = _summary(cursor)
        self._identity = identity
        self._limited_log = LimitedLog(logger)

    def read(self, limit: int, wait_s: float) -> Sequence[Item]:
        """Return the next summaries, without waiting."""
        first, last = self._spool.first, self._spool.last
        if self._seq is None or self._seq > last:  # the spool was created anew
            self._seq = first - 1
        items: list[Item] = []
        try:
            if self._has_others():
                self._seq = first - 1
            summaries = self._spool.after(self._seq, limit)
        except OSError as error:
            self._limited_log.warning("health summaries are not read: %s", error)
            return items
        for summary in summaries:
            if summary.seq > self._seq + 1:
                items.append(self._lost(self._seq, summary.seq - 1))
            self._seq = summary.seq
            data = summary.data
            outgoing = of_health(self._identity, summary.key, summary.time_ns, data)
            items.append(Item(outgoing, [summary.seq, summary.key], summary.time_ns))
        return items

    def count(self, cursor: Cursor) -> int | None:
        """Return the number of summaries after a position."""
        return max(0, self._spool.last - (_summary(cursor)[0] or 0))

    def close(self) -> None:
        """Do nothing: the spool belongs to the process."""

    def _has_others(self) -> bool:
        """Return whether the spool was created anew, so that the number is of another summary.

        Raises:
            OSError: it cannot be read now.
        """
        key, self._key = self._key, None  # checked once: the spool does not change in a process
        if key is None or self._seq is None:
            return False
        try:
            found = self._spool.after(self._seq - 1, 1)
        except OSError:
            self._key = key
            raise
        return bool(found) and found[0].seq == self._seq and found[0].key != key

    def _lost(self, after: int, upto: int) -> Item:
        outgoing = lost(
            self._identity,
            self.name,
            after=after,
            upto=upto,
            count=upto - after,
            reason=_DELETED,
        )
        return Item(outgoing, upto, time.time_ns(), lost=upto - after)


def _summary(cursor: Cursor) -> tuple[int | None, str | None]:
    match cursor:
        case [int(seq), str(key)]:
            return seq, key
        case int(seq):
            return seq, None
    return None, None
