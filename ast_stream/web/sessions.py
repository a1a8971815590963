"""Logins: known by a random secret in a cookie, kept in memory, over after a while."""

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
    """One login.

    Attributes:
        key: digest of its secret, which is kept nowhere.
        account: the user.
        stamp: of the user's password when it began.
        began_s, used_s: when it began and was used last, on the monotonic clock.
    """

    key: str
    account: str
    stamp: str
    began_s: float
    used_s: float


class Sessions:
    """All logins; bounded: of too many, those that were not used for longest are over.

    Args:
        idle_s: without a request for so long, a login is over.
        max_s: after that, it is over in any case.
        now_s: monotonic clock.
    """

    def __init__(
        self, idle_s: float, max_s: float, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle_s = idle_s
        self._max_s = max_s
        self._now_s = now_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the one used last is last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, account: str, stamp: str) -> str:
        """Begin a login, and return its secret: always a new one, whatever the browser has."""
        secret, now_s = random_text(), self._now_s()
        key = _key(secret)
        with self._lock:
            for old in [one.key for one in self._sessions.values() if self._is_over(one)]:
                del self._sessions[old]
            own = [one.key for one in self._sessions.values() if one.account == account]
            for old in own[: max(0, len(own) - MAX_OF_ACCOUNT + 1)]:
                del self._sessions[old]
            while len(self._sessions) >= MAX_SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[key] = Session(key, account, stamp, now_s, now_s)
        return secret

    def use(self, secret: str) -> Session | None:
        """Return the login of a secret, which is used by that; None: it is over, or never was."""
        with self._lock:
            session = self._current(_key(secret))
            if session is not None:
                session.used_s = self._now_s()
                self._sessions.move_to_end(session.key)
            return session

    def get(self, key: str) -> Session | None:
        """Return a login that goes on, without using it."""
        with self._lock:
            return self._current(key)

    def end(self, key: str) -> None:
        """End a login."""
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
    """Return under which a secret is looked up: who sees how long that takes learns nothing."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
