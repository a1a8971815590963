"""PortAudio as `sounddevice` shows it, at the edge of the hardware: the test calls the callback."""

from __future__ import annotations

import threading
import types
from dataclasses import dataclass, field
from typing import Any

INVALID_RATE, INVALID_CHANNELS, HOST_ERROR = -9997, -9998, -9999


class PortAudioError(Exception):
    """As sounddevice's: message, code."""


@dataclass
class FakeStream:
    """A stream whose callback the test calls."""

    arguments: dict[str, Any]
    hangs: threading.Event | None = None
    calls: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.calls.append("start")

    def abort(self) -> None:
        self.calls.append("abort")
        if self.hangs is not None:
            self.hangs.wait(30)

    def close(self) -> None:
        self.calls.append("close")

    def deliver(self, pcm: Any, *, overflow: bool = False) -> None:
        status = types.SimpleNamespace(input_overflow=overflow)
        self.arguments["callback"](memoryview(pcm.tobytes()), len(pcm), None, status)


class FakeSoundDevice(types.ModuleType):
    """What `microphone` uses of sounddevice, at the edge of the hardware."""

    PortAudioError = PortAudioError

    def __init__(self, names: list[str], *, rates: set[int], channels: set[int]) -> None:
        super().__init__("sounddevice")
        self.names, self.rates, self.channels = names, rates, channels
        self.default = types.SimpleNamespace(device=(0 if names else -1, -1))
        self.streams: list[FakeStream] = []
        self._initialized = 1
        self.n_starts = 0
        self.start_errors: list[PortAudioError] = []
        self.check_error: PortAudioError | None = None
        self.hangs: threading.Event | None = None

    @property
    def n_initialized(self) -> int:
        return self._initialized

    def _terminate(self) -> None:
        if not self._initialized:
            raise PortAudioError("PortAudio not initialized", -10000)
        self._initialized -= 1

    def _initialize(self) -> None:
        self.n_starts += 1
        if self.start_errors:
            raise self.start_errors.pop()
        self._initialized += 1

    def query_hostapis(self) -> tuple[dict[str, Any], ...]:
        return ({"name": "ALSA", "default_input_device": 0 if self.names else -1},)

    def query_devices(self) -> list[dict[str, Any]]:
        speaker = {"name": "Speaker", "max_input_channels": 0, "default_samplerate": 48_000.0}
        inputs = [
            {"name": name, "max_input_channels": max(self.channels), "default_samplerate": 44_100.0}
            for name in self.names
        ]
        return [raw | {"index": i, "hostapi": 0} for i, raw in enumerate([*inputs, speaker])]

    def check_input_settings(
        self, device: int, channels: int, dtype: str, extra: object, rate: float
    ) -> None:
        del device, extra
        assert dtype == "int16"
        if self.check_error is not None:
            raise self.check_error
        if channels not in self.channels:
            raise PortAudioError("Invalid number of channels", INVALID_CHANNELS)
        if rate not in self.rates:
            raise PortAudioError("Invalid sample rate", INVALID_RATE)

    def RawInputStream(self, **arguments: Any) -> FakeStream:
        self.streams.append(FakeStream(arguments, self.hangs))
        return self.streams[-1]
