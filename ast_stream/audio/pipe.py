"""Raw PCM on standard input, at the pace of whoever writes it."""

from __future__ import annotations

import os
import selectors
import sys
import time
from collections.abc import Callable

import numpy as np

from ast_stream.audio.source import Pcm, SourceBlock, SourceError
from ast_stream.settings.schema import StdinSource
from ast_stream.units import NS_PER_SECOND

_SAMPLE_TYPES = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
_BLOCK_S = 0.1
_INT32_FULL_SCALE = np.float32(2**31)


class Pipe:
    """A finite source of raw PCM from a file descriptor.

    It is not read faster than the worker takes it, so that a recording piped in is not lost;
    whoever writes it waits. Bytes of an incomplete frame at the end are dropped.

    Attributes:
        n_bytes_dropped: bytes at the end that made no whole frame.
    """

    is_live = False
    is_paced = False

    def __init__(
        self,
        settings: StdinSource,
        descriptor: int | None = None,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._descriptor = descriptor
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._sample_type = np.dtype(_SAMPLE_TYPES[settings.format])
        self._frame_bytes = self._sample_type.itemsize * settings.channels
        self._block_bytes = self._frame_bytes * max(1, round(_BLOCK_S * settings.rate))
        self._rest = b""
        self._began: tuple[int, int] | None = None
        self._n_frames = 0
        self.n_bytes_dropped = 0

    def open(self) -> None:
        """Take the descriptor.

        Raises:
            CaptureError: standard input is closed.
        """
        if self._descriptor is None:
            try:
                self._descriptor = sys.stdin.fileno()
            except (AttributeError, OSError, ValueError) as error:
                raise SourceError("stdin_closed", "standard input is closed") from error

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return what has come, or None if nothing came within `timeout_s`."""
        assert self._descriptor is not None, "read before open"
        if not _is_readable(self._descriptor, timeout_s):
            return None
        data = os.read(self._descriptor, self._block_bytes)
        is_last = not data
        data = self._rest + data
        whole = len(data) - len(data) % self._frame_bytes
        self._rest = data[whole:]
        if is_last:
            self.n_bytes_dropped, self._rest = len(self._rest), b""
        elif whole == 0:
            return None
        return self._block(data[:whole], is_last)

    def close(self) -> None:
        """Leave the descriptor open: it is the process's own."""

    def _block(self, data: bytes, is_last: bool) -> SourceBlock:
        if self._began is None:
            self._began = self._monotonic_ns(), self._wall_ns()
        elapsed_ns = self._n_frames * NS_PER_SECOND // self._settings.rate
        pcm = self._decode(data)
        self._n_frames += len(pcm)
        return SourceBlock(
            pcm=pcm,
            rate=self._settings.rate,
            captured_ns=self._began[1] + elapsed_ns,
            monotonic_ns=self._began[0] + elapsed_ns,
            is_last=is_last,
        )

    def _decode(self, data: bytes) -> Pcm:
        samples = np.frombuffer(data, self._sample_type).reshape(-1, self._settings.channels)
        if self._settings.format == "s16le":
            return samples.astype(np.int16)
        if self._settings.format == "s32le":
            return samples.astype(np.float32) / _INT32_FULL_SCALE
        return samples.astype(np.float32)


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(descriptor, selectors.EVENT_READ)
        except PermissionError:
            return True  # a regular file: epoll refuses it, reading never waits
        return bool(selector.select(timeout_s))
