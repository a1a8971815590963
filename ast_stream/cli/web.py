"""`ast-stream web`: the process that serves the page for browsers."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from ast_stream.cli.options import config_option
from ast_stream.errors import ConfigError, StartupError
from ast_stream.runtime.lifecycle import stop_on_signals
from ast_stream.runtime.logging import setup_logging
from ast_stream.settings.load import load_file

MODULES = ("starlette", "uvicorn", "jinja2", "argon2", "python_multipart", "websockets")


def web(
    config: Annotated[Path, config_option()],
) -> None:
    """Serve the page for browsers: what is heard now, what was heard, and how everything is.

    It listens at web.listen of the configuration: on loopback without login, elsewhere with TLS
    and login only (`ast-stream users`). SIGHUP reads the certificate again.

    Example: ast-stream web -c /etc/ast-stream/config.yaml
    """
    loaded = load_file(config)
    settings = loaded.settings
    setup_logging(settings.logging.level, settings.logging.format, process="web")
    if settings.web.listen is None:
        text = "expected an address to listen at, e.g. 127.0.0.1:8080, got null: the page is off"
        raise ConfigError([loaded.problem(("web", "listen"), text)])
    expect_extra()
    from ast_stream.web.process import run_web  # needs the extra

    reload = threading.Event()
    with stop_on_signals(reload) as stop:
        run_web(loaded, stop, reload)


def expect_extra() -> None:
    """Refuse to start without the packages of the page.

    Raises:
        StartupError: some are not installed.
    """
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        text = f"the page needs the extra `web` ({', '.join(missing)} not installed): "
        raise StartupError(f"{text}pip install 'ast-stream[web]'")
