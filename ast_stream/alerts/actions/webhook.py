"""The action `webhook`: an HTTP POST of CloudEvents 1.0, signed as Standard Webhooks 1.0 has it.

The host name is resolved once, and the connection goes to an address that was checked: a name
that resolves differently a second time gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ast_stream.alerts.actions.base import (
    ActionRunner,
    Delivered,
    Failed,
    Outcome,
    Undeliverable,
)
from ast_stream.alerts.notification import Notification
from ast_stream.errors import StartupError
from ast_stream.messages.codec import encode_json
from ast_stream.runtime.credentials import connection_error, read_secret, tls_context
from ast_stream.settings.alerts import WebhookAction
from ast_stream.units import format_time
from ast_stream.version import __version__

if TYPE_CHECKING:  # of the extra `notify`
    from standardwebhooks import Webhook

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
GONE = 410
_SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
_RETRIED = (408, 425, 429)
_DOWN = (502, 503, 504)  # of what stands before the receiver
_MAX_RETRY_AFTER_S = 24 * 3600.0
_PORTS = {"http": 80, "https": 443}
_Address = tuple[socket.AddressFamily, Any]
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# What is unicast, and within it what IANA's special-purpose address registries take out: lists of
# our own, for those of the standard library differ from one patch release of Python to the next.
_PUBLIC_IPV4 = _networks("0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3")
_SPECIAL_IPV4 = _networks(
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24",
)  # fmt: skip
_PUBLIC_IPV6 = _networks("2000::/3")
# 2001::/23: among others Teredo, ORCHID and benchmarking; 2002::/16: 6to4, IPv4 inside; 3fff::/20,
# 2001:db8::/32: documentation. All other ways to embed IPv4 lie outside of 2000::/3.
_SPECIAL_IPV6 = _networks("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
# by RFC 6761, 6762, 8375 and the reservation of .internal
_PRIVATE_DOMAINS = (".localhost", ".local", ".home.arpa", ".internal")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class WebhookRunner(ActionRunner):
    """Posts each notification to one URL.

    After the name is resolved everything has `timeout_s` together.

    Args:
        name: of the action, for errors.
        now_s: wall clock, seconds since 1970; stamps each attempt.

    Raises:
        StartupError: the secret or `ca_file` cannot be read, or is none.
    """

    def __init__(
        self, name: str, settings: WebhookAction, now_s: Callable[[], float] = time.time
    ) -> None:
        super().__init__(name, settings)
        self._now_s = now_s
        is_tls = settings.url.startswith("https")
        self._tls = tls_context(f"action {name}", settings.ca_file) if is_tls else None
        text = read_secret(f"action {name}", settings.secret_file, settings.secret_env)
        try:
            self._signers = [new_signer(line) for line in (text or "").splitlines() if line.strip()]
        except ValueError as error:
            raise StartupError(f"action {name}: {error}") from error
        except ImportError as error:
            raise StartupError(
                f"action {name}: standardwebhooks is not installed: "
                "pip install 'ast-stream[notify]'"
            ) from error
        if text is not None and not self._signers:
            raise StartupError(f"action {name}: expected a secret, got an empty file")

    @classmethod
    def problems(cls, name: str, settings: WebhookAction) -> Iterator[str]:
        """Also yield that the URL's host needs `allow_private`."""
        yield from super().problems(name, settings)
        host = urlsplit(settings.url).hostname or ""
        if not settings.allow_private and not may_be_public(host):
            yield f"url: {host} is not public: expected 'allow_private: true' beside it, got none"

    def deliver(self, notification: Notification) -> Outcome:
        """Post once; the body of the answer is not read."""
        settings, parts, body = (
            self._settings,
            urlsplit(self._settings.url),
            cloud_event(notification),
        )
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses: list[_Address] = [(family, address) for family, _, _, _, address in found]
            if not settings.allow_private:
                addresses = [address for address in addresses if is_public(str(address[1][0]))]
            if not addresses:
                address = found[0][4][0]
                where = host if host == address else f"{host} is at {address}, which"
                text = f"{where} is not public; the action's 'allow_private: true' lets it"
                return Undeliverable(text)
            with _LimitedConnection(settings.timeout_s) as link:
                link.connect(addresses)
                if self._tls is not None:
                    link.secure(self._tls, host)
                connection = http.client.HTTPConnection(host, port)
                connection.sock = link.socket
                headers = {"Host": parts.netloc, **self._headers(notification.id, body)}
                connection.request("POST", target, body, headers)
                answer = connection.getresponse()
                return self._outcome(answer.status, answer.getheader("Retry-After"))
        # a UnicodeError: a host name that no resolver could be asked for
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            return Failed(f"no answer from {host}: {connection_error(error)}", is_down=True)

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        timestamp_s = int(self._now_s())
        headers = {
            "Content-Type": CONTENT_TYPE,
            "User-Agent": f"ast-stream/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
        }
        if self._signers:
            headers["webhook-signature"] = sign(self._signers, message_id, timestamp_s, body)
        return headers

    def _outcome(self, status: int, retry_after: str | None) -> Outcome:
        reason = f"the receiver answered {status}"
        if 200 <= status < 300:
            return Delivered()
        if 300 <= status < 400:
            return Undeliverable(f"{reason}: redirects are not followed")
        if status == GONE:
            return Undeliverable(f"{reason} (gone): nothing more is sent there", is_closed=True)
        if status in _RETRIED or status >= 500:
            after_s = retry_after_s(retry_after, self._now_s())
            return Failed(reason, after_s, is_down=status in _DOWN)
        return Undeliverable(reason)


def cloud_event(notification: Notification) -> bytes:
    """Return the body: the same bytes at every attempt."""
    alert = notification.alert
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": notification.id,
        "source": f"/ast-stream/rule/{alert.rule}",
        "type": f"org.ast-stream.alert.{notification.kind}.v1",
        "subject": alert.id,
        "time": format_time(notification.at_ns),
        "datacontenttype": "application/json",
        "severitytext": alert.severity,
        "data": {
            "kind": notification.kind,
            "title": notification.title,
            "text": notification.text,
            "combined": notification.combined,
            "alert": alert.to_json(),
        },
    }
    if notification.event_id is not None:
        event["causationid"] = notification.event_id
    return encode_json(event)


def retry_after_s(header: str | None, now_s: float) -> float:
    """Return the seconds that a `Retry-After` header asks for; 0 if it says nothing usable."""
    if header is None:
        return 0.0
    text = header.strip()
    if text.isdecimal() and len(text) < 10:
        wait_s = float(text)
    else:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - now_s
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, wait_s), _MAX_RETRY_AFTER_S)


def new_signer(text: str) -> Webhook:
    """Return what signs with the key in `whsec_<base64>` (the prefix may be left out).

    Raises:
        ValueError: not base64 of 24 to 64 bytes; the secret itself is not shown.
        ImportError: the library is missing.
    """
    from standardwebhooks import Webhook

    try:
        key = base64.b64decode(text.strip().removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("expected whsec_ and base64, got something else") from error
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"expected a secret of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes, got {len(key)}"
        )
    return Webhook(key)


def sign(signers: Sequence[Webhook], message_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one signature for each key, separated by spaces."""
    time = datetime.fromtimestamp(timestamp_s, UTC)
    return " ".join(signer.sign(message_id, time, body.decode()) for signer in signers)


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet.

    An IPv4 address inside one of IPv6 is what counts where a gateway or the kernel goes to that.
    Of the other ways to embed one none is needed today, and each might lead into a private network.
    """
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = _ipv4_inside(parsed)
        if embedded is None:
            return _is_listed(parsed, _PUBLIC_IPV6, _SPECIAL_IPV6)
        parsed = embedded
    return _is_listed(parsed, _PUBLIC_IPV4, _SPECIAL_IPV4)


def may_be_public(host: str) -> bool:
    """Return whether a host may have a public address, judged by its name alone."""
    try:
        return is_public(host)
    except ValueError:
        return host != "localhost" and not host.endswith(_PRIVATE_DOMAINS)


def _ipv4_inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that is embedded in an IPv4-mapped or NAT64 address."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def _is_listed(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    public: Sequence[_Network],
    special: Sequence[_Network],
) -> bool:
    is_isatap = address.version == 6 and int(address) >> 32 & 0xFDFFFFFF == 0x5EFE
    is_special = is_isatap or any(address in network for network in special)
    return any(address in network for network in public) and not is_special


class _LimitedConnection:
    """A connection that is closed at the time limit, whatever it is doing.

    Socket timeouts begin anew with every byte: they do not stop a peer that sends a byte a minute.
    """

    def __init__(self, timeout_s: float) -> None:
        self.socket = socket.socket()
        self._timeout_s = timeout_s
        self._watch = threading.Timer(timeout_s, self._shut)
        self._watch.daemon = True
        self._is_late = False

    def __enter__(self) -> _LimitedConnection:
        self._watch.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._watch.cancel()
        self.socket.close()
        is_late = self._is_late or isinstance(error, TimeoutError)
        if is_late and isinstance(error, OSError | http.client.HTTPException):
            raise TimeoutError(f"nothing within {self._timeout_s:g} s") from error

    def connect(self, addresses: list[_Address]) -> None:
        """Connect to the first address that lets us."""
        for index, (family, address) in enumerate(addresses):
            self.socket.close()
            self.socket = socket.socket(family, socket.SOCK_STREAM)
            self.socket.settimeout(self._timeout_s)
            try:
                self.socket.connect(address)
                return
            except OSError:
                if self._is_late or index == len(addresses) - 1:
                    raise

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS, with a certificate of `host`."""
        # the handshake comes after the exchange of sockets, so that the time limit reaches it
        secured = context.wrap_socket(
            self.socket, server_hostname=host, do_handshake_on_connect=False
        )
        self.socket = secured
        secured.do_handshake()

    def _shut(self) -> None:
        self._is_late = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


RUNNER = WebhookRunner
