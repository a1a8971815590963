"""Alerts and deliveries on the page: read from the database, changed by the alerts process."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ast_stream.alerts import outbox_operations as operations
from ast_stream.alerts.outbox_operations import ActiveAlert, OutboxRow
from ast_stream.alerts.rules.compile import alert_names, read_rule_document
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.store import Store
from ast_stream.errors import AstStreamError, ConfigError
from ast_stream.messages.administration import Administered, AdministrationRequest
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import admin_endpoint, alerts_state_file
from ast_stream.transport.keys import client_keys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets

ANSWER_S = 5.0
SHOWN = 100  # deliveries of each kind
GIVEN_UP = ("dead", "expired")


class NoAnswerError(AstStreamError):
    """The alerts process does not answer."""


@dataclass(frozen=True)
class DeliveryShown:
    """A delivery as shown on the page, with wall times in ns."""

    row: OutboxRow
    created_ns: int
    next_ns: int


@dataclass(frozen=True)
class ActiveAlertShown:
    """A firing alert as shown on the page, with its wall time in ns."""

    alert: ActiveAlert
    updated_ns: int


@dataclass(frozen=True)
class AlertsState:
    """The state of alerts and deliveries.

    Attributes:
        waiting, given_up: deliveries, newest first, at most `SHOWN`.
        alerts: the firing alerts.
        snoozes: snoozed rules, and until when (ns).
    """

    waiting: list[DeliveryShown]
    given_up: list[DeliveryShown]
    alerts: list[ActiveAlertShown]
    snoozes: list[tuple[str, int]]


class AlertOperations:
    """Reads the database of alerts, and asks the alerts process for changes."""

    def __init__(self, loaded: LoadedSettings) -> None:
        self._loaded = loaded
        self._settings = loaded.settings

    @property
    def has_rules(self) -> bool:
        """Whether there is an alerts process."""
        return bool(self._settings.alerts.rules)

    def look(self) -> AlertsState:
        """Return the current state.

        Raises:
            StartupError: the alerts process has never run.
            StoreError: its database cannot be read.
        """
        with closing(Store(alerts_state_file(self._settings), must_exist=True)) as store:
            time = store.steady_time()
            return AlertsState(
                waiting=_deliveries(operations.rows(store, ("pending",), limit=SHOWN), time),
                given_up=_deliveries(operations.rows(store, GIVEN_UP, limit=SHOWN), time),
                alerts=[
                    ActiveAlertShown(alert, time.wall_ns(alert.updated_ns))
                    for alert in operations.active(store, SHOWN)
                ],
                snoozes=[
                    (rule, time.wall_ns(until_ns))
                    for rule, until_ns in operations.snoozes(store, time.now_ns())
                ],
            )

    def rules(self) -> list[str]:
        """Return the names of the rules in the files of the configuration."""
        found: set[str] = set()
        for name in self._settings.alerts.rules:
            try:
                found |= alert_names(read_rule_document(Path(self._loaded.file).parent / name))
            except ConfigError:  # the alerts process reports it
                continue
        return sorted(found)

    def ask(self, request: AdministrationRequest) -> Administered:
        """Ask the alerts process for a change, and return its answer.

        Raises:
            WireError: it refuses; the text gives the reason.
            NoAnswerError: it does not answer.
        """
        endpoint = admin_endpoint(self._settings)
        keys = client_keys(self._settings.transport) if endpoint.startswith("tcp://") else None
        sockets = Sockets(keys)
        try:
            frames = QueryClient(sockets, endpoint).ask(request, ANSWER_S)
        finally:
            sockets.close()
        if frames is None:
            raise NoAnswerError(f"the alerts process does not answer at {endpoint}")
        return Administered.decode(frames)


def _deliveries(rows: list[OutboxRow], time: SteadyTime) -> list[DeliveryShown]:
    return [
        DeliveryShown(row, time.wall_ns(row.created_ns), time.wall_ns(row.next_ns)) for row in rows
    ]
