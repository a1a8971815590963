"""From the settings of an action to what delivers by it."""

from __future__ import annotations

from collections.abc import Mapping

from ast_stream.alerts.actions.apprise import AppriseRunner
from ast_stream.alerts.actions.base import ActionRunner
from ast_stream.alerts.actions.command import CommandRunner
from ast_stream.alerts.actions.home_assistant import NOTHING, Watched
from ast_stream.alerts.actions.log import LogRunner
from ast_stream.alerts.actions.mqtt import MqttRunner
from ast_stream.alerts.actions.webhook import WebhookRunner
from ast_stream.alerts.delivery_policy import Route
from ast_stream.settings.alert_schema import (
    Action,
    AppriseAction,
    CommandAction,
    LogAction,
    MqttAction,
    WebhookAction,
)


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
