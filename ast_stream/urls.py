"""URLs with secrets in them: checked before use, masked in everything that leaves the process.

Cameras and chat services put user names, passwords and tokens into URLs. `mask` goes over every
error, log line and detail of a health message; `check_url` refuses what could not be masked
reliably, because nobody can tell where the password in it ends.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Collection
from urllib.parse import quote

from ast_stream.labels import did_you_mean

MASK = "***"
ENCODE = "write # / [ as %23 %2F %5B, and ? ] @ % as %3F %5D %40 %25"
MAX_URL = 4096

_LISTENING = frozenset({"udp", "rtp", "srt", "tcp", "rist"})  # these may leave out the host
STREAM_SCHEMES = _LISTENING | {
    *("rtsp", "rtsps", "rtmp", "rtmps", "rtmpt", "rtmpe", "http", "https", "hls", "icecast"),
    *("mms", "mmsh", "mmst", "tls", "srtp", "sap", "ftp", "sftp", "gopher"),
}
_LOCAL = frozenset({"ipc", "inproc", "file"})
# of these paths are names
_STORES = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "az", "adl", "hdfs", "memory"})
# of other schemes all may be secret
_SHOWN = STREAM_SCHEMES | _LOCAL | {"ws", "wss", "mqtt", "mqtts", "nats"}
_BENDABLE = sorted(_SHOWN - _LOCAL, key=len, reverse=True)
_HARMLESS_KEYS = {
    *("channel", "subchannel", "subtype", "stream", "profile", "port", "app", "camera", "cam"),
    *("resolution", "codec", "audio", "video", "mode", "quality", "fps", "bitrate", "listen"),
    *("timeout", "transport", "latency", "unicast", "proto"),
}
_SECRET_KEYS = {  # shown by name, never their values
    *("user", "username", "usr", "login", "u", "password", "passwd", "pass", "pwd", "p", "token"),
    *("access_token", "key", "apikey", "api_key", "auth", "secret", "sig", "signature", "sid"),
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HARMLESS_VALUE = re.compile(r"[A-Za-z0-9._-]{0,32}\Z")
_CLOSING = "'\"`)>]}.,;:!"
_TOKEN_RUN = re.compile(r"[A-Za-z0-9]{12,}")
_LONG_SEGMENT = 20
_ALTERNATING = re.compile(r"[A-Za-z]\d+[A-Za-z]|\d[A-Za-z]+\d")  # not stream1, 720p or 2026-11-20
_FORMAT_NAME = re.compile(r"(?i)m3u8?|mp[34]|m4[as]|h26[45]")
_WEB = frozenset({"http", "https", "ws", "wss"})
_WORD = (
    r"(?:pass(?:word|wd|phrase)?|pwd|token|secret|api[_-]?key|access[_-]?key|auth|sig(?:nature)?)"
)
# a URL inside JSON, or taken for a path
_BENT = re.compile(rf"(?i)(?<![a-z0-9+.-])({'|'.join(_BENDABLE)}):(?:\\?/){{1,2}}(?!/)")
_SECRET_WORDS = re.compile(rf"(?i)((?<![a-z]){_WORD}=)[^\s&;,'\"]+")
_HEADER = re.compile(
    r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|digest)\s+)?)\S+"
)
_SCHEMED_TOKEN = re.compile(r"(?i)\b(bearer\s+|whsec_)[^\s'\"]+")
_ALLOWED = frozenset(string.ascii_letters + string.digits + "-._~:/?#[]@!$&'()*+,;=%")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?\Z")


def mask(text: str) -> str:
    """Return `text` with what may be a secret in its URLs replaced.

    User and password go whatever characters they hold: all up to the last `@` of the line counts
    as such. So do values in queries, but for those of harmless keys, parts of paths that look like
    tokens, and the whole of URLs whose scheme is none of media or of the web. A secret in a path
    that looks like a word or a number cannot be recognised, and is shown.

    >>> mask("cannot open rtsp://admin:pa/ss#1@cam/live?token=4711&channel=1: refused")
    'cannot open rtsp://***@cam/live?token=***&channel=1: refused'
    """
    if ":/" in text or r":\/" in text:
        text = _BENT.sub(r"\1://", text)
        text = "".join(_mask_line(line) for line in text.splitlines(keepends=True))
    text = _SECRET_WORDS.sub(rf"\1{MASK}", text)
    return _SCHEMED_TOKEN.sub(rf"\1{MASK}", _HEADER.sub(rf"\1{MASK}", text))


def check_url(url: str, schemes: Collection[str] = STREAM_SCHEMES) -> str:
    """Return `url` if it says one thing only, to us and to every library.

    Raises:
        ValueError: it does not; the sentence never quotes the URL.
    """
    found = _SCHEME.match(url)
    if found is None:
        first = "rtsp" if "rtsp" in schemes else min(schemes)
        raise ValueError(f"expected a URL that begins with a scheme such as {first}://, got none")
    scheme = found[1].lower()
    if scheme not in schemes:
        shown = " or ".join(sorted(schemes)) if len(schemes) < 4 else "rtsp, http, srt or another"
        near = did_you_mean(
            scheme, [known for known in schemes if known != "rtp"]
        )  # rstp means rtsp
        text = f"expected {shown} scheme of the network before ://, got {scheme[:20]!r}{near}"
        raise ValueError(text)
    if len(url) > MAX_URL:
        raise ValueError(f"expected a URL of at most {MAX_URL} characters, got {len(url)}")
    rest = url[found.end() :]
    for character in rest:
        if character not in _ALLOWED:
            shown = quote(character, safe="", errors="replace")
            raise ValueError(f"expected a URL without {character!r}: write it as {shown}")
    end = re.search(r"[/?]", rest)
    authority, beyond = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    userinfo, _, host = authority.rpartition("@")
    broken = re.search(r"%(?![0-9A-Fa-f]{2})", rest) is not None
    if broken or "#" in rest or re.search(r"[\[\]@]", userinfo + beyond):
        raise ValueError(
            "expected a URL with nothing unencoded in user, password, path and query that could "
            f"mean something else: {ENCODE}"
        )
    _check_host(host, needs_name=scheme not in _LISTENING)
    return url


def _check_host(authority: str, *, needs_name: bool) -> None:
    name, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        name, port = authority, ""
    if name.startswith("[") and name.endswith("]"):
        try:
            ipaddress.IPv6Address(name[1:-1].replace("%25", "%"))
        except ValueError:
            raise ValueError(
                f"expected an IPv6 address between [ and ]; in a password {ENCODE}"
            ) from None
    elif (name or needs_name) and not _HOST.match(name):
        raise ValueError(
            f"expected a name or address of a host behind :// and @; in a password {ENCODE}"
        )
    if colon and port != "" and not (port.isdecimal() and 1 <= int(port[:6]) <= 65_535):
        raise ValueError(f"expected a port from 1 to 65535 behind the host; in a password {ENCODE}")


def _mask_line(line: str) -> str:
    parts = _SCHEME.split(line)
    # text, then scheme and what follows it, again and again
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return parts[0] + "".join(f"{scheme}://{_mask_tail(scheme, tail)}" for scheme, tail in pairs)


def _mask_tail(scheme: str, tail: str) -> str:
    if scheme.lower() in _LOCAL:
        return tail
    _, at, tail = tail.rpartition("@")
    if scheme.lower() in _STORES:
        return (f"{MASK}@" if at else "") + tail
    run = re.match(r"\S*", tail)
    url = run[0].rstrip(_CLOSING) if run else ""
    after = tail[len(url) :]
    if scheme.lower() not in _SHOWN:
        return f"{MASK}{after}"
    url, hash_sign, _ = url.partition("#")
    path, question, query = url.partition("?")
    host, *segments = path.split("/")
    is_web = scheme.lower() in _WEB
    name, colon, port = host.rpartition(":")
    if colon and not host.endswith("]") and not port.isdecimal():
        # a user and what is before a / in the password
        host, segments = (f"{name}:{MASK}", [MASK for _ in segments]) if port else (host, segments)
    shown = "/".join([host, *(_mask_segment(segment, is_web=is_web) for segment in segments)])
    shown += question + "&".join(_mask_item(item) for item in re.split("[&;]", query) if query)
    return (f"{MASK}@" if at else "") + shown + (f"#{MASK}" if hash_sign else "") + after


def _mask_segment(segment: str, *, is_web: bool) -> str:
    """Return a part of a path; one with a long mixture of letters and digits is a token.

    On the web, where webhooks have their tokens, a short one is, too, in which letters and digits
    alternate. Cameras name their streams like that (`h264Preview_01`), so theirs are left.
    """
    mixed = [run for run in _TOKEN_RUN.findall(segment) if re.search(r"\d", run)]
    is_token = any(re.search("[A-Za-z]", run) for run in mixed) or (
        len(segment) >= _LONG_SEGMENT and re.search(r"\d", segment) and "." not in segment
    )
    if is_web and _ALTERNATING.search(_FORMAT_NAME.sub("", segment)):
        is_token = True
    return MASK if is_token else segment


def _mask_item(item: str) -> str:
    """Return a part of a query; of unknown keys nothing, for they may be the rest of a value."""
    key, equals, value = item.partition("=")
    if key.lower() in _HARMLESS_KEYS and _HARMLESS_VALUE.match(value):
        return item
    return f"{key}={MASK}" if equals and key.lower() in _SECRET_KEYS | _HARMLESS_KEYS else MASK


def check_endpoint(endpoint: str, *, has_keys: bool = False) -> str:
    """Return `endpoint` if a socket may use it.

    Args:
        has_keys: CURVE keys are used: tcp may go beyond loopback.

    Raises:
        ValueError: not ipc:// or tcp://, an ipc path over 107 bytes, or tcp beyond loopback.
    """
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if not path.startswith("/") or len(path.encode()) > 107:
            raise ValueError(
                f"expected an absolute ipc path of at most 107 bytes, got {endpoint!r}"
            )
        return endpoint
    match = re.match(r"tcp://(\[[0-9A-Fa-f:.%]+\]|[\w.-]+):(\d+)\Z", endpoint)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(
            f"expected an endpoint such as ipc:///path or tcp://127.0.0.1:5555, got {endpoint!r}"
        )
    if not has_keys and not _is_loopback(match[1].strip("[]")):
        raise ValueError(f"tcp beyond loopback needs transport.curve, got {endpoint!r}")
    return endpoint


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
