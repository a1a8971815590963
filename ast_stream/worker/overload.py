"""Overload control: when the model cannot keep up, all live streams score fewer windows.

Where not even windows that just touch can be scored in time, audio has to be given up: it is, while
it is young enough to matter, and not only once a ring has overrun.
"""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 3.0
MAX_BACKLOG_S = 2.0  # of audio not scored: one that does not shrink is overload
MIN_GAIN_S = 0.1  # a backlog that shrinks by less between two checks does not shrink
CAUGHT_UP_S = 1.0  # a smaller backlog is none
MAX_LAG_S = 10.0  # audio is given up before results come later than this
NARROW_AFTER_S = 10.0  # without a backlog: try the next narrower hop,
MAX_NARROW_AFTER_S = 320.0  # doubled up to this each time that was too much


class OverloadControl:
    """Chooses the stride of the live streams: one of `stride` windows is scored.

    The stride doubles while the model is never idle and the longest backlog does not shrink, and
    halves again once all streams have been caught up for a while. A backlog that shrinks, as
    after a restart, changes nothing: its windows are scored as if nothing had happened.

    Attributes:
        is_exhausted: the stride cannot become larger and that was not enough; until all streams
            have been caught up for a while.
        must_skip: audio has to be given up now, for windows of it would be decided too late.

    Args:
        max_stride: windows at this distance still touch, so that no sound falls between two.
    """

    def __init__(self, max_stride: int, now_s: float) -> None:
        self.stride = 1
        self.is_exhausted = False
        self.must_skip = False
        self._n_exhausted = 0  # checks in turn at which nothing more could be left out
        self._has_skipped = False  # since the last check: what was longest does not count
        self._max_stride = max(1, max_stride)
        self._checked_s = now_s
        # the longest since the last check: what the rings hold is not known at every moment
        self._backlog_s = 0.0
        self._backlog_before_s = 0.0
        self._was_idle = True  # at any time since the last check
        self._caught_up_since_s: float | None = now_s
        self._narrow_after_s = NARROW_AFTER_S
        self._narrowed_s = float("-inf")

    def update(self, backlog_s: float, now_s: float, *, is_idle: bool) -> int:
        """Return the stride to use from now on.

        Args:
            backlog_s: the longest backlog of a live stream, 0 if there is none.
            is_idle: no window of a live stream waits for the model.
        """
        self.must_skip = False
        self._was_idle = self._was_idle or is_idle
        self._backlog_s = max(self._backlog_s, backlog_s)
        if backlog_s > CAUGHT_UP_S:
            self._caught_up_since_s = None
        elif self._caught_up_since_s is None:
            self._caught_up_since_s = now_s
        if now_s - self._checked_s >= CHECK_EVERY_S:
            self._check(now_s)
            self._checked_s, self._was_idle = now_s, is_idle
            self._backlog_before_s, self._backlog_s = self._backlog_s, backlog_s
        return self.stride

    def _check(self, now_s: float) -> None:
        is_growing = self._backlog_s > self._backlog_before_s - MIN_GAIN_S
        is_overload = self._backlog_s > MAX_BACKLOG_S and is_growing and not self._was_idle
        is_widest = self.stride >= self._max_stride
        self._n_exhausted = self._n_exhausted + 1 if is_overload and is_widest else 0
        if self._has_skipped:
            self._has_skipped = False
        elif is_overload and is_widest:
            if (
                self.is_exhausted or self._n_exhausted > 1
            ):  # the first one may be what was before the widening
                self._exhaust()
        elif is_overload:
            self._widen(now_s)
        elif (self.stride > 1 or self.is_exhausted) and self._caught_up_since_s is not None:
            if now_s - self._caught_up_since_s >= self._narrow_after_s:
                if not self.is_exhausted:
                    self._set(self.stride // 2)
                    self._narrowed_s = now_s
                self.is_exhausted = False
                self._caught_up_since_s = now_s
        elif self.stride == 1 and now_s - self._narrowed_s > MAX_NARROW_AFTER_S:
            self._narrow_after_s = NARROW_AFTER_S

    def _exhaust(self) -> None:
        if not self.is_exhausted:
            logger.warning(
                "%.1f s behind, and no more windows can be left out: audio will be given up",
                self._backlog_s,
            )
        self.is_exhausted = True
        self.must_skip = self._has_skipped = self._backlog_s > MAX_LAG_S

    def _widen(self, now_s: float) -> None:
        if now_s - self._narrowed_s <= 2 * self._narrow_after_s:  # it was too much
            self._narrow_after_s = min(2 * self._narrow_after_s, MAX_NARROW_AFTER_S)
        self._set(min(2 * self.stride, self._max_stride))

    def _set(self, stride: int) -> None:
        logger.warning(
            "scoring one of %d windows instead of one of %d: %.1f s behind",
            stride,
            self.stride,
            self._backlog_s,
        )
        self.stride = stride
