"""What the worker reports: health and status on the feed, snapshot and audio on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from ast_stream.detect.detector import Detector
from ast_stream.errors import WireError
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.query import Snapshot
from ast_stream.messages.status import (
    Health,
    StreamState,
    WorkerFacts,
    WorkerStatus,
)
from ast_stream.runtime.logging import Outage
from ast_stream.transport.publisher import DeduplicatingPublisher, FeedPublisher
from ast_stream.transport.query import AudioRange
from ast_stream.worker.stream import WorkerStream

REPORT_EVERY_S = 1.0

Streams = Collection[WorkerStream]


class WorkerReport:
    """Reports on the worker and on the streams that it is given.

    Args:
        facts: model, device, precision, attention and the like, for the status message.
        outages: of what is written to the disk.

    Attributes:
        blocks_refused: audio blocks that were invalid, or for which there was no room.
    """

    def __init__(
        self,
        detector: Detector,
        feed: FeedPublisher,
        publisher: DeduplicatingPublisher,
        facts: WorkerFacts,
        now_s: float,
        outages: Sequence[Outage] = (),
    ) -> None:
        self._detector = detector
        self._publisher = publisher
        self._outages = outages
        self.feed = feed
        self.facts = facts
        self.blocks_refused = 0
        self._started_s = self._reported_s = now_s
        self._reported_windows = 0
        self._windows_per_s = 0.0  # over the last whole report
        self._states: dict[str, StreamState] = {}  # as last published

    def publish(self, streams: Streams, now_s: float) -> None:
        """Publish health and status once a second, and health at once when a state changes."""
        is_due = now_s - self._reported_s >= REPORT_EVERY_S
        states = {stream.name: stream.state(now_s) for stream in streams}
        for stream in streams:
            if is_due or states[stream.name] != self._states.get(stream.name):
                self.feed.publish(stream.health(now_s))
        self._states = states
        if is_due:
            n_windows = self.n_scored - self._reported_windows
            self._windows_per_s = round(n_windows / (now_s - self._reported_s), 2)
            self._reported_s, self._reported_windows = now_s, self.n_scored
            self.feed.publish(self._status(streams, now_s))

    @property
    def disk(self) -> str | None:
        """What cannot be written, and why; None while everything can."""
        texts = (outage.text for outage in self._outages)
        return "; ".join(filter(None, texts)) or None

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
        return self._publisher.begun

    def status_line(self, streams: Streams, now_s: float) -> str:
        """Return the state of the worker as a line for people."""
        line = describe_streams([stream.health(now_s) for stream in streams])
        return line if self.disk is None else f"{line}, {self.disk}"

    def snapshot(self, streams: Streams, now_s: float) -> Snapshot:
        """Return streams, open events and status."""
        return Snapshot(
            boot=self.feed.boot,
            streams=[stream.health(now_s) for stream in streams],
            events=[event for stream in streams for event in stream.open_events()],
            status=self._status(streams, now_s),
        )

    def _status(self, streams: Streams, now_s: float) -> WorkerStatus:
        lags_s = [stream.backlog_s() for stream in streams if stream.is_open]
        counters = dict(self._publisher.counters)
        if self.blocks_refused:
            counters["blocks_refused"] = self.blocks_refused
        counters |= {
            "windows": self.n_scored,
            "windows_gated": self.n_gated,
            "feed_drops": self.feed.drops,
            "nan_scores": self._detector.nan_scores,
            "event_log_errors": self.feed.log_errors,
            "event_log_damaged": self.feed.log_damaged,
        }
        return WorkerStatus(
            **dict(self.facts),
            streams=sorted(stream.name for stream in streams),
            windows_per_s=self._windows_per_s,
            lag_s=round(max(lags_s), 3) if lags_s else None,
            uptime_s=round(now_s - self._started_s, 1),
            disk=self.disk,
            counters=counters,
        )


def read_audio(streams: Streams, wanted: AudioRange) -> AudioBlock:
    """Return what is held of the audio that a query asks for.

    Raises:
        WireError: a stream without audio, or an epoch that is over.
    """
    by_name = {stream.name: stream for stream in streams if stream.has_audio}
    if wanted.stream not in by_name:
        raise WireError(
            f"audio: expected a stream with sound ({', '.join(by_name) or 'none yet'}), "
            f"got {wanted.stream!r}"
        )
    return by_name[wanted.stream].audio(wanted)


def describe_streams(healths: Sequence[Health]) -> str:
    """Return streams as a line for people, e.g. `listening to porch, -42 dBFS, lag 0.3 s`."""
    live = [health for health in healths if health.state != "missing"]
    missing = [health for health in healths if health.state == "missing"]
    parts = []
    if live:
        names = live[0].stream if len(live) == 1 else f"{len(live)} streams"
        level = f", {live[0].level_dbfs:.0f} dBFS" if len(healths) == 1 else ""
        lag_s = max(health.lag_s or 0.0 for health in live)
        n_open = sum(health.open_events or 0 for health in live)
        events = f"{n_open or 'no'} event{'' if n_open == 1 else 's'} open"
        parts.append(f"listening to {names}{level}, lag {lag_s:.1f} s, {events}")
    parts += [f"{health.stream}: {health.detail}" for health in live if health.detail]
    parts += [f"waiting for {health.stream}: {health.detail}" for health in missing]
    return "; ".join(parts) or "waiting for streams"
