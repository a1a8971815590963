"""Sound card input through PortAudio; the only module that imports sounddevice.

Measured behaviour behind the structure: an unplugged device ends the callbacks and calls
`finished_callback`, a suspended one only falls silent while `active` stays true, and a hung sound
server blocks every PortAudio call for ever. So the age of the data decides, all calls run in a
helper thread with a time limit, and PortAudio is started anew before each opening, since its list
of devices is made at its start. That would end other streams of the process: one device each.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ast_stream.capture.sound_cards import (
    InputDevice,
    find_cards,
    find_device,
    is_hardware,
    names_of,
)
from ast_stream.capture.sources.base import SourceBlock, SourceError, SourceHungError
from ast_stream.errors import StartupError
from ast_stream.runtime.background import in_background
from ast_stream.settings.streams import MAX_CHANNELS, MicrophoneSource
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

logger = logging.getLogger(__name__)

OPEN_LIMIT_S = 5.0
CLOSE_LIMIT_S = 3.0
FIRST_BLOCK_LIMIT_S = 3.0
_QUEUE_S = 5.0  # audio that waits for a late reader
_FALLBACK_RATES = (48_000, 44_100)  # Hz, where neither 16 kHz nor the named default is taken
_UNFIT = (-9997, -9998)  # PortAudio's codes for a rate and a channel count that a device refuses

_STDERR = 2

_T = TypeVar("_T")


def list_devices() -> list[InputDevice]:
    """Return the input devices that are there now.

    Raises:
        StartupError: PortAudio is not installed.
        CaptureError: PortAudio cannot be started, or the sound server hangs.
    """
    return _answered(OPEN_LIMIT_S, lambda: _devices(_start_portaudio()), "listing the devices")


class Microphone:
    """A live source of int16 blocks from one device, at 16 kHz where the device can."""

    is_live = True
    is_paced = True

    def __init__(
        self,
        settings: MicrophoneSource,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._stream: Any = None
        self._blocks: BlockQueue | None = None
        self._has_delivered = False
        self._name = "the default input" if settings.device is None else str(settings.device)

    def open(self) -> None:
        """Start recording.

        Raises:
            StartupError: PortAudio is not installed.
            CaptureError: the device is absent or refuses.
            SourceHungError: the sound server does not answer.
        """
        self._has_delivered = False
        _answered(OPEN_LIMIT_S, self._open, f"opening {self._name}")

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return the next block, or None if none came within `timeout_s`.

        Raises:
            CaptureError: the device is gone (`device_lost`) or silent (`stalled`).
        """
        assert self._blocks is not None, "read before open"
        block = self._blocks.get(timeout_s)
        if block is not None:
            self._has_delivered = True
            return block
        if self._blocks.finished:
            raise SourceError("device_lost", f"{self._name} has stopped: unplugged or taken away")
        age_s = (self._monotonic_ns() - self._blocks.last_put_ns) / NS_PER_SECOND
        if age_s > self._silence_limit_s():
            raise SourceError("stalled", f"{self._name} has delivered nothing for {age_s:.1f} s")
        return None

    def close(self) -> None:
        """Stop recording.

        Raises:
            SourceHungError: the sound server does not answer.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            return

        def stop() -> None:
            try:
                stream.abort()
            except Exception as error:  # a lost device may refuse; it is closed all the same
                logger.debug("stopping %s: %s", self._name, error)
            stream.close()

        _answered(CLOSE_LIMIT_S, stop, f"closing {self._name}")

    def _silence_limit_s(self) -> float:
        if not self._has_delivered:
            return FIRST_BLOCK_LIMIT_S
        return min(FIRST_BLOCK_LIMIT_S, max(1.0, 10 * self._settings.block_s))

    def _open(self) -> None:
        sd = _start_portaudio()
        device = find_device(self._settings.device, _devices(sd))
        rate, channels = self._choose(sd, device)
        block_frames = round(self._settings.block_s * rate)
        n_slots = max(8, math.ceil(_QUEUE_S / self._settings.block_s))
        blocks = BlockQueue(
            n_slots,
            block_frames,
            channels,
            rate,
            monotonic_ns=self._monotonic_ns,
            wall_ns=self._wall_ns,
        )

        def callback(data: Any, n_frames: int, _times: Any, status: Any) -> None:
            blocks.put(memoryview(data), n_frames, bool(status.input_overflow))

        with _as_source_errors(sd, f"{device.name} cannot be opened"):
            stream = sd.RawInputStream(
                samplerate=rate,
                blocksize=block_frames,
                device=device.index,
                channels=channels,
                dtype="int16",
                latency=self._settings.latency_s,
                callback=callback,
                finished_callback=blocks.finish,
            )
            stream.start()
        if self._blocks is None:  # said once: a flapping device is opened often
            logger.info("recording from %s at %d Hz, channels: %d", device.stable, rate, channels)
        self._name, self._blocks, self._stream = device.name, blocks, stream

    def _choose(self, sd: Any, device: InputDevice) -> tuple[int, int]:
        """Return rate and channels: 16 kHz mono if the device can, else what comes nearest."""
        channel_counts = self._channel_counts(device)
        rates = dict.fromkeys((SAMPLE_RATE, round(device.rate), *_FALLBACK_RATES))
        for channels in channel_counts:
            for rate in rates:
                with _as_source_errors(sd, f"{device.name} cannot be opened"):
                    if _is_fit(sd, device.index, rate, channels):
                        return rate, channels
        raise SourceError(
            "device_absent",
            f"{device.name} refuses {' or '.join(map(str, channel_counts))} channels "
            f"at {', '.join(map(str, rates))} Hz; it has {device.channels}",
        )

    def _channel_counts(self, device: InputDevice) -> list[int]:
        """Return how many channels to ask for, the best number first."""
        channels, channel = self._settings.channels, self._settings.channel
        if channels is not None:
            return [channels]
        if channel == "mix":
            return sorted({1, device.channels})
        if channel >= device.channels:
            raise SourceError(
                "channel_absent",
                f"channel {channel} is wanted (counted from 0), and {device.name} has "
                f"{device.channels} channels",
            )
        if device.channels > MAX_CHANNELS or not is_hardware(device.name):
            raise SourceError(
                "channel_absent",
                f"{device.name} is a sound server, which mixes to any number of channels, not a "
                f"sound card: to use channel {channel}, name the card itself as `device`, or set "
                f"`channels` to the number that the microphone has",
            )
        return [device.channels]


@dataclass
class _Stamp:
    n_frames: int = 0
    captured_ns: int = 0
    monotonic_ns: int = 0
    overflowed: bool = False


class BlockQueue:
    """From PortAudio's callback to the reading thread: fixed memory, one copy, no waiting.

    Args:
        n_slots: capacity in blocks; a reader that falls behind further loses the newest.
        block_frames: maximum number of frames in one block.

    Attributes:
        last_put_ns: monotonic time of the newest block, or of the beginning.
    """

    def __init__(
        self,
        n_slots: int,
        block_frames: int,
        n_channels: int,
        rate: int,
        *,
        monotonic_ns: Callable[[], int],
        wall_ns: Callable[[], int],
    ) -> None:
        self._pcm = np.zeros((n_slots, block_frames, n_channels), dtype=np.int16)
        self._bytes = [slot.reshape(-1).data.cast("B") for slot in self._pcm]
        self._stamps = [_Stamp() for _ in range(n_slots)]
        self._frame_bytes = 2 * n_channels
        self._rate = rate
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._n_put = 0  # written by the callback alone
        self._n_got = 0  # written by the reader alone
        self._is_broken = False  # frames were lost since the last block that was put
        self._ready = threading.Event()
        self._finished = threading.Event()
        self.last_put_ns = monotonic_ns()

    @property
    def finished(self) -> bool:
        """No more blocks will come."""
        return self._finished.is_set()

    def put(self, data: memoryview, n_frames: int, input_overflow: bool) -> None:
        """Copy one block; called by the callback.

        Args:
            data: the interleaved int16 frames, valid during the call only.
            input_overflow: frames were lost before this block.
        """
        monotonic_ns, wall_ns = self._monotonic_ns(), self._wall_ns()
        self.last_put_ns = monotonic_ns
        if self._n_put - self._n_got == len(self._stamps):
            self._is_broken = True
            return
        slot = self._n_put % len(self._stamps)
        self._bytes[slot][: n_frames * self._frame_bytes] = data
        age_ns = n_frames * NS_PER_SECOND // self._rate
        stamp = self._stamps[slot]
        stamp.n_frames = n_frames
        stamp.captured_ns = wall_ns - age_ns
        stamp.monotonic_ns = monotonic_ns - age_ns
        stamp.overflowed = input_overflow or self._is_broken
        self._is_broken = False
        self._n_put += 1
        self._ready.set()

    def finish(self) -> None:
        """Mark the end of the blocks; called by the finished callback."""
        self._finished.set()
        self._ready.set()

    def get(self, timeout_s: float) -> SourceBlock | None:
        """Return the oldest block, or None if none came in time or none will."""
        if self._n_got == self._n_put:
            if self.finished or not self._ready.wait(timeout_s):
                return None
            self._ready.clear()
            if self._n_got == self._n_put:
                return None
        slot = self._n_got % len(self._stamps)
        stamp = self._stamps[slot]
        block = SourceBlock(
            pcm=self._pcm[slot, : stamp.n_frames].copy(),
            rate=self._rate,
            captured_ns=stamp.captured_ns,
            monotonic_ns=stamp.monotonic_ns,
            overflowed=stamp.overflowed,
        )
        self._n_got += 1
        return block


def _is_fit(sd: Any, index: int, rate: int, channels: int) -> bool:
    try:
        sd.check_input_settings(index, channels, "int16", None, rate)
    except sd.PortAudioError as error:
        if error.args[1:2] and error.args[1] in _UNFIT:
            return False
        raise
    return True


def _start_portaudio() -> Any:
    """Return sounddevice with a new list of devices."""
    try:
        import sounddevice as sd  # its import starts PortAudio, which may be missing or hang
    except OSError as error:
        raise StartupError(
            f"PortAudio cannot be loaded ({error}); on Debian: apt install libportaudio2"
        ) from error
    with _as_source_errors(sd, "PortAudio does not start"):
        while sd._initialized:  # not once and for all: an initialisation before may have failed
            sd._terminate()
        sd._initialize()
    return sd


@contextlib.contextmanager
def _as_source_errors(sd: Any, what: str) -> Iterator[None]:
    try:
        yield
    except sd.PortAudioError as error:
        raise SourceError("device_absent", f"{what}: {error}") from error


def _answered(limit_s: float, call: Callable[[], _T], what: str) -> _T:
    stderr = os.dup(_STDERR)
    try:
        return in_background(call).result(limit_s)
    except TimeoutError as error:
        # sounddevice turns stderr off while PortAudio starts: a hang must not leave it off
        os.dup2(stderr, _STDERR)
        text = f"{what}: no answer in {limit_s:g} s from the sound server"
        raise SourceHungError("stalled", text) from error
    finally:
        os.close(stderr)


def _devices(sd: Any) -> list[InputDevice]:
    cards = find_cards()
    host_apis = sd.query_hostapis()
    default = sd.default.device[0]
    if default is None or default < 0:
        default = next(
            (api["default_input_device"] for api in host_apis if api["default_input_device"] >= 0),
            -1,
        )
    devices = []
    for raw in sd.query_devices():
        if raw["max_input_channels"] < 1:
            continue
        stable, *aliases = names_of(raw["name"], cards)
        devices.append(
            InputDevice(
                index=raw["index"],
                name=raw["name"],
                stable=stable,
                aliases=tuple(aliases),
                host_api=host_apis[raw["hostapi"]]["name"],
                channels=raw["max_input_channels"],
                rate=raw["default_samplerate"],
                is_default=raw["index"] == default,
            )
        )
    return devices
