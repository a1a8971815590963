"""One HTTP POST under a time limit, to an address that was looked at before connecting to it.

The name is resolved once, and the connection goes to an address that was found to be allowed: a
name that resolves differently a second time gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ast_stream.alerts.actions.tls import connection_words

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


class Forbidden(Exception):
    """All addresses of the host are private."""


class NoAnswer(Exception):
    """The connection or the answer failed; worth another try."""


@dataclass(frozen=True)
class Answer:
    """Status of the answer, and its `Retry-After` if there is one."""

    status: int
    retry_after: str | None


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
    """Return whether a host may have a public address, as far as its name alone says."""
    try:
        return is_public(host)
    except ValueError:
        return host != "localhost" and not host.endswith(_PRIVATE_DOMAINS)


def _ipv4_inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv4-mapped one or one of NAT64 stands for."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def _is_listed(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    public: Sequence[_Network],
    special: Sequence[_Network],
) -> bool:
    is_isatap = address.version == 6 and int(address) >> 32 & 0xFDFFFFFF == 0x5EFE
    is_special = is_isatap or any(address in one for one in special)
    return any(address in one for one in public) and not is_special


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    allow_private: bool,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Post `body` and return the answer's status; its body is not read.

    Args:
        timeout_s: limit of everything after the name is resolved.
        context: which authorities are trusted; None: those of the system.

    Raises:
        Forbidden: the host has only addresses that are not public, and `allow_private` is False.
        NoAnswer: no connection, no TLS, no or a malformed answer, or out of time.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        addresses = _allowed_addresses(host, port, allow_private)
        with _Link(timeout_s) as link:
            link.connect(addresses)
            if parts.scheme == "https":
                link.secure(context or ssl.create_default_context(), host)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = link.socket
            connection.request("POST", target, body, {"Host": parts.netloc, **headers})
            answer = connection.getresponse()
            return Answer(answer.status, answer.getheader("Retry-After"))
    # a UnicodeError: a host name that no resolver could be asked for
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise NoAnswer(f"no answer from {host}: {connection_words(error)}") from error


def _allowed_addresses(host: str, port: int, allow_private: bool) -> list[_Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses: list[_Address] = [(family, address) for family, _, _, _, address in found]
    allowed = [one for one in addresses if allow_private or is_public(str(one[1][0]))]
    if not allowed:
        address = addresses[0][1][0]
        where = host if host == address else f"{host} is at {address}, which"
        raise Forbidden(f"{where} is not public; the action's 'allow_private: true' lets it")
    return allowed


class _Link:
    """A connection that is shut at the time limit, whatever it is doing.

    Timeouts of sockets begin anew with every byte: they do not stop one who sends a byte a minute.
    """

    def __init__(self, timeout_s: float) -> None:
        self.socket = socket.socket()
        self._timeout_s = timeout_s
        self._watch = threading.Timer(timeout_s, self._shut)
        self._watch.daemon = True
        self._is_late = False

    def __enter__(self) -> _Link:
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
