"""What a stream has lost in the last minutes, so that its health still says so."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ast_stream.messages.event import Gap
from ast_stream.messages.status import RECENT_LOSS_S, RecentLoss
from ast_stream.units import NS_PER_SECOND, samples_to_seconds
from ast_stream.worker.reassembly import CAPTURE_RESTART

_TOGETHER_NS = NS_PER_SECOND  # gaps so close are kept as one: a device may overflow at each block


@dataclass
class _Loss:
    at_ns: int
    samples: int
    reasons: dict[str, None]


class RecentLosses:
    """Remembers the gaps of a stream for `RECENT_LOSS_S`; bounded, however many there are.

    As in the ledger, what a capture process did not hear because it was away is no loss.
    """

    def __init__(self) -> None:
        self._losses: deque[_Loss] = deque()

    def add(self, gap: Gap, now_ns: int) -> None:
        """Take note of a gap that is published now, on a monotonic clock."""
        if gap.reason == CAPTURE_RESTART or gap.samples <= 0:
            return
        if not self._losses or now_ns - self._losses[-1].at_ns >= _TOGETHER_NS:
            self._losses.append(_Loss(now_ns, 0, {}))
        newest = self._losses[-1]
        newest.samples += gap.samples
        newest.reasons[gap.reason] = None
        self._forget(now_ns)

    def summary(self, now_ns: int) -> RecentLoss | None:
        """Return what was lost in the last minutes; None: nothing."""
        self._forget(now_ns)
        if not self._losses:
            return None
        reasons = {reason for loss in self._losses for reason in loss.reasons}
        return RecentLoss(
            seconds=samples_to_seconds(sum(loss.samples for loss in self._losses)),
            ago_s=round((now_ns - self._losses[-1].at_ns) / NS_PER_SECOND, 1),
            reasons=sorted(reasons),
        )

    def _forget(self, now_ns: int) -> None:
        while self._losses and now_ns - self._losses[0].at_ns > RECENT_LOSS_S * NS_PER_SECOND:
            self._losses.popleft()
