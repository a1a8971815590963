"""Delivery threads: a few for each action, so that a slow receiver holds up nobody else.

Nor does one message that hangs hold up the others of its action, and one thread is kept for what
is urgent. The feed has one: programs get alerts in the order of their transitions.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Failed, Outcome, Refused
from ast_stream.alerts.outbox import FEED, Delivery, Outbox
from ast_stream.alerts.store import StoreError

LOOK_EVERY_S = 5.0  # commands change the outbox from another process
DISK_RETRY_S = 1.0
DELIVERY_POINTS = ("taken", "delivered", "settled")  # the boundaries between what is done

logger = logging.getLogger(__name__)


def no_fault(point: str) -> None:
    """Do nothing at a point where a test may end the process."""


@dataclass(frozen=True)
class Lane:
    """What one of the threads of an action does.

    Attributes:
        urgent_only: it delivers nothing but alerts of high and critical severity.
        gives_up: it is the one that gives up what is too old.
    """

    urgent_only: bool = False
    gives_up: bool = False


FIRST_LANE = Lane(gives_up=True)
LANES = (FIRST_LANE, Lane(), Lane(urgent_only=True))


class Courier(threading.Thread):
    """Delivers rows of one action, one after the other, until stopped.

    Args:
        fault: called at each of `DELIVERY_POINTS`, with the name of the action before it.

    Attributes:
        action: name of the action.
    """

    def __init__(
        self,
        name: str,
        runner: ActionRunner,
        outbox: Outbox,
        fault: Callable[[str], None] = no_fault,
        lane: Lane = FIRST_LANE,
    ) -> None:
        super().__init__(name=f"deliver {name}", daemon=True)
        self.action = name
        self._lane = lane
        self._runner = runner
        self._outbox = outbox
        self._fault = fault
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._end_s = math.inf

    def run(self) -> None:
        """Deliver until `stop`, and then what is due, while there is time."""
        while True:
            self._wake.clear()  # first, so that no row that comes after the look is left waiting
            is_ending = self._stopped.is_set()
            wait_s = self._step_surely()
            if is_ending and (wait_s > 0 or time.monotonic() > self._end_s):
                return
            if wait_s > 0 and not is_ending:
                self._wake.wait(min(wait_s, LOOK_EVERY_S))

    def step(self) -> float:
        """Deliver one row if it is time; return the seconds until the next look."""
        self._give_up_old()
        try:
            found = self._outbox.take(self.action, urgent_only=self._lane.urgent_only)
        except StoreError as error:
            self._outbox.outage.failed("%s", error)
            return DISK_RETRY_S
        if not isinstance(found, Delivery):
            return LOOK_EVERY_S if found is None else found
        self._fault(f"{self.action} taken")
        outcome = self._deliver(found)
        self._fault(f"{self.action} delivered")
        self._settle(found, outcome)
        self._fault(f"{self.action} settled")
        return 0.0

    def _step_surely(self) -> float:
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

    def _give_up_old(self) -> None:
        if not self._lane.gives_up:
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
            case Refused(reason=reason):
                logger.error("%s cannot be delivered by %s: %s", *words, reason)
        return outcome

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Write the outcome, however long the disk is full: else it would be sent again."""
        while True:
            try:
                self._outbox.settle(delivery, outcome)
                return
            except StoreError as error:
                self._outbox.outage.failed("%s", error)
            if self._stopped.wait(DISK_RETRY_S):
                return


class Couriers:
    """The delivery threads of all actions."""

    def __init__(
        self,
        runners: Mapping[str, ActionRunner],
        outbox: Outbox,
        fault: Callable[[str], None] = no_fault,
    ) -> None:
        self._runners = dict(runners)
        self._couriers = [
            Courier(name, one, outbox, fault, lane)
            for name, one in runners.items()
            for lane in (LANES if name != FEED else LANES[:1])
        ]

    def start(self) -> None:
        """Start delivering."""
        for courier in self._couriers:
            courier.start()

    def wake(self) -> None:
        """Tell all that there may be new rows."""
        for courier in self._couriers:
            courier.wake()

    def stop(self, patience_s: float) -> None:
        """End; a delivery that takes longer than `patience_s` is left, and sent again next time."""
        end_s = time.monotonic() + patience_s
        for courier in self._couriers:
            courier.stop(patience_s)
        for courier in self._couriers:
            if courier.ident is not None:
                courier.join(max(0.0, end_s - time.monotonic()))
        at_work = {courier.action for courier in self._couriers if courier.is_alive()}
        for name, runner in self._runners.items():
            if name not in at_work:
                runner.close()
