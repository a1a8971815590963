"""What a process says about itself: on a feed of its own, to Prometheus, in a line."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

from ast_stream.messages.event import Content
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.metrics import Family, Metrics
from ast_stream.settings.paths import metrics_address
from ast_stream.settings.schema import Settings
from ast_stream.transport.keys import client_keys
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.transport.sockets import FEED_HWM_MESSAGES, Sockets

REPORT_EVERY_S = 1.0
Status = TypeVar("Status", bound=Content)


@dataclass(frozen=True)
class Reporting:
    """Where a process reports.

    Attributes:
        sockets: of the process, for what else it needs.
    """

    notifier: Notifier
    metrics: Metrics
    publisher: FeedPublisher
    sockets: Sockets

    @classmethod
    def open(cls, settings: Settings, process: str, endpoint: str, cleanup: ExitStack) -> Reporting:
        """Return what is open until the end of `cleanup`.

        Args:
            process: its name in metrics.
            endpoint: of its feed.

        Raises:
            StartupError: an endpoint cannot be used.
        """
        metrics = Metrics(process, metrics_address(settings, process))
        cleanup.callback(metrics.close)
        sockets = Sockets(client_keys(settings.transport))
        cleanup.callback(sockets.close)
        pub = sockets.bind("pub", endpoint, FEED_HWM_MESSAGES)
        publisher = FeedPublisher(pub, None, secrets.token_hex(8))
        return cls(Notifier(), metrics, publisher, sockets)


class ProcessReport(ABC, Generic[Status]):
    """Reports once a second.

    Attributes:
        restart_needed: keys of the configuration that have changed and are not in use.
    """

    def __init__(self, to: Reporting, now_s: Callable[[], float] = time.monotonic) -> None:
        self.notifier = to.notifier
        self.restart_needed: Sequence[str] = ()
        self._metrics = to.metrics
        self._publisher = to.publisher
        self._now_s = now_s
        self._next_s = float("-inf")
        self._line = "starting"

    @abstractmethod
    def status(self) -> Status:
        """Return how the process is."""

    @abstractmethod
    def families(self, status: Status) -> list[Family]:
        """Return the figures for Prometheus."""

    @abstractmethod
    def describe(self, status: Status) -> str:
        """Return a status as a line for people."""

    def tick(self) -> None:
        """Report if it is time; called after each turn of the loop."""
        if self._now_s() >= self._next_s:
            self._next_s = self._now_s() + REPORT_EVERY_S
            status = self.status()
            self._line = self.describe(status)
            self._publisher.publish(status)
            if self._metrics.is_on:
                self._metrics.renew(self.families(status))
        self.notifier.turn(lambda: self._line, is_working=True)

    def note_restart_needed(self, keys: Sequence[str]) -> None:
        """Report from now on that these keys of the configuration wait for a restart."""
        self.restart_needed = keys
