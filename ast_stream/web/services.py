"""What the routes of the page work with: one object, made at the start of the process."""

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
from ast_stream.web.alerts_desk import AlertsDesk
from ast_stream.web.box_watch import BoxWatch
from ast_stream.web.clip_audit import ClipAudit
from ast_stream.web.cookies import Cookies
from ast_stream.web.live import LiveHub
from ast_stream.web.logins import Logins
from ast_stream.web.past import Past
from ast_stream.web.sessions import Sessions
from ast_stream.web.tokens import Tokens
from ast_stream.web.tuning import Tuning
from ast_stream.web.visitors import Visitors

HOUR_S = 3600.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """What routes share; each part takes care of its own threads.

    Attributes:
        settings: of the whole configuration.
        clips: folder of the recorded clips.
        tokens: secrets of this run, against forged requests.
        cookies: by which browsers are known.
        users: who may log in.
        sessions: logins that go on.
        logins: begins them.
        visitors: who sends a request.
        hub: what is heard now.
        past: what was heard before.
        clip_audit: who listened to which clip.
        box: how all processes are.
        alerts: alerts and deliveries, to look at and to administrate.
        tuning: tries other settings on what was heard.
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
    past: Past
    clip_audit: ClipAudit
    box: BoxWatch
    alerts: AlertsDesk
    tuning: Tuning


def open_services(loaded: LoadedSettings, cleanup: ExitStack) -> Services:
    """Return the services of a configuration.

    Args:
        cleanup: closes them.

    Raises:
        ConfigError, StartupError: the file of users, or keys that the feeds need, cannot be used.
    """
    settings, web = loaded.settings, loaded.settings.web
    users = Users(web_users_file(settings))
    sessions = Sessions(web.idle_h * HOUR_S, web.session_h * HOUR_S)
    clip_audit = ClipAudit(open_audit_log(settings, "web"))
    cleanup.callback(clip_audit.close)
    labels = _labels(settings)
    box = BoxWatch(settings)
    cleanup.callback(box.close)
    past = Past(settings, labels)
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
        alerts=AlertsDesk(loaded),
        tuning=Tuning(loaded, past),
    )


def _labels(settings: Settings) -> tuple[str, ...] | None:
    """Return the classes of the model; None where they are not known."""
    try:
        return model_facts(settings.model).labels
    except CheckpointError as error:
        logger.warning("the page shows no scores: %s", error)
        return None


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the application that a request has come to."""
    found: Services = connection.app.state.services
    return found
