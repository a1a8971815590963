"""What the worker publishes of its streams: events, gaps and scores, nothing twice."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import numpy as np

from ast_stream.messages.event import (
    Event,
    Gap,
    Scores,
    event_body,
    event_topic,
    format_time,
    stream_topic,
)
from ast_stream.messages.feed import gap_body
from ast_stream.transport.event_log import EventLog, Published
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.units import SAMPLE_RATE, samples_to_seconds
from ast_stream.worker.orphans import Body, Orphans
from ast_stream.worker.stream import WorkerStream

logger = logging.getLogger(__name__)

MAX_ENDED = 10_000  # ids of events that have ended, remembered


class WorkerFeed:
    """Writes messages about streams to the feed.

    What an earlier run published of the same audio is recognised and left out, and what it left
    open and cannot go on gets its end.

    Args:
        model: hash of the checkpoint.
        now_ns: wall clock.

    Attributes:
        counters: messages by kind.
        begun: events that have begun, by slug of the class and stream.
    """

    def __init__(
        self, publisher: FeedPublisher, event_log: EventLog, model: str, now_ns: Callable[[], int]
    ) -> None:
        self._publisher = publisher
        self._event_log = event_log
        self._model = model
        self._now_ns = now_ns
        self._published: dict[str, tuple[str, Published]] = {}  # by stream: epoch, messages
        self._ended: dict[str, None] = {}  # ids, oldest first
        self._orphans = Orphans(event_log)
        self.counters: Counter[str] = Counter()
        self.begun: Counter[tuple[str, str]] = Counter()

    @property
    def orphaned_streams(self) -> set[str]:
        """Streams of which events of an earlier run are still open."""
        return self._orphans.streams

    def publish_event(self, stream: WorkerStream, event: Event) -> None:
        """Publish an event message of `stream`, unless that was done, or the event has ended."""
        known = self._published_of(event.stream, event.epoch)
        self._orphans.claim(event.id)
        if event.id in self._ended or known.has_event(event.id, event.type, event.at_sample):
            return
        if event.type == "end":
            self._mark_ended(event.id)
        self.counters[f"events_{event.type}"] += 1
        self.begun[event.slug, event.stream] += event.type == "begin"
        scores = {"score": event.score}
        if event.type == "end":
            scores = {"peak": event.peak, "mean": event.mean or 0.0}
        logger.log(
            logging.DEBUG if event.type == "update" else logging.INFO,
            "event %s",
            event.type,
            extra={
                "stream": event.stream,
                "class": event.slug,
                **{name: round(score, 3) for name, score in scores.items()},
                "onset_s": round(samples_to_seconds(event.onset_sample), 2),
            },
        )
        topic = event_topic(event.slug, event.stream)
        self._publisher.publish_durable(topic, self.body(stream, event))

    def publish_gap(self, stream: WorkerStream, gap: Gap) -> None:
        """Publish and count lost samples."""
        if self._published_of(gap.stream, gap.epoch).has_gap(gap.start_sample):
            return
        stream.gaps += 1
        stream.lost_samples += gap.samples
        stream.overflows += gap.reason == "overflow"
        logger.warning(
            "stream %s: %.2f s lost: %s", gap.stream, gap.samples / SAMPLE_RATE, gap.reason
        )
        time_ns = stream.clock.time_ns(gap.start_sample) if stream.clock.anchors else None
        topic = stream_topic("gap", gap.stream)
        self._publisher.publish_durable(topic, gap_body(gap, time_ns))

    def publish_scores(self, stream: WorkerStream, scores: Scores) -> None:
        """Publish the scores of one window."""
        self.counters["windows_published"] += 1
        header = {
            "stream": scores.stream,
            "epoch": scores.epoch,
            "end_sample": scores.end_sample,
            "time": format_time(stream.clock.time_ns(scores.end_sample)),
        }
        topic = stream_topic("scores", scores.stream)
        self._publisher.publish_scores(topic, header, scores.scores.astype(np.float16))

    def continue_events(self, events: list[Event]) -> None:
        """Take these for events of an earlier run that go on."""
        for event in events:
            self._orphans.claim(event.id)

    def end_orphans(
        self,
        name: str,
        *,
        except_epoch: str | None = None,
        of_epoch: str | None = None,
        before: int | None = None,
    ) -> None:
        """End what an earlier run left open of a stream, see `Orphans.take`."""
        for body in self._orphans.take(
            name, except_epoch=except_epoch, of_epoch=of_epoch, before=before
        ):
            self._mark_ended(body["id"])
            self._publisher.publish_durable(event_topic(body["class"], name), body)

    def begin_epoch(self, name: str, epoch: str, from_sample: int) -> None:
        """Look up what an earlier run published of an epoch, from a sample on."""
        known = self._event_log.published(name, epoch, from_sample)
        self._published[name] = (epoch, known)
        for event_id in known.ended:
            self._mark_ended(event_id)

    def forget(self, name: str) -> None:
        """Drop what is known of a stream."""
        self._published.pop(name, None)

    def body(self, stream: WorkerStream, event: Event) -> Body:
        """Return the body of an event message."""
        return event_body(
            event,
            stream.clock,
            labels=stream.plan.labels,
            audio_end=stream.history.end,
            scored_ns=self._now_ns(),
            model=self._model,
        )

    def _mark_ended(self, event_id: str) -> None:
        """Remember that an event has its end: whatever derives it again, it gets no other."""
        self._ended[event_id] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def _published_of(self, name: str, epoch: str) -> Published:
        """Return what an earlier run published of this epoch; looked up once for each epoch."""
        known = self._published.get(name)
        if known is None or known[0] != epoch:
            known = self._published[name] = (epoch, self._event_log.published(name, epoch))
        return known[1]
