"""What the alerts process says of itself: to its service manager, on its feed, to Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from ast_stream.alerts.outbox import Failing
from ast_stream.alerts.schedule import FEED
from ast_stream.alerts.store import StoreError
from ast_stream.messages.status import AlertsStatus, FailingAction
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.metrics import Family, Metrics, counter, gauge
from ast_stream.transport.feed import FeedPublisher

TELL_EVERY_S = 1.0


class AlertLife:
    """Tells once a second how the process is.

    Args:
        facts: returns number of rules, and whether the worker is heard.
        pending: returns how many deliveries wait, by action; raises a `StoreError` if that
            cannot be read now.
        failing: returns the actions whose deliveries do not get through; raises as `pending`.
        attempts: deliveries that were tried, by action and outcome.
        published: alerts published, by rule and severity.

    Attributes:
        disk: returns what cannot be written, and why; None while all can.
    """

    def __init__(
        self,
        notifier: Notifier,
        metrics: Metrics,
        publisher: FeedPublisher,
        facts: Callable[[], tuple[int, bool]],
        pending: Callable[[], Mapping[str, int]],
        failing: Callable[[], Sequence[Failing]],
        attempts: Counter[tuple[str, str]],
        published: Counter[tuple[str, str]],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.notifier = notifier
        self._published = published
        self._metrics = metrics
        self._publisher = publisher
        self._facts = facts
        self._pending = pending
        self._failing = failing
        self._attempts = attempts
        self._now_s = now_s
        self._next_s = float("-inf")
        self._status = "starting"
        self.disk: Callable[[], str | None] = lambda: None

    def turn(self) -> None:
        """Be called after each turn of the loop, and while the loop waits for its disk."""
        if self._now_s() >= self._next_s:
            self._next_s = self._now_s() + TELL_EVERY_S
            self._tell()
        self.notifier.turn(lambda: self._status, is_working=True)

    def _tell(self) -> None:
        n_rules, hears = self._facts()
        try:
            pending: Mapping[str, int] | None = self._pending()
            failing = self._failing()
        except StoreError:
            pending, failing = None, []
        total = None if pending is None else sum(pending.values())
        waiting = "the outbox cannot be read" if total is None else f"{total} to deliver"
        names = ", ".join(one.action for one in failing)
        failed = f", not delivered by {names}" if names else ""
        unheard = "" if hears else ", waiting for the worker"
        self._status = f"{n_rules} rules, {waiting}{failed}{unheard}"
        status = AlertsStatus(
            n_rules=n_rules,
            hears_worker=hears,
            pending=total,
            disk=self.disk(),
            failing=[FailingAction(**one.as_json()) for one in failing],
            pending_by_action=None if pending is None else dict(pending),
        )
        self._publisher.publish(status)
        if self._metrics.is_on:
            families = self._families(n_rules, hears, pending or {})
            self._metrics.renew([*families, *self._delivery_families(pending or {}, failing)])

    def _delivery_families(
        self, actions: Iterable[str], failing: Sequence[Failing]
    ) -> list[Family]:
        names = {one.action for one in failing}
        return [
            gauge(
                "ast_stream_alerts_action_failing",
                "1 while alerts do not get through by an action",
                {(name,): name in names for name in actions if name != FEED},
                ("action",),
            ),
            counter(
                "ast_stream_alerts_delivery_attempts_total",
                "Deliveries that were tried; outcome is delivered, failed or refused",
                {key: n for key, n in self._attempts.items()},
                ("action", "outcome"),
            ),
        ]

    def _families(self, n_rules: int, hears: bool, pending: Mapping[str, int]) -> list[Family]:
        return [
            gauge("ast_stream_alerts_rules", "Rules in force", {(): n_rules}),
            gauge("ast_stream_alerts_hears_worker", "1 while the worker is heard", {(): hears}),
            gauge(
                "ast_stream_alerts_disk_failing",
                "1 while the alert database cannot be written",
                {(): float(self.disk() is not None)},
            ),
            gauge(
                "ast_stream_alerts_outbox_pending",
                "Deliveries that wait",
                {(action,): n for action, n in pending.items()},
                ("action",),
            ),
            counter(
                "ast_stream_alerts_published_total",
                "Alert messages published",
                {key: n for key, n in self._published.items()},
                ("rule", "severity"),
            ),
            counter(
                "ast_stream_feed_messages_total",
                "Messages published",
                {(kind,): n for kind, n in self._publisher.messages.items()},
                ("kind",),
            ),
            counter(
                "ast_stream_feed_drops_total",
                "Messages that found no room",
                {(): self._publisher.drops},
            ),
        ]
