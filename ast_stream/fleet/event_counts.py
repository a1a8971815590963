"""Counts of the events that begin on a box, by class, from the logs of its workers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ast_stream.errors import WireError
from ast_stream.messages.event import MAX_LINE_BYTES, FeedMessage
from ast_stream.runtime.segments import segment_numbers, segment_path
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import event_log
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.units import NS_PER_SECOND

BEFORE_S = 7 * 86_400.0
MAX_CLASSES = 64  # in a report; if there are more, those with the most events
_NAME = "events"
_BEGINS = b'"type":"begin"'

logger = logging.getLogger(__name__)

Mark = dict[str, tuple[int, int]]
"""How far each log was read, by folder: segment number, and offset after the last whole line."""


def event_folders(settings: Settings) -> list[Path]:
    """Return the folders of the event logs of all workers."""
    return [event_log(of_worker(settings, name)).folder for name in worker_names(settings)]


def read_begun(folders: Sequence[Path], mark: Mark) -> tuple[Counter[str], Mark]:
    """Return how many events began after a mark, by class, and the new mark.

    Args:
        mark: of an earlier call; logs that are not in it are read from their beginning.
    """
    counts: Counter[str] = Counter()
    new: Mark = {}
    for folder in folders:
        number, offset = mark.get(str(folder), (0, 0))
        for segment in _segments(folder):
            if segment < number:
                continue
            start = offset if segment == number else 0
            for line, stop in _lines(segment_path(folder, _NAME, segment), start):
                counts.update(_class(line))
                start = stop
            new[str(folder)] = (segment, start)
        new.setdefault(str(folder), (number, offset))
    return counts, new


def end_of_logs(folders: Sequence[Path]) -> Mark:
    """Return the mark behind everything that is in the logs now."""
    mark: Mark = {}
    for folder in folders:
        for segment in _segments(folder)[-1:]:
            with suppress(OSError):
                mark[str(folder)] = (segment, segment_path(folder, _NAME, segment).stat().st_size)
    return mark


def begun_before(folders: Sequence[Path], now_ns: int) -> tuple[Counter[str], float]:
    """Return how many events began in the last `BEFORE_S`, by class, and the seconds covered."""
    since_ns = now_ns - round(BEFORE_S * NS_PER_SECOND)
    counts: Counter[str] = Counter()
    first_ns = now_ns
    for folder in folders:
        for segment in _segments(folder):
            path = segment_path(folder, _NAME, segment)
            with suppress(OSError):
                if path.stat().st_mtime_ns < since_ns:
                    continue
            for line, _ in _lines(path, 0):
                if (begun := _begun(line)) is not None and since_ns <= begun[1] <= now_ns:
                    counts[begun[0]] += 1
                    first_ns = min(first_ns, begun[1])
    return counts, (now_ns - first_ns) / NS_PER_SECOND


def bounded(counts: Counter[str]) -> dict[str, int]:
    """Return the counts of the classes with the most events."""
    return dict(counts.most_common(MAX_CLASSES))


def _segments(folder: Path) -> list[int]:
    try:
        return segment_numbers(folder, _NAME) if folder.is_dir() else []
    except OSError as error:
        logger.warning("the event log %s cannot be read: %s", folder, error.strerror)
        return []


def _lines(path: Path, start: int) -> Iterator[tuple[bytes, int]]:
    """Yield the whole lines of a segment from an offset on, each with the offset behind it."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(start)
        while line := file.readline(MAX_LINE_BYTES):
            if line[-1:] != b"\n" and len(line) < MAX_LINE_BYTES:
                return  # the line is still being written
            start += len(line)
            yield line, start


def _class(line: bytes) -> list[str]:
    begun = _begun(line)
    return [] if begun is None else [begun[0]]


def _begun(line: bytes) -> tuple[str, int] | None:
    """Return the class and onset of the `begin` message in a line; None: it is another message."""
    if _BEGINS not in line:
        return None
    try:
        message = FeedMessage.decode_line(line)
    except WireError:
        return None
    time_ns = message.published_ns
    return None if message.class_ is None or time_ns is None else (message.class_, time_ns)
