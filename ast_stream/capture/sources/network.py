"""Network streams, decoded by FFmpeg's libraries through PyAV (the extra `url`).

FFmpeg blocks for ever by default, so both timeouts are always set. It resolves host names without
any time limit, so it connects in a thread that can be abandoned. It only decodes: its own downmix
to mono would add 3 dB, so channels and rate are left to the common resampler. `http_response`
describes what a server sends instead of sound.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from ast_stream.audio.decoders import FrameConverter, decoding_errors, pyav
from ast_stream.audio.pcm import Pcm
from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.capture.sources.http_response import (
    is_named_playlist,
    refusal,
    request_head,
)
from ast_stream.errors import StartupError
from ast_stream.runtime.background import in_background
from ast_stream.settings.streams import FIRST_SOUND_S, UrlSource
from ast_stream.units import NS_PER_SECOND, seconds_to_ns
from ast_stream.urls import mask

logger = logging.getLogger(__name__)

LOST = "url_lost"
ABSENT = "url_absent"
_BLOCK_NS = NS_PER_SECOND // 10  # packets are shorter: read one by one, each costs as much
_LIVE_OPTIONS = {"analyzeduration": "1000000"}  # us; by default a live stream opens after 5 s
BACKLOG_S = 0.5  # after the connection: what came meanwhile is read, to tell when it began
MAX_LEAD_S = 10.0  # sound taken before its time: a station's burst, but not a whole recording
REFUSED_PAUSE_S = 60.0  # to whom a server denies access, it may close the account
_RTSP_OPTIONS = {"rtsp_transport": "tcp"}  # over UDP lost packets are lost sound
_WEB = ("http", "https")
_MAX_PLAYLISTS = 3  # that lead to one another
_MAX_DAMAGED = 1_000  # packets in a row


def ffmpeg_options(settings: UrlSource, url: str) -> dict[str, str]:
    """Return what is passed to FFmpeg: the options of the settings over our defaults."""
    is_rtsp = urlsplit(url).scheme in ("rtsp", "rtsps")
    return _LIVE_OPTIONS | (_RTSP_OPTIONS if is_rtsp else {}) | settings.options


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
        self._opening: Future[Any] | None = None
        self._n_failed = 0  # tries since the last success: each takes the next of a playlist
        self._logged_address = ""  # in a playlist
        self._av: Any = None  # PyAV, once it is open
        self._container: Any = None
        self._track: Any = None  # of sound
        self._packets: Iterator[Any] = iter(())
        self._blocks: deque[SourceBlock] = deque()
        self._converter = FrameConverter()
        self._asked_ns = 0  # when the connection was begun
        self._is_new = False  # no sound was read since
        self._lost: SourceError | None = None  # once the blocks are read
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
        av = self._av = _pyav()
        self._opening = self._opening or in_background(lambda: self._connect(av))
        limit_s = self._settings.opening_limit_s
        try:
            container = self._opening.result(limit_s)
        except TimeoutError as error:  # the same try goes on: there is never more than one
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
        if self._is_new:
            self._read_backlog()
        end_ns = now_ns + seconds_to_ns(timeout_s)
        while self._lost is None and sum(map(_duration_ns, self._blocks)) < _BLOCK_NS:
            if self._monotonic_ns() > end_ns:
                break
            try:
                self._read_packet()
            except SourceError as error:
                self._lost = error
        if self._blocks:
            block = self._joined()
            self._read_ns += _duration_ns(block)
            return block
        if self._lost is not None:
            raise self._lost
        return None

    def close(self) -> None:
        """Disconnect."""
        container, self._container = self._container, None
        self._packets = iter(())
        self._blocks.clear()
        if container is not None:
            container.close()

    def _joined(self) -> SourceBlock:
        """Take what is one piece of sound off the queue, as one block.

        Its time is that of the packet that came with the least delay.
        """
        first = self._blocks.popleft()
        parts, times = [first.pcm], [(first.monotonic_ns, first.captured_ns)]
        length_ns = _duration_ns(first)
        while self._blocks and length_ns < _BLOCK_NS:
            block = self._blocks[0]
            is_alike = block.rate == first.rate and block.pcm.shape[1] == first.pcm.shape[1]
            if block.overflowed or not is_alike:
                break
            parts.append(self._blocks.popleft().pcm)
            times.append((block.monotonic_ns - length_ns, block.captured_ns - length_ns))
            length_ns += _duration_ns(block)
        if len(parts) == 1:
            return first
        monotonic_ns, captured_ns = min(times)
        # each channel by itself, as it lies in memory
        pcm = cast(Pcm, np.concatenate([part.T for part in parts], axis=1).T)
        return SourceBlock(pcm, first.rate, captured_ns, monotonic_ns, first.overflowed)

    def _connect(self, av: Any) -> Any:
        """Return an open container with sound in it; runs in a thread of its own."""
        url = self._settings.url
        for _ in range(_MAX_PLAYLISTS):
            listed = self._listed_in(url) if is_named_playlist(url) else None
            if not listed:
                try:
                    return self._open_url(av, url)
                except SourceError as error:
                    listed = self._listed_in(url, error)
            if not listed:
                break
            url = listed[self._n_failed % len(listed)]
        text = f"{self.name} is a playlist that leads to other playlists without end"
        raise SourceError(ABSENT, text, max_pause_s=REFUSED_PAUSE_S)

    def _open_url(self, av: Any, url: str) -> Any:
        timeouts = (self._settings.open_timeout_s, self._settings.read_timeout_s)
        name = mask(url)
        self._asked_ns = self._monotonic_ns()
        try:
            container = av.open(url, options=ffmpeg_options(self._settings, url), timeout=timeouts)
        except decoding_errors(av) as error:
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
            answer = request_head(url, self._settings.options, self._settings.open_timeout_s)
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
            raise SourceError(ABSENT, text, max_pause_s=_pause_s(answer.status)) from failure
        listed = answer.addresses()
        if not listed:
            text = f"{name} is a playlist without any address of a stream"
            raise SourceError(ABSENT, text, max_pause_s=REFUSED_PAUSE_S)
        if listed[0] != self._logged_address:
            self._logged_address = listed[0]
            logger.info("%s is a playlist: taking %s", name, mask(listed[0]))
        return listed

    def _begin(self, container: Any) -> None:
        self._container = container
        tracks = container.streams.audio
        self._track = next(track for track in tracks if track.codec_context is not None)
        self._packets = container.demux()
        self._blocks.clear()
        self._converter = FrameConverter()
        self._opened_ns = self._sound_ns = self._monotonic_ns()
        self._read_ns = self._n_damaged = 0
        self._has_video = self._is_broken = False
        self._is_new = True
        self._lost = None
        self._damage = None

    def _read_backlog(self) -> None:
        """Read what came while FFmpeg found out what it is, and put it where it began.

        All of it comes at once. The least delayed block says when the first sample was sent, but
        not before the connection was begun: stations send a burst of what was on before.

        Raises:
            SourceError: as `_read_packet`, where nothing came before.
        """
        now_ns = self._monotonic_ns()
        end_ns = now_ns + seconds_to_ns(BACKLOG_S)
        read_ns, began_ns = 0, now_ns
        n_seen = 0
        while now_ns < end_ns and read_ns < MAX_LEAD_S * NS_PER_SECOND:
            try:
                self._read_packet()
            except SourceError as error:
                if not self._blocks:
                    raise
                self._lost = error
                break
            now_ns = self._monotonic_ns()
            for block in list(self._blocks)[n_seen:]:
                read_ns += _duration_ns(block)
                began_ns = min(began_ns, now_ns - read_ns)
            n_seen = len(self._blocks)
            if self._blocks:
                self._is_new = False
        if not self._blocks:
            return
        began_ns = max(began_ns, self._asked_ns - _duration_ns(self._blocks[0]))
        wall_offset_ns = self._wall_ns() - now_ns
        for place, block in enumerate(self._blocks):
            self._blocks[place] = replace(
                block, monotonic_ns=began_ns, captured_ns=began_ns + wall_offset_ns
            )
            began_ns += _duration_ns(block)

    def _read_packet(self) -> None:
        """Read one packet of whatever kind; sound in it becomes blocks.

        Raises:
            SourceError: the stream broke or ended, or there was no sound for too long.
        """
        av = self._av
        try:
            packet = next(self._packets, None)
        except decoding_errors(av) as error:
            reason = _reason(error, self._settings.read_timeout_s)
            unknown = (av.error.PatchWelcomeError, av.error.ArgumentError, ValueError, IndexError)
            if isinstance(error, unknown):
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
                self._add(frame)
        except decoding_errors(av) as error:
            self._damage, self._is_broken = error, True
            self._n_damaged += 1
            if self._n_damaged > _MAX_DAMAGED:
                text = f"{self.name} was lost: its sound cannot be decoded: {_reason(error, 0)}"
                raise SourceError(LOST, text) from error

    def _add(self, frame: Any) -> None:
        """Make a block of a frame, whose rate and channels may differ from those before."""
        pcm = self._converter(frame)
        if len(pcm) == 0:
            return
        age_ns = len(pcm) * NS_PER_SECOND // frame.sample_rate
        block = SourceBlock(
            pcm=pcm,
            rate=frame.sample_rate,
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


def _duration_ns(block: SourceBlock) -> int:
    return len(block.pcm) * NS_PER_SECOND // block.rate


def _pyav() -> Any:
    try:
        return pyav()
    except ImportError as error:
        raise StartupError(
            f"sources of type url need PyAV ({error}); pip install 'ast-stream[url]'"
        ) from error


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
        text = f"cannot open {name}: {refusal(status)}"
        return SourceError(ABSENT, text, max_pause_s=_pause_s(status))
    if isinstance(error, av.error.ProtocolNotFoundError):
        text = f"FFmpeg knows no protocol {urlsplit(url).scheme!r}"
        return SourceError(ABSENT, f"cannot open {name}: {text}", max_pause_s=REFUSED_PAUSE_S)
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
