"""The worker's loop: blocks in from the sockets, through the detector, events out on the feed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ast_stream.detect.detector import Detector
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.errors import UsageError, WireError
from ast_stream.messages.audio import decode_block
from ast_stream.messages.event import AudioBlock, Scores
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.schema import DetectionSettings
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.transport.query import QueryServer
from ast_stream.transport.sockets import Listener, Poller, Sockets
from ast_stream.units import seconds_to_samples
from ast_stream.worker.feed import WorkerFeed
from ast_stream.worker.intake import WorkerIntake
from ast_stream.worker.journal import Journal
from ast_stream.worker.journalling import WorkerJournal
from ast_stream.worker.metrics import WorkerMetrics
from ast_stream.worker.overload import OverloadControl
from ast_stream.worker.report import WorkerReport
from ast_stream.worker.ring_link import RingLink
from ast_stream.worker.stream import StreamPlan, WorkerStream

logger = logging.getLogger(__name__)

TICK_MS = 20  # the longest wait for a message: timers are this exact
BLOCKS_A_TICK = 256
WINDOWS_A_TICK = 64  # then sockets and timers get their turn,
TURN_S = 1.0  # or after so long
ROOM_S = 5.0  # a stream with more than this waiting leaves further audio in its ring,
ROOM_HOPS = 2  # but not with less than this: decisions come once a hop
LOST_AFTER_S = 5.0  # without new audio: the open events of a stream are ended
FORGET_AFTER_S = 60.0  # without new audio: a stream that is not in the configuration is dropped
ORPHANS_AFTER_S = 10.0  # events of a stream whose capture process does not come back end then
UNCONFIGURED_RING_S = 90.0


@dataclass(frozen=True)
class WorkerSockets:
    """The sockets of the worker."""

    sockets: Sockets
    audio: Listener
    query: Listener


class Worker:
    """Drives the detector from the sockets.

    Args:
        make_detector: builds a detector that calls its argument with the scores of each window.
        facts: model, device, precision and the like, for the status message.
        ring_folder: the ring of a stream that is not in the configuration lies here.
        now_s: a clock that only goes forward.
        now_ns: wall clock.
    """

    def __init__(
        self,
        plans: list[StreamPlan],
        make_detector: Callable[[Callable[[Scores], None]], Detector],
        publisher: FeedPublisher,
        event_log: EventLog,
        journal: Journal,
        sockets: WorkerSockets,
        *,
        metrics: WorkerMetrics,
        facts: dict[str, Any],
        ring_folder: str,
        now_s: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._now_s = now_s
        self._detector = detector = make_detector(self._publish_scores)
        self._journal = WorkerJournal(journal, detector, now_s())
        self._sockets = sockets
        self._ring_folder = ring_folder
        self._poller = Poller([sockets.audio, sockets.query])
        self._log = LimitedLog(logger, now_s)
        self._streams: dict[str, WorkerStream] = {}
        self._feed = WorkerFeed(publisher, event_log, facts["model"], now_ns)
        self._intake = WorkerIntake(self._streams, detector, self._feed)
        self._started_s = now_s()
        self._overload = OverloadControl(detector.window // detector.hop, now_s())
        self._worked_to: dict[str, int] = {}
        self._windows_a_tick = 1
        self._metrics = metrics
        self._report = WorkerReport(
            self._streams,
            detector,
            publisher,
            self._feed,
            facts,
            self._started_s,
            outages=(event_log.outage, journal.outage),
        )
        self._query = QueryServer(
            sockets.query,
            event_log,
            publisher,
            snapshot=lambda: self._report.snapshot(self._now_s()),
            audio=self._report.audio,
            now_s=now_s,
        )
        for plan in plans:
            self._add(plan)

    @property
    def parameters(self) -> DecisionParameters:
        """What events are decided by."""
        return self._detector.parameters

    def run(self, stop: threading.Event, after_turn: Callable[[], None]) -> None:
        """Work until `stop` is set; `finish` must follow.

        Args:
            after_turn: called after each `tick`, in the same thread.
        """
        while not stop.is_set():
            self._poller.wait(0 if self._detector.has_due else TICK_MS)
            self.tick()
            after_turn()

    def finish(self) -> None:
        """End open events, journal and acknowledge."""
        for stream in self._open_streams():
            self._intake.publish(self._detector.end_events(stream.name, "shutdown"))
        self._journal.save(self._streams, self._now_s(), at_once=True)

    def tick(self) -> None:
        """Do what is due: take messages, score, publish, acknowledge, report, answer."""
        now_s = self._now_s()
        stage = self._metrics.stage
        with stage("receive"):
            self._take_blocks(now_s)
        with stage("rings"):
            for stream in list(self._streams.values()):
                stream.waiting += stream.exchange(now_s, has_room=self._has_room(stream))
                self._intake.apply(stream)
        with stage("detect"):
            self._detect()
            for stream in self._streams.values():
                self._intake.apply(stream)
        self._widen_hops_under_overload(now_s)
        self._look_after_streams(now_s)
        with stage("journal"):
            self._journal.save(self._streams, now_s)
        with stage("report"):
            self._report.publish(now_s)
            self._metrics.renew(self._report, now_s)
        with stage("answer"):
            self._query.serve()

    def has_worked(self) -> bool:
        """Tell whether audio was decided since this was last asked, or none is due."""
        positions = {name: self._detector.position(name) for name in self._detector.streams}
        has_worked = positions != self._worked_to or not self._detector.has_due
        self._worked_to = positions
        return has_worked

    def status_line(self) -> str:
        """Return how the worker is, in words."""
        return self._report.status_line(self._now_s())

    def healths(self) -> list[dict[str, Any]]:
        """Return the health of every stream, as on the feed."""
        return self._report.healths(self._now_s())

    def use_detection(self, detection: DetectionSettings, identity: str) -> None:
        """Decide by other settings from now on.

        Args:
            identity: names model and detection settings in the journal.

        Raises:
            UsageError: they do not fit the model; nothing has changed.
        """
        self._detector.use(detection)
        self._journal.belong_to(identity)
        self._journal.save(self._streams, self._now_s(), at_once=True)

    def _detect(self) -> None:
        """Score and publish for about `TURN_S` at most: a turn must not outlast the watchdog."""
        began_s, n_before = self._now_s(), self._report.n_windows
        self._intake.publish(self._detector.run(self._windows_a_tick))
        n_windows = self._report.n_windows - n_before
        if n_windows:
            window_s = max(1e-6, (self._now_s() - began_s) / n_windows)
            fitting = min(2 * self._windows_a_tick, WINDOWS_A_TICK, round(TURN_S / window_s))
            self._windows_a_tick = max(1, fitting)

    def _publish_scores(self, scores: Scores) -> None:
        self._feed.publish_scores(self._streams[scores.stream], scores)

    def _take_blocks(self, now_s: float) -> None:
        for _ in range(BLOCKS_A_TICK):
            frames = self._sockets.audio.receive()
            if frames is None:
                return
            try:
                block = decode_block(frames)
                stream = self._stream_of(block)
            except (WireError, UsageError) as error:
                self._report.refusals["blocks_refused"] += 1
                self._log.warning("audio block refused: %s", error)
                continue
            stream.waiting += stream.intake.on_block(block, now_s, has_room=self._has_room(stream))

    def _has_room(self, stream: WorkerStream) -> bool:
        """Tell whether more audio of a stream is wanted now; else its ring keeps it."""
        waiting = stream.waiting_samples
        if stream.is_open:
            waiting += self._detector.received(stream.name) - self._detector.position(stream.name)
        return waiting < max(seconds_to_samples(ROOM_S), ROOM_HOPS * self._detector.hop)

    def _stream_of(self, block: AudioBlock) -> WorkerStream:
        """Return the stream of a block; one that is not configured is added while there is room.

        Raises:
            WireError: its ring is not where the configuration puts it.
            UsageError: too many streams.
        """
        if block.stream in self._streams:
            return self._streams[block.stream]
        expected = f"{self._ring_folder}ring.{block.stream}.sock"
        if block.ring != expected:  # never connect where a block from anybody says
            raise WireError(
                f"stream {block.stream}: ring: expected {expected}, got {block.ring or 'none'}"
            )
        if len(self._streams) >= self._detector.max_streams:
            raise UsageError(
                f"stream {block.stream}: expected at most {self._detector.max_streams} streams "
                "(model.max_streams), got one more"
            )
        plan = StreamPlan(block.stream, {}, expected, UNCONFIGURED_RING_S, is_configured=False)
        return self._add(plan)

    def _add(self, plan: StreamPlan) -> WorkerStream:
        record = self._journal.claim(plan.name)
        link = RingLink(self._sockets.sockets, self._poller, plan.ring_endpoint)
        stream = WorkerStream(plan, link, record)
        if record is not None:
            first = self._detector.context_needed(record.detector)
            stream.intake.resume(record.epoch, first, record.time_ns(first))
        self._streams[plan.name] = stream
        logger.info("stream %s: expecting audio, ring at %s", plan.name, plan.ring_endpoint)
        return stream

    def _open_streams(self) -> Iterator[WorkerStream]:
        return (stream for stream in list(self._streams.values()) if stream.is_open)

    def _look_after_streams(self, now_s: float) -> None:
        """End the events of silent streams, and drop those that are gone."""
        for stream in self._open_streams():
            silence_s = stream.intake.silence_s(now_s)
            is_scored = not (stream.waiting or self._detector.windows_due(stream.name))
            if silence_s > LOST_AFTER_S and is_scored and not stream.is_lost:
                logger.warning("stream %s: no audio for %.0f s", stream.name, silence_s)
                stream.is_lost = True
                self._intake.publish(self._detector.end_events(stream.name, "stream_lost"))
        for stream in list(self._streams.values()):
            if not stream.plan.is_configured and stream.intake.silence_s(now_s) > FORGET_AFTER_S:
                self._forget(stream)
        for name in self._feed.orphaned_streams:
            self._end_orphans(name, now_s)

    def _end_orphans(self, name: str, now_s: float) -> None:
        """End events of an earlier run once it is clear that nothing derives them again."""
        stream = self._streams.get(name)
        if stream is not None and stream.is_open:
            position = self._detector.position(name)
            self._feed.end_orphans(name, of_epoch=stream.epoch, before=position)
        elif now_s - self._started_s > ORPHANS_AFTER_S:
            self._feed.end_orphans(name)

    def _widen_hops_under_overload(self, now_s: float) -> None:
        """Score fewer windows of all live streams alike while the model cannot keep up."""
        # a source that is read as fast as it is scored is always behind
        live = [stream for stream in self._open_streams() if stream.intake.is_paced]
        behind_s = [one.backlog_s(self._detector.position(one.name)) for one in live]
        is_idle = not any(self._detector.windows_due(one.name) for one in live)
        stride = self._overload.update(max(behind_s, default=0.0), now_s, is_idle=is_idle)
        for stream in self._open_streams():
            wanted = stride if stream.intake.is_paced else 1
            if wanted != stream.stride:
                stream.stride = wanted
                self._detector.set_stride(stream.name, wanted)

    def _forget(self, stream: WorkerStream) -> None:
        if stream.is_open:
            self._intake.publish(self._detector.close(stream.name, "stream_lost"))
        stream.link.close()
        self._feed.forget(stream.name)
        del self._streams[stream.name]
        logger.info("stream %s: gone", stream.name)
