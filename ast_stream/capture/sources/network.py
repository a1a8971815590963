"""Network streams, decoded by FFmpeg's libraries through PyAV (the extra `url`).

FFmpeg blocks for ever by default, so both timeouts are always set; it looks up host names without
any limit, so it connects in a thread that can be left behind. It only decodes: its own downmix to
mono would add 3 dB, so channels and rate are left to the common resampler.

For playlists, web pages and refusals it says "Input/output error" or "Invalid data", which reads
like a fault of the network. So where it cannot open a URL, the beginning of the answer is read
again and named.
"""

from __future__ import annotations

import base64
import errno
import html
import logging
import re
import socket
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any, cast
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import numpy as np

from ast_stream.audio.decoders import FrameConverter, decoding_errors, pyav
from ast_stream.audio.pcm import Pcm
from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.errors import StartupError
from ast_stream.labels import printable
from ast_stream.runtime.background import in_background
from ast_stream.settings.streams import FIRST_SOUND_S, UrlSource
from ast_stream.units import NS_PER_SECOND, seconds_to_ns
from ast_stream.urls import check_url, mask

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
_MAX_HEAD_BYTES = 65_536
_PIECE_BYTES = 4_096
_SHOWN_CHARACTERS = 40
_PLAYLIST_SUFFIXES = (".pls", ".m3u", ".m3u8", ".asx", ".wax", ".wvx", ".xspf", ".ram")
_PLAYLIST_TYPES = frozenset(
    {
        *("audio/x-scpls", "audio/scpls", "application/pls+xml", "audio/x-mpegurl"),
        *("audio/mpegurl", "application/x-mpegurl", "application/vnd.apple.mpegurl"),
        *("application/xspf+xml", "video/x-ms-asf", "video/x-ms-asx", "video/x-ms-wax"),
        *("video/x-ms-wvx", "audio/x-ms-wax", "audio/x-pn-realaudio"),
    }
)
_SCHEMES = frozenset({"http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "mmsh", "mmst"})
_PLS_ENTRY = re.compile(r"^\s*(?:File|Ref)\d+\s*=\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_ASX_ENTRY = re.compile(r"<(?:ref|entryref)\s+href\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)
_XSPF_ENTRY = re.compile(r"<location>\s*(.*?)\s*</location>", re.IGNORECASE | re.DOTALL)
_HLS = "#EXT-X-"


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
            answer = _ask(url, self._settings.options, self._settings.open_timeout_s)
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
        text = f"cannot open {name}: {_refusal(status)}"
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


def _is_named_playlist(url: str) -> bool:
    return urlsplit(url).path.lower().endswith(_PLAYLIST_SUFFIXES)


@dataclass(frozen=True)
class _HttpResponse:
    """The beginning of an answer over HTTP.

    Attributes:
        url: where it came from after redirects.
        status, reason: e.g. 503, "Service Unavailable".
        kind: content type without parameters, in lower case.
        head: the first bytes of the body.
    """

    url: str
    status: int
    reason: str
    kind: str
    head: bytes

    @property
    def text(self) -> str:
        """The first bytes as text."""
        return self.head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")

    @property
    def _document(self) -> str | None:
        start = self.text[:_PIECE_BYTES].lower()
        if start.startswith(("<!doctype html", "<html")) or "html" in self.kind:
            return "a web page"
        if re.match(r"[\[{]\s*[\"{\]}]", start) or "json" in self.kind:
            return "JSON"
        return "XML" if start.startswith("<?xml") or "xml" in self.kind else None

    @property
    def is_playlist(self) -> bool:
        """Whether it lists addresses of sound; not of HLS, which FFmpeg reads itself."""
        text = self.text
        if not 200 <= self.status < 300 or b"\0" in self.head or _HLS in text:
            return False
        start = text[:200].lower()
        if start.startswith(("[playlist]", "#extm3u", "<asx", "[reference]")):
            return True
        if "<playlist" in start and "xspf" in text[:1_000].lower():
            return True
        is_named = urlsplit(self.url).path.lower().endswith(_PLAYLIST_SUFFIXES)
        is_address = re.match(r"[a-z][a-z0-9+.-]{1,10}://\S+\s*($|[\r\n])", start) is not None
        is_called = is_named or self.kind in _PLAYLIST_TYPES
        is_list = bool(text) and self._document is None and _is_text(self.head)
        return is_address or (is_called and is_list)

    def addresses(self) -> list[str]:
        """Return what a playlist lists and can be played, in its order."""
        text = self.text
        found = _PLS_ENTRY.findall(text)
        if not found and "<" in text[:200]:
            found = [html.unescape(entry) for entry in _ASX_ENTRY.findall(text)]
            found = found or [html.unescape(entry) for entry in _XSPF_ENTRY.findall(text)]
        elif not found:
            lines = (line.strip() for line in text.splitlines())
            found = [line for line in lines if line and line[0] not in "#[" and " " not in line]
        addresses = (_address(self.url, entry) for entry in found)
        return [address for address in dict.fromkeys(addresses) if address is not None]

    def describe(self) -> str | None:
        """Return what it is instead of sound; None: it may be sound."""
        if not 200 <= self.status < 300:
            return _refusal(self.status, self.reason)
        if not self.head:
            return "the server answers with nothing"
        if (kind := self._document) is not None:
            return f"{kind} came instead of sound; use the address of the stream itself"
        if _is_text(self.head):
            line = self.text.partition("\n")[0].strip()
            shown = line[:_SHOWN_CHARACTERS] + ("…" if len(line) > _SHOWN_CHARACTERS else "")
            return f"text came instead of sound: {shown!r}"
        return None


def _address(base: str, entry: str) -> str | None:
    """Return an entry of a playlist as an address that can be played, None if it is none."""
    try:
        return check_url(urljoin(base, entry), _SCHEMES)
    except ValueError:
        return None


def _refusal(status: int, reason: str = "") -> str:
    """Return what the status of an answer over HTTP or RTSP means."""
    known = {
        401: "user and password are missing or wrong",
        403: "access is forbidden",
        404: "there is nothing at this address",
        410: "what was at this address is gone for good",
        429: "the server wants fewer requests",
    }
    if status in known:
        return f"{known[status]} ({status})"
    shown = printable(f"{status} {reason}".strip())[:_SHOWN_CHARACTERS]
    if status >= 500:
        return f"the server has a fault of its own ({shown})"
    return f"the server refuses the request ({shown})"


def _ask(url: str, options: Mapping[str, str], timeout_s: float) -> _HttpResponse:
    """Return the beginning of what is answered at a URL of HTTP.

    Args:
        options: of FFmpeg; `user_agent`, `referer` and `headers` are heeded.
        timeout_s: for the whole of it, as far as the network is concerned.

    Raises:
        OSError: no answer.
    """
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")))
    request.add_header("User-Agent", options.get("user_agent", "Lavf"))
    request.add_header("Icy-MetaData", "0")
    if "referer" in options:
        request.add_header("Referer", options["referer"])
    for line in options.get("headers", "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            request.add_header(name.strip(), value.strip())
    if userinfo:
        token = base64.b64encode(unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    end_s = time.monotonic() + timeout_s
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            kind = response.headers.get_content_type() if "content-type" in response.headers else ""
            head = b""
            while len(head) < _MAX_HEAD_BYTES and time.monotonic() < end_s:
                piece = response.read1(_PIECE_BYTES)
                head += piece
                if not piece or (b"\0" in head and len(head) >= _PIECE_BYTES):
                    break  # the end, or sound, of which there may be no end
            return _HttpResponse(response.geturl(), response.status, response.reason, kind, head)
    except urllib.error.HTTPError as error:
        error.close()
        return _HttpResponse(url, error.code, str(error.reason), "", b"")
    except (HTTPException, ValueError) as error:  # what answers speaks no HTTP
        raise OSError(f"what answers is no web server: {error}") from error


def _is_text(head: bytes) -> bool:
    """Return whether bytes are text: nothing that is not printable."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely cut within a letter
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\r\n\t" for letter in text)
