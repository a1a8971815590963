"""The services that routes depend on: one object, created at the start of the process."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection

from ast_stream.alerts.model_facts import model_facts
from ast_stream.errors import CheckpointError
from ast_stream.privacy.audit import open_audit_log
from ast_stream.privacy.page_users import Users
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import web_users_file
from ast_stream.settings.schema import Settings
from ast_stream.web.alert_operations import AlertOperations
from ast_stream.web.box_watch import BoxWatch
from ast_stream.web.clip_audit import ClipAudit
from ast_stream.web.cookies import Cookies
from ast_stream.web.live import LiveHub
from ast_stream.web.logins import Logins
from ast_stream.web.sessions import Sessions
from ast_stream.web.stored_data import StoredData
from ast_stream.web.tokens import Tokens
from ast_stream.web.tuning import Tuning
from ast_stream.web.visitors import Visitors

HOUR_S = 3600.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """The services that routes share; each manages its own threads.

    Attributes:
        settings: the whole configuration.
        clips: folder of the recorded clips.
        tokens: CSRF tokens of this run.
        cookies: makes the cookies that identify browsers.
        users: who may log in.
        sessions: the open login sessions.
        logins: begins login sessions.
        visitors: finds out who sent a request.
        hub: live messages.
        past: stored data.
        clip_audit: audit log of clips and changes.
        box: status of all processes.
        alerts: reads and changes alerts and deliveries.
        tuning: tries other settings on stored data.
    """

    settings: Settings
    clips: Path
    tokens: Tokens
    cookies: Cookies
    users: Users
    sessions: Sessions
    logins: Logins
    visitors: Visitors
    hub: LiveHub
    past: StoredData
    clip_audit: ClipAudit
    box: BoxWatch
    alerts: AlertOperations
    tuning: Tuning


def open_services(loaded: LoadedSettings, cleanup: ExitStack) -> Services:
    """Return the services of a configuration.

    Args:
        cleanup: closes them.

    Raises:
        ConfigError, StartupError: the user file, or the keys for the feeds, cannot be used.
    """
    settings, web = loaded.settings, loaded.settings.web
    users = Users(web_users_file(settings))
    sessions = Sessions(web.idle_h * HOUR_S, web.session_h * HOUR_S)
    clip_audit = ClipAudit(open_audit_log(settings, "web"))
    cleanup.callback(clip_audit.close)
    labels = _labels(settings)
    box = BoxWatch(settings)
    cleanup.callback(box.close)
    past = StoredData(settings, labels)
    cleanup.callback(past.close)
    return Services(
        settings=settings,
        clips=Path(settings.state_dir) / "clips",
        tokens=Tokens(),
        cookies=Cookies(web),
        users=users,
        sessions=sessions,
        logins=Logins(users, sessions),
        visitors=Visitors(web, users, sessions),
        hub=LiveHub.of(settings, labels),
        past=past,
        clip_audit=clip_audit,
        box=box,
        alerts=AlertOperations(loaded),
        tuning=Tuning(loaded, past),
    )


def _labels(settings: Settings) -> tuple[str, ...] | None:
    """Return the classes of the model; None if they are not known."""
    try:
        return model_facts(settings.model).labels
    except CheckpointError as error:
        logger.warning("the page shows no scores: %s", error)
        return None


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the application that handles a request."""
    found: Services = connection.app.state.services
    return found
