"""When the worker journals, and when it lets the rings forget."""

from __future__ import annotations

from ast_stream.detect.detector import Detector
from ast_stream.units import SAMPLE_RATE
from ast_stream.worker.journal import Journal, StreamRecord
from ast_stream.worker.stream import WorkerStream

SAVE_EVERY_S = 1.0
SAVE_EVERY_SAMPLES = 5 * SAMPLE_RATE  # of any stream: sources faster than real time wait for acks


class WorkerJournal:
    """Journals the streams' state, then acknowledges it to their rings: never the other way."""

    def __init__(self, journal: Journal, detector: Detector, now_s: float) -> None:
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
        self._saved_s, self._saved = now_s, positions
        records = {name: self._record(stream) for name, stream in streams.items()}
        self._records = {name: record for name, record in records.items() if record is not None}
        if self._journal.save(self._unclaimed | self._records):
            for name, position in positions.items():
                streams[name].acknowledge(position)

    def _record(self, stream: WorkerStream) -> StreamRecord | None:
        if not stream.is_open or stream.epoch is None:
            return stream.record
        if stream.is_ending:  # windows beyond its audio are being scored: gone through again
            return self._records.get(stream.name)
        state = self._detector.export(stream.name)
        return StreamRecord.of(stream.epoch, state, stream.clock)
