"""What the worker does with the audio, gaps, epochs and ends of its streams."""

from __future__ import annotations

import logging

from ast_stream.detect.detector import Detector
from ast_stream.messages import Event, Gap
from ast_stream.runtime.journal import StreamRecord
from ast_stream.wire.replay import Audio, Ended, GapFound, Item, NewEpoch
from services.worker_feed import WorkerFeed
from services.worker_stream import WorkerStream

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

    def apply(self, stream: WorkerStream, items: list[Item]) -> None:
        """Work through what a stream's intake made of blocks and ring reads, in order."""
        for item in items:
            match item:
                case Audio():
                    self._on_audio(stream, item)
                case GapFound(gap):
                    self._on_gap(stream, gap)
                case NewEpoch(epoch, start):
                    self._on_new_epoch(stream, epoch, start)
                case Ended():
                    self._on_ended(stream)

    def _on_audio(self, stream: WorkerStream, audio: Audio) -> None:
        if not stream.is_open and stream.record is not None:
            self._resume(stream, stream.record, audio.start_sample)
        if stream.is_lost:
            logger.info("stream %s: audio is back", stream.name)
            stream.is_lost = False
        stream.clock.observe(audio.start_sample, audio.time_ns)
        stream.history.write(audio.start_sample, audio.pcm)
        self._detector.push(stream.name, audio.start_sample, audio.pcm)

    def _on_gap(self, stream: WorkerStream, gap: Gap) -> None:
        record = stream.record
        if record is not None and gap.epoch == record.epoch:
            # what was decided before the restart was only wanted again to fill the window
            lost = gap.start_sample + gap.samples - record.position
            if lost <= 0:
                return
            self._resume(stream, record, record.position)
            gap = Gap(gap.stream, gap.epoch, record.position, lost, gap.reason)
        self._feed.publish_gap(stream, gap)
        if stream.is_open and gap.epoch == stream.intake.epoch:
            self.publish(self._detector.gap(gap))
            self._feed.end_orphans(stream.name, before=gap.start_sample + gap.samples)

    def _on_new_epoch(self, stream: WorkerStream, epoch: str, start: int) -> None:
        if stream.is_open:
            self.publish(self._detector.flush(stream.name))
        # events of an epoch of which nothing was acknowledged are derived again from its start
        self._feed.end_orphans(stream.name, except_epoch=epoch if start == 0 else None)
        logger.info("stream %s: epoch %s from sample %d", stream.name, epoch[:8], start)
        stream.begin_epoch(start, [])
        self._feed.begin_epoch(stream.name, epoch, start)
        self._detector.open(stream.name, epoch, start)

    def _resume(self, stream: WorkerStream, record: StreamRecord, start: int) -> None:
        """Open a stream of the epoch that the journal knows; audio comes from `start` on."""
        stream.begin_epoch(start, record.sample_clock().anchors)
        self._detector.resume(stream.name, record.epoch, start, record.detector)
        self._feed.end_orphans(stream.name, except_epoch=record.epoch)
        self._feed.begin_epoch(stream.name, record.epoch, record.position)
        self._feed.continue_events(self._detector.open_events(stream.name))
        logger.info("stream %s: resumed at sample %d", stream.name, record.position)

    def _on_ended(self, stream: WorkerStream) -> None:
        logger.info("stream %s: the source has ended", stream.name)
        if not stream.is_open:
            return
        end = self._detector.received(stream.name)
        self.publish(self._detector.flush(stream.name))
        self._feed.end_orphans(stream.name)
        stream.is_open = False
        stream.acknowledge(end)
