"""What the routes of the page work with: one object, made at the start of the process."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection

from ast_stream.privacy.page_users import Users
from ast_stream.settings.paths import web_users_file
from ast_stream.settings.schema import Settings
from ast_stream.web.cookies import Cookies
from ast_stream.web.logins import Logins
from ast_stream.web.sessions import Sessions
from ast_stream.web.tokens import Tokens
from ast_stream.web.visitors import Visitors

HOUR_S = 3600.0


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
    """

    settings: Settings
    clips: Path
    tokens: Tokens
    cookies: Cookies
    users: Users
    sessions: Sessions
    logins: Logins
    visitors: Visitors


def open_services(settings: Settings, cleanup: ExitStack) -> Services:
    """Return the services of a configuration.

    Args:
        cleanup: closes them.

    Raises:
        StartupError: the file of users cannot be used.
    """
    web = settings.web
    users = Users(web_users_file(settings))
    sessions = Sessions(web.idle_h * HOUR_S, web.session_h * HOUR_S)
    return Services(
        settings=settings,
        clips=Path(settings.state_dir) / "clips",
        tokens=Tokens(),
        cookies=Cookies(web),
        users=users,
        sessions=sessions,
        logins=Logins(users, sessions),
        visitors=Visitors(web, users, sessions),
    )


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the application that a request has come to."""
    found: Services = connection.app.state.services
    return found
