"""What the worker does with the audio, gaps, epochs and ends of its streams."""

from __future__ import annotations

import logging

from ast_stream.detect.detector import LONGEST_SILENT_HOLE, Detector
from ast_stream.messages.event import Event, Gap
from ast_stream.worker.feed import WorkerFeed
from ast_stream.worker.journal import StreamRecord
from ast_stream.worker.stream import WorkerStream
from ast_stream.worker.stream_intake import Audio, Ended, GapFound, NewEpoch

logger = logging.getLogger(__name__)


class WorkerIntake:
    """Moves what came in through the detector and onto the feed.

    Args:
        streams: all streams by name; the caller adds and removes them.
    """

    def __init__(
        self, streams: dict[str, WorkerStream], detector: Detector, feed: WorkerFeed
    ) -> None:
        self._streams = streams
        self._detector = detector
        self._feed = feed

    def publish(self, events: list[Event]) -> None:
        """Put events on the feed."""
        for event in events:
            self._feed.publish_event(self._streams[event.stream], event)

    def apply(self, stream: WorkerStream) -> None:
        """Give the detector what waits for it, in order, as far as it has room.

        Nothing is scored here: what must be scored before the next item can be taken is left to
        the detector's next run.
        """
        while stream.waiting:
            match stream.waiting[0]:
                case Audio() as audio:
                    is_done = self._on_audio(stream, audio)
                case GapFound(gap):
                    is_done = self._on_gap(stream, gap)
                case NewEpoch(epoch, start):
                    is_done = self._on_new_epoch(stream, epoch, start)
                case Ended(_, end):
                    is_done = self._on_ended(stream, end)
            if not is_done:
                return
            stream.waiting.popleft()
            stream.is_ending = False

    def _on_audio(self, stream: WorkerStream, audio: Audio) -> bool:
        if not stream.is_open and stream.record is not None:
            self._resume(stream, stream.record, audio.start_sample)
        if self._detector.room(stream.name) < len(audio.pcm):
            return False
        if stream.is_lost:
            logger.info("stream %s: audio is back", stream.name)
            stream.is_lost = False
        stream.clock.observe(audio.start_sample, audio.time_ns)
        stream.history.append_silence(audio.start_sample - stream.history.end)
        stream.history.append(audio.pcm)
        self._detector.push(stream.name, audio.start_sample, audio.pcm)
        return True

    def _on_gap(self, stream: WorkerStream, gap: Gap) -> bool:
        if not stream.is_ending:
            record = stream.record
            if record is not None and gap.epoch == record.epoch:
                # what was decided before the restart was only wanted again to fill the window
                lost = gap.start_sample + gap.samples - record.position
                if lost <= 0:
                    return True
                self._resume(stream, record, record.position)
                gap = Gap(gap.stream, gap.epoch, record.position, lost, gap.reason)
            if stream.is_open and self._detector.room(stream.name) < LONGEST_SILENT_HOLE:
                return False
            self._feed.publish_gap(stream, gap)
            if not stream.is_open or gap.epoch != stream.epoch:
                return True
            self._detector.begin_gap(gap)
            stream.is_ending = True
        if self._detector.is_ending(stream.name):
            return False
        lost_before = gap.start_sample + gap.samples
        self._feed.end_orphans(stream.name, of_epoch=gap.epoch, before=lost_before)
        return True

    def _on_new_epoch(self, stream: WorkerStream, epoch: str, start: int) -> bool:
        if not self._is_flushed(stream):
            return False
        # events of an epoch of which nothing was acknowledged are derived again from its start
        self._feed.end_orphans(stream.name, except_epoch=epoch if start == 0 else None)
        logger.info("stream %s: epoch %s from sample %d", stream.name, epoch[:8], start)
        stream.begin_epoch(epoch, start, [])
        self._feed.begin_epoch(stream.name, epoch, start)
        self._detector.open(stream.name, epoch, start)
        return True

    def _is_flushed(self, stream: WorkerStream) -> bool:
        """Tell whether all before this item is scored and ended; begin with that if need be."""
        if stream.is_open and not stream.is_ending:
            self._detector.begin_flush(stream.name)
            stream.is_ending = True
        if self._detector.is_ending(stream.name):
            return False
        stream.is_open = False
        return True

    def _resume(self, stream: WorkerStream, record: StreamRecord, start: int) -> None:
        """Open a stream of the epoch that the journal knows; audio comes from `start` on."""
        stream.begin_epoch(record.epoch, start, record.sample_clock().anchors)
        self._detector.resume(stream.name, record.epoch, start, record.detector)
        if stream.intake.epoch == record.epoch:  # else those of the next may be derived again
            self._feed.end_orphans(stream.name, except_epoch=record.epoch)
        self._feed.begin_epoch(stream.name, record.epoch, record.position)
        self._feed.continue_events(self._detector.open_events(stream.name))
        logger.info("stream %s: resumed at sample %d", stream.name, record.position)

    def _on_ended(self, stream: WorkerStream, end: int) -> bool:
        if not stream.is_open:
            return True
        if not self._is_flushed(stream):
            return False
        logger.info("stream %s: the source has ended", stream.name)
        self._feed.end_orphans(stream.name)
        stream.acknowledge(end)
        return True
