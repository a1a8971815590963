"""The health of streams and the status of processes, on the feed each second."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    computed_field,
    model_serializer,
)

from ast_stream.messages.codec import FeedBody, SampleIndex, Seconds, Text
from ast_stream.messages.pool import Placement

StreamState = Literal["listening", "warming", "gated", "missing", "degraded"]

WORKER_STATUS_TOPIC = "status/worker/"
RECORDER_STATUS_TOPIC = "status/recorder/"  # on the recorder's own feed
FORWARD_STATUS_TOPIC = "status/forward/"  # on the forwarder's own feed
ALERTS_STATUS_TOPIC = "status/alerts/"  # on the alerts process's own feed
SOURCE_ENDED = "the source has ended"  # detail of the health of a stream that is over
STREAM_REMOVED = "removed from the configuration"  # detail of the last health of a stream
RECENT_LOSS_S = 300.0  # for which the health of a stream names a loss


class RecentLoss(FeedBody):
    """Audio of a stream that was lost within the last `RECENT_LOSS_S`."""

    seconds: Seconds
    """Seconds of audio, all gaps together."""
    ago_s: Seconds
    """Seconds since the newest of them was published."""
    reasons: list[Text]
    """Of the gaps, each once, sorted."""

    @property
    def text(self) -> str:
        """What happened, without a subject."""
        minutes = round(RECENT_LOSS_S / 60)
        return (
            f"lost {self.seconds:.3g} s of audio in the last {minutes} minutes, "
            f"the last {self.ago_s:.0f} s ago: {', '.join(self.reasons)}"
        )


class Health(FeedBody):
    """How a stream is. Fields with a default may be absent in bodies written by hand."""

    stream: Text
    labels: dict[Text, Text] = Field(default_factory=dict)
    """Of the stream, as configured."""
    epoch: Text | None = None
    """Run of the capture process; None before its first contact."""
    state: StreamState
    detail: Text | None = None
    """What is wrong, a sentence; None while nothing is."""
    silence_s: Seconds = 0.0
    """Seconds without new audio."""
    gaps: int = 0
    """Gaps published."""
    lost_samples: SampleIndex = 0
    """Samples in those gaps."""
    overflows: int = 0
    """Those of an overflowing device."""
    ring_timeouts: int = 0
    """Requests that the ring did not answer in time."""
    audio_s: Seconds | None = None
    """Seconds of audio of this epoch; like all below None while the stream is not open."""
    level_dbfs: float | None = None
    """Level of the newest window, dBFS."""
    lag_s: Seconds | None = None
    """Seconds of audio that exist at the source and are not scored."""
    hop_s: Seconds | None = None
    """Seconds between scored windows at present."""
    open_events: int | None = None
    """Events that have begun but not ended."""
    placement: Placement | None = None
    """In a pool: this worker, and since when it has the stream; absent elsewhere."""
    recent_loss: RecentLoss | None = None
    """Audio lost in the last minutes; absent if none was."""

    @model_serializer(mode="wrap")
    def _without_absent(self, to_json: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = to_json(self)
        for name in ("placement", "recent_loss"):
            if getattr(self, name) is None:
                body.pop(name, None)
        return body

    @property
    def topic(self) -> str:
        """`health/<stream>/`."""
        return f"health/{self.stream}/"


class WorkerFacts(FeedBody):
    """What does not change while a worker runs."""

    model: Text
    """Hash of the checkpoint."""
    device: Text
    precision: Text
    attention: Text
    """Attention backend in use."""
    window_s: Seconds
    """Seconds of audio in a window."""
    torch: Text
    """Version of torch."""


class _FollowsSettings(FeedBody):
    """Status of a process that reloads its configuration while it runs."""

    restart_needed: list[Text] = Field(default_factory=list)
    """Keys of the configuration that have changed since the start and need another; absent where
    there are none."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, to_json: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = to_json(self)
        if not self.restart_needed:
            body.pop("restart_needed", None)
        return body


class WorkerStatus(WorkerFacts, _FollowsSettings):
    """How a worker is."""

    streams: list[Text]
    """Names of all streams, sorted."""
    windows_per_s: float
    """Windows scored a second, since the status before."""
    lag_s: Seconds | None
    """Of the stream with the largest lag, seconds; None without open streams."""
    uptime_s: Seconds
    """Seconds since the start."""
    disk: Text | None
    """What cannot be written and why; None while all can."""
    counters: dict[str, int]
    """Since the start, by name."""

    @property
    def topic(self) -> str:
        """`status/worker/`."""
        return WORKER_STATUS_TOPIC


class FailingAction(FeedBody):
    """An action whose deliveries do not get through."""

    action: Text
    waiting: int
    """Deliveries that failed and are tried again."""
    attempts: int
    """Of the one that was tried most often."""
    lost: bool
    """Whether the last one that was decided was given up."""
    error: Text
    """Why the last one failed."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def text(self) -> str:
        """A sentence."""
        waiting = "1 alert waits" if self.waiting == 1 else f"{self.waiting} alerts wait"
        tried = f"{waiting} after up to {self.attempts} attempts" if self.waiting else ""
        lost = "the last one was given up" if self.lost else ""
        facts = " and ".join(part for part in (tried, lost) if part) or "it cannot be used"
        return f"alerts are not delivered by {self.action}: {facts}: {self.error}"


class AlertsStatus(_FollowsSettings):
    """How an alerts process is."""

    n_rules: Annotated[int, Field(alias="rules")]
    """Rules in force."""
    hears_worker: Annotated[bool, Field(alias="hears")]
    """Whether the worker's feed is received."""
    pending: int | None
    """Deliveries that wait; None if the outbox cannot be read."""
    disk: Text | None
    """What cannot be written and why; None while all can."""
    failing: list[FailingAction]
    pending_by_action: dict[Text, int] | None
    """Deliveries that wait, by action; None if the outbox cannot be read."""

    @property
    def topic(self) -> str:
        """`status/alerts/`."""
        return ALERTS_STATUS_TOPIC


class RecorderStatus(_FollowsSettings):
    """How a recorder is."""

    hears_workers: Annotated[bool, Field(alias="hears")]
    """Whether the feeds of all workers are received."""
    clips: int
    """Clips that are kept."""
    clip_bytes: int
    """Bytes of all clips, of those too that wait for an alert."""
    events: int
    """Events whose sound is at work."""
    waiting: int
    """Messages that wait for a history that cannot be written."""
    disk: Text | None
    """What cannot be written and why; None while all can."""
    counters: dict[str, int]
    """Since the start, by name."""

    @property
    def topic(self) -> str:
        """`status/recorder/`."""
        return RECORDER_STATUS_TOPIC


class OutputStatus(FeedBody):
    """How an output of the forwarder is."""

    name: Text
    kind: Annotated[Text, Field(alias="type")]
    """nats, mqtt or kafka."""
    is_connected: Annotated[bool, Field(alias="connected")]
    waiting: int
    """Messages that the broker has not confirmed, as of some seconds ago."""
    oldest_s: Seconds | None
    """Age of the oldest of them, seconds; None: none waits."""
    sent: int
    """Messages confirmed since the start."""
    bytes: int
    """Of their bodies."""
    lost: int
    """Messages that the box no longer had, of all runs."""
    reconnects: int
    """Since the start."""
    duplicates: int
    """Messages that the broker had already, since the start."""
    error: Text | None
    """Why it does not get on, a sentence; None: it does."""
    disk: Text | None
    """Why its position cannot be written; None: it can."""


class ForwardStatus(_FollowsSettings):
    """How a forwarder is."""

    hears_workers: Annotated[bool, Field(alias="hears")]
    """Whether the feeds of all workers are received."""
    outputs: list[OutputStatus]
    disk: Text | None
    """What cannot be written and why; None while all can."""

    @property
    def topic(self) -> str:
        """`status/forward/`."""
        return FORWARD_STATUS_TOPIC
