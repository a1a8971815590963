"""A front of Kafka brokers that know no TLS and no logins: it has both, and passes on the rest.

The mock cluster of librdkafka answers Kafka's protocol in the clear. Here clients get TLS, with a
certificate of their own if it is asked for, and log in by SASL (PLAIN, SCRAM) as at a real broker.
What checks them is written after RFC 4616, RFC 5802 and Kafka's protocol guide, not with the
client. The addresses in the answers of the cluster are replaced by those of the front.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import ssl
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

API_VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36
UNSUPPORTED_MECHANISM, UNSUPPORTED_VERSION, LOGIN_FAILED = 33, 35, 58
ITERATIONS = 4096
_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}


class KafkaFront:
    """One port for each broker.

    Args:
        brokers: `127.0.0.1:port` of each.
        tls: None: in the clear.
        users: passwords by name; None: nobody has to log in.
        mechanisms: of SASL that are accepted.

    Attributes:
        brokers: where clients connect.
        logged_in: names of those who did.
    """

    def __init__(
        self,
        brokers: Sequence[str],
        tls: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
        mechanisms: Sequence[str] = ("PLAIN", *_HASHES),
    ) -> None:
        self.users = users
        self.mechanisms = mechanisms
        self.logged_in: list[str] = []
        self._tls = tls
        self._servers: list[socket.socket] = []
        self._ports: dict[int, int] = {}  # of the front, by those of the brokers
        for broker in brokers:
            server = socket.create_server(("127.0.0.1", 0))
            self._servers.append(server)
            self._ports[int(broker.rpartition(":")[2])] = server.getsockname()[1]
        for server, port in zip(self._servers, self._ports, strict=True):
            threading.Thread(target=self._accept, args=(server, port), daemon=True).start()
        self.brokers = [f"127.0.0.1:{port}" for port in self._ports.values()]

    def close(self) -> None:
        for server in self._servers:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()

    def replaced(self, answer: bytes) -> bytes:
        """Return an answer with the addresses of the front."""
        for port, own in self._ports.items():
            for host in (b"127.0.0.1", b"localhost"):
                answer = answer.replace(
                    host + struct.pack(">i", port), host + struct.pack(">i", own)
                )
        return answer

    def _accept(self, server: socket.socket, port: int) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = server.accept()
                threading.Thread(target=self._serve, args=(near, port), daemon=True).start()

    def _serve(self, near: socket.socket, port: int) -> None:
        with near, suppress(OSError, EOFError):
            client = near
            if self._tls is not None:
                client = self._tls.wrap_socket(near, server_side=True)
            with client, socket.create_connection(("127.0.0.1", port)) as far:
                if self.users is not None:
                    _Login(self, client, far).run()
                back = threading.Thread(target=self._answer, args=(far, client), daemon=True)
                back.start()
                with suppress(OSError, EOFError):
                    while True:
                        far.sendall(_framed(_read(client)))
                with suppress(OSError):
                    far.shutdown(socket.SHUT_RDWR)
                back.join()

    def _answer(self, far: socket.socket, client: socket.socket) -> None:
        with suppress(OSError, EOFError):
            while True:
                client.sendall(_framed(self.replaced(_read(far))))
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class _Login:
    """The requests of one connection until it has logged in."""

    def __init__(self, front: KafkaFront, client: socket.socket, far: socket.socket) -> None:
        self._front = front
        self._client = client
        self._far = far
        self._mechanism = ""
        self._scram: tuple[str, str, bytes] | None = None  # name, what was said, salted password
        self._is_done = False

    def run(self) -> None:
        """Answer until the client has logged in.

        Raises:
            EOFError: it has not, or asked for something else before.
        """
        while not self._is_done:
            request = _read(self._client)
            api, version, number = struct.unpack(">hhi", request[:8])
            answers = {
                API_VERSIONS: self._versions,
                HANDSHAKE: self._handshake,
                AUTHENTICATE: self._authenticate,
            }
            if api not in answers:
                raise EOFError(f"request {api} before a login")
            size = struct.unpack(">h", request[8:10])[0]
            body = request[10 + max(0, size) :]
            answer = answers[api](version, body)
            self._client.sendall(_framed(struct.pack(">i", number) + answer))

    def _versions(self, version: int, body: bytes) -> bytes:
        """Return what the cluster can do, and that it can log in."""
        if version > 0:  # the client asks again by the oldest version
            return struct.pack(">hi", UNSUPPORTED_VERSION, 1) + struct.pack(">hhh", 18, 0, 0)
        self._far.sendall(_framed(struct.pack(">hhih", API_VERSIONS, 0, 1, -1)))
        found = _read(self._far)[4:]
        error, count = struct.unpack(">hi", found[:6])
        own = struct.pack(">hhh", HANDSHAKE, 0, 1) + struct.pack(">hhh", AUTHENTICATE, 0, 0)
        return struct.pack(">hi", error, count + 2) + found[6:] + own

    def _handshake(self, version: int, body: bytes) -> bytes:
        self._mechanism = _string(body)
        is_known = self._mechanism in self._front.mechanisms
        offered = b"".join(_encoded(name) for name in self._front.mechanisms)
        count = len(self._front.mechanisms)
        return struct.pack(">hi", 0 if is_known else UNSUPPORTED_MECHANISM, count) + offered

    def _authenticate(self, version: int, body: bytes) -> bytes:
        said = body[4:][: struct.unpack(">i", body[:4])[0]]
        answer = self._plain(said) if self._mechanism == "PLAIN" else self._scrammed(said.decode())
        if answer is None:
            why = "Authentication failed: invalid credentials"
            return struct.pack(">h", LOGIN_FAILED) + _encoded(why) + struct.pack(">i", 0)
        return struct.pack(">hh", 0, -1) + struct.pack(">i", len(answer)) + answer

    def _plain(self, said: bytes) -> bytes | None:
        _, name, password = said.decode().split("\0")
        assert self._front.users is not None
        return self._logged_in(name) if self._front.users.get(name) == password else None

    def _scrammed(self, said: str) -> bytes | None:
        digest = _HASHES[self._mechanism]
        assert self._front.users is not None
        if self._scram is None:
            bare = said.split(",", 2)[2]
            name = bare.split(",")[0][2:]
            salt = os.urandom(16)
            nonce = bare.split("r=", 1)[1].split(",")[0] + base64.b64encode(os.urandom(12)).decode()
            first = f"r={nonce},s={base64.b64encode(salt).decode()},i={ITERATIONS}"
            password = self._front.users.get(name, os.urandom(8).hex())
            salted = hashlib.pbkdf2_hmac(digest, password.encode(), salt, ITERATIONS)
            self._scram = name, f"{bare},{first}", salted
            return first.encode()
        name, before, salted = self._scram
        without_proof, _, proof = said.rpartition(",p=")
        message = f"{before},{without_proof}".encode()
        key = hmac.digest(salted, b"Client Key", digest)
        signature = hmac.digest(hashlib.new(digest, key).digest(), message, digest)
        expected = bytes(one ^ other for one, other in zip(key, signature, strict=True))
        if not hmac.compare_digest(base64.b64decode(proof), expected):
            return None
        own = hmac.digest(hmac.digest(salted, b"Server Key", digest), message, digest)
        self._logged_in(name)
        return b"v=" + base64.b64encode(own)

    def _logged_in(self, name: str) -> bytes:
        self._front.logged_in.append(name)
        self._is_done = True
        return b""


def _read(source: socket.socket) -> bytes:
    """Return the next request or answer without its size.

    Raises:
        EOFError: there is none any more.
    """
    (size,) = struct.unpack(">i", _exactly(source, 4))
    return _exactly(source, size)


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        if not (more := source.recv(size - len(found))):
            raise EOFError
        found += more
    return found


def _framed(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def _encoded(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _string(content: bytes) -> str:
    return content[2:][: struct.unpack(">h", content[:2])[0]].decode()
