"""The web process: serves the page until a signal stops it."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from ast_stream.errors import AstStreamError
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.metrics import RENEW_EVERY_S, Metrics
from ast_stream.runtime.reload import Reloader
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import make_runtime_dir, metrics_address
from ast_stream.units import counted
from ast_stream.web.app import create_app
from ast_stream.web.report import families, login_families
from ast_stream.web.server import PageServer, bind, load_certificate, open_tls
from ast_stream.web.services import open_services

TURN_S = 0.25

logger = logging.getLogger(__name__)


def run_web(loaded: LoadedSettings, stop: threading.Event, reload: threading.Event) -> None:
    """Serve until `stop` is set.

    Args:
        reload: when set, the configuration and the certificate are read again.

    Raises:
        StartupError: the address, the certificate, the users or a secret cannot be used.
    """
    settings = loaded.settings
    make_runtime_dir(settings)
    with ExitStack() as cleanup:
        tls = open_tls(settings.web)
        sockets = bind(settings.web)
        for listening in sockets:
            cleanup.callback(listening.close)
        services = open_services(loaded, cleanup)
        server = PageServer(create_app(services), sockets, tls)
        server.start()
        cleanup.callback(server.stop)
        metrics = Metrics("web", metrics_address(settings, "web"))
        cleanup.callback(metrics.close)
        renew_s = 0.0
        notifier = Notifier()
        reloader = Reloader(
            reload,
            Path(loaded.file),
            settings,
            "web",
            parts=lambda new: new.model_dump(exclude={"logging"}),
        )
        is_ready = False
        while not stop.wait(TURN_S):
            server.check()
            if not server.has_started:
                continue
            if not is_ready:
                is_ready = True
                logger.info("ready: %s", settings.web.origin)
            if tls is not None and reload.is_set():
                try:
                    load_certificate(tls, settings.web)
                except AstStreamError as error:
                    logger.error("the certificate is kept as it was: %s", error)
            reloader.poll(notifier)
            services.clip_audit.write_repeats()
            if metrics.is_on and time.monotonic() >= renew_s:
                renew_s = time.monotonic() + RENEW_EVERY_S
                logins = login_families(services.logins, services.sessions)
                metrics.renew([*families(services.hub), *logins])
            notifier.turn(
                lambda: f"{settings.web.origin}, {counted(server.n_connections, 'connection')}",
                is_working=server.is_working,
            )
        notifier.stopping()
