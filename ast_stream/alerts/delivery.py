"""Delivery threads: a few for each action, so that a slow receiver delays only itself.

Nor does one message that hangs delay the others of its action, and one thread is reserved for
urgent ones. The feed has one thread: programs get alerts in the order of their transitions.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Failed, Outcome, Undeliverable
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.outbox import Delivery, Outbox
from ast_stream.alerts.store import StoreError

POLL_EVERY_S = 5.0  # commands change the outbox from another process
DISK_RETRY_S = 1.0
N_THREADS = 3  # of an action; the last one is for urgent alerts only
DELIVERY_POINTS = ("taken", "delivered", "settled")  # the boundaries between what is done

logger = logging.getLogger(__name__)


def no_fault(point: str) -> None:
    """Do nothing at a point where a test may end the process."""


class DeliveryThread(threading.Thread):
    """Delivers rows of one action, one after the other, until stopped.

    Args:
        fault: called at each of `DELIVERY_POINTS`, with the name of the action before it.
        urgent_only: it delivers nothing but alerts of high and critical severity.
        expires_old: it is the one of the action's threads that gives up what has expired.

    Attributes:
        action: name of the action.
    """

    def __init__(
        self,
        name: str,
        runner: ActionRunner,
        outbox: Outbox,
        fault: Callable[[str], None] = no_fault,
        *,
        urgent_only: bool = False,
        expires_old: bool = True,
    ) -> None:
        super().__init__(name=f"deliver {name}", daemon=True)
        self.action = name
        self._urgent_only = urgent_only
        self._expires_old = expires_old
        self._runner = runner
        self._outbox = outbox
        self._fault = fault
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._end_s = math.inf

    def run(self) -> None:
        """Deliver until `stop`, and then what is due, while there is time."""
        while True:
            self._wake.clear()  # first, so that no row that arrives from here on waits
            is_ending = self._stopped.is_set()
            wait_s = self._guarded_step()
            if is_ending and (wait_s > 0 or time.monotonic() > self._end_s):
                return
            if wait_s > 0 and not is_ending:
                self._wake.wait(min(wait_s, POLL_EVERY_S))

    def step(self) -> float:
        """Deliver one row if it is time; return the seconds until it is worth trying again."""
        self._expire_old()
        try:
            found = self._outbox.next_delivery(self.action, urgent_only=self._urgent_only)
        except StoreError as error:
            self._outbox.outage.failed("%s", error)
            return DISK_RETRY_S
        if not isinstance(found, Delivery):
            return POLL_EVERY_S if found is None else found
        self._fault(f"{self.action} taken")
        outcome = self._deliver(found)
        self._fault(f"{self.action} delivered")
        self._settle(found, outcome)
        self._fault(f"{self.action} settled")
        return 0.0

    def _guarded_step(self) -> float:
        try:
            return self.step()
        except Exception:  # one boundary: a fault must not end the deliveries of an action
            logger.exception("deliveries by %s failed in a way they should not", self.action)
            return DISK_RETRY_S

    def wake(self) -> None:
        """Look now: there may be new rows."""
        self._wake.set()

    def stop(self, patience_s: float) -> None:
        """End when nothing is due, or after the delivery under way when time is up."""
        self._end_s = time.monotonic() + patience_s
        self._stopped.set()
        self._wake.set()

    def _expire_old(self) -> None:
        if not self._expires_old:
            return
        try:
            self._outbox.expire(self.action)
        except StoreError as error:
            self._outbox.outage.failed("%s", error)

    def _deliver(self, delivery: Delivery) -> Outcome:
        try:
            outcome = self._runner.deliver(delivery.notification)
        except Exception as error:  # one boundary: a fault in one action must not end its thread
            logger.exception("action %s failed in a way it should not", self.action)
            outcome = Failed(f"internal error: {type(error).__name__}")
        words = (delivery.notification.id, self.action)
        match outcome:
            case Delivered():
                logger.debug("%s delivered by %s", *words)
            case Failed(reason=reason):
                logger.warning("%s not delivered by %s, to be tried again: %s", *words, reason)
            case Undeliverable(reason=reason):
                logger.error("%s cannot be delivered by %s: %s", *words, reason)
        return outcome

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Record the outcome, however long the disk is full: otherwise it would be sent again."""
        while True:
            try:
                self._outbox.settle(delivery, outcome)
                return
            except StoreError as error:
                self._outbox.outage.failed("%s", error)
            if self._stopped.wait(DISK_RETRY_S):
                return


class DeliveryThreads:
    """The delivery threads of all actions."""

    def __init__(
        self,
        runners: Mapping[str, ActionRunner],
        outbox: Outbox,
        fault: Callable[[str], None] = no_fault,
    ) -> None:
        self._runners = dict(runners)
        self._threads = [
            DeliveryThread(
                name,
                runner,
                outbox,
                fault,
                urgent_only=n == N_THREADS - 1,
                expires_old=n == 0,
            )
            for name, runner in runners.items()
            for n in range(N_THREADS if name != FEED else 1)
        ]

    def start(self) -> None:
        """Start delivering."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Let all of them look for new rows."""
        for thread in self._threads:
            thread.wake()

    def stop(self, patience_s: float) -> None:
        """End; a delivery that takes longer than `patience_s` is sent again at the next start."""
        end_s = time.monotonic() + patience_s
        for thread in self._threads:
            thread.stop(patience_s)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end_s - time.monotonic()))
        busy = {thread.action for thread in self._threads if thread.is_alive()}
        for name, runner in self._runners.items():
            if name not in busy:
                runner.close()
