"""Network streams, decoded by FFmpeg's libraries through PyAV (the extra `url`).

FFmpeg blocks for ever by default, so both timeouts are always set; it looks up the names of hosts
without any limit, so that it connects in a thread that can be left waiting. It only decodes: its
own downmix to mono would add 3 dB, so channels and rate are left to the common resampler.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ast_stream.audio.source import SourceBlock, SourceError
from ast_stream.capture.limits import LimitedCall, NoAnswerError
from ast_stream.capture.sources import answers
from ast_stream.errors import StartupError
from ast_stream.settings.schema import UrlSource
from ast_stream.units import NS_PER_SECOND
from ast_stream.urls import mask

logger = logging.getLogger(__name__)

LOST = "url_lost"
ABSENT = "url_absent"
_LIVE_OPTIONS = {"analyzeduration": "1000000"}  # us; by default a live stream opens after 5 s
MAX_LEAD_S = 10.0  # sound taken before its time: a station's burst, but not a whole recording
FIRST_SOUND_S = 30.0  # a track of sound may begin later than the video
REFUSED_PAUSE_S = 60.0  # to whom a server denies access, it may close the account
_RTSP_OPTIONS = {"rtsp_transport": "tcp"}  # over UDP lost packets are lost sound
_WEB = ("http", "https")
_MAX_PLAYLISTS = 3  # that lead to one another
_MAX_DAMAGED = 1_000  # packets in a row


def opening_limit_s(settings: UrlSource) -> float:
    """Return the longest time that one try to open takes: header, sound, and what it was."""
    return 3 * settings.open_timeout_s + 1


class NetworkStream:
    """A live source: one URL, opened again when it ends.

    A server that sends a recording faster than real time is read no faster than it lasts. Damaged
    packets are passed over; what is read is sound, so video alone does not keep it open.
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
        self._opening: LimitedCall[Any] | None = None
        self._n_failed = 0  # tries since the last success: each takes the next of a playlist
        self._told = ""  # the address in a playlist that was logged last
        self._container: Any = None
        self._track: Any = None  # of sound
        self._packets: Iterator[Any] = iter(())
        self._blocks: deque[SourceBlock] = deque()
        self._converter: tuple[Any, Any] = (None, None)  # what a frame is, and what converts it
        self._opened_ns = 0
        self._read_ns = 0  # length of the sound read since
        self._sound_ns = 0  # when the last of it came
        self._has_video = False
        self._damage: Exception | None = None
        self._n_damaged = 0
        self._is_broken = False
        self.name = mask(settings.url)

    def open(self) -> None:
        """Connect and read the stream's header, each within `open_timeout_s`.

        Raises:
            StartupError: PyAV is not installed.
            CaptureError: no connection, or no sound in what came.
        """
        av = _pyav()
        self._opening = self._opening or LimitedCall(lambda: self._connect(av))
        limit_s = opening_limit_s(self._settings)
        try:
            container = self._opening.result(limit_s)
        except NoAnswerError as error:  # the same try goes on: there is never more than one
            text = f"cannot open {self.name}: no answer in {limit_s:g} s, not even to the name"
            raise SourceError(ABSENT, f"{text} of its host") from error
        except SourceError:
            self._opening = None
            self._n_failed += 1
            raise
        except BaseException:
            self._opening = None
            raise
        self._opening = None
        self._n_failed = 0
        self._begin(container)

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return the next block; may take up to `read_timeout_s` instead of `timeout_s`.

        Raises:
            CaptureError: the stream stalled, broke or ended, or gives no sound.
        """
        now_ns = self._monotonic_ns()
        lead_s = (self._opened_ns + self._read_ns - now_ns) / NS_PER_SECOND
        if lead_s > MAX_LEAD_S:
            self._sleep(min(timeout_s, lead_s - MAX_LEAD_S))
            self._sound_ns = self._monotonic_ns()
            return None
        end_ns = now_ns + round(timeout_s * NS_PER_SECOND)
        while not self._blocks:
            if self._monotonic_ns() > end_ns:
                return None
            self._take_packet()
        block = self._blocks.popleft()
        self._read_ns += len(block.pcm) * NS_PER_SECOND // block.rate
        return block

    def close(self) -> None:
        """Disconnect."""
        container, self._container = self._container, None
        self._packets = iter(())
        self._blocks.clear()
        if container is not None:
            container.close()

    def _connect(self, av: Any) -> Any:
        """Return an open container with sound in it; runs in a thread of its own."""
        url = self._settings.url
        for _ in range(_MAX_PLAYLISTS):
            listed = self._listed_in(url) if _is_named_playlist(url) else None
            if not listed:
                try:
                    return self._open_url(av, url)
                except SourceError as error:
                    listed = self._listed_in(url, error)
            if not listed:
                break
            url = listed[self._n_failed % len(listed)]
        text = f"{self.name} is a playlist that leads to other playlists without end"
        raise SourceError(ABSENT, text, longest_pause_s=REFUSED_PAUSE_S)

    def _open_url(self, av: Any, url: str) -> Any:
        timeouts = (self._settings.open_timeout_s, self._settings.read_timeout_s)
        name = mask(url)
        try:
            container = av.open(url, options=self._options(url), timeout=timeouts)
        except _errors(av) as error:
            raise _not_opened(av, name, url, error, timeouts[0]) from error
        if not container.streams.audio:
            kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
            container.close()
            found = f"expected a track of sound, got {' and '.join(kinds)} alone"
            raise SourceError(ABSENT, f"{name}: {found}", is_unclear="video" not in kinds)
        if all(track.codec_context is None for track in container.streams.audio):
            container.close()
            raise SourceError(ABSENT, f"{name}: FFmpeg has no decoder for its sound")
        return container

    def _listed_in(self, url: str, failure: SourceError | None = None) -> list[str] | None:
        """Return the addresses if a playlist is at `url`, None if it may be sound.

        Raises:
            SourceError: `failure`, with the reason if the answer tells it.
        """
        name = mask(url)
        if urlsplit(url).scheme.lower() not in _WEB or (failure and not failure.is_unclear):
            if failure is not None:
                raise failure
            return None
        try:
            answer = answers.ask(url, self._settings.options, self._settings.open_timeout_s)
        except OSError:
            if failure is not None:
                raise failure from None
            return None
        if not answer.is_playlist:
            if failure is None:
                return None
            if (found := answer.describe()) is None:
                raise failure
            text = f"cannot open {name}: {found}"
            raise SourceError(ABSENT, text, longest_pause_s=_pause_s(answer.status)) from failure
        listed = answer.addresses()
        if not listed:
            text = f"{name} is a playlist without any address of a stream"
            raise SourceError(ABSENT, text, longest_pause_s=REFUSED_PAUSE_S)
        if listed[0] != self._told:
            self._told = listed[0]
            logger.info("%s is a playlist: taking %s", name, mask(listed[0]))
        return listed

    def _options(self, url: str | None = None) -> dict[str, str]:
        is_rtsp = urlsplit(url or self._settings.url).scheme in ("rtsp", "rtsps")
        defaults = _LIVE_OPTIONS | (_RTSP_OPTIONS if is_rtsp else {})
        return defaults | self._settings.options

    def _begin(self, container: Any) -> None:
        self._container = container
        tracks = container.streams.audio
        self._track = next(track for track in tracks if track.codec_context is not None)
        self._packets = container.demux()
        self._blocks.clear()
        self._converter = (None, None)
        self._opened_ns = self._sound_ns = self._monotonic_ns()
        self._read_ns = self._n_damaged = 0
        self._has_video = self._is_broken = False
        self._damage = None

    def _take_packet(self) -> None:
        """Read one packet of whatever kind; sound in it becomes blocks.

        Raises:
            SourceError: the stream broke or ended, or there was no sound for too long.
        """
        av = _pyav()
        try:
            packet = next(self._packets, None)
        except _errors(av) as error:
            reason = _reason(error, self._settings.read_timeout_s)
            if isinstance(error, av.error.PatchWelcomeError | av.error.ArgumentError | ValueError):
                reason = "it changed in a way that FFmpeg cannot follow"
            raise SourceError(LOST, f"{self.name} was lost: {reason}") from error
        if packet is None:
            raise SourceError(LOST, f"{self.name} has ended")
        if packet.stream.index == self._track.index:
            self._decode(av, packet)
        elif packet.stream.type == "video":
            self._has_video = True
        if self._blocks:
            self._sound_ns = self._monotonic_ns()
        else:
            self._check_sound()

    def _decode(self, av: Any, packet: Any) -> None:
        try:
            for frame in packet.decode():
                self._convert(av, frame)
        except _errors(av) as error:
            self._damage, self._is_broken = error, True
            self._n_damaged += 1
            if self._n_damaged > _MAX_DAMAGED:
                text = f"{self.name} was lost: its sound cannot be decoded: {_reason(error, 0)}"
                raise SourceError(LOST, text) from error

    def _convert(self, av: Any, frame: Any) -> None:
        """Make blocks of a frame, whose rate and channels may differ from those before."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._converter[0] != kind:
            self._converter = (kind, av.AudioResampler(format="fltp"))  # keeps rate and channels
        for planar in self._converter[1].resample(frame):
            pcm = np.ascontiguousarray(planar.to_ndarray().T, dtype=np.float32)
            if len(pcm) == 0:
                continue
            age_ns = len(pcm) * NS_PER_SECOND // planar.sample_rate
            block = SourceBlock(
                pcm=pcm,
                rate=planar.sample_rate,
                captured_ns=self._wall_ns() - age_ns,
                monotonic_ns=self._monotonic_ns() - age_ns,
                overflowed=self._is_broken,
            )
            self._blocks.append(block)
            self._damage, self._is_broken, self._n_damaged = None, False, 0

    def _check_sound(self) -> None:
        limit_s = self._settings.read_timeout_s
        if self._read_ns == 0:
            limit_s = max(limit_s, FIRST_SOUND_S)
        if self._monotonic_ns() - self._sound_ns <= limit_s * NS_PER_SECOND:
            return
        if self._damage is not None:
            reason = f"its sound cannot be decoded since {limit_s:g} s: {_reason(self._damage, 0)}"
        else:
            what = "video" if self._has_video else "other data"
            reason = f"no sound for {limit_s:g} s although {what} comes"
        raise SourceError(LOST, f"{self.name} was lost: {reason}")


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
    if type(error).__name__ == "InvalidDataError":
        return "damaged data, or no format of sound that FFmpeg knows"
    # EIO comes at the end of an answer without a length
    if isinstance(error, EOFError) or getattr(error, "errno", None) == errno.EIO:
        return "the connection was closed"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _not_opened(av: Any, name: str, url: str, error: Exception, timeout_s: float) -> SourceError:
    """Return why a URL could not be opened, in words."""
    statuses = {
        av.error.HTTPBadRequestError: 400,
        av.error.HTTPUnauthorizedError: 401,
        av.error.HTTPForbiddenError: 403,
        av.error.HTTPNotFoundError: 404,
        av.error.HTTPTooManyRequestsError: 429,
    }
    status = statuses.get(type(error))
    if status is not None:
        text = f"cannot open {name}: {answers.refusal(status)}"
        return SourceError(ABSENT, text, longest_pause_s=_pause_s(status))
    if isinstance(error, av.error.ProtocolNotFoundError):
        text = f"FFmpeg knows no protocol {urlsplit(url).scheme!r}"
        return SourceError(ABSENT, f"cannot open {name}: {text}", longest_pause_s=REFUSED_PAUSE_S)
    unknown = _unknown_host(url) if getattr(error, "errno", None) == errno.EIO else None
    text = f"cannot open {name}: {unknown or _reason(error, timeout_s)}"
    is_clear = unknown or isinstance(error, ConnectionError | av.error.ExitError)
    return SourceError(ABSENT, text, is_unclear=not is_clear)


def _unknown_host(url: str) -> str | None:
    """Return that a name of a host means nothing, if so: FFmpeg has no word for it."""
    host = urlsplit(url).hostname
    if not host:
        return None
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"the host {host} is not found: {error.strerror or error}"
    return None


def _pause_s(status: int) -> float | None:
    return REFUSED_PAUSE_S if status in (401, 403, 429) else None


def _is_named_playlist(url: str) -> bool:
    return urlsplit(url).path.lower().endswith(answers.PLAYLIST_SUFFIXES)
