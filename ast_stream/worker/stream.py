"""One stream as the worker sees it: its intake, ring, clock, history and health."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ast_stream.audio.sample_buffer import SampleBuffer
from ast_stream.detect.detector import StreamStatus
from ast_stream.errors import WireError
from ast_stream.messages.audio import AckRequest, decode_ring_reply
from ast_stream.messages.event import SOURCE_ENDED, StreamState
from ast_stream.sample_clock import SampleClock
from ast_stream.units import SAMPLE_RATE, samples_to_seconds
from ast_stream.worker.journal import StreamRecord
from ast_stream.worker.ring_link import RingLink
from ast_stream.worker.stream_intake import Audio, Intake, Item

HISTORY_S = 60


@dataclass(frozen=True)
class StreamPlan:
    """What the configuration says of a stream."""

    name: str
    labels: dict[str, str]
    ring_endpoint: str
    ring_s: float
    is_configured: bool = True


@dataclass
class WorkerStream:
    """State of one stream; the worker's loop drives it.

    Attributes:
        record: journalled state to resume from, until the ring was reached.
        waiting: what came in and the detector has not taken yet, in order.
        is_ending: the first of `waiting` ends what came before, which is not wholly scored yet.
        epoch: the epoch that the detector is in; what waits may be of a later one.
        is_open: the detector has a slot for it.
        is_lost: no audio for so long that its events were ended.
        gaps, lost_samples, overflows: gaps published, all and those of an overflowing device.
        acked: the ring was told that it need not keep anything before this sample.
        stride: every how many windows one is scored, more than 1 under overload.
        shown: state that the feed knows.
    """

    plan: StreamPlan
    link: RingLink
    record: StreamRecord | None = None
    intake: Intake = field(init=False)
    clock: SampleClock = field(default_factory=SampleClock)
    history: SampleBuffer = field(default_factory=lambda: SampleBuffer(HISTORY_S * SAMPLE_RATE))
    gaps: int = 0
    lost_samples: int = 0
    overflows: int = 0
    waiting: deque[Item] = field(default_factory=deque)
    is_ending: bool = False
    epoch: str | None = None
    is_open: bool = False
    is_lost: bool = False
    acked: int = 0
    stride: int = 1
    shown: StreamState | None = None

    def __post_init__(self) -> None:
        self.intake = Intake(self.plan.name)

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.plan.name

    def exchange(self, now_s: float, *, has_room: bool) -> list[Item]:
        """Take the ring's answers, let time pass, and ask for more if there is room for it."""
        items: list[Item] = []
        while (frames := self.link.receive()) is not None:
            try:
                items += self.intake.on_reply(decode_ring_reply(frames, self.name), now_s)
            except WireError as error:
                items += self.intake.on_refusal(str(error), now_s)
        items += self.intake.tick(now_s)
        if self.intake.needs_new_socket:
            self.link.close()
        request = self.intake.request(now_s) if has_room else None
        if request is not None:
            self.link.send(request)
        return items

    @property
    def waiting_samples(self) -> int:
        """Samples that came in and that the detector has not taken yet."""
        return sum(len(item.pcm) for item in self.waiting if isinstance(item, Audio))

    def begin_epoch(self, epoch: str, start_sample: int, anchors: list[tuple[int, int]]) -> None:
        """Forget what belongs to the epoch before; `anchors` is what is known of its clock."""
        self.epoch = epoch
        self.clock = SampleClock(anchors)
        self.history.restart(start_sample)
        self.record = None
        self.acked = 0
        self.stride = 1
        self.is_open = True

    def acknowledge(self, stop: int) -> None:
        """Tell the ring that everything before `stop` is decided, published and journalled."""
        if stop > self.acked and self.epoch is not None:
            request = AckRequest(v=1, op="ack", epoch=self.epoch, stop=stop)
            if self.link.send(request):
                self.acked = stop

    def backlog_s(self, scored_to: int) -> float:
        """Return seconds of audio that exist at the source and are not scored."""
        in_ring = self.intake.newest - self.intake.position
        here = max(0, self.history.end - scored_to)
        return samples_to_seconds(in_ring + self.waiting_samples + here)

    def health(self, now_s: float, status: StreamStatus | None) -> dict[str, Any]:
        """Return the body of the health message; figures are null while the stream is not open."""
        state, detail = self.state(now_s, status)
        body: dict[str, Any] = {
            "stream": self.name,
            "labels": dict(self.plan.labels),
            "epoch": self.epoch or self.intake.epoch,
            "state": state,
            "detail": detail,
            "silence_s": round(self.intake.silence_s(now_s), 1),
            "gaps": self.gaps,
            "lost_samples": self.lost_samples,
            "overflows": self.overflows,
            "ring_timeouts": self.intake.timeouts,
        }
        figures: dict[str, Any] = dict.fromkeys(
            ("audio_s", "level_dbfs", "lag_s", "hop_s", "open_events")
        )
        if status is not None:
            figures = {
                "audio_s": samples_to_seconds(self.history.end),
                "level_dbfs": round(status.level_dbfs, 1),
                "lag_s": round(self.backlog_s(status.scored_to), 3),
                "hop_s": status.hop_s,
                "open_events": status.open_events,
            }
        return body | figures

    def state(self, now_s: float, status: StreamStatus | None) -> tuple[StreamState, str | None]:
        """Return the stream's state and, where something is wrong, why."""
        if self.intake.has_ended:
            return "missing", SOURCE_ENDED
        if status is None or self.intake.is_missing(now_s):
            return "missing", self.intake.detail or self._why_silent()
        wrong = [self.intake.detail] if self.intake.state == "degraded" else []
        if self.stride > 1:
            wrong.append(f"overload: one of {self.stride} windows is scored")
        if wrong:
            return "degraded", "; ".join(filter(None, wrong))
        if status.is_gated:
            return "gated", None
        return ("warming" if status.is_warming else "listening"), None

    def _why_silent(self) -> str:
        if self.intake.epoch is None:
            return f"no capture process answers at {self.link.endpoint}"
        return "the capture process sends no audio"
