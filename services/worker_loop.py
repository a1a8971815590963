"""The worker's loop: blocks in from the sockets, through the detector, events out on the feed."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ast_stream.detect.detector import Detector
from ast_stream.errors import UsageError, WireError
from ast_stream.messages import (
    WORKER_STATUS_TOPIC,
    AudioBlock,
    Event,
    Gap,
    SampleClock,
    Scores,
    event_body,
    event_topic,
    format_time,
    stream_topic,
)
from ast_stream.runtime.journal import Journal, StreamRecord
from ast_stream.settings.schema import check_endpoint
from ast_stream.units import SAMPLE_RATE
from ast_stream.wire.codec import decode_block
from ast_stream.wire.event_log import EventLog, Published
from ast_stream.wire.feed_codec import gap_body
from ast_stream.wire.limited_log import LimitedLog
from ast_stream.wire.publisher import FeedPublisher
from ast_stream.wire.query import AudioWanted, QueryServer
from ast_stream.wire.replay import Audio, Ended, GapFound, Intake, Item, NewEpoch
from ast_stream.wire.sockets import Poller, Socket, Sockets
from services.orphans import ended_by_restart, find_orphans
from services.worker_stream import FORGET_AFTER_S, LOST_AFTER_S, WorkerStream

logger = logging.getLogger(__name__)

TICK_MS = 20  # the longest wait for a message: timers are this exact
BLOCKS_A_TICK = 256
WINDOWS_A_TICK = 64  # then sockets and timers get their turn
SAVE_EVERY_S = 1.0
SAVE_EVERY_SAMPLES = 5 * SAMPLE_RATE  # of any stream: sources faster than real time wait for acks
REPORT_EVERY_S = 1.0
ORPHANS_AFTER_S = 10.0  # events of a stream whose capture process does not come back end then
OVERLOADED, HEAVILY_OVERLOADED = 0.5, 0.75  # share of the ring waiting: score every 2nd, 4th window
RELAXED_S = 2.0  # of backlog: score every window again


@dataclass(frozen=True)
class StreamPlan:
    """What the configuration says of a stream."""

    name: str
    labels: dict[str, str]
    ring_endpoint: str
    ring_s: float


@dataclass(frozen=True)
class WorkerSockets:
    """The sockets of the worker."""

    sockets: Sockets
    audio: Socket
    query: Socket


class Worker:
    """Drives the detector from the sockets.

    Args:
        status: facts for the status message (device, precision, ...).
        ring_folder: ipc rings of streams that are not in the configuration must lie here.
        now_s: a clock that only goes forward.
        now_ns: wall clock.
    """

    def __init__(
        self,
        plans: list[StreamPlan],
        detector: Detector,
        publisher: FeedPublisher,
        event_log: EventLog,
        journal: Journal,
        sockets: WorkerSockets,
        *,
        status: dict[str, Any],
        ring_folder: str,
        now_s: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._detector = detector
        detector.on_scores = self._publish_scores
        self._publisher = publisher
        self._event_log = event_log
        self._journal = journal
        self._sockets = sockets
        self._status = status
        self._ring_folder = ring_folder
        self._now_s, self._now_ns = now_s, now_ns
        self._poller = Poller([sockets.audio, sockets.query])
        self._log = LimitedLog(logger, now_s)
        self._query = QueryServer(
            sockets.query, event_log, publisher, snapshot=self.snapshot, audio=self._audio_between
        )
        self.counters: Counter[str] = Counter()
        self._published: dict[str, Published] = {}
        self._saved_s = self._reported_s = self._started_s = now_s()
        self._saved: dict[str, int] = {}
        self._reported_windows = 0
        self._streams: dict[str, WorkerStream] = {}
        records = journal.load()
        for plan in plans:
            self._add(plan, is_configured=True, record=records.get(plan.name))
        self._orphans = find_orphans(event_log)

    @property
    def is_drained(self) -> bool:
        """Whether every stream has ended and is decided."""
        return all(stream.has_ended for stream in self._streams.values())

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then end open events and journal."""
        while not stop.is_set():
            self._poller.wait(0 if self._detector.has_due else TICK_MS)
            self.tick()
        self.shut_down()

    def tick(self) -> None:
        """Do what is due: take messages, score, publish, acknowledge, report, answer."""
        now_s = self._now_s()
        self._take_blocks(now_s)
        for stream in list(self._streams.values()):
            items = stream.exchange(self._sockets.sockets, self._poller, now_s)
            self._apply(stream, items)
        self._publish(self._detector.run(WINDOWS_A_TICK))
        self._watch(now_s)
        self._save(now_s)
        self._report(now_s)
        self._query.serve()

    def shut_down(self) -> None:
        """End open events, journal and acknowledge."""
        for stream in self._streams.values():
            if stream.is_open:
                self._publish(self._detector.end_events(stream.name, "shutdown"))
        self._save(self._now_s(), is_final=True)

    def snapshot(self) -> dict[str, Any]:
        """Return streams, open events and status for a query."""
        now_s = self._now_s()
        open_events = [
            self._body(stream, event)
            for stream in self._streams.values()
            if stream.is_open
            for event in self._detector.open_events(stream.name)
        ]
        return {
            "streams": [
                stream.health(now_s, self._detail(stream)) for stream in self._streams.values()
            ],
            "events": open_events,
            "status": self._status_body(now_s),
        }

    def _publish_scores(self, scores: Scores) -> None:
        """Publish the scores of one window."""
        stream = self._streams[scores.stream]
        self.counters["windows"] += 1
        header = {
            "stream": scores.stream,
            "epoch": scores.epoch,
            "end_sample": scores.end_sample,
            "time": format_time(stream.clock.time_ns(scores.end_sample)),
        }
        topic = stream_topic("scores", scores.stream)
        self._publisher.publish_scores(topic, header, scores.scores.astype(np.float16))

    def _take_blocks(self, now_s: float) -> None:
        for _ in range(BLOCKS_A_TICK):
            frames = self._sockets.audio.receive()
            if frames is None:
                return
            try:
                block = decode_block(frames)
                stream = self._stream_of(block)
            except (WireError, UsageError) as error:
                self.counters["bad_blocks"] += 1
                self._log.warning("audio block refused: %s", error)
                continue
            self._apply(stream, stream.on_block(block, now_s))

    def _stream_of(self, block: AudioBlock) -> WorkerStream:
        """Return the stream of a block; one that is not configured is added while there is room."""
        if block.stream in self._streams:
            return self._streams[block.stream]
        if block.ring is None:
            raise WireError(f"stream {block.stream}: expected a ring endpoint, got none")
        try:
            check_endpoint(block.ring)
        except ValueError as error:
            raise WireError(f"stream {block.stream}: ring: {error}") from error
        if block.ring.startswith("ipc://") and not block.ring.startswith(self._ring_folder):
            raise WireError(
                f"stream {block.stream}: ring: expected an endpoint below {self._ring_folder}, "
                f"got {block.ring}"
            )
        if len(self._streams) >= self._detector.max_streams:
            raise UsageError(
                f"stream {block.stream}: expected at most {self._detector.max_streams} streams "
                "(model.max_streams), got one more"
            )
        plan = StreamPlan(block.stream, {}, block.ring, 90.0)
        return self._add(plan, is_configured=False, record=None)

    def _add(
        self, plan: StreamPlan, *, is_configured: bool, record: StreamRecord | None
    ) -> WorkerStream:
        stream = WorkerStream(
            name=plan.name,
            labels=plan.labels,
            ring_endpoint=plan.ring_endpoint,
            ring_s=plan.ring_s,
            is_configured=is_configured,
            intake=Intake(plan.name),
            record=record,
        )
        if record is not None:
            first = self._detector.context_needed(record.detector)
            clock = SampleClock([(sample, time_ns) for sample, time_ns in record.clock])
            stream.intake.resume(record.epoch, first, clock.time_ns(first))
        self._streams[plan.name] = stream
        logger.info("stream %s: expecting audio, ring at %s", plan.name, plan.ring_endpoint)
        return stream

    def _apply(self, stream: WorkerStream, items: list[Item]) -> None:
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
        stream.clock.observe(audio.start_sample, audio.time_ns)
        if not stream.is_open:
            self._resume(stream, audio.epoch, audio.start_sample)
        if stream.is_lost:
            logger.info("stream %s: audio is back", stream.name)
            stream.is_lost = False
        stream.history.write(audio.start_sample, audio.pcm)
        self._detector.push(stream.name, audio.start_sample, audio.pcm)

    def _on_gap(self, stream: WorkerStream, gap: Gap) -> None:
        record = stream.record
        if record is not None and gap.epoch == record.epoch:
            if gap.start_sample + gap.samples <= record.position:
                return  # audio that only fills the window: decided before, so nothing is lost
            self._resume(stream, gap.epoch, record.position)
            lost = gap.start_sample + gap.samples - record.position
            gap = Gap(gap.stream, gap.epoch, record.position, lost, gap.reason)
        if not self._published_of(gap.stream, gap.epoch).has_gap(gap.start_sample):
            stream.counters.gaps += 1
            stream.counters.lost_samples += gap.samples
            logger.warning(
                "stream %s: gap of %.2f s: %s", gap.stream, gap.samples / SAMPLE_RATE, gap.reason
            )
            time_ns = stream.clock.time_ns(gap.start_sample) if stream.clock.anchors else None
            self._publisher.publish_durable(stream_topic("gap", gap.stream), gap_body(gap, time_ns))
        if stream.is_open and gap.epoch == stream.intake.epoch:
            self._publish(self._detector.gap(gap))

    def _on_new_epoch(self, stream: WorkerStream, epoch: str, start: int) -> None:
        if stream.is_open:
            self._publish(self._detector.close(stream.name, "stream_lost"))
        # nothing of this epoch was ever acknowledged: its events are derived again from the start
        self._end_orphans(stream.name, still_open_epoch=epoch if start == 0 else None)
        logger.info("stream %s: epoch %s from sample %d", stream.name, epoch[:8], start)
        stream.begin_epoch(start)
        self._detector.open(stream.name, epoch, start)
        stream.is_open = True

    def _resume(self, stream: WorkerStream, epoch: str, start: int) -> None:
        """Open a stream of the epoch that the journal knows."""
        record = stream.record
        assert record is not None
        assert record.epoch == epoch
        known = SampleClock([(sample, time_ns) for sample, time_ns in record.clock])
        for sample, time_ns in stream.clock.anchors:
            known.observe(sample, time_ns)
        stream.begin_epoch(start)
        stream.clock = known
        stream.acked = 0
        self._detector.resume(stream.name, epoch, start, record.detector)
        stream.is_open = True
        self._end_orphans(stream.name, still_open_epoch=epoch)
        logger.info("stream %s: resumed at sample %d", stream.name, record.position)

    def _on_ended(self, stream: WorkerStream) -> None:
        if stream.is_open:
            epoch, end = stream.intake.epoch, self._detector.received(stream.name)
            self._publish(self._detector.flush(stream.name))
            stream.is_open = False
            if epoch is not None:
                stream.acknowledge(self._sockets.sockets, self._poller, epoch, end)
        stream.has_ended = True
        logger.info("stream %s: the source has ended", stream.name)

    def _watch(self, now_s: float) -> None:
        """Look after streams that are silent, overloaded or gone."""
        for stream in list(self._streams.values()):
            silence_s = stream.intake.silence_s(now_s)
            if stream.is_open and silence_s > LOST_AFTER_S and not stream.is_lost:
                logger.warning("stream %s: no audio for %.0f s", stream.name, silence_s)
                stream.is_lost = True
                self._publish(self._detector.end_events(stream.name, "stream_lost"))
            if not stream.is_configured and silence_s > FORGET_AFTER_S:
                self._forget(stream)
            elif stream.is_open:
                self._relieve(stream)
        if self._orphans and now_s - self._started_s > ORPHANS_AFTER_S:
            for name in {body["stream"] for body in self._orphans.values()}:
                other = self._streams.get(name)
                self._end_orphans(
                    name, still_open_epoch=other.intake.epoch if other and other.is_open else None
                )

    def _relieve(self, stream: WorkerStream) -> None:
        """Widen the hop of a stream whose backlog grows, before its ring overflows."""
        backlog_s = stream.backlog_s(self._detector.position(stream.name))
        stride = stream.stride
        if backlog_s > HEAVILY_OVERLOADED * stream.ring_s:
            stride = 4
        elif backlog_s > OVERLOADED * stream.ring_s:
            stride = max(2, stride)
        elif backlog_s < RELAXED_S:
            stride = 1
        if stride != stream.stride:
            logger.warning(
                "stream %s: %.0f s behind, scoring every %d. window",
                stream.name,
                backlog_s,
                stride,
            )
            stream.stride = stride
            self._detector.set_stride(stream.name, stride)

    def _forget(self, stream: WorkerStream) -> None:
        if stream.is_open:
            self._publish(self._detector.close(stream.name, "stream_lost"))
        stream.close(self._sockets.sockets, self._poller)
        del self._streams[stream.name]
        logger.info("stream %s: gone", stream.name)

    def _end_orphans(self, name: str, still_open_epoch: str | None = None) -> None:
        """End events that an earlier run left open and that cannot go on."""
        for body in [one for one in self._orphans.values() if one["stream"] == name]:
            del self._orphans[body["id"]]
            if body["epoch"] == still_open_epoch:
                continue
            self._publisher.publish_durable(
                event_topic(body["class"], name), ended_by_restart(body)
            )

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            published = self._published_of(event.stream, event.epoch)
            if published.has_event(event.id, event.type, event.at_sample):
                continue
            body = self._body(self._streams[event.stream], event)
            self.counters[f"event_{event.type}"] += 1
            logger.log(
                logging.DEBUG if event.type == "update" else logging.INFO,
                "event %s",
                event.type,
                extra={
                    "stream": event.stream,
                    "class": event.slug,
                    "score": round(event.score, 3),
                    "onset_s": round(event.onset_sample / SAMPLE_RATE, 2),
                },
            )
            self._publisher.publish_durable(event_topic(event.slug, event.stream), body)

    def _published_of(self, stream: str, epoch: str) -> Published:
        """Return what an earlier run published of this epoch; looked up once for each epoch."""
        key = f"{stream}/{epoch}"
        if key not in self._published:
            for other in [one for one in self._published if one.startswith(f"{stream}/")]:
                del self._published[other]
            self._published[key] = self._event_log.published(stream, epoch)
        return self._published[key]

    def _body(self, stream: WorkerStream, event: Event) -> dict[str, Any]:
        return event_body(
            event,
            stream.clock,
            labels=stream.labels,
            audio_end=stream.history.stop,
            scored_ns=self._now_ns(),
            model=self._status["model"],
        )

    def _save(self, now_s: float, *, is_final: bool = False) -> None:
        positions = {
            name: self._detector.position(name)
            for name, stream in self._streams.items()
            if stream.is_open
        }
        is_far = any(
            position - self._saved.get(name, 0) >= SAVE_EVERY_SAMPLES
            for name, position in positions.items()
        )
        if not (is_final or is_far or now_s - self._saved_s >= SAVE_EVERY_S):
            return
        self._saved_s, self._saved = now_s, positions
        self._journal.save(
            {name: self._record(self._streams[name]) for name in positions}
            | {
                name: stream.record
                for name, stream in self._streams.items()
                if stream.record is not None and not stream.is_open
            }
        )
        for name, position in positions.items():
            stream = self._streams[name]
            if stream.intake.epoch is not None:
                stream.acknowledge(
                    self._sockets.sockets, self._poller, stream.intake.epoch, position
                )

    def _record(self, stream: WorkerStream) -> StreamRecord:
        return StreamRecord(
            epoch=stream.intake.epoch or "",
            detector=self._detector.export(stream.name),
            clock=[[sample, time_ns] for sample, time_ns in stream.clock.anchors],
        )

    def _report(self, now_s: float) -> None:
        is_due = now_s - self._reported_s >= REPORT_EVERY_S
        for stream in self._streams.values():
            detail = self._detail(stream)
            shown = stream.state(now_s, detail)
            if is_due or shown[0] != (stream.shown or (None,))[0]:
                stream.shown = shown
                topic = stream_topic("health", stream.name)
                self._publisher.publish(topic, stream.health(now_s, detail))
        if is_due:
            self._publisher.publish(WORKER_STATUS_TOPIC, self._status_body(now_s))
            self._reported_s = now_s
            self._reported_windows = self.counters["windows"]

    def _detail(self, stream: WorkerStream) -> dict[str, Any]:
        """Return what the detector knows about the health of a stream."""
        if not stream.is_open:
            return {"level_dbfs": None, "lag_s": None, "hop_s": None, "open_events": 0}
        status = self._detector.status(stream.name)
        return {
            "level_dbfs": round(status.level_dbfs, 1),
            "lag_s": round(stream.backlog_s(status.scored_to), 3),
            "hop_s": status.hop_s,
            "open_events": status.open_events,
            "is_warming": status.is_warming,
            "is_gated": status.is_gated,
        }

    def _status_body(self, now_s: float) -> dict[str, Any]:
        elapsed_s = max(1e-9, now_s - self._reported_s)
        windows = self.counters["windows"] - self._reported_windows
        lags = [self._detail(stream)["lag_s"] for stream in self._streams.values()]
        return self._status | {
            "streams": sorted(self._streams),
            "windows_per_s": round(windows / elapsed_s, 2),
            "lag_s": max((lag for lag in lags if lag is not None), default=None),
            "uptime_s": round(now_s - self._started_s, 1),
            "counters": dict(self.counters)
            | {"feed_drops": self._publisher.drops, "journal_errors": self._journal.errors},
        }

    def _audio_between(self, wanted: AudioWanted) -> AudioBlock:
        """Return what is held of the sound that a query wants."""
        stream = self._streams.get(wanted.stream)
        if stream is None or not stream.clock.anchors:
            known = [name for name, one in self._streams.items() if one.clock.anchors]
            raise WireError(
                f"audio: expected a stream with sound ({', '.join(known) or 'none yet'}), "
                f"got {wanted.stream!r}"
            )
        epoch = stream.intake.epoch or ""
        if wanted.epoch not in (None, epoch):
            raise WireError(f"audio: expected the present epoch {epoch}, got {wanted.epoch!r}")
        start, pcm = stream.history.read(*wanted.samples(stream.clock))
        return AudioBlock(wanted.stream, epoch, start, stream.clock.time_ns(start), pcm)
