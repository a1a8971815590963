"""Requests of operators at the socket of the alerts process: who may send them, and which."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from ast_stream.alerts import outbox_operations as operations
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.outbox import SELF_RULE
from ast_stream.alerts.store import Store
from ast_stream.errors import AstStreamError, UsageError, WireError
from ast_stream.labels import did_you_mean
from ast_stream.messages.administration import (
    AcknowledgeRequest,
    Administered,
    AdministrationRequest,
    DropRequest,
    RetryRequest,
    SnoozeRequest,
    decode_administration,
    refuse_administration,
)
from ast_stream.runtime.logging import LimitedLog
from ast_stream.transport.allow_list import ADMIN
from ast_stream.transport.query import QuerySocket, without_envelope
from ast_stream.transport.requester import Requester
from ast_stream.units import seconds_to_ns

ANSWERS_A_TURN = 8

logger = logging.getLogger(__name__)


class Administration:
    """Answers requests between two turns of the alerts process.

    Over ipc the user of the services and root may administrate, over tcp clients whose key has the
    right `admin`. What somebody changed is logged, with who it was.

    Args:
        rules: names of the rules in force.
        actions: names of the configured actions.
    """

    def __init__(
        self,
        socket: QuerySocket,
        store: Store,
        rules: Callable[[], Collection[str]],
        actions: Collection[str],
    ) -> None:
        self._socket = socket
        self._store = store
        self._rules = rules
        self._actions = actions
        self._log = LimitedLog(logger)

    def serve(self) -> None:
        """Answer the requests that wait, at most `ANSWERS_A_TURN`."""
        for _ in range(ANSWERS_A_TURN):
            frames = self._socket.receive()
            if frames is None:
                return
            envelope, request = without_envelope(frames)
            requester = self._socket.requester(envelope[0])
            self._socket.send(envelope + self.answer(request, requester))

    def answer(self, request: list[bytes], requester: Requester) -> list[bytes]:
        """Return the frames that answer the frames of one request."""
        try:
            if not requester.rights.may(ADMIN):
                raise WireError(f"not allowed: the client lacks the right {ADMIN!r}")
            return self._done(decode_administration(request), requester.name).encode()
        except AstStreamError as error:
            self._log.warning("request of %s refused: %s", requester.name, error)
            return refuse_administration(str(error))

    def _done(self, request: AdministrationRequest, who: str) -> Administered:
        time = self._store.steady_time()
        now_ns = time.now_ns()
        until_ns = None
        match request:
            case AcknowledgeRequest():
                what = f"alert {request.alert} is acknowledged"
                changed = operations.acknowledge(self._store, request.alert, now_ns, who)
            case SnoozeRequest():
                check_rule(self._store, request.rule, self._rules())
                until_ns = now_ns + seconds_to_ns(request.for_s)
                changed = operations.snooze(self._store, request.rule, until_ns, now_ns)
                what = f"rule {request.rule} is snoozed for {request.for_s:g} s"
            case RetryRequest():
                check_action(self._store, request.action, self._actions)
                changed = operations.retry(self._store, request.numbers, now_ns, request.action)
                what = f"{changed} deliveries are tried again"
            case DropRequest():
                check_action(self._store, request.action, self._actions)
                changed = operations.drop(self._store, request.numbers, now_ns, request.action)
                what = f"{changed} deliveries are dropped"
        logger.info("%s by %s", what, who)
        return Administered(
            deliveries=changed, until_ns=None if until_ns is None else time.wall_ns(until_ns)
        )


def check_rule(store: Store, rule: str, rules: Collection[str]) -> None:
    """Refuse the name of no rule.

    Args:
        rules: names of those that are known beside the ones that have alerted.

    Raises:
        UsageError: there is no rule of that name.
    """
    _expect("a rule", rule, {SELF_RULE, *rules, *operations.known_rules(store)})


def check_action(store: Store, action: str | None, actions: Collection[str]) -> None:
    """Refuse the name of no action.

    Args:
        action: None: all of them.
        actions: names of those that are configured.

    Raises:
        UsageError: there is no action of that name.
    """
    if action is not None:
        _expect("an action", action, {FEED, *actions, *operations.known_actions(store)})


def _expect(what: str, name: str, known: set[str]) -> None:
    if name not in known:
        near = did_you_mean(name, known) or f"; known: {', '.join(sorted(known))}"
        raise UsageError(f"expected the name of {what}, got {name!r}{near}")
