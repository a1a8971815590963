"""What all actions share: the runner's interface and outcomes of a delivery.

The module of an action has the name of its `type` and calls its runner class `RUNNER`, so that a
new action is its settings class and its module, and nothing else. Modules are imported on demand.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Protocol, runtime_checkable

from ast_stream.alerts.notification import Notification
from ast_stream.errors import Problem, StartupError
from ast_stream.labels import one_line
from ast_stream.messages.event import EventMessage
from ast_stream.messages.status import Health
from ast_stream.settings.alerts import Action, AlertSettings
from ast_stream.settings.load import LoadedSettings


@dataclass(frozen=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True)
class Failed:
    """The delivery failed and is worth another attempt.

    Attributes:
        after_s: how long the receiver asked us to wait, in seconds.
        is_down: the receiver may be unreachable for any message, not just for this one.
    """

    reason: str
    after_s: float = 0.0
    is_down: bool = False


@dataclass(frozen=True)
class Undeliverable:
    """Another attempt cannot succeed.

    Attributes:
        is_closed: nor can any other message to this receiver.
    """

    reason: str
    is_closed: bool = False


Outcome = Delivered | Failed | Undeliverable


@dataclass(frozen=True)
class Entities:
    """What live sensors show: streams by classes, and the rules that alert.

    Attributes:
        classes: labels as people read them.
    """

    streams: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


NO_ENTITIES = Entities()


class ActionRunner(ABC):
    """Delivers notifications for one configured action; called by a few threads at once.

    Attributes:
        needs_rules: whether it does nothing unless a rule names it.
    """

    needs_rules: ClassVar[bool] = True

    def __init__(self, name: str, settings: Any) -> None:
        self._name = name
        self._settings = settings

    @classmethod
    def create(cls, name: str, settings: Any, entities: Entities = NO_ENTITIES) -> ActionRunner:
        """Return the runner of the action `name`.

        Args:
            settings: the action's own settings class.
            entities: for runners that also show live sensors.

        Raises:
            StartupError: a library, file or secret that it needs is missing.
        """
        return cls(name, settings)

    @classmethod
    def check(cls, name: str, settings: Any) -> None:
        """Raise what `create` would, without contacting anyone."""
        cls.create(name, settings).close()

    @classmethod
    def problems(cls, name: str, settings: Any) -> Iterator[str]:
        """Yield what would keep the action from delivering, as far as this machine can tell."""
        try:
            cls.check(name, settings)
        except Exception as error:  # whatever a third party's library or file does
            yield describe_error(name, error)

    @abstractmethod
    def deliver(self, notification: Notification) -> Outcome:
        """Deliver one notification within the action's own time limit; never raises."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close connections, if there are any."""


@runtime_checkable
class LiveSensors(Protocol):
    """A runner that also shows what is detected now, besides delivering alerts."""

    def expose(self, entities: Entities) -> None:
        """Show these streams, classes and rules from now on."""

    def on_event(self, event: EventMessage) -> None:
        """Process an event message of the feed."""

    def on_health(self, health: Health) -> None:
        """Process a health message of the feed."""


def runner_class(settings: Action) -> type[ActionRunner]:
    """Return the class that delivers for actions of this type."""
    module = import_module(f"{__package__}.{settings.type}")
    found: type[ActionRunner] = module.RUNNER
    return found


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
        return DeferredRunner(name, create, describe_error(name, error), on_created)
    on_created(runner)
    return runner


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


def describe_error(name: str, error: Exception) -> str:
    """Return in words why the action `name` cannot be used."""
    if isinstance(error, StartupError):
        return str(error).removeprefix(f"action {name}: ")
    return f"{type(error).__name__}: {one_line(str(error))}"


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
