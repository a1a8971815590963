"""Publishing on the feed: numbered and logged, and about streams exactly once across restarts.

Every durable message (event or gap) says the `seq` of the durable one before it, and status and
health messages the `seq` of the last one, so that a reader of any topics knows of every loss and
can ask the publisher's query endpoint for what it missed.

After a kill the worker derives again what it has published since its last journal entry; the
event log tells which messages those are, and they are left out. An event that an earlier run left
open and that nothing derives again is an orphan, and gets its `end` here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from ast_stream.labels import stream_topic
from ast_stream.machine_clock import Moment, read_clocks
from ast_stream.messages.event import (
    Content,
    Event,
    EventMessage,
    FeedMessage,
    Gap,
    GapMessage,
    Position,
    Scores,
    Scores16,
    ScoresHeader,
    Stamp,
)
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.spectrogram import (
    WITHHELD,
    Spectrogram8,
    SpectrogramHeader,
)
from ast_stream.messages.status import AlertsStatus, Health, RecorderStatus, WorkerStatus
from ast_stream.sample_clock import SampleClock
from ast_stream.transport.event_log import EventLog, Published
from ast_stream.transport.requester import Requester
from ast_stream.units import SAMPLE_RATE, samples_to_seconds

logger = logging.getLogger(__name__)

MAX_ENDED = 10_000  # ids of events that have ended, remembered

SyncedFirst = Literal["nothing", "begins", "each event"]
"""What is sent only once it survives a power cut: begins alone are enough for each event that was
sent to get its end."""


class PubSocket(Protocol):
    """A PUB socket."""

    def send(self, frames: list[bytes]) -> bool:
        """Send now; return False if that is not possible."""

    def has_reader(self, topic: bytes) -> bool:
        """Return whether anybody subscribes to a topic."""

    def readers(self, topic: bytes) -> list[Requester]:
        """Return who subscribes to a topic."""


class FeedPublisher:
    """Publishes messages of all topics with one gap-free `seq`.

    Durable messages (events and gaps) are in the log before anyone can receive them. They survive
    a kill of the process from then on, and a power cut once the log is synced.

    Args:
        event_log: keeps the durable messages; None: nothing can be replayed.
        boot: id of this run of the publisher.
        now: reads the clocks.
        synced_first: of these durable messages on, what is published is sent by `flush`, which
            syncs the log before: many messages, one sync.

    Attributes:
        messages: messages published, by first word of the topic.
        drops: messages that the socket refused.
    """

    def __init__(
        self,
        pub_socket: PubSocket,
        event_log: EventLog | None,
        boot: str,
        now: Callable[[], Moment] = read_clocks,
        *,
        synced_first: SyncedFirst = "nothing",
    ) -> None:
        self._socket = pub_socket
        self._log = event_log
        self._synced_first = synced_first
        self._held: list[list[bytes]] = []  # frames that wait for the sync
        self._now = now
        self.boot = boot
        self.started_ns = now().wall_ns
        self.messages: Counter[str] = Counter()
        self.drops = 0
        self._seq = 0
        self._durable_seq = 0
        if event_log is not None:
            event_log.begin(boot)

    @property
    def log_errors(self) -> int:
        """Durable messages that could not be written to disk when they were published."""
        return 0 if self._log is None else self._log.write_errors

    @property
    def log_damaged(self) -> int:
        """Lines and files of the log that were found damaged when it was opened."""
        return 0 if self._log is None else self._log.damaged

    @property
    def durable_position(self) -> Position:
        """Position of the last durable message; `seq` 0 if there is none in this boot."""
        return self.boot, self._durable_seq

    def has_reader(self, topic: str) -> bool:
        """Return whether anybody subscribes to a topic.

        What is for its readers alone is not published while there are none: it has no `seq` then.
        """
        return self._socket.has_reader(topic.encode())

    def readers(self, topic: str) -> list[Requester]:
        """Return who subscribes to a topic."""
        return self._socket.readers(topic.encode())

    def publish(
        self,
        content: Content,
        scores: Scores16 | None = None,
        spectrogram: Spectrogram8 | None = None,
    ) -> None:
        """Number and publish one message; events and gaps are logged first.

        Args:
            scores: of a `ScoresHeader`: shape (n_classes,), float16, in [0, 1].
            spectrogram: of a `SpectrogramHeader`: levels of shape (frames, mels).
        """
        self._seq += 1
        previous = durable_seq = None
        match content:
            case EventMessage() | GapMessage():
                previous, self._durable_seq = self._durable_seq, self._seq
            case Health() | WorkerStatus() | AlertsStatus() | RecorderStatus():
                durable_seq = self._durable_seq
        stamp = Stamp(self.boot, self._seq, self._now(), previous, durable_seq)
        message = FeedMessage.of(content, stamp, scores, spectrogram)
        if self._log is not None and message.is_durable:
            self._log.append(message)
        elif self._log is not None and isinstance(content, WorkerStatus):
            self._log.retry()  # once a second is often enough for a full disk
        self.messages[message.kind] += 1
        if self._held or self._waits_for_sync(content):
            self._held.append(message.encode())
        else:
            self._send(message.encode())

    def flush(self) -> None:
        """Sync the log, then send the messages held back for that, even if the disk refuses."""
        if self._held and self._log is not None:
            self._log.sync()
        held, self._held = self._held, []
        for frames in held:
            self._send(frames)

    def _waits_for_sync(self, content: Content) -> bool:
        if self._synced_first == "begins":
            return isinstance(content, EventMessage) and content.type == "begin"
        return self._synced_first != "nothing" and isinstance(content, EventMessage | GapMessage)

    def _send(self, frames: list[bytes]) -> None:
        if not self._socket.send(frames):
            self.drops += 1


class DeduplicatingPublisher:
    """Publishes events, gaps and scores of all streams.

    Args:
        event_log: what earlier runs have published.
        model: hash of the checkpoint.
        now: reads the clocks.

    Attributes:
        counters: messages by kind.
        begun: events that have begun, by slug of the class and stream.
    """

    def __init__(
        self, publisher: FeedPublisher, event_log: EventLog, model: str, now: Callable[[], Moment]
    ) -> None:
        self._publisher = publisher
        self._event_log = event_log
        self._model = model
        self._now = now
        self._published: dict[str, tuple[str, Published]] = {}  # by stream: epoch, messages
        self._ended: dict[str, None] = {}  # ids, oldest first
        self._orphans = {event.id: event for event in event_log.open_events()}
        # of events that have begun and not ended: theirs do not change with the configuration
        self._labels = {event.id: event.labels for event in self._orphans.values()}
        self.counters = Counter({"windows_published": 0})
        self.begun: Counter[tuple[str, str]] = Counter()

    @property
    def orphaned_streams(self) -> set[str]:
        """Streams of which events of an earlier run are still open."""
        return {event.stream for event in self._orphans.values()}

    def event_message(
        self, event: Event, clock: SampleClock, labels: Mapping[str, str], audio_end: int
    ) -> EventMessage:
        """Return the message about an event.

        Args:
            labels: of its stream; an event keeps those that it has begun with.
        """
        return EventMessage.of(
            self._with_first_onset(event),
            clock,
            labels=self._labels.get(event.id, labels),
            audio_end=audio_end,
            scored=self._now(),
            model=self._model,
        )

    def publish_event(self, event: Event, message: EventMessage) -> None:
        """Publish an event message, unless it was published before, or the event has ended.

        An event that an earlier run published begins no second time, though it may be decided at
        another sample now: its last frames are decided without later windows where the capture
        process has been replaced meanwhile.
        """
        published = self._published_of(event.stream, event.epoch)
        self._orphans.pop(event.id, None)
        if event.id in self._ended or message.identity in published.identities:
            return
        if event.type == "begin" and event.id in published.onsets:
            return
        if event.type == "end":
            self._remember_end(event.id)
        else:
            self._labels[event.id] = message.labels
        self.counters[f"events_{event.type}"] += 1
        self.begun[event.slug, event.stream] += event.type == "begin"
        _log_event(event)
        self._publisher.publish(message)

    def publish_gap(self, gap: Gap, clock: SampleClock) -> list[Gap]:
        """Publish a gap; return its parts that no earlier run has published.

        After a kill the same gap may begin earlier: audio that was received, and not yet decided,
        is lost as well where its capture process was replaced meanwhile.
        """
        known = self._published_of(gap.stream, gap.epoch).gaps
        parts = [part for part, is_known in gap.divided(known) if not is_known]
        for part in parts:
            logger.warning(
                "stream %s: %.2f s lost: %s", gap.stream, part.samples / SAMPLE_RATE, gap.reason
            )
            start = part.start_sample
            time_ns = clock.time_ns(start, self._now()) if clock.anchors else None
            self._publisher.publish(GapMessage.of(part, time_ns))
        return parts

    def as_published(self, gap: Gap) -> list[Gap]:
        """Return the parts of a gap with the reasons under which they were first published."""
        known = self._published_of(gap.stream, gap.epoch).gaps
        return [part for part, _ in gap.divided(known)]

    def as_long_as_known(self, gap: Gap) -> Gap:
        """Return the gap behind the end of an epoch, as long as an earlier run published it.

        Clocks tell how long it is, and say something else each time they are asked.
        """
        known = self._published_of(gap.stream, gap.epoch).gaps
        stops = [known_gap.stop_sample for known_gap in known if known_gap.reason == gap.reason]
        return gap.between(gap.start_sample, max([gap.stop_sample, *stops]))

    def publish_scores(self, scores: Scores, clock: SampleClock) -> None:
        """Publish the scores of one window, if anybody subscribes to them."""
        if not self.has_reader("scores", scores.stream):
            return
        self.counters["windows_published"] += 1
        header = ScoresHeader(
            stream=scores.stream,
            epoch=scores.epoch,
            end_sample=scores.end_sample,
            time_ns=clock.time_ns(scores.end_sample, self._now()),
        )
        self._publisher.publish(header, scores.scores.astype(np.float16))

    def has_reader(self, kind: str, stream: str) -> bool:
        """Return whether anybody subscribes to messages of a kind about a stream."""
        return self._publisher.has_reader(stream_topic(kind, stream))

    def readers(self, kind: str, stream: str) -> list[Requester]:
        """Return who subscribes to messages of a kind about a stream."""
        return self._publisher.readers(stream_topic(kind, stream))

    def publish_levels(self, seen_from: Callable[[Moment], LevelsMessage]) -> None:
        """Publish the levels of a second.

        Args:
            seen_from: returns them with times by the clocks of a moment.
        """
        self._publisher.publish(seen_from(self._now()))

    def publish_spectrogram(
        self, stream: str, epoch: str, start_sample: int, levels: Spectrogram8, clock: SampleClock
    ) -> None:
        """Publish frames, shape (frames, mels), of which the first begins at a sample."""
        header = SpectrogramHeader(
            stream=stream,
            epoch=epoch,
            start_sample=start_sample,
            time_ns=clock.time_ns(start_sample, self._now()),
            frames=len(levels),
            withheld=int((levels[:, 0] == WITHHELD).sum()),
        )
        self._publisher.publish(header, spectrogram=levels)

    def begin_epoch(self, stream: str, epoch: str, from_sample: int) -> None:
        """Look up what an earlier run published about an epoch, from a sample on."""
        published = self._event_log.published(stream, epoch, from_sample)
        self._published[stream] = (epoch, published)
        for event_id in published.ended:
            self._remember_end(event_id)

    def continue_events(self, events: list[Event]) -> None:
        """Note that these events of an earlier run continue: they are no orphans."""
        for event in events:
            self._orphans.pop(event.id, None)

    def disown(self, stream: str, events: list[EventMessage]) -> None:
        """Note that a stream moved to another worker, which decides about its open events.

        They are orphans until it is known who ends them, see `drop_orphans` and `end_orphans`.
        """
        self._orphans |= {event.id: event for event in events}
        self.forget(stream)

    def orphaned_epochs(self, stream: str) -> set[str]:
        """Return the epochs of a stream in which events of an earlier run are still open."""
        orphans = (event for event in self._orphans.values() if event.stream == stream)
        return {event.epoch for event in orphans if event.epoch is not None}

    def drop_orphans(
        self, stream: str, epoch: str, *, before: int | None = None, but: Collection[str] = ()
    ) -> None:
        """Forget open events of an epoch that another worker has ended, or will end.

        Args:
            before: only those whose last message was decided at or before this sample.
            but: ids of events that go on here.
        """
        for event in list(self._orphans.values()):
            is_one = event.stream == stream and event.epoch == epoch and event.id not in but
            if is_one and (before is None or (event.at_sample or 0) <= before):
                del self._orphans[event.id]
                self._labels.pop(event.id, None)

    def end_orphans(
        self,
        stream: str,
        *,
        except_epoch: str | None = None,
        of_epoch: str | None = None,
        before: int | None = None,
    ) -> None:
        """End events of a stream that an earlier run left open.

        Args:
            except_epoch: leave events of this epoch open.
            of_epoch: end only events of this epoch.
            before: end only events whose last message was decided before this sample.
        """
        orphans = [
            event
            for event in self._orphans.values()
            if event.stream == stream
            and event.epoch != except_epoch
            and of_epoch in (None, event.epoch)
            and (before is None or (event.at_sample or 0) < before)
        ]
        for event in orphans:
            del self._orphans[event.id]
            self._remember_end(event.id)
            self._publisher.publish(event.ended_by_restart(self._now()))

    def forget(self, stream: str) -> None:
        """Drop what is known about a stream."""
        self._published.pop(stream, None)

    def _with_first_onset(self, event: Event) -> Event:
        """Return the event with the onset with which an earlier run published it, if one did."""
        onsets = self._published_of(event.stream, event.epoch).onsets
        onset, uncertainty_s = onsets.get(event.id, (None, None))
        # a line of another version may hold anything
        if not isinstance(onset, int) or not isinstance(uncertainty_s, int | float):
            return event
        offset = event.offset_sample
        return replace(
            event,
            onset_sample=onset,
            uncertainty_s=float(uncertainty_s),
            offset_sample=None if offset is None else max(offset, onset),
        )

    def _remember_end(self, event_id: str) -> None:
        """Remember that an event has ended: derived again, it gets no second end."""
        self._ended[event_id] = None
        self._labels.pop(event_id, None)
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def _published_of(self, stream: str, epoch: str) -> Published:
        """Return what an earlier run published about this epoch; looked up once per epoch."""
        known = self._published.get(stream)
        if known is None or known[0] != epoch:
            known = self._published[stream] = (epoch, self._event_log.published(stream, epoch))
        return known[1]


def _log_event(event: Event) -> None:
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
