"""What the routes of the page work with: one object, made at the start of the process."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import HTTPConnection

from ast_stream.settings.schema import Settings
from ast_stream.web.tokens import Tokens
from ast_stream.web.visitors import Visitors


@dataclass(frozen=True)
class Services:
    """What routes share; each part takes care of its own threads.

    Attributes:
        settings: of the whole configuration.
        clips: folder of the recorded clips.
        tokens: secrets of this run, against forged requests.
        visitors: who sends a request.
    """

    settings: Settings
    clips: Path
    tokens: Tokens
    visitors: Visitors


def open_services(settings: Settings, cleanup: ExitStack) -> Services:
    """Return the services of a configuration.

    Args:
        cleanup: closes them.
    """
    return Services(
        settings=settings,
        clips=Path(settings.state_dir) / "clips",
        tokens=Tokens(),
        visitors=Visitors(settings.web),
    )


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the application that a request has come to."""
    found: Services = connection.app.state.services
    return found
