"""When to ask a ring again: one request at a time, a timeout, back-off while nothing comes."""

from __future__ import annotations

from ast_stream.messages.audio import ReadRequest

REQUEST_TIMEOUT_S = 0.5
FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 1.0  # between requests to a ring that answers but has nothing new
LAST_BACKOFF_S = 2.0  # to a ring that does not answer
HURRIED_PAUSE_S = 0.05  # when a live block shows that there is something to ask for


class RequestPace:
    """At most one outstanding request, and when the next may go; times in seconds.

    Attributes:
        failures: requests without a usable reply since the last one with.
        sent_s: when the last request was sent.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.sent_s = float("-inf")
        self._outstanding: ReadRequest | None = None
        self._not_before_s = float("-inf")
        self._pause_s = 0.0

    def may_ask(self, now_s: float) -> bool:
        """Tell whether a request may go now."""
        return self._outstanding is None and now_s >= self._not_before_s

    def sent(self, request: ReadRequest, now_s: float) -> None:
        """Remember what was asked."""
        self._outstanding = request
        self.sent_s = now_s

    def take(self) -> ReadRequest | None:
        """Return the outstanding request, which is answered with that."""
        request, self._outstanding = self._outstanding, None
        return request

    def answered(self, now_s: float, *, is_fruitful: bool) -> None:
        """Go on at once after a reply that brought something, else wait a little longer each."""
        self.failures = 0
        self._pause_s = 0.0 if is_fruitful else self._longer_pause(LAST_PAUSE_S)
        self._not_before_s = now_s + self._pause_s

    def failed(self, now_s: float) -> None:
        """Wait after a refusal or a timeout, longer each time."""
        self.failures += 1
        self._pause_s = self._longer_pause(LAST_BACKOFF_S)
        self._not_before_s = now_s + self._pause_s

    def expire(self, now_s: float) -> bool:
        """Give up the outstanding request if it is too old; tell whether it was."""
        if self._outstanding is None or now_s - self.sent_s < REQUEST_TIMEOUT_S:
            return False
        self._outstanding = None
        self.failed(now_s)
        return True

    def hurry(self) -> None:
        """Ask soon: the ring has something."""
        self._not_before_s = min(self._not_before_s, self.sent_s + HURRIED_PAUSE_S)

    def _longer_pause(self, limit_s: float) -> float:
        return min(limit_s, max(FIRST_PAUSE_S, 2 * self._pause_s))
