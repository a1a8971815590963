"""CURVE's arithmetic, by libsodium; the only module that imports it."""

from __future__ import annotations

from nacl import bindings

from ast_stream.transport.keys import KeyPair, encode_z85


def make_key() -> KeyPair:
    """Return a new random key."""
    public, secret = bindings.crypto_box_keypair()
    return KeyPair(encode_z85(public), encode_z85(secret))
