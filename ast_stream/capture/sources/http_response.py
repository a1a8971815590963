"""What a server sends over HTTP instead of sound: a playlist, a web page, a refusal.

For these FFmpeg reports "Input/output error" or "Invalid data", which reads like a network fault.
So if FFmpeg cannot open a URL, the beginning of the response is requested again and described.
"""

from __future__ import annotations

import base64
import html
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from ast_stream.labels import printable
from ast_stream.urls import check_url

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


def is_named_playlist(url: str) -> bool:
    """Return whether a URL ends like that of a playlist."""
    return urlsplit(url).path.lower().endswith(_PLAYLIST_SUFFIXES)


@dataclass(frozen=True)
class HttpResponse:
    """The beginning of a response over HTTP.

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
        is_named = is_named_playlist(self.url)
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
            return refusal(self.status, self.reason)
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


def refusal(status: int, reason: str = "") -> str:
    """Return what the status of a response over HTTP or RTSP means, in words."""
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


def request_head(url: str, options: Mapping[str, str], timeout_s: float) -> HttpResponse:
    """Request a URL over HTTP and return the beginning of the response.

    Args:
        options: FFmpeg's; `user_agent`, `referer` and `headers` are used.
        timeout_s: for connecting and reading together.

    Raises:
        OSError: no response.
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
            return HttpResponse(response.geturl(), response.status, response.reason, kind, head)
    except urllib.error.HTTPError as error:
        error.close()
        return HttpResponse(url, error.code, str(error.reason), "", b"")
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
