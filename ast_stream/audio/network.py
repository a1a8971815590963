"""Network streams, decoded by FFmpeg's libraries through PyAV (the extra `url`).

FFmpeg blocks for ever by default, so both timeouts are always set. It only decodes: its own
downmix to mono would add 3 dB, so channels and rate are left to the common resampler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from ast_stream.audio.source import SourceBlock, SourceError
from ast_stream.errors import StartupError
from ast_stream.settings.schema import UrlSource
from ast_stream.units import NS_PER_SECOND

LOST = "url_lost"
ABSENT = "url_absent"
_LIVE_OPTIONS = {"analyzeduration": "1000000"}  # us; by default a live stream opens after 5 s
MAX_LEAD_S = 10.0  # sound taken before its time: a station's burst, but not a whole recording
_RTSP_OPTIONS = {"rtsp_transport": "tcp"}  # over UDP lost packets are lost sound


class NetworkStream:
    """A live source: one URL, opened again when it ends.

    A server that sends a recording faster than real time is read no faster than it lasts.
    """

    is_live = True
    is_paced = True

    def __init__(
        self,
        settings: UrlSource,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._sleep = sleep
        self._opened_ns = 0
        self._read_ns = 0  # length of the sound read since
        self._container: Any = None
        self._blocks: Iterator[SourceBlock] = iter(())
        self.name = _without_password(settings.url)

    def open(self) -> None:
        """Connect and read the stream's header, each within `open_timeout_s`.

        Raises:
            StartupError: PyAV is not installed.
            CaptureError: no connection, or no sound in what came.
        """
        av = _pyav()
        timeouts = (self._settings.open_timeout_s, self._settings.read_timeout_s)
        try:
            self._container = av.open(self._settings.url, options=self._options(), timeout=timeouts)
        except _errors(av) as error:
            reason = _reason(error, self._settings.open_timeout_s)
            raise SourceError(ABSENT, f"cannot open {self.name}: {reason}") from error
        if not self._container.streams.audio:
            self.close()
            raise SourceError(ABSENT, f"{self.name}: expected an audio stream, got none")
        self._blocks = self._decode(av)
        self._opened_ns, self._read_ns = self._monotonic_ns(), 0

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return the next block; may take up to `read_timeout_s` instead of `timeout_s`.

        Raises:
            CaptureError: the stream stalled, broke or ended.
        """
        lead_s = (self._opened_ns + self._read_ns - self._monotonic_ns()) / NS_PER_SECOND
        if lead_s > MAX_LEAD_S:
            self._sleep(min(timeout_s, lead_s - MAX_LEAD_S))
            return None
        try:
            block = next(self._blocks, None)
        except _errors(_pyav()) as error:
            reason = _reason(error, self._settings.read_timeout_s)
            raise SourceError(LOST, f"{self.name} was lost: {reason}") from error
        if block is None:
            raise SourceError(LOST, f"{self.name} has ended")
        self._read_ns += len(block.pcm) * NS_PER_SECOND // block.rate
        return block

    def close(self) -> None:
        """Disconnect."""
        container, self._container = self._container, None
        self._blocks = iter(())
        if container is not None:
            container.close()

    def _options(self) -> dict[str, str]:
        is_rtsp = urlsplit(self._settings.url).scheme in ("rtsp", "rtsps")
        defaults = _LIVE_OPTIONS | (_RTSP_OPTIONS if is_rtsp else {})
        return defaults | self._settings.options

    def _decode(self, av: Any) -> Iterator[SourceBlock]:
        convert = av.AudioResampler(format="fltp")  # keeps rate and channels
        for frame in self._container.decode(audio=0):
            for planar in convert.resample(frame):
                pcm = np.ascontiguousarray(planar.to_ndarray().T, dtype=np.float32)
                age_ns = len(pcm) * NS_PER_SECOND // planar.sample_rate
                yield SourceBlock(
                    pcm=pcm,
                    rate=planar.sample_rate,
                    captured_ns=self._wall_ns() - age_ns,
                    monotonic_ns=self._monotonic_ns() - age_ns,
                )


def _pyav() -> Any:
    try:
        import av
        import av.error
        import av.logging
    except ImportError as error:
        raise StartupError(
            f"sources of type url need PyAV ({error}); pip install 'ast-stream[url]'"
        ) from error
    av.logging.set_level(av.logging.PANIC)  # what matters comes as an exception
    return av


def _errors(av: Any) -> tuple[type[Exception], ...]:
    """What PyAV raises for bad streams; ValueError comes where a stream changes its format."""
    return (av.error.FFmpegError, OSError, ValueError)


def _reason(error: Exception, timeout_s: float) -> str:
    if type(error).__name__ == "ExitError":  # FFmpeg's word for a timeout of ours
        return f"no data for {timeout_s:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _without_password(url: str) -> str:
    """Return the URL for logs: cameras have their password in it."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}"))
