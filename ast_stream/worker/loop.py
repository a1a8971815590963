"""The worker's loop: blocks in from the sockets, through the detector, events out on the feed."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.detect.detector import Detector, HeardFrames
from ast_stream.detect.scorer import HopRun
from ast_stream.errors import UsageError, WireError
from ast_stream.levels.seconds import LevelSeconds
from ast_stream.machine_clock import CLOCK_ID, Moment, read_clocks
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import Scores
from ast_stream.messages.status import Health, WorkerFacts
from ast_stream.privacy.access import AudioAccess
from ast_stream.privacy.audit import AuditLog
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.schema import DetectionSettings, PrivacyMode
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import DeduplicatingPublisher, FeedPublisher, Sender
from ast_stream.transport.query import QueryServer
from ast_stream.transport.sockets import Listener, Poller, Sockets
from ast_stream.worker.account import StreamAccount
from ast_stream.worker.journal import Journal
from ast_stream.worker.overload import OverloadControl
from ast_stream.worker.report import WorkerMetrics, WorkerReport, read_audio
from ast_stream.worker.stream import RingClient, StreamConfig, WorkerStream

logger = logging.getLogger(__name__)

TICK_MS = 20  # the longest wait for a message: timers are this exact
GATHER_MS_A_STREAM, MAX_GATHER_MS = 0.5, 40.0  # see `gather_ms`
LEVELS_EVERY_S = 0.2  # seconds of several streams cost half as much in a batch
MAX_BLOCKS_PER_TICK = 256
MAX_WINDOWS_PER_TICK = 64  # then sockets and timers get their turn,
MAX_SCORING_S = 1.0  # or after so long
ORPHANS_AFTER_S = 10.0  # events of a stream whose capture process does not come back end then
LEAVING_S = 10.0  # in which a capture process ends whose stream was removed


MakeDetector = Callable[[Callable[[Scores], None], Callable[[HopRun], None]], Detector]
"""Returns a detector that calls its arguments with scores and with runs of hops."""


@dataclass(frozen=True)
class WorkerSockets:
    """The sockets of the worker; `sockets` connects to the rings."""

    sockets: Sockets
    audio: Listener
    feed: Sender
    query: Listener


class Worker:
    """Drives the streams and the detector from the sockets.

    Args:
        ledger: of what was listened to.
        audit: records who asks for audio.
        privacy: who may have any.
        facts: model, device, precision and the like, for the status message.
        ring_folder: the ring of a stream that is not in the configuration lies here.
        syncs_first: sync the event log before events are sent, and not only before the journal.
        now_s: a monotonic clock.
        now: reads both clocks of the machine.
    """

    def __init__(
        self,
        configs: list[StreamConfig],
        make_detector: MakeDetector,
        event_log: EventLog,
        journal: Journal,
        ledger: CoverageLedger,
        audit: AuditLog,
        sockets: WorkerSockets,
        *,
        privacy: PrivacyMode = "off",
        metrics: WorkerMetrics,
        facts: WorkerFacts,
        ring_folder: str,
        syncs_first: bool,
        now_s: Callable[[], float] = time.monotonic,
        now: Callable[[], Moment] = read_clocks,
    ) -> None:
        self._now_s = now_s
        self._now = now
        self._detector = detector = make_detector(self._publish_scores, self._account_for)
        self._journal = journal
        self._ledger = ledger
        self._audit = audit
        self._access = AudioAccess(
            privacy,
            audit,
            held=lambda wanted: read_audio(self._streams, wanted),
            speech=lambda block: self._by_name[block.stream].speech_in(block),
            wall_ns=lambda: now().wall_ns,
        )
        if self._access.shows_spectrograms:
            detector.show_frames(self._has_viewer, self._show_frames)
        self._event_log = event_log
        self._sockets = sockets
        self._ring_folder = ring_folder
        self._metrics = metrics
        self._poller = Poller([sockets.audio, sockets.query])
        self._log = LimitedLog(logger, now_s)
        self._levels = LevelSeconds()
        self._analysed_s = float("-inf")
        self._by_name: dict[str, WorkerStream] = {}
        boot = secrets.token_hex(8)
        feed = FeedPublisher(sockets.feed, event_log, boot, now, syncs_first=syncs_first)
        self._flush = feed.flush
        self._configured: dict[str, StreamConfig] = {}
        self._is_changing = False  # streams have yet to leave, or to come
        self._removed: dict[str, float] = {}  # from the configuration, by name: when
        self._publisher = DeduplicatingPublisher(feed, event_log, facts.model, now)
        self._started_s = now_s()
        self._overload = OverloadControl(detector.widest_stride, now_s())
        self._last_positions: dict[str, int] = {}
        self._max_windows = 1
        self._n_decided = 0  # windows, or frames where they decide
        self._report = WorkerReport(
            detector,
            feed,
            self._publisher,
            facts,
            self._started_s,
            outages=(event_log.outage, journal.outage, ledger.outage, audit.outage),
            covered=ledger.samples,
        )
        self._query = QueryServer(
            sockets.query,
            event_log,
            feed,
            snapshot=lambda: self._report.snapshot(self._streams, self._now_s()),
            audio=self._access.release,
            now_s=now_s,
        )
        self.use_streams(configs)

    def run(self, stop: threading.Event, after_tick: Callable[[], None]) -> None:
        """Work until `stop` is set; `finish` must follow.

        Args:
            after_tick: called after each `tick`, in the same thread.
        """
        while not stop.is_set():
            began_s = self._now_s()
            self.tick()
            after_tick()
            if not self._detector.has_due:
                self._poller.wait(TICK_MS)
                next_s = began_s + gather_ms(len(self._by_name)) / 1000
                stop.wait(max(0.0, next_s - self._now_s()))

    def finish(self) -> None:
        """End open events, account for what was heard, journal and acknowledge."""
        for stream in self._streams:
            stream.end_events("shutdown")
        self._save(self._now_s(), is_last=True)

    def tick(self) -> None:
        """Do what is due: move audio on to events, then what the clock and clients ask for."""
        now_s = self._now_s()
        self._move_audio(now_s)
        self._do_chores(now_s)

    def _move_audio(self, now_s: float) -> None:
        """Receive, put in order, score, decide and publish."""
        stage = self._metrics.stage
        with stage("receive"):
            self._receive_blocks(now_s)
        with stage("rings"):
            for stream in self._streams:
                stream.exchange_with_ring(now_s)
                stream.push_to_detector()
        if self._levels.whole and now_s - self._analysed_s >= LEVELS_EVERY_S:
            self._analysed_s = now_s
            with stage("levels"):
                for second in self._levels.run():
                    self._by_name[second.stream].publish_levels(second)
        with stage("detect"):
            self._detect()
            self._flush()
            for stream in self._streams:
                stream.push_to_detector()

    def _do_chores(self, now_s: float) -> None:
        """Control overload, end what is over, journal and acknowledge, report, answer."""
        stage = self._metrics.stage
        self._control_overload(now_s)
        self._end_what_is_over(now_s)
        if self._is_changing:
            self._follow_configuration()
        with stage("journal"):
            if self._journal.is_due(self._streams, now_s):
                self._save(now_s)
        with stage("report"):
            self._report.publish(self._streams, now_s)
            self._flush()
            self._metrics.renew(lambda: self._report.families(self._streams, now_s), now_s)
        with stage("answer"):
            self._query.serve()

    def has_progressed(self) -> bool:
        """Return whether audio was decided since the last call, or none is due."""
        positions = {name: self._detector.position(name) for name in self._detector.streams}
        has_progressed = positions != self._last_positions or not self._detector.has_due
        self._last_positions = positions
        return has_progressed

    def status_line(self) -> str:
        """Return the state of the worker as a line for people."""
        return self._report.status_line(self._streams, self._now_s())

    def healths(self) -> list[Health]:
        """Return the health of every stream, as on the feed."""
        return [stream.health(self._now_s()) for stream in self._streams]

    def use_detection(self, detection: DetectionSettings, model: str) -> None:
        """Decide by other settings from now on.

        Args:
            model: names model and detection settings in the journal.

        Raises:
            UsageError: they do not fit the model; nothing has changed.
        """
        self._detector.use(detection)
        self._journal.change_model(model)
        self._save(self._now_s())

    def use_streams(self, configs: Sequence[StreamConfig]) -> None:
        """Listen to these streams from now on; those that stay go on as they are.

        A stream that is no longer among them leaves once its audio so far is decided.

        Args:
            configs: at most as many as the detector has slots for.
        """
        now_s = self._now_s()
        self._removed |= dict.fromkeys(self._configured, now_s)
        self._configured = {config.name: config for config in configs}
        for name in self._configured:
            self._removed.pop(name, None)
        for stream in self._streams:
            config = self._configured.get(stream.name)
            if config is not None and not stream.is_leaving:
                stream.configure(config)
            elif config is None and stream.config.is_configured and not stream.is_leaving:
                stream.leave(now_s)
        self._is_changing = True
        self._follow_configuration()

    def note_restart_needed(self, keys: Sequence[str]) -> None:
        """Report from now on that these keys of the configuration wait for a restart."""
        self._report.restart_needed = keys

    @property
    def _streams(self) -> list[WorkerStream]:
        return list(self._by_name.values())

    def _publish_scores(self, scores: Scores) -> None:
        self._n_decided += 1
        self._by_name[scores.stream].publish([scores])

    def _has_viewer(self, stream: str) -> bool:
        return self._by_name[stream].has_viewer()

    def _show_frames(self, heard: HeardFrames) -> None:
        self._by_name[heard.stream].show(heard, self._access)

    def _account_for(self, run: HopRun) -> None:
        self._by_name[run.stream].account_for(run)

    def _save(self, now_s: float, *, is_last: bool = False) -> None:
        """Publish and account for all audio up to here, then journal and acknowledge it.

        In this order: a run that resumes from the journal finds nothing before it unaccounted for,
        and no power cut takes events of which the audio is not asked for again.
        """
        self._detector.settle_runs()
        self._ledger.save(at_once=is_last)
        self._audit.write_repeats()
        self._flush()
        self._event_log.sync()
        self._event_log.purge()
        self._journal.save(self._streams, now_s)

    def _receive_blocks(self, now_s: float) -> None:
        for _ in range(MAX_BLOCKS_PER_TICK):
            frames = self._sockets.audio.receive()
            if frames is None:
                return
            try:
                block = AudioBlock.decode(frames)
                if block.clock not in (None, CLOCK_ID):
                    block = block.by_clock_of(self._now())
                if self._has_just_been_removed(block.stream, now_s):
                    continue
                stream = self._stream_of(block)
            except (WireError, UsageError) as error:
                self._report.blocks_refused += 1
                self._log.warning("audio block refused: %s", error)
                continue
            stream.receive_block(block, now_s)

    def _stream_of(self, block: AudioBlock) -> WorkerStream:
        """Return the stream of a block; one that is not configured is added while there is room.

        Raises:
            WireError: it was removed, or its ring is not where the configuration puts it.
            UsageError: too many streams.
        """
        if block.stream in self._by_name:
            return self._by_name[block.stream]
        if block.stream in self._removed:
            raise WireError(f"stream {block.stream}: was removed from the configuration")
        expected = f"{self._ring_folder}ring.{block.stream}.sock"
        if block.ring != expected:  # never connect where a block from anybody says
            raise WireError(
                f"stream {block.stream}: ring: expected {expected}, got {block.ring or 'none'}"
            )
        if len(self._by_name.keys() | self._configured.keys()) >= self._detector.max_streams:
            raise UsageError(
                f"stream {block.stream}: expected at most {self._detector.max_streams} streams "
                "(model.max_streams), got one more"
            )
        return self._add(StreamConfig(block.stream, {}, expected, is_configured=False))

    def _has_just_been_removed(self, name: str, now_s: float) -> bool:
        """Return whether the capture process of a stream just removed may still be sending."""
        removed_s = self._removed.get(name)
        return removed_s is not None and now_s - removed_s < LEAVING_S

    def _follow_configuration(self) -> None:
        """Drop streams that have left, then add those that are new in the configuration."""
        for stream in self._streams:
            if stream.has_left:
                self._let_go(stream)
        room = self._detector.max_streams - len(self._by_name)
        awaited = [config for name, config in self._configured.items() if name not in self._by_name]
        for config in awaited[:room]:
            self._add(config)
        is_leaving = any(stream.is_leaving for stream in self._streams)
        self._is_changing = is_leaving or len(awaited) > room

    def _let_go(self, stream: WorkerStream) -> None:
        """Drop a stream from memory and the journal; the ledger records it as off."""
        left_ns = self._now().wall_ns if stream.left_ns is None else stream.left_ns
        del self._by_name[stream.name]
        self._ledger.note_removed(stream.name, left_ns)
        self._save(self._now_s())
        stream.close()
        self._report.publish_farewell(stream, self._now_s())
        logger.info("stream %s: removed", stream.name)

    def _add(self, config: StreamConfig) -> WorkerStream:
        ring = RingClient(self._sockets.sockets, self._poller, config.ring_endpoint)
        record = self._journal.claim(config.name)
        account = StreamAccount(self._ledger)
        self._ledger.note_added(config.name, self._now().wall_ns)
        stream = WorkerStream(
            config,
            ring,
            self._detector,
            self._publisher,
            account,
            self._levels,
            record,
            self._access.history_s,
            masks_speech=self._access.mode == "speech",
        )
        self._by_name[config.name] = stream
        logger.info("stream %s: expecting audio, ring at %s", config.name, config.ring_endpoint)
        return stream

    def _detect(self) -> None:
        """Score and publish for about `MAX_SCORING_S`: a tick must not outlast the watchdog."""
        began_s, n_before = self._now_s(), self._n_decided
        for event in self._detector.run(self._max_windows):
            self._by_name[event.stream].publish([event])
        n_windows = self._n_decided - n_before
        if n_windows:
            window_s = max(1e-6, (self._now_s() - began_s) / n_windows)
            in_time = round(MAX_SCORING_S / window_s)
            self._max_windows = max(1, min(2 * self._max_windows, MAX_WINDOWS_PER_TICK, in_time))

    def _control_overload(self, now_s: float) -> None:
        """Score fewer windows of all live streams alike while the model cannot keep up."""
        is_open = [stream for stream in self._streams if stream.is_open]
        # a source that is read as fast as it is scored is always behind
        live = [stream for stream in is_open if stream.is_paced]
        backlog_s = max((stream.backlog_s() for stream in live), default=0.0)
        is_idle = not (self._detector.has_due and any(stream.has_windows_due() for stream in live))
        stride = self._overload.update(backlog_s, now_s, is_idle=is_idle)
        for stream in is_open:
            stream.set_stride(stride, is_exhausted=self._overload.is_exhausted)
        if self._overload.must_skip:
            for stream in live:
                stream.skip_backlog()

    def _end_what_is_over(self, now_s: float) -> None:
        """End the events of silent streams, drop streams that are gone, and end orphans."""
        for stream in self._streams:
            stream.end_events_if_lost(now_s)
            if stream.is_gone(now_s):
                stream.close()
                del self._by_name[stream.name]
                logger.info("stream %s: gone", stream.name)
        # events of an earlier run end once it is clear that nothing derives them again
        for name in self._publisher.orphaned_streams:
            orphaned = self._by_name.get(name)
            if orphaned is not None and orphaned.is_open:
                orphaned.end_orphans()
            elif now_s - self._started_s > ORPHANS_AFTER_S:
                self._publisher.end_orphans(name)


def gather_ms(n_streams: int) -> float:
    """Return how long after a turn the next one begins, at least, while nothing is due.

    A turn looks at every stream, and windows cost less in a batch than one by one: with many
    streams a turn waits for more blocks than the first that comes, and no longer with one.
    """
    return min(MAX_GATHER_MS, GATHER_MS_A_STREAM * n_streams)
