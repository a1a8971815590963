"""From the settings of an action to its runner.

The module of an action has the name of its `type` and calls its runner class `RUNNER`, so that a
new action is its settings class and its module, and nothing else. Modules are imported on demand.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module

from ast_stream.alerts.actions.base import (
    NO_ENTITIES,
    ActionRunner,
    Entities,
    Failed,
    Outcome,
    describe_error,
)
from ast_stream.alerts.notification import Notification
from ast_stream.errors import Problem
from ast_stream.settings.alerts import Action, AlertSettings
from ast_stream.settings.load import LoadedSettings

logger = logging.getLogger(__name__)


def runner_class(settings: Action) -> type[ActionRunner]:
    """Return the class that delivers for actions of this type."""
    module = import_module(f"{__name__.rpartition('.')[0]}.{settings.type}")
    found: type[ActionRunner] = module.RUNNER
    return found


class DeferredRunner(ActionRunner):
    """Stands in for an action that cannot be used yet; tries to create it at each delivery.

    Meanwhile its alerts wait in the outbox, and no other action is affected.

    Args:
        create: returns the runner, or raises.
        on_created: called once with the runner that `create` returned.

    Attributes:
        error: why it cannot be used; None once it can.
    """

    def __init__(
        self,
        name: str,
        create: Callable[[], ActionRunner],
        error: str,
        on_created: Callable[[ActionRunner], None],
    ) -> None:
        super().__init__(name, None)
        self.error: str | None = error
        self._create = create
        self._on_created = on_created
        self._runner: ActionRunner | None = None
        self._lock = threading.Lock()

    def deliver(self, notification: Notification) -> Outcome:
        """Deliver if the action can be used by now."""
        runner = self._obtain()
        if runner is None:
            return Failed(self.error or "", is_down=True)
        return runner.deliver(notification)

    def close(self) -> None:
        """Close the runner, if there is one."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()

    def _obtain(self) -> ActionRunner | None:
        with self._lock:
            if self._runner is None:
                try:
                    self._runner = self._create()
                except Exception as error:  # whatever a third party's library or file does
                    self.error = describe_error(self._name, error)
                    return None
                self.error = None
                self._on_created(self._runner)
            return self._runner


def create_runner(
    name: str,
    settings: Action,
    entities: Entities = NO_ENTITIES,
    on_created: Callable[[ActionRunner], None] = lambda runner: None,
) -> ActionRunner:
    """Return the runner of the action `name`; one that cannot be used yet is tried again.

    Args:
        on_created: called once with the runner, perhaps later.
    """
    create = partial(runner_class(settings).create, name, settings, entities)
    try:
        runner = create()
    except Exception as error:  # one boundary: whatever a third party's library or file does
        reason = describe_error(name, error)
        text = "the action %s cannot be used: %s; its alerts wait, it is tried again with each"
        logger.error(text, name, reason)
        return DeferredRunner(name, create, reason, on_created)
    on_created(runner)
    return runner


def kinds_by_action(actions: Mapping[str, Action]) -> dict[str, tuple[str, ...]]:
    """Return for each action which of `firing` and `resolved` it delivers."""
    return {name: tuple(action.on) for name, action in actions.items()}


def used_without_rules(alerts: AlertSettings) -> set[str]:
    """Return the actions that do something although no rule names them."""
    used = {name for name, action in alerts.actions.items() if not runner_class(action).needs_rules}
    return used | ({alerts.heartbeat.action} if alerts.heartbeat is not None else set())


def action_problems(loaded: LoadedSettings) -> list[Problem]:
    """Return what keeps the configured actions from delivering, as far as this machine can tell.

    Nobody is contacted.
    """
    problems: list[Problem] = []
    for name, settings in loaded.settings.alerts.actions.items():
        place = ("alerts", "actions", name)
        texts = runner_class(settings).problems(name, settings)
        problems += [loaded.problem(place, text) for text in texts]
    return problems
