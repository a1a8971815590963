"""What the worker says of itself: health and status on the feed, snapshot and audio on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ast_stream.detect.detector import Detector, StreamStatus
from ast_stream.errors import WireError
from ast_stream.messages.event import WORKER_STATUS_TOPIC, AudioBlock, stream_topic
from ast_stream.runtime.logging import Outage
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.transport.query import AudioWanted
from ast_stream.worker.feed import WorkerFeed
from ast_stream.worker.stream import WorkerStream

REPORT_EVERY_S = 1.0


class WorkerReport:
    """Reports on all streams.

    Args:
        streams: the worker's streams by name; looked at, never changed.
        facts: model, device, precision, attention and the like, for the status message.
        outages: of what is written to the disk.

    Attributes:
        refusals: what came from outside and was refused, by kind.
    """

    def __init__(
        self,
        streams: dict[str, WorkerStream],
        detector: Detector,
        publisher: FeedPublisher,
        feed: WorkerFeed,
        facts: dict[str, Any],
        now_s: float,
        outages: Sequence[Outage] = (),
    ) -> None:
        self._streams = streams
        self._outages = outages
        self._detector = detector
        self._publisher = publisher
        self._feed = feed
        self.facts = facts
        self._started_s = self._reported_s = now_s
        self._reported_windows = 0
        self._windows_per_s = 0.0  # over the last whole report
        self.refusals: Counter[str] = Counter()

    def publish(self, now_s: float) -> None:
        """Publish health and status once a second, and health at once when a state changes."""
        is_due = now_s - self._reported_s >= REPORT_EVERY_S
        for stream in self._streams.values():
            status = self._status_of(stream)
            state, _ = stream.state(now_s, status)
            if is_due or state != stream.shown:
                stream.shown = state
                topic = stream_topic("health", stream.name)
                self._publisher.publish(topic, stream.health(now_s, status))
        if is_due:
            windows = self.n_scored - self._reported_windows
            self._windows_per_s = round(windows / (now_s - self._reported_s), 2)
            self._reported_s, self._reported_windows = now_s, self.n_scored
            self._publisher.publish(WORKER_STATUS_TOPIC, self._worker_status(now_s))

    @property
    def feed(self) -> FeedPublisher:
        """The publisher, for its counters."""
        return self._publisher

    @property
    def disk(self) -> str | None:
        """What cannot be written, and why; None while all can."""
        texts = (outage.text for outage in self._outages)
        return "; ".join(filter(None, texts)) or None

    @property
    def n_windows(self) -> int:
        """Windows decided so far: also those that were too quiet to score, or skipped."""
        return self._feed.counters["windows_published"]

    @property
    def n_scored(self) -> int:
        """Windows that the model has scored so far."""
        return self._detector.n_scored

    @property
    def n_gated(self) -> int:
        """Windows that were too quiet to score."""
        return self._detector.n_gated

    @property
    def events_by_class(self) -> Counter[tuple[str, str]]:
        """Events that have begun, by slug of the class and stream."""
        return self._feed.begun

    def healths(self, now_s: float) -> list[dict[str, Any]]:
        """Return the health of every stream, as on the feed."""
        return [one.health(now_s, self._status_of(one)) for one in self._streams.values()]

    def status_line(self, now_s: float) -> str:
        """Return how the worker is, in words."""
        line = status_line(self.healths(now_s))
        return line if self.disk is None else f"{line}, {self.disk}"

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Return streams, open events and status."""
        return {
            "streams": self.healths(now_s),
            "events": [
                self._feed.body(stream, event)
                for stream in self._streams.values()
                if stream.is_open
                for event in self._detector.open_events(stream.name)
            ],
            "status": self._worker_status(now_s),
        }

    def audio(self, wanted: AudioWanted) -> AudioBlock:
        """Return what is held of the sound that a query wants.

        Raises:
            WireError: a stream without sound, or an epoch that is over.
        """
        stream = self._streams.get(wanted.stream)
        if stream is None or not stream.clock.anchors or stream.epoch is None:
            known = [name for name, one in self._streams.items() if one.clock.anchors]
            raise WireError(
                f"audio: expected a stream with sound ({', '.join(known) or 'none yet'}), "
                f"got {wanted.stream!r}"
            )
        epoch = stream.epoch
        if wanted.epoch not in (None, epoch):
            raise WireError(f"audio: expected the present epoch {epoch}, got {wanted.epoch!r}")
        start, pcm = stream.history.read(*wanted.samples(stream.clock))
        return AudioBlock(wanted.stream, epoch, start, stream.clock.time_ns(start), pcm)

    def _status_of(self, stream: WorkerStream) -> StreamStatus | None:
        return self._detector.status(stream.name) if stream.is_open else None

    def _worker_status(self, now_s: float) -> dict[str, Any]:
        lags_s = [
            stream.backlog_s(self._detector.position(stream.name))
            for stream in self._streams.values()
            if stream.is_open
        ]
        counters = {
            **self._feed.counters,
            **self.refusals,
            "windows": self.n_scored,
            "windows_gated": self.n_gated,
            "feed_drops": self._publisher.drops,
            "nan_scores": self._detector.nan_scores,
            "event_log_errors": self._publisher.log_errors,
            "event_log_damaged": self._publisher.log_damaged,
        }
        return self.facts | {
            "streams": sorted(self._streams),
            "windows_per_s": self._windows_per_s,
            "lag_s": round(max(lags_s), 3) if lags_s else None,
            "uptime_s": round(now_s - self._started_s, 1),
            "disk": self.disk,
            "counters": counters,
        }


def status_line(healths: Sequence[dict[str, Any]]) -> str:
    """Return streams as a line for people, e.g. `listening to porch, -42 dBFS, lag 0.3 s`."""
    heard = [one for one in healths if one["state"] != "missing"]
    missing = [one for one in healths if one["state"] == "missing"]
    parts = []
    if heard:
        names = heard[0]["stream"] if len(heard) == 1 else f"{len(heard)} streams"
        level = f", {heard[0]['level_dbfs']:.0f} dBFS" if len(healths) == 1 else ""
        lag_s = max(one["lag_s"] for one in heard)
        n_open = sum(one["open_events"] for one in heard)
        events = f"{n_open or 'no'} event{'' if n_open == 1 else 's'} open"
        parts.append(f"listening to {names}{level}, lag {lag_s:.1f} s, {events}")
    parts += [f"{one['stream']}: {one['detail']}" for one in heard if one["detail"]]
    parts += [f"waiting for {one['stream']}: {one['detail']}" for one in missing]
    return "; ".join(parts) or "waiting for streams"
