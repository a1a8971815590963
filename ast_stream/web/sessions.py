"""Login sessions: identified by a random secret in a cookie, kept in memory, with an expiry."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.web.tokens import random_text

MAX_SESSIONS = 1000
MAX_OF_ACCOUNT = 20


@dataclass
class Session:
    """One login session.

    Attributes:
        key: digest of its secret, which is not stored.
        account: user name.
        stamp: of the user's password when the session began.
        began_s, used_s: when it began and when it was last used, monotonic clock.
    """

    key: str
    account: str
    stamp: str
    began_s: float
    used_s: float


class Sessions:
    """All login sessions; if there are too many, the least recently used ones are ended.

    Args:
        idle_s: a session ends after this time without a request.
        max_s: a session ends after this time in any case.
        now_s: monotonic clock.
    """

    def __init__(
        self, idle_s: float, max_s: float, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_s = idle_s
        self._max_s = max_s
        self._now_s = now_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, account: str, stamp: str) -> str:
        """Begin a session, and return its secret, which is always a new one."""
        secret, now_s = random_text(), self._now_s()
        key = _key(secret)
        with self._lock:
            for old in [
                session.key for session in self._sessions.values() if self._is_over(session)
            ]:
                del self._sessions[old]
            own = [session.key for session in self._sessions.values() if session.account == account]
            for old in own[: max(0, len(own) - MAX_OF_ACCOUNT + 1)]:
                del self._sessions[old]
            while len(self._sessions) >= MAX_SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[key] = Session(key, account, stamp, now_s, now_s)
        return secret

    def use(self, secret: str) -> Session | None:
        """Return the session with this secret, and mark it as used; None: there is none."""
        with self._lock:
            session = self._current(_key(secret))
            if session is not None:
                session.used_s = self._now_s()
                self._sessions.move_to_end(session.key)
            return session

    def get(self, key: str) -> Session | None:
        """Return an open session, without marking it as used; None: it has ended."""
        with self._lock:
            return self._current(key)

    def end(self, key: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(key, None)

    def _current(self, key: str) -> Session | None:
        session = self._sessions.get(key)
        if session is not None and self._is_over(session):
            del self._sessions[key]
            return None
        return session

    def _is_over(self, session: Session) -> bool:
        now_s = self._now_s()
        return now_s - session.used_s >= self._idle_s or now_s - session.began_s >= self._max_s


def _key(secret: str) -> str:
    """Return the digest by which a secret is looked up, so that timing reveals nothing about it."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
