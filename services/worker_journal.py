"""When the worker journals, and when it lets the rings forget."""

from __future__ import annotations

from collections.abc import Callable

from ast_stream.detect.detector import Detector
from ast_stream.runtime.journal import Journal, StreamRecord
from ast_stream.units import SAMPLE_RATE, seconds_to_samples
from services.worker_stream import WorkerStream

SAVE_EVERY_S = 1.0
SAVE_EVERY_SAMPLES = 5 * SAMPLE_RATE  # of any stream: sources faster than real time wait for acks


class WorkerJournal:
    """Journals the streams' state, then acknowledges it to their rings: never the other way.

    Args:
        is_log_behind: tells whether published messages are not on the disk yet.
    """

    def __init__(
        self,
        journal: Journal,
        detector: Detector,
        now_s: float,
        is_log_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_log_behind = is_log_behind
        self._journal = journal
        self._detector = detector
        self._saved_s = now_s
        self._saved: dict[str, int] = {}
        self._records: dict[str, StreamRecord] = {}
        records = journal.load()
        # of streams that are not in the configuration and may come back
        self._unclaimed = dict(list(records.items())[: detector.max_streams])

    def claim(self, stream: str) -> StreamRecord | None:
        """Return what an earlier run journalled of a stream, once."""
        return self._unclaimed.pop(stream, None)

    def belong_to(self, identity: str) -> None:
        """Journal for another model or other settings from now on."""
        self._unclaimed.clear()
        self._journal.belong_to(identity)

    def save(
        self, streams: dict[str, WorkerStream], now_s: float, *, at_once: bool = False
    ) -> None:
        """Journal and acknowledge if it is due.

        What could not be journalled is acknowledged all the same, unless a journal of older
        positions is left over: going back to those, a later run would miss audio it has decided.
        """
        positions = {
            name: self._detector.position(name)
            for name, one in streams.items()
            if one.is_open and not one.is_ending
        }
        is_far = any(
            position - self._saved.get(name, 0) >= SAVE_EVERY_SAMPLES
            for name, position in positions.items()
        )
        if not (at_once or is_far or now_s - self._saved_s >= SAVE_EVERY_S):
            return
        if not at_once and self._is_log_behind() and self._can_wait(streams, positions):
            return
        self._saved_s, self._saved = now_s, positions
        records = {name: self._record(stream) for name, stream in streams.items()}
        self._records = {name: record for name, record in records.items() if record is not None}
        if self._journal.save(self._unclaimed | self._records):
            for name, position in positions.items():
                streams[name].acknowledge(position)

    def _can_wait(self, streams: dict[str, WorkerStream], positions: dict[str, int]) -> bool:
        """Tell whether the rings surely have all that follows the last journal.

        What a full disk keeps out of the log is then derived again after a kill.
        """
        for name, position in positions.items():
            if position < self._saved.get(name, position):
                return False  # another epoch
            self._saved.setdefault(name, position)
        return all(
            position - self._saved[name] < seconds_to_samples(streams[name].plan.ring_s / 2)
            for name, position in positions.items()
        )

    def _record(self, stream: WorkerStream) -> StreamRecord | None:
        if not stream.is_open or stream.epoch is None:
            return stream.record
        if stream.is_ending:  # windows beyond its audio are being scored: gone through again
            return self._records.get(stream.name)
        state = self._detector.export(stream.name)
        return StreamRecord.of(stream.epoch, state, stream.clock)
