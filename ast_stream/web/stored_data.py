"""Stored data for the pages: the history, the score log, and the coverage ledger.

Any of them may be missing: without a recorder the pages show live data only, and say so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_stream.coverage.ledger import read_all_spans
from ast_stream.coverage.spans import Span
from ast_stream.coverage.timeline import Coverage, Others
from ast_stream.errors import AstStreamError, StartupError
from ast_stream.history.database import History
from ast_stream.history.records import VerdictRecord
from ast_stream.history.score_blocks import ScoreSpan
from ast_stream.history.score_log import ScoreReader
from ast_stream.pool.coverage import ask_pool
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import (
    coverage_ledger,
    history_database,
    score_log,
    unwritten_coverage,
)
from ast_stream.settings.workers import of_worker, worker_names

COVERAGE_S = 20.0  # for which the coverage is cached
POOL_ANSWER_S = 4.0  # for which workers of a pool are waited for


@dataclass(frozen=True)
class CoverageOfAll:
    """The coverage of all streams.

    Attributes:
        streams: by name, configured streams first.
        unasked: workers of the pool whose part is missing, and why.
    """

    streams: Mapping[str, Coverage]
    unasked: Mapping[str, str]


class NoHistoryError(AstStreamError):
    """There is no recorder, or it has never run."""


class StoredData:
    """Opens stored data when it is first needed; for any thread.

    Args:
        labels: of the model's classes, for logged scores without labels of their own.
    """

    def __init__(self, settings: Settings, labels: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._history: History | None = None
        self._file = 0  # its inode
        self._scores = ScoreReader(score_log(settings).folder, labels)
        self._spans: dict[str, list[Span]] = {}
        self._spans_s = -COVERAGE_S
        self._asking = threading.Lock()  # of the pool: one at a time, however many look
        self._of_pool: CoverageOfAll | None = None
        self._asked_about: tuple[int, int] = (0, 0)
        self._asked_s = -COVERAGE_S

    @property
    def history(self) -> History:
        """The history of the recorder.

        Raises:
            NoHistoryError: there is none; the text says what to do.
        """
        with self._lock:
            path = history_database(self._settings).path
            try:
                file = path.stat().st_ino
            except OSError as error:
                raise NoHistoryError(_why_none(self._settings)) from error
            if self._history is None or self._file != file:  # the recorder replaces a damaged one
                try:
                    self._history, self._file = History.open_read_only(path), file
                except StartupError as error:
                    raise NoHistoryError(str(error)) from error
            return self._history

    def add_verdict(self, verdict: VerdictRecord) -> None:
        """Store a person's verdict on an event.

        Raises:
            NoHistoryError: there is no history.
            UsageError: there is no such event, or the verdict `other` has no label.
            AstStreamError: it could not be written.
        """
        path = history_database(self._settings).path
        if not os.path.isfile(path):  # False also where this user may not look
            raise NoHistoryError(_why_none(self._settings))
        with History.open_beside(path) as history:
            history.add_verdict(verdict)

    def scores(self, stream: str, since_ns: int, until_ns: int) -> list[ScoreSpan]:
        """Return the logged scores of windows that ended in a time range, oldest first."""
        return self._scores.read(stream, since_ns, until_ns)

    def coverage(self, since_ns: int, until_ns: int) -> CoverageOfAll:
        """Return the coverage of all streams; in a pool that by all its workers, which are asked.

        Raises:
            AstStreamError: the ledger cannot be read.
        """
        spans = self._read_spans()
        if self._settings.pool is None:
            return CoverageOfAll(self._of_spans(spans, since_ns, until_ns), {})
        with self._asking:
            is_old = time.monotonic() - self._asked_s >= COVERAGE_S
            if self._of_pool is None or is_old or self._asked_about != (since_ns, until_ns):
                with ask_pool(
                    self._settings, spans, since_ns, until_ns, POOL_ANSWER_S, max_pages=1
                ) as pool:
                    found = self._of_spans(pool.joined(), since_ns, until_ns, pool.others())
                    self._of_pool = CoverageOfAll(found, pool.unasked)
                self._asked_about, self._asked_s = (since_ns, until_ns), time.monotonic()
            return self._of_pool

    def _of_spans(
        self,
        spans: Mapping[str, Sequence[Span]],
        since_ns: int,
        until_ns: int,
        others: Callable[[str], Others] = lambda _: lambda *_: (),
    ) -> dict[str, Coverage]:
        configured = [stream.name for stream in self._settings.streams]
        lasting = {stream.name for stream in self._settings.streams if not stream.source.can_end}
        now_ns = time.time_ns()
        return {
            name: Coverage.of(
                name,
                spans.get(name, []),
                now_ns,
                is_expected=name in lasting,
                since_ns=since_ns,
                until_ns=min(until_ns, now_ns),
                others=others(name),
            )
            for name in dict.fromkeys([*configured, *sorted(spans)])
        }

    def close(self) -> None:
        """Close the opened files."""
        with self._lock:
            if self._history is not None:
                self._history.close()
                self._history = None

    def _read_spans(self) -> dict[str, list[Span]]:
        with self._lock:
            if time.monotonic() - self._spans_s >= COVERAGE_S:
                parts = [of_worker(self._settings, name) for name in worker_names(self._settings)]
                try:
                    self._spans = read_all_spans(
                        [
                            (coverage_ledger(part).folder, unwritten_coverage(part).path)
                            for part in parts
                        ]
                    )
                except OSError as error:
                    text = f"cannot read the coverage ledger {error.filename}: {error.strerror}"
                    raise AstStreamError(text) from error
                self._spans_s = time.monotonic()
            return self._spans


def clip_file(folder: Path, relative: str) -> Path | None:
    """Return the file of a clip; None if it is gone, or its path leads out of the folder."""
    root = folder.resolve()
    try:
        found = (root / relative).resolve(strict=True)
    except (OSError, ValueError):
        return None
    return found if found.is_relative_to(root) and found.is_file() else None


def _why_none(settings: Settings) -> str:
    if settings.recorder is None:
        return "nothing is recorded: set `recorder` in the configuration to keep events and clips"
    return "the recorder has not run yet: start `ast-stream record`, or `ast-stream run`"
