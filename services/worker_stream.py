"""One stream as the worker sees it: its intake, ring socket, clock, history and health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ast_stream.errors import WireError
from ast_stream.messages import AudioBlock, SampleClock, StreamState
from ast_stream.runtime.history import PcmHistory
from ast_stream.runtime.journal import StreamRecord
from ast_stream.units import SAMPLE_RATE, samples_to_seconds
from ast_stream.wire.codec import AckRequest, decode_ring_reply, encode_request
from ast_stream.wire.replay import Intake, Item
from ast_stream.wire.sockets import QUERY_HWM_MESSAGES, Poller, Socket, Sockets

HISTORY_S = 60
LOST_AFTER_S = 5.0  # without new audio: its open events are ended
FORGET_AFTER_S = 60.0  # without new audio: a stream that is not in the configuration is dropped


@dataclass
class StreamCounters:
    """What happened to a stream since the worker started."""

    gaps: int = 0
    lost_samples: int = 0


@dataclass
class WorkerStream:
    """State of one stream; the worker's loop drives it.

    Attributes:
        record: journalled state to resume from, until the ring was reached.
        is_open: the detector has a slot for it.
        is_lost: no audio for so long that its events were ended.
        has_ended: the source came to its end and everything is decided.
    """

    name: str
    labels: Mapping[str, str]
    ring_endpoint: str
    ring_s: float
    is_configured: bool
    intake: Intake
    clock: SampleClock = field(default_factory=SampleClock)
    history: PcmHistory = field(default_factory=lambda: PcmHistory(HISTORY_S * SAMPLE_RATE))
    counters: StreamCounters = field(default_factory=StreamCounters)
    record: StreamRecord | None = None
    is_open: bool = False
    is_lost: bool = False
    has_ended: bool = False
    acked: int = 0
    stride: int = 1
    shown: tuple[StreamState, str | None] | None = None
    _socket: Socket | None = None

    def exchange(self, sockets: Sockets, poller: Poller, now_s: float) -> list[Item]:
        """Take the ring's answers, let time pass, and send the next question."""
        items: list[Item] = []
        while self._socket is not None and (frames := self._socket.receive()) is not None:
            items += self._on_reply(frames, now_s)
        items += self.intake.tick(now_s)
        if self.intake.needs_new_socket:
            self.close(sockets, poller)
        request = self.intake.request(now_s)
        if request is not None:
            self._ring(sockets, poller).send([encode_request(request)])
        return items

    def on_block(self, block: AudioBlock, now_s: float) -> list[Item]:
        """Take a block that was pushed."""
        return self.intake.on_block(block, now_s)

    def begin_epoch(self, start_sample: int) -> None:
        """Forget what belongs to the epoch before."""
        self.clock = SampleClock()
        self.history.restart(start_sample)
        self.record = None
        self.acked = 0

    def acknowledge(self, sockets: Sockets, poller: Poller, epoch: str, stop: int) -> None:
        """Tell the ring that everything before `stop` is decided, published and journalled."""
        if stop <= self.acked:
            return
        request = AckRequest(v=1, op="ack", epoch=epoch, stop=stop)
        if self._ring(sockets, poller).send([encode_request(request)]):
            self.acked = stop

    def close(self, sockets: Sockets, poller: Poller) -> None:
        """Close the ring's socket: stale answers must not reach a later question."""
        if self._socket is not None:
            poller.remove(self._socket)
            sockets.forget(self._socket)
            self._socket = None

    def backlog_s(self, scored_to: int) -> float:
        """Return seconds of audio that exist at the source and are not scored."""
        return max(0.0, samples_to_seconds(self.intake.newest - scored_to))

    def health(self, now_s: float, detail: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of the health message; `detail` has what the detector knows."""
        state, why = self.state(now_s, detail)
        return {
            "stream": self.name,
            "labels": dict(self.labels),
            "epoch": self.intake.epoch,
            "state": state,
            "detail": why,
            "silence_s": round(self.intake.silence_s(now_s), 1),
            "gaps": self.counters.gaps,
            "lost_samples": self.counters.lost_samples,
            "ring_timeouts": self.intake.timeouts,
            **{key: detail[key] for key in ("level_dbfs", "lag_s", "hop_s", "open_events")},
        }

    def state(self, now_s: float, detail: Mapping[str, Any]) -> tuple[StreamState, str | None]:
        """Return the stream's state and, where something is wrong, why."""
        if self.has_ended:
            return "missing", "the source has ended"
        if self.intake.is_missing(now_s) or not self.is_open:
            return "missing", self.intake.detail or self._why_silent()
        if self.stride > 1:
            return "degraded", f"overload: every {self.stride}. window is scored"
        if detail["is_gated"]:
            return "gated", None
        return ("warming" if detail["is_warming"] else "listening"), None

    def _why_silent(self) -> str:
        if self.intake.epoch is None:
            return f"no capture process answers at {self.ring_endpoint}"
        return "the capture process sends no audio"

    def _ring(self, sockets: Sockets, poller: Poller) -> Socket:
        if self._socket is None:
            self._socket = sockets.connect("dealer", self.ring_endpoint, QUERY_HWM_MESSAGES)
            poller.add(self._socket)
        return self._socket

    def _on_reply(self, frames: list[bytes], now_s: float) -> list[Item]:
        try:
            reply = decode_ring_reply(frames, self.name)
        except WireError as error:
            return self.intake.on_refusal(str(error), now_s)
        return self.intake.on_reply(reply, now_s)
