"""Passwords: hashed with argon2id, and checked equally slowly for unknown names."""

from __future__ import annotations

import secrets

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from ast_stream.errors import UsageError

MIN_CHARACTERS = 10
MAX_BYTES = 1024


def expect_password(password: str) -> None:
    """Refuse a password of unsuitable length.

    Raises:
        UsageError: it is too short or too long.
    """
    if len(password) < MIN_CHARACTERS or len(password.encode(errors="replace")) > MAX_BYTES:
        text = f"expected {MIN_CHARACTERS} characters to {MAX_BYTES} bytes as a password, got "
        raise UsageError(f"{text}{len(password)} characters")


def hash_password(password: str) -> str:
    """Return the hash of a password, with a new salt."""
    return PasswordHasher().hash(password)


class Passwords:
    """Checks passwords; each check takes tens of milliseconds and 64 MiB.

    Args:
        hasher: the parameters; the library's defaults follow RFC 9106.
    """

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._of_nobody = self._hasher.hash(secrets.token_urlsafe())

    def is_right(self, password: str, password_hash: str | None) -> bool:
        """Return whether a password has this hash.

        Args:
            password_hash: None: there is no such user; returns False after the same work.
        """
        try:
            self._hasher.verify(password_hash or self._of_nobody, password)
        except (Argon2Error, InvalidHashError):
            return False
        return password_hash is not None
