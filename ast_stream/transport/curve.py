"""CURVE as the side that binds speaks it: keys, handshake, messages; the only place of libsodium.

RFC 25/ZMTP-CURVE and RFC 26/CurveZMQ of the ZeroMQ project. The client proves that it has the
secret half of a key, and nothing that somebody has recorded can be read later, for each connection
has keys of its own. What a stranger can make this side compute is a few multiplications for each
connection; it keeps nothing for one beyond its connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from nacl import bindings
from nacl.exceptions import CryptoError

from ast_stream.errors import WireError
from ast_stream.transport.keys import KEY_BYTES, KeyPair, decode_key, encode_z85

_VERSION = b"\x01\x00"
_HELLO_BYTES = 194  # without the name of the command
_COOKIE_BYTES = 96
_MAC_BYTES = 16
_NONCE_BYTES = 8
_VOUCH_BYTES = 16 + 80
_MESSAGE = b"\x07MESSAGE"
OVERHEAD_BYTES = len(_MESSAGE) + _NONCE_BYTES + _MAC_BYTES + 1  # of a frame, beside its body


def make_key() -> KeyPair:
    """Return a new random key."""
    public, secret = bindings.crypto_box_keypair()
    return KeyPair(encode_z85(public), encode_z85(secret))


class CurveServer:
    """One connection: what the client says in its handshake, then frames in and out.

    Args:
        key: of this side, the long-term one.
        authorise: called with the client's public key in Z85 once it has proved to have the
            secret; raises `WireError` to refuse it.

    Attributes:
        client: the client's public key in Z85; empty until it is authorised.
    """

    def __init__(self, key: KeyPair, authorise: Callable[[str], None]) -> None:
        self.client = ""
        self._secret = decode_key(key.secret)
        self._public = decode_key(key.public)
        self._authorise = authorise
        self._cookie = b""
        self._client_short = b""
        self._shared = b""
        self._short_secret = b""
        self._received = 0  # the last nonce of the client: each is greater than the one before
        self._sent = 0

    def welcome(self, hello: bytes) -> bytes:
        """Return the command that answers HELLO.

        Raises:
            WireError: it is no HELLO to this side's key.
        """
        if self._client_short or len(hello) != _HELLO_BYTES or hello[:2] != _VERSION:
            raise WireError("CURVE: expected HELLO of version 1.0, got something else")
        client_short, nonce, box = hello[74:106], hello[106:114], hello[114:]
        self._note_nonce(nonce)
        try:
            bindings.crypto_box_open(box, b"CurveZMQHELLO---" + nonce, client_short, self._secret)
        except CryptoError as error:
            raise WireError(
                "CURVE: the client expects another server key than this one's"
            ) from error
        short_public, self._short_secret = bindings.crypto_box_keypair()
        self._client_short = client_short
        # what a server without state would have to encrypt for itself is kept here instead
        self._cookie = secrets.token_bytes(_COOKIE_BYTES)
        long_nonce = secrets.token_bytes(16)
        content = short_public + self._cookie
        nonce = b"WELCOME-" + long_nonce
        return (
            b"\x07WELCOME"
            + long_nonce
            + bindings.crypto_box(content, nonce, client_short, self._secret)
        )

    def initiate(self, command: bytes) -> bytes:
        """Return the client's metadata in INITIATE, once it is authorised.

        Raises:
            WireError: it does not follow the handshake, proves nothing, or the key is refused.
        """
        cookie, self._cookie = self._cookie, b""
        least = _COOKIE_BYTES + _NONCE_BYTES + KEY_BYTES + _VOUCH_BYTES + _MAC_BYTES
        if not cookie or len(command) < least or command[:_COOKIE_BYTES] != cookie:
            raise WireError("CURVE: expected INITIATE after WELCOME, got something else")
        nonce = command[_COOKIE_BYTES : _COOKIE_BYTES + _NONCE_BYTES]
        self._note_nonce(nonce)
        try:
            shared = bindings.crypto_box_beforenm(self._client_short, self._short_secret)
            content = bindings.crypto_box_open_afternm(
                command[_COOKIE_BYTES + _NONCE_BYTES :], b"CurveZMQINITIATE" + nonce, shared
            )
            client, rest = content[:KEY_BYTES], content[KEY_BYTES:]
            vouched = bindings.crypto_box_open(
                rest[16:_VOUCH_BYTES], b"VOUCH---" + rest[:16], client, self._short_secret
            )
        except CryptoError as error:
            raise WireError("CURVE: the client does not prove its key") from error
        if vouched != self._client_short + self._public:
            raise WireError("CURVE: the client vouches for another connection")
        key = encode_z85(client)
        self._authorise(key)
        self.client, self._shared = key, shared
        return rest[_VOUCH_BYTES:]

    def ready(self, metadata: bytes) -> bytes:
        """Return the command that ends the handshake."""
        nonce = self._next_nonce()
        sealed = bindings.crypto_box_afternm(metadata, b"CurveZMQREADY---" + nonce, self._shared)
        return b"\x05READY" + nonce + sealed

    def seal(self, flags: int, body: bytes) -> bytes:
        """Return a frame of the client's, encrypted."""
        nonce = self._next_nonce()
        content = bytes((flags,)) + body
        return (
            _MESSAGE
            + nonce
            + bindings.crypto_box_afternm(content, b"CurveZMQMESSAGES" + nonce, self._shared)
        )

    def open(self, frame: bytes) -> tuple[int, bytes]:
        """Return flags and body of a frame from the client.

        Raises:
            WireError: it is none, is damaged, or has come before.
        """
        head = len(_MESSAGE) + _NONCE_BYTES
        if len(frame) < head + _MAC_BYTES + 1 or not frame.startswith(_MESSAGE):
            raise WireError("CURVE: expected an encrypted frame, got something else")
        nonce = frame[len(_MESSAGE) : head]
        self._note_nonce(nonce)
        try:
            content = bindings.crypto_box_open_afternm(
                frame[head:], b"CurveZMQMESSAGEC" + nonce, self._shared
            )
        except CryptoError as error:
            raise WireError("CURVE: expected a frame of this connection, got another") from error
        return content[0], content[1:]

    def _note_nonce(self, nonce: bytes) -> None:
        number = int.from_bytes(nonce, "big")
        if number <= self._received:
            raise WireError("CURVE: expected a new nonce, got one of before")
        self._received = number

    def _next_nonce(self) -> bytes:
        self._sent += 1
        return self._sent.to_bytes(_NONCE_BYTES, "big")
