"""The worker's loop: blocks in from the sockets, through the detector, events out on the feed."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.detect.detector import Detector, HeardFrames
from ast_stream.detect.scorer import HopRun
from ast_stream.errors import UsageError, WireError
from ast_stream.levels.seconds import LevelSeconds
from ast_stream.machine_clock import Moment, read_clocks
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import Scores
from ast_stream.messages.pool import State
from ast_stream.messages.query import CoverageQuery
from ast_stream.messages.rings import Hello, Refused, Release, Released, Stay
from ast_stream.messages.status import Health, WorkerFacts
from ast_stream.pool.directory import Owner
from ast_stream.privacy.access import AudioAccess
from ast_stream.privacy.audit import AuditLog
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.detection import DetectionSettings
from ast_stream.settings.schema import PrivacyMode
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import (
    DeduplicatingPublisher,
    FeedPublisher,
    PubSocket,
    SyncedFirst,
)
from ast_stream.transport.query import QueryServer
from ast_stream.transport.sockets import Listener, Poller, Sockets
from ast_stream.worker.account import StreamAccount
from ast_stream.worker.coverage_answers import CoverageAnswers
from ast_stream.worker.journal import Journal, StreamRecord, encode_record
from ast_stream.worker.links import (
    LOST_AFTER_RING_S,
    RECORD_EVERY_S,
    RingLink,
    RingLinks,
    Said,
)
from ast_stream.worker.overload import OverloadControl
from ast_stream.worker.report import Change, WorkerMetrics, WorkerReporter, read_audio
from ast_stream.worker.stream import UNHEARD_S, RingClient, StreamConfig, WorkerStream

logger = logging.getLogger(__name__)

TICK_MS = 20  # the longest wait for a message: timers are this exact
GATHER_MS_A_STREAM, MAX_GATHER_MS = 0.5, 40.0  # see `gather_ms`
LEVELS_EVERY_S = 0.2  # seconds of several streams cost half as much in a batch
MAX_BLOCKS_PER_TICK = 256
MAX_WINDOWS_PER_TICK = 64  # then sockets and timers get their turn,
MAX_SCORING_S = 1.0  # or after so long
ORPHANS_AFTER_S = 10.0  # events of a stream whose capture process does not come back end then
# the same where rings of other boxes are read, and a box may only be out of reach
ORPHANS_OF_RINGS_AFTER_S = 90.0 + LOST_AFTER_RING_S
LEAVING_AGAIN_S = 1.0
FAREWELL_S = 0.2  # for the last messages to reach the network
LEAVING_S = 10.0  # in which a capture process ends whose stream was removed


MakeDetector = Callable[[Callable[[Scores], None], Callable[[HopRun], None]], Detector]
"""Returns a detector that calls its arguments with scores and with runs of hops."""


@dataclass(frozen=True)
class WorkerSockets:
    """The sockets of the worker; `sockets` connects to rings, and at `rings` others connect."""

    sockets: Sockets
    audio: Listener
    feed: PubSocket
    query: Listener
    rings: Listener | None = None


class StreamDirectory(Protocol):
    """Knows which worker of a pool had which epoch of a stream, one after the other.

    Attributes:
        is_shared: other workers may have had a stream.
    """

    is_shared: bool

    @property
    def name(self) -> str:
        """Name of this worker in the pool."""

    def report(self, *, streams: Collection[str], state: State) -> None:
        """Say how this worker is."""

    def claim(
        self,
        stream: str,
        epoch: str,
        term: int,
        *,
        is_continued: bool,
        start: int | None = None,
    ) -> None:
        """Note that this worker has an epoch now.

        Args:
            term: number of the worker in that epoch, counted by the capture process.
            is_continued: it goes on where the one before was; else that ends its own events.
            start: the first sample that it accounts for.
        """

    def owner(self, stream: str, epoch: str) -> Owner:
        """Return who ends the events that this worker has begun in an epoch."""


class NoDirectory:
    """There is one worker, or a fixed list: what it has begun it ends."""

    is_shared = False

    def __init__(self, name: str = "worker") -> None:
        self.name = name

    def report(self, *, streams: Collection[str], state: State) -> None:
        """Say nothing."""

    def claim(
        self,
        stream: str,
        epoch: str,
        term: int,
        *,
        is_continued: bool,
        start: int | None = None,
    ) -> None:
        """Note nothing."""

    def owner(self, stream: str, epoch: str) -> Owner:
        """Return this worker as the one that ends the events."""
        return "this"


class Worker:
    """Drives the streams and the detector from the sockets.

    Args:
        ledger: of what was listened to.
        audit: records who asks for audio.
        privacy: who may have any.
        facts: model, device, precision and the like, for the status message.
        ring_folder: the ring of a stream that is not in the configuration lies here.
        syncs_first: sync the event log before anything of an event is sent, and not only before
            its begin is, and before the journal.
        directory: of the pool that the worker belongs to; None: of none.
        coverage: returns the answer to a query for coverage, given also the run of this worker;
            called in a thread.
        record_every_s: between journal records that a capture process of the pool is sent.
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
        directory: StreamDirectory | None = None,
        coverage: Callable[[CoverageQuery, str], list[bytes]] | None = None,
        record_every_s: float = RECORD_EVERY_S,
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
        bound = [sockets.audio, sockets.query, *([sockets.rings] if sockets.rings else [])]
        self._poller = Poller([*bound])
        self._log = LimitedLog(logger, now_s)
        self._levels = LevelSeconds()
        self._analysed_s = float("-inf")
        self._by_name: dict[str, WorkerStream] = {}
        boot = secrets.token_hex(8)
        self._directory = directory or NoDirectory()
        self._is_of_pool = self._directory.is_shared
        self._links: RingLinks | None = None
        if sockets.rings is not None:
            owner = f"{self._directory.name}/{boot}"
            self._links = RingLinks(
                sockets.rings, owner, record_every_s, now_s, is_of_pool=directory is not None
            )
        self._is_closing = False  # no stream is taken any more
        synced_first: SyncedFirst = "each event" if syncs_first else "begins"
        feed = FeedPublisher(sockets.feed, event_log, boot, now, synced_first=synced_first)
        self._flush = feed.flush
        self._configured: dict[str, StreamConfig] = {}
        self._is_changing = False  # streams have yet to leave, or to come
        self._removed_at: dict[str, float] = {}  # streams that have gone to another worker: when
        self._removed: dict[str, float] = {}  # from the configuration, by name: when
        self._publisher = DeduplicatingPublisher(feed, event_log, facts.model, now)
        self._started_s = now_s()
        self._overload = OverloadControl(detector.widest_stride, now_s())
        self._last_positions: dict[str, int] = {}
        self._max_windows = 1
        self._report = WorkerReporter(
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
            coverage=None if coverage is None else CoverageAnswers(lambda q: coverage(q, boot)),
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

    def hand_over(self, limit_s: float) -> None:
        """Work on until capture processes of other boxes have found other workers.

        Args:
            limit_s: after which streams that are still here stay.
        """
        self._is_closing = True
        self.report_to_pool()
        end_s, said_s = self._now_s() + limit_s, float("-inf")
        while self._links is not None and self._now_s() < end_s:
            if self._now_s() - said_s >= LEAVING_AGAIN_S:
                said_s = self._now_s()
                self._links.say_leaving()
            if not self._links.may_move():
                time.sleep(FAREWELL_S)
                return
            self.tick()
            self._poller.wait(TICK_MS)

    def report_to_pool(self) -> None:
        """Say to the other members of the pool how this worker is."""
        is_full = len(self._by_name) >= self._detector.max_streams
        state: State = "leaving" if self._is_closing else ("full" if is_full else "serving")
        self._directory.report(streams=self._by_name, state=state)

    def finish(self) -> None:
        """End open events, account for what was heard, journal and acknowledge."""
        for stream in self._streams:
            if not self._may_be_elsewhere(stream):
                stream.end_events("shutdown")
                if stream.link is not None:
                    stream.link.expect_record()  # in the one that it has, they are open
        self._save(self._now_s(), is_last=True)

    def leave_open(self) -> None:
        """Write ledger and journal, and acknowledge: the next run continues from here.

        Events that are open are left to it: it goes on with them, or ends them.
        """
        self._save(self._now_s(), is_last=True)

    def _may_be_elsewhere(self, stream: WorkerStream) -> bool:
        """Return whether another worker may have a stream by now; only the next run can know.

        That is so unless its capture process, which is there, has said that there is none.
        """
        link = stream.link
        if link is None or not link.hello.keeps_record:
            return False
        return not (link.is_connected and link.stays)

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
            if self._links is not None:
                self._hear_captures(self._links)
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
            has_ended = any(stream.has_just_ended for stream in self._streams)
            if has_ended or self._journal.is_due(self._streams, now_s):
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
        """Listen to exactly these streams from now on; those that stay are not interrupted.

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
        and no power cut takes events of which the audio is not asked for again. A kill in between
        leaves a ledger that is ahead of the journal: what it has is not lost a second time.
        """
        self._detector.settle_runs()
        self._ledger.save(at_once=is_last)
        self._audit.write_repeats()
        self._flush()
        self._event_log.sync()
        self._event_log.purge()
        self._journal.save(self._streams, now_s)
        for stream in self._streams:
            stream.has_just_ended = False  # what could not be said now is said with the next ones

    def _receive_blocks(self, now_s: float) -> None:
        for _ in range(MAX_BLOCKS_PER_TICK):
            frames = self._sockets.audio.receive()
            if frames is None:
                return
            try:
                block = AudioBlock.decode(frames)
                if self._is_ahead_of_hello(block):
                    continue
                if self._has_just_been_removed(block.stream, now_s):
                    continue
                self._stream_of(block).receive_block(block, now_s)
            except (WireError, UsageError) as error:
                self._report.blocks_refused += 1
                self._log.warning("audio block refused: %s", error)

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
        config = StreamConfig(block.stream, {}, expected, is_configured=False)
        return self._add(config, self._ring_of(config), self._claim(block.stream))

    def _has_just_been_removed(self, name: str, now_s: float) -> bool:
        """Return whether the capture process of a stream just removed may still be sending."""
        removed_s = self._removed.get(name)
        return removed_s is not None and now_s - removed_s < LEAVING_S

    def _is_ahead_of_hello(self, block: AudioBlock) -> bool:
        """Return whether a block of another box came before its hello, or after its farewell."""
        return (
            self._links is not None
            and block.clock is not None
            and (block.stream not in self._by_name)
        )

    # streams of other boxes

    def _hear_captures(self, links: RingLinks) -> None:
        """Take, give and keep streams as their capture processes say."""
        for said in links.turn():
            match said.message:
                case Hello() as hello:
                    try:
                        self._welcome(links, said, hello)
                    except WireError as error:
                        links.refused += 1
                        self._log.warning("stream %s: %s", hello.stream, error)
                case Release():
                    if (link := links.of(said)) is not None:
                        link.is_releasing = True
                case Stay():
                    if (link := links.of(said)) is not None:
                        link.stays = True
        for stream in self._streams:
            link = stream.link
            if link is not None and link.is_releasing and stream.can_be_dropped:
                self._release(links, stream, link)

    def _welcome(self, links: RingLinks, said: Said, hello: Hello) -> None:
        """Take a stream, or the same one by another connection, or refuse it."""
        refusal = self._refusal(hello, said)
        if refusal is not None or hello.op == "offer":
            if refusal is None:
                links.accept(said, is_offer=True)
            else:
                links.refuse(said, refusal)
            return
        stream, before = self._by_name.get(hello.stream), links.get(hello.stream)
        is_same = before is not None and before.identity == said.identity
        if stream is not None and not is_same and self._is_outdated(stream, hello):
            self._disown(links, stream, "lost")
            stream = None
        is_new_term = before is None or (before.hello.epoch, before.hello.term) != (
            hello.epoch,
            hello.term,
        )
        link = links.attach(said, hello)
        is_continued = True
        if stream is None:
            is_continued = self._take(link, hello, said.record)
        elif not is_same:
            stream.use_link(link)
        self._follow_hello(hello)
        if stream is None or is_new_term:
            taken = self._by_name[hello.stream]
            self._directory.claim(
                hello.stream,
                hello.epoch,
                hello.term,
                is_continued=is_continued,
                start=taken.decided_of(hello.epoch) if is_continued else hello.acked,
            )
        elif stream.epoch == hello.epoch:
            stream.repeat_end()
        links.accept(said)

    def _follow_hello(self, hello: Hello) -> None:
        """Go by the labels that a capture process says, unless the configuration has others."""
        stream = self._by_name[hello.stream]
        is_other = (stream.config.labels, stream.config.calibration_db) != (
            hello.labels,
            hello.calibration_db,
        )
        if is_other and not stream.config.is_configured:
            new = replace(
                stream.config, labels=dict(hello.labels), calibration_db=hello.calibration_db
            )
            stream.configure(new)

    def _refusal(self, hello: Hello, said: Said) -> Refused | None:
        """Return why a stream is not taken, None if it is."""
        stream = self._by_name.get(hello.stream)
        if stream is not None:
            link = stream.link
            is_others = link is not None and link.is_connected and link.account != said.account
            if is_others:
                return Refused(reason="taken", detail="another box has a stream of this name")
            return Refused(reason="leaving") if self._is_closing and hello.op == "offer" else None
        if self._is_closing:
            return Refused(reason="leaving", detail="the worker is about to end")
        names = self._by_name.keys() | self._configured.keys() | {hello.stream}
        if len(names) > self._detector.max_streams:
            text = f"it has its {self._detector.max_streams} streams (model.max_streams)"
            return Refused(reason="full", detail=text)
        return None

    def _is_outdated(self, stream: WorkerStream, hello: Hello) -> bool:
        """Return whether another worker has had a stream since this one last did.

        Also if this one has heard nothing of it yet: it was given the stream, and lost it again
        before any audio came. What it would then begin afresh, the other one has begun already.
        """
        if hello.owner_name not in (None, self._directory.name):
            return True
        if stream.known_epoch in (None, hello.epoch):
            return False
        return self._directory.owner(stream.name, stream.known_epoch) == "another"

    def _take(self, link: RingLink, hello: Hello, content: bytes | None) -> bool:
        """Add a stream of another box; return whether it continues where its last worker was."""
        name, own = hello.stream, self._directory.name
        record = None if content is None else self._decode_record(name, content)
        if record is not None and record.epoch != hello.epoch:
            record = None
        known = self._claim(name)
        is_own = known is not None and (
            hello.owner_name in (None, own)
            if known.epoch == hello.epoch
            else self._directory.owner(name, known.epoch) != "another"
        )
        if known is not None and is_own:
            is_newer = record is None or known.position >= record.position
            record = known if is_newer else record
        config = self._configured.get(name) or StreamConfig(
            name, dict(hello.labels), link.endpoint, hello.calibration_db, is_configured=False
        )
        stream = self._add(config, link, record)
        stream.is_catching_up = record is not None
        is_same_epoch = record is not None and record.epoch == hello.epoch
        self._report.placed["continued" if is_same_epoch else "begun"] += 1
        # of an epoch that is read from its first sample everything is derived again
        return is_same_epoch or (hello.acked == 0 and hello.oldest == 0)

    def _decode_record(self, name: str, content: bytes) -> StreamRecord | None:
        try:
            record = self._journal.decode(content, name, self._now())
        except WireError as error:
            self._log.warning("%s: the stream starts afresh", error)
            return None
        if record is None:
            logger.info("stream %s: its record is of another model, it starts afresh", name)
        return record

    def _release(self, links: RingLinks, stream: WorkerStream, link: RingLink) -> None:
        """Release a stream to another worker, where its open events continue."""
        self._detect()
        if not stream.can_be_dropped:
            return
        link.expect_record()
        self._save(self._now_s())
        link.say(Released())
        self._disown(links, stream, "given")
        logger.info("stream %s: given to another worker", stream.name)

    def _disown(self, links: RingLinks, stream: WorkerStream, how: Change) -> None:
        """Forget a stream without ending anything."""
        self._report.placed[how] += 1
        events = stream.drop()
        del self._by_name[stream.name]
        self._publisher.disown(stream.name, events)
        if (link := links.get(stream.name)) is not None:
            links.forget(link)
        now_s = self._now_s()
        # after so long the start of the worker says the same of it
        self._removed_at = {
            name: removed_s
            for name, removed_s in self._removed_at.items()
            if now_s - removed_s <= ORPHANS_OF_RINGS_AFTER_S
        } | {stream.name: now_s}
        self._save(now_s)

    def _follow_configuration(self) -> None:
        """Drop streams that have left, then add those that are new in the configuration."""
        for stream in self._streams:
            if stream.has_left:
                self._let_go(stream)
        room = self._detector.max_streams - len(self._by_name)
        awaited = [config for name, config in self._configured.items() if name not in self._by_name]
        for config in awaited[:room]:
            self._add(config, self._ring_of(config), self._claim(config.name))
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

    def _claim(self, name: str) -> StreamRecord | None:
        """Return where a stream goes on that is about to be added; None: it begins afresh.

        A worker that was killed while it let a stream go may have told the ledger alone.
        """
        record = self._journal.claim(name)
        return None if self._ledger.is_off(name) else record

    def _ring_of(self, config: StreamConfig) -> RingClient:
        return RingClient(self._sockets.sockets, self._poller, config.ring_endpoint)

    def _add(
        self, config: StreamConfig, ring: RingClient | RingLink, record: StreamRecord | None
    ) -> WorkerStream:
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
            coded=self._report.coded,
            masks_speech=self._access.mode == "speech",
            is_shared=self._is_of_pool,
            encode_record=lambda name, record: encode_record(name, record, self._journal.model),
            now=self._now,
        )
        self._by_name[config.name] = stream
        logger.info("stream %s: expecting audio, ring at %s", config.name, config.ring_endpoint)
        return stream

    def _detect(self) -> None:
        """Score and publish for about `MAX_SCORING_S`: a tick must not outlast the watchdog."""
        began_s, n_before = self._now_s(), self._detector.n_taken
        for event in self._detector.run(self._max_windows):
            self._by_name[event.stream].publish([event])
        n_windows = self._detector.n_taken - n_before
        if n_windows:
            window_s = max(1e-6, (self._now_s() - began_s) / n_windows)
            in_time = round(MAX_SCORING_S / window_s)
            self._max_windows = max(1, min(2 * self._max_windows, MAX_WINDOWS_PER_TICK, in_time))

    def _control_overload(self, now_s: float) -> None:
        """Score fewer windows of all live streams alike while the model cannot keep up."""
        is_open = [stream for stream in self._streams if stream.is_open]
        # a source that is read as fast as it is scored is always behind
        live = [stream for stream in is_open if stream.is_paced and not stream.is_catching_up]
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
            if stream.link is not None and self._goes_on_elsewhere(stream, now_s):
                continue
            stream.end_events_if_lost(now_s)
            if stream.is_gone(now_s):
                stream.close()
                del self._by_name[stream.name]
                if self._links is not None and stream.link is not None:
                    self._links.forget(stream.link)
                logger.info("stream %s: gone", stream.name)
        # events of an earlier run end once it is clear that nothing derives them again
        for name in self._publisher.orphaned_streams:
            orphaned = self._by_name.get(name)
            if orphaned is not None and orphaned.is_open:
                orphaned.end_orphans()
                if self._is_of_pool:
                    self._settle_orphans(name, now_s, but=orphaned.epoch)
            elif self._links is not None:
                self._settle_orphans(name, now_s)
            elif orphaned is not None and orphaned.may_be_stopped(now_s):
                continue  # what its ring has may go on with them
            elif now_s - self._started_s > ORPHANS_AFTER_S:
                self._publisher.end_orphans(name)

    def _goes_on_elsewhere(self, stream: WorkerStream, now_s: float) -> bool:
        """Drop a stream that is not heard any more, if another worker has it; return whether."""
        if stream.unheard_s(now_s) < UNHEARD_S or stream.known_epoch is None:
            return False
        owner = self._directory.owner(stream.name, stream.known_epoch)
        if owner == "another" and self._links is not None:
            logger.info("stream %s: another worker has it", stream.name)
            self._disown(self._links, stream, "lost")
            return True
        if owner == "this at once" and self._links is not None:
            self._report.placed["lost"] += 1
            logger.info("stream %s: another worker has begun it afresh", stream.name)
            stream.close()
            del self._by_name[stream.name]
            if stream.link is not None:
                self._links.forget(stream.link)
            return True
        return owner == "unknown"  # nothing is ended as long as that cannot be asked

    def _settle_orphans(self, name: str, now_s: float, but: str | None = None) -> None:
        """End events that this worker left open, unless another one has gone on with them.

        Args:
            but: the epoch that is heard now: its events are derived again, or end there.
        """
        since_s = self._removed_at.get(name, self._started_s)
        if (record := self._journal.unclaimed(name)) is not None:
            # what was over when this worker last had the stream, another one has ended
            goes_on = record.open_events(name)
            self._publisher.drop_orphans(name, record.epoch, before=record.position, but=goes_on)
        for epoch in self._publisher.orphaned_epochs(name) - {but}:
            owner = self._directory.owner(name, epoch)
            is_late = now_s - since_s > ORPHANS_OF_RINGS_AFTER_S
            if owner == "another":
                self._publisher.drop_orphans(name, epoch)
            elif owner == "this at once" or (owner == "this" and is_late):
                self._publisher.end_orphans(name, of_epoch=epoch)


def gather_ms(n_streams: int) -> float:
    """Return how long after a turn the next one begins, at least, while nothing is due.

    A turn looks at every stream, and windows cost less in a batch than one by one: with many
    streams a turn waits for more blocks than the first that comes, and no longer with one.
    """
    return min(MAX_GATHER_MS, GATHER_MS_A_STREAM * n_streams)
