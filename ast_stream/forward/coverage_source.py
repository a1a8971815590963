"""The source of coverage: the final intervals of wall time of each stream.

An interval is final once the ledger has a later record of the stream: records are written in the
order of the audio, and what a ring still held when a worker restarted comes before them. While a
stream is not analysed there are no later records, and its intervals wait.

Wall clocks jump: a box without a battery-backed clock starts in 1970, and some are years ahead for
a while. A day or more without any record becomes one interval, and records whose time is more than
a day in the future are ignored. After a clock was set back, intervals continue at the right time.

A worker of a pool sends its own part of each stream: what a worker after it has again is left out,
and the time at others is not missing. So the parts of all boxes have each sample once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from ast_stream.coverage.ledger import read_all_spans
from ast_stream.coverage.spans import Span
from ast_stream.coverage.timeline import UNDECIDED_NS, Coverage, Others
from ast_stream.forward.cloud_events import lost, of_interval
from ast_stream.forward.source import Cursor, Item
from ast_stream.pool.coverage import OwnPart
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import coverage_ledger, unwritten_coverage
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.units import NS_PER_SECOND, format_time

INTERVAL_NS = 300 * NS_PER_SECOND  # intervals begin at multiples of it since 1970
AGAIN_S = 30.0  # until the pool is looked up again
READ_EVERY_S = 300.0  # reads the whole ledger since the oldest unconfirmed interval
# of sources that can end, so that no record follows the last interval
OVER_NS = UNDECIDED_NS + INTERVAL_NS
_AGO_NS = 86_400 * NS_PER_SECOND  # a span that overlaps an interval has begun by then, or is long
# a longer time without records is one interval: a clock that began in 1970 would make millions
LONG_NS = 86_400 * NS_PER_SECOND
_AGAIN_NS = 7 * LONG_NS  # intervals sent again after a clock was ahead by more than a day
_FORGOTTEN = "the coverage ledger no longer has it"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watched:
    """What is read: the ledgers of all workers, and which streams do not end.

    Attributes:
        ledgers: folder and file of each ledger, as for `read_spans`.
        lasting: streams in the configuration whose sources do not end.
    """

    ledgers: tuple[tuple[Path, Path], ...]
    lasting: Collection[str]

    @classmethod
    def of(cls, settings: Settings) -> Watched:
        """Return the ledgers and lasting streams of a configuration."""
        parts = [of_worker(settings, name) for name in worker_names(settings)]
        ledgers = tuple(
            (coverage_ledger(part).folder, unwritten_coverage(part).path) for part in parts
        )
        streams = settings.streams
        return cls(
            ledgers, frozenset(stream.name for stream in streams if not stream.source.can_end)
        )


class CoverageSource:
    """Reads the ledgers.

    Args:
        watched: returns what is to be read, by the current configuration.
        cursor: by stream, the time up to which intervals are confirmed (ns).
        part: of the worker of a pool; None: no stream moves. It is closed together with this.
    """

    name = "coverage"

    def __init__(
        self,
        watched: Callable[[], Watched],
        cursor: Cursor,
        identity: BoxIdentity,
        wall_ns: Callable[[], int] = time.time_ns,
        now_s: Callable[[], float] = time.monotonic,
        every_s: float = READ_EVERY_S,
        part: OwnPart | None = None,
    ) -> None:
        self._part = part
        self._every_s = every_s
        self._watched = watched
        self._read: dict[str, int] = _times(cursor)
        self._identity = identity
        self._wall_ns = wall_ns
        self._now_s = now_s
        self._next_s = float("-inf")
        self._items: Iterator[Item] = iter(())
        self._limited_log = LimitedLog(logger)

    def read(self, limit: int, wait_s: float) -> Sequence[Item]:
        """Return the next final intervals, without waiting."""
        found = list(islice(self._items, limit))
        if len(found) < limit and self._now_s() >= self._next_s:
            self._next_s = self._now_s() + self._every_s
            self._items = self._final()
            found += islice(self._items, limit - len(found))
        return found

    def count(self, cursor: Cursor) -> int | None:
        """Return None: counting would mean reading everything."""
        return None

    def close(self) -> None:
        """Close what is needed besides files, which are closed after each reading."""
        if self._part is not None:
            self._part.close()

    def _final(self) -> Iterator[Item]:
        """Yield the intervals after those already returned, stream by stream."""
        watched = self._watched()
        now_ns = self._wall_ns()
        if self._part is not None and not self._part.is_ready():
            self._limited_log.warning("coverage waits until the claims of the pool can be read")
            self._next_s = self._now_s() + min(self._every_s, AGAIN_S)
            return
        since_ns = None
        if self._read:
            since_ns = min(_not_ahead(at, now_ns) for at in self._read.values()) - _AGO_NS
        try:
            streams = read_all_spans(watched.ledgers, since_ns)
        except OSError as error:
            self._limited_log.warning("coverage is not read: %s", error)
            return
        for stream in self._read.keys() - streams.keys() - set(watched.lasting):
            # the ledger no longer has the stream: keeping it would mean reading all files for ever
            self._read = {name: at for name, at in self._read.items() if name != stream}
        for stream, found in sorted(streams.items()):
            own = (found, _nobody) if self._part is None else self._part.of(stream, found)
            if own is not None:
                yield from self._of_stream(stream, *own, now_ns, stream in watched.lasting)

    def _of_stream(
        self, stream: str, found: Sequence[Span], others: Others, now_ns: int, lasts: bool
    ) -> Iterator[Item]:
        spans = [span for span in found if span.time_ns <= now_ns + LONG_NS]
        if not spans:
            return
        last_ns = spans[-1].stop_ns
        stop_ns = _final_until(last_ns, now_ns, lasts)
        oldest_ns = _floor(min(span.time_ns for span in spans))
        silences = _long_silences(spans)
        start_ns = self._read.get(stream, oldest_ns)
        if start_ns > last_ns + INTERVAL_NS:  # the clock was set back, and there are new records
            start_ns = max(_set_back_to(found, now_ns), oldest_ns)
        elif start_ns < oldest_ns:
            self._read = {**self._read, stream: oldest_ns}
            yield self._lost(stream, start_ns, oldest_ns, now_ns)
            start_ns = oldest_ns
        while start_ns + INTERVAL_NS <= stop_ns:
            end_ns = silences.get(start_ns, start_ns + INTERVAL_NS)
            self._read = {**self._read, stream: end_ns}
            yield self._interval(stream, spans, others, start_ns, end_ns, lasts)
            start_ns = end_ns

    def _interval(
        self,
        stream: str,
        spans: Sequence[Span],
        others: Others,
        start_ns: int,
        end_ns: int,
        lasts: bool,
    ) -> Item:
        found = Coverage.of(
            stream,
            spans,
            end_ns,
            is_expected=lasts,
            since_ns=start_ns,
            until_ns=end_ns,
            others=others,
        ).to_json()
        if not found["samples"]["total"]:  # not in the configuration at that time, or deleted
            return Item(None, self._read)
        data: dict[str, Any] = {
            "stream": stream,
            "from": format_time(start_ns),
            "to": format_time(end_ns),
            "seconds": {kind: value for kind, value in found["seconds"].items() if value},
            "heard": found["heard"],
            "reasons": found["reasons"],
        }
        is_long = end_ns - start_ns > INTERVAL_NS
        outgoing = of_interval(self._identity, stream, start_ns, end_ns, data, is_long=is_long)
        return Item(outgoing, self._read, end_ns)

    def _lost(self, stream: str, start_ns: int, stop_ns: int, now_ns: int) -> Item:
        n_lost = (stop_ns - start_ns) // INTERVAL_NS
        outgoing = lost(
            self._identity,
            self.name,
            after={"stream": stream, "time": format_time(start_ns)},
            upto={"stream": stream, "time": format_time(stop_ns)},
            count=n_lost,
            reason=_FORGOTTEN,
        )
        return Item(outgoing, self._read, now_ns, lost=n_lost)


def _nobody(before: Span, after: Span | None) -> Sequence[str]:
    return ()


def _set_back_to(spans: Sequence[Span], now_ns: int) -> int:
    """Return the interval to continue with after the clock was ahead.

    Intervals that were sent with a wrong time keep their ids, so that sending them again adds none.
    """
    for index in range(len(spans) - 1, 0, -1):
        begun_ns = spans[index].time_ns
        if begun_ns < spans[index - 1].stop_ns - INTERVAL_NS:
            before = (span.stop_ns for span in spans[:index] if span.stop_ns <= begun_ns)
            return _floor(max(before, default=begun_ns))
    return _floor(now_ns - _AGAIN_NS)  # of several workers, whose records are in order of time


def _final_until(last_ns: int, now_ns: int, lasts: bool) -> int:
    """Return the time before which the coverage of a stream will not change any more.

    Args:
        last_ns: end of the last record.
    """
    is_over = not lasts and now_ns - last_ns > OVER_NS
    # the last interval of a source that has ended is final, too
    return _floor(last_ns) + INTERVAL_NS if is_over else last_ns


def _long_silences(spans: Sequence[Span]) -> dict[int, int]:
    """Return the times without any record for a day or more: start to end (ns)."""
    found = {}
    ordered = sorted(spans, key=attrgetter("time_ns"))
    reached_ns = ordered[0].stop_ns
    for span in ordered[1:]:
        start_ns, stop_ns = -(-reached_ns // INTERVAL_NS) * INTERVAL_NS, _floor(span.time_ns)
        if stop_ns - start_ns >= LONG_NS:
            found[start_ns] = stop_ns
        reached_ns = max(reached_ns, span.stop_ns)
    return found


def _not_ahead(time_ns: int, now_ns: int) -> int:
    """Return a position, or a week ago if the clock was set back by more than a day since.

    Intervals that are sent again have the same ids.
    """
    return time_ns if time_ns <= now_ns + LONG_NS else _floor(now_ns - _AGAIN_NS)


def _floor(time_ns: int) -> int:
    return time_ns // INTERVAL_NS * INTERVAL_NS


def _times(cursor: Cursor) -> dict[str, int]:
    if not isinstance(cursor, dict):
        return {}
    return {str(name): value for name, value in cursor.items() if isinstance(value, int)}
