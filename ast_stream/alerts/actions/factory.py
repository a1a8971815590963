"""From the settings of an action to what delivers by it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ast_stream.alerts.actions.apprise import AppriseRunner
from ast_stream.alerts.actions.base import (
    ActionRunner,
    Failed,
    Notification,
    Outcome,
    one_line,
)
from ast_stream.alerts.actions.command import CommandRunner
from ast_stream.alerts.actions.home_assistant import NOTHING, Watched
from ast_stream.alerts.actions.http_post import may_be_public
from ast_stream.alerts.actions.log import LogRunner
from ast_stream.alerts.actions.mqtt import MqttRunner, new_client
from ast_stream.alerts.actions.webhook import WebhookRunner
from ast_stream.alerts.delivery_policy import Route
from ast_stream.errors import Problem, StartupError
from ast_stream.settings.alert_schema import (
    Action,
    AlertSettings,
    AppriseAction,
    CommandAction,
    LogAction,
    MqttAction,
    WebhookAction,
)
from ast_stream.settings.check import LoadedSettings


def check_action(name: str, settings: Action) -> list[str]:
    """Return what keeps the action `name` from delivering, as far as this machine can tell.

    Nothing is connected to or sent.
    """
    found: list[str] = []
    try:
        match settings:
            case MqttAction():
                new_client(name, settings)
            case CommandAction():
                found += _check_program(settings.argv[0])
            case _:
                make_runner(name, settings).close()
    except Exception as error:  # whatever a library or a file of others does
        found.append(trouble_of(name, error))
    if isinstance(settings, WebhookAction) and not settings.allow_private:
        host = urlsplit(settings.url).hostname or ""
        if not may_be_public(host):
            text = f"url: {host} is not public: expected 'allow_private: true' beside it, got none"
            found.append(text)
    return found


def _check_program(program: str) -> Iterator[str]:
    try:
        is_file = Path(program).is_file()
    except ValueError:
        is_file = False
    if not is_file:
        yield f"argv: there is no program {program}"
    elif not os.access(program, os.X_OK):
        yield f"argv: {program} may not be executed"


def make_runner(name: str, settings: Action, watched: Watched = NOTHING) -> ActionRunner:
    """Return what delivers by the action `name`.

    Raises:
        StartupError: it needs a library, a file or a secret that is not there.
    """
    match settings:
        case LogAction():
            return LogRunner(settings)
        case CommandAction():
            return CommandRunner(settings)
        case WebhookAction():
            return WebhookRunner(name, settings)
        case MqttAction():
            return MqttRunner(name, settings, watched)
        case AppriseAction():
            return AppriseRunner(name, settings)


class LateRunner:
    """An action that something is missing for; it is looked for again with each delivery.

    The alerts wait in the outbox meanwhile, and other actions know nothing of it.

    Args:
        name: of the action.
        make: returns what delivers, or raises a `StartupError`.
        is_made: is called once with what `make` has returned.

    Attributes:
        trouble: what is missing; None once nothing is.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], ActionRunner],
        trouble: str,
        is_made: Callable[[ActionRunner], None] = lambda runner: None,
    ) -> None:
        self.trouble: str | None = trouble
        self._name = name
        self._make = make
        self._is_made = is_made
        self._runner: ActionRunner | None = None
        self._lock = threading.Lock()

    def deliver(self, notification: Notification) -> Outcome:
        """Deliver if that is possible by now."""
        runner = self._obtain()
        if runner is None:
            return Failed(self.trouble or "", is_down=True)
        return runner.deliver(notification)

    def close(self) -> None:
        """Let go of connections."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()

    def _obtain(self) -> ActionRunner | None:
        with self._lock:
            if self._runner is None:
                try:
                    self._runner = self._make()
                except Exception as error:  # whatever a library or a file of others does
                    self.trouble = trouble_of(self._name, error)
                    return None
                self.trouble = None
                self._is_made(self._runner)
            return self._runner


def trouble_of(name: str, error: Exception) -> str:
    """Return why the action `name` cannot be used, in words."""
    if isinstance(error, StartupError):
        return str(error).removeprefix(f"action {name}: ")
    return f"{type(error).__name__}: {one_line(str(error))}"


def kinds_by_action(actions: Mapping[str, Action]) -> dict[str, tuple[str, ...]]:
    """Return whether each action takes `firing` and `resolved`."""
    return {name: tuple(one.on) for name, one in actions.items()}


def used_without_rules(alerts: AlertSettings) -> set[str]:
    """Return the actions that do something although no rule names them."""
    used = {name for name, one in alerts.actions.items() if isinstance(one, MqttAction)}
    return used | ({alerts.heartbeat.action} if alerts.heartbeat is not None else set())


def action_problems(loaded: LoadedSettings) -> list[Problem]:
    """Return what keeps the configured actions from delivering, as far as this machine can tell."""
    return [
        loaded.problem(("alerts", "actions", name), text)
        for name, one in loaded.settings.alerts.actions.items()
        for text in check_action(name, one)
    ]


def routes(actions: Mapping[str, Action]) -> dict[str, Route]:
    """Return what the outbox needs to know of the actions, in their order."""
    return {
        name: Route(
            on=frozenset(one.on),
            max_per=(one.rate_limit.max, one.rate_limit.per_s),
            settings=one.model_dump_json(),
        )
        for name, one in actions.items()
    }
