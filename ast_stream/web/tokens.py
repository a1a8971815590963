"""Tokens against forged requests: whoever sends one has read a page that was made for it."""

from __future__ import annotations

import hashlib
import hmac
import secrets

_KEY_BYTES = 32
_RANDOM_BYTES = 24


class Tokens:
    """Makes and checks tokens; those of an earlier run are worth nothing.

    A token belongs to one browser: to its login, or to the random cookie it has before one.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)

    def of(self, browser: str) -> str:
        """Return the token of a browser."""
        return hmac.new(self._key, browser.encode(), hashlib.sha256).hexdigest()

    def is_of(self, token: str, browser: str) -> bool:
        """Return whether this is the token of that browser; takes as long for any other."""
        return bool(browser) and hmac.compare_digest(token.encode(), self.of(browser).encode())


def random_text() -> str:
    """Return a text that nobody can guess."""
    return secrets.token_urlsafe(_RANDOM_BYTES)
