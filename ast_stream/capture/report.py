"""What a capture process says of itself: a line for people, figures for Prometheus."""

from __future__ import annotations

import numpy as np

from ast_stream.capture.intake import Intake
from ast_stream.capture.ring import Ring
from ast_stream.capture.ring_service import RingService
from ast_stream.capture.sender import BlockSender
from ast_stream.runtime.metrics import Family, counter, gauge
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, amplitude_to_dbfs

_LEVEL_SAMPLES = SAMPLE_RATE // 2
_STATES = ("listening", "degraded", "missing", "ended")


class CaptureReport:
    """Reports on one stream; looks at what is there and changes nothing."""

    def __init__(
        self, name: str, ring: Ring, intake: Intake, sender: BlockSender, service: RingService
    ) -> None:
        self._name = name
        self._ring = ring
        self._intake = intake
        self._sender = sender
        self._service = service

    def status(self) -> str:
        """Return how the stream is, in words."""
        status = self._intake.status
        if status.state == "missing":
            return f"waiting for {self._name}: {status.detail}"
        if status.state == "ended":
            return f"{self._name} has ended, the worker reads the rest"
        level = self._level_dbfs()
        text = f"capturing {self._name}" + ("" if level is None else f", {level:.0f} dBFS")
        if status.state == "degraded":
            text += f", {status.detail}"
        return text + (f", lost {self._intake.n_losses} times" if self._intake.n_losses else "")

    def families(self) -> list[Family]:
        """Return the figures of the stream."""
        intake, sender = self._intake, self._sender
        key = (self._name,)
        state = intake.status.state

        def one(name: str, help: str, value: float | None) -> Family:
            make = counter if name.endswith("_total") else gauge
            return make(f"ast_stream_capture_{name}", help, {key: value}, ("stream",))

        return [
            gauge(
                "ast_stream_capture_state",
                "1 for the state that the source is in",
                {(self._name, each): float(each == state) for each in _STATES},
                ("stream", "state"),
            ),
            one("data_age_seconds", "Since the source gave its last block", intake.data_age_s),
            one("level_dbfs", "Level of the last half second", self._level_dbfs()),
            one("samples_total", "Samples since the start, lost ones too", self._ring.next),
            one("unacknowledged_samples", "Samples the worker has yet to acknowledge", self._held),
            one("losses_total", "Times that the source was lost", intake.n_losses),
            one("overflows_total", "Times that the device lost samples", intake.n_overflows),
            one("clipped_samples_total", "Samples beyond full scale", intake.n_clipped),
            one("blocks_sent_total", "Blocks handed to the worker", sender.n_sent),
            one("blocks_refused_total", "Blocks left in the ring", sender.n_refused),
            one("malformed_requests_total", "Requests refused", self._service.n_malformed),
        ]

    def summary(self) -> str:
        """Return the figures of the whole run in a line."""
        return (
            f"{self._ring.next} samples, {self._intake.n_losses} losses, "
            f"{self._intake.n_overflows} overflows, {self._intake.n_clipped} clipped, "
            f"{self._sender.n_sent} blocks sent, {self._sender.n_refused} refused, "
            f"{self._service.n_malformed} malformed requests"
        )

    @property
    def _held(self) -> int:
        return self._ring.next - self._ring.acked

    def _level_dbfs(self) -> float | None:
        stop = self._ring.next
        pcm = self._ring.read(max(0, stop - _LEVEL_SAMPLES), stop, _LEVEL_SAMPLES).pcm
        if len(pcm) == 0 or self._intake.status.state not in ("listening", "degraded"):
            return None
        samples = pcm.astype(np.float32) / FULL_SCALE
        return amplitude_to_dbfs(float(np.sqrt(np.mean(samples * samples))))
