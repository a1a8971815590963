"""Tokens against cross-site request forgery."""

from __future__ import annotations

import hashlib
import hmac
import secrets

_KEY_BYTES = 32
_RANDOM_BYTES = 24


class Tokens:
    """Makes and checks tokens; those of an earlier run are invalid.

    A token belongs to one browser: to its login session or, before that, to its random cookie.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)

    def of(self, browser: str) -> str:
        """Return the token of a browser."""
        return hmac.new(self._key, browser.encode(), hashlib.sha256).hexdigest()

    def is_of(self, token: str, browser: str) -> bool:
        """Return whether a token belongs to a browser, in constant time."""
        return bool(browser) and hmac.compare_digest(token.encode(), self.of(browser).encode())


def random_text() -> str:
    """Return an unguessable text."""
    return secrets.token_urlsafe(_RANDOM_BYTES)
