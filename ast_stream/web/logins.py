"""Logins: rate-limited checks of name and password, equally slow for unknown names."""

from __future__ import annotations

import asyncio
import logging

from ast_stream.errors import AstStreamError
from ast_stream.privacy.page_users import MAX_NAME_CHARACTERS, Users
from ast_stream.runtime.logging import LimitedLog
from ast_stream.web.login_limits import LoginLimits, in_words
from ast_stream.web.passwords import MAX_BYTES, Passwords
from ast_stream.web.sessions import Sessions

MAX_WAITING = 16  # logins whose password is being checked, or is waiting to be
_WRONG = "name or password is not right"

logger = logging.getLogger(__name__)


class LoginError(AstStreamError):
    """A login has failed.

    Attributes:
        status: HTTP status of the response.
        wait_s: until the next attempt makes sense.
    """

    def __init__(self, status: int, text: str, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.wait_s = wait_s


class Logins:
    """Checks passwords, one at a time, since each check takes much memory and a core.

    Attributes:
        limits: rate limits of login attempts.
        failed: number of attempts with a wrong name or password.
    """

    def __init__(
        self,
        users: Users,
        sessions: Sessions,
        passwords: Passwords | None = None,
        limits: LoginLimits | None = None,
    ) -> None:
        self.limits = limits or LoginLimits()
        self.failed = 0
        self._users = users
        self._sessions = sessions
        self._passwords = passwords or Passwords()
        self._one_at_a_time = asyncio.Semaphore(1)
        self._n_waiting = 0
        self._log = LimitedLog(logger)

    async def begin(self, name: str, password: str, address: str) -> str:
        """Return the secret of a new login session.

        Raises:
            LoginError: too many attempts, or the name or password is wrong.
        """
        if len(name) > MAX_NAME_CHARACTERS or len(password.encode(errors="replace")) > MAX_BYTES:
            raise LoginError(401, _WRONG)
        wait_s = self.limits.try_again_s(name, address)
        if wait_s > 0:
            self._log.warning("too many tries to log in, the last one from %s", address)
            raise LoginError(429, f"too many tries: wait {in_words(wait_s)}", wait_s)
        if self._n_waiting >= MAX_WAITING:
            raise LoginError(503, "too many others log in at this moment: try again", 1.0)
        self._n_waiting += 1
        try:
            async with self._one_at_a_time:
                user = self._users.get(name)
                password_hash = None if user is None else user.password_hash
                is_right = await asyncio.to_thread(
                    self._passwords.is_right, password, password_hash
                )
        finally:
            self._n_waiting -= 1
        if user is None or not is_right:
            self.failed += 1
            shown = "somebody" if user is None else name  # an unknown name may be a password
            self._log.warning("%s did not log in from %s: %s", shown, address, _WRONG)
            raise LoginError(401, _WRONG)
        self.limits.give_back(name, address)
        logger.info("%s has logged in from %s", name, address)
        return self._sessions.begin(user.name, user.stamp)
