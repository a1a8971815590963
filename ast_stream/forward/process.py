"""The forwarder: sends the durable messages of this box to brokers, from the box's own logs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.errors import AstStreamError, ConfigError, UsageError
from ast_stream.feed import Subscriber
from ast_stream.fleet.agent import FleetAgent
from ast_stream.fleet.due_reports import DueReports
from ast_stream.fleet.report import REPORT_EVERY_S
from ast_stream.forward.health_source import TOPICS, HealthMinutes
from ast_stream.forward.health_spool import HealthSpool
from ast_stream.forward.outputs import Outputs, worker_feed
from ast_stream.forward.positions import PositionFolder
from ast_stream.forward.report import ForwardReport, output_reports
from ast_stream.runtime.logging import LimitedLog
from ast_stream.runtime.metrics import Family
from ast_stream.runtime.reload import Reloader
from ast_stream.runtime.service import run_service
from ast_stream.runtime.state_format import prepare_state_dir
from ast_stream.settings import storage
from ast_stream.settings.fleet import box_identity
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import forward_endpoint, make_runtime_dir
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.process_report import Reporting

WAIT_S = 0.25  # longest delay before a stop is noticed
MAX_BATCH = 2000  # health messages in one turn
_AGENT_LEAVES_S = 6.0

logger = logging.getLogger(__name__)


def forward(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration (YAML).")
    ],
) -> None:
    """Run the forwarder: it sends events, gaps, alerts, coverage and health to a fleet's brokers.

    Everything is read from the disk of this box, starting where each broker has confirmed it, so
    that a week without a network loses nothing. SIGHUP starts and stops outputs.

    Example: ast-stream forward -c /etc/ast-stream/config.yaml
    """
    run_service(config, "forward", run_forward)


def run_forward(
    loaded: LoadedSettings, stop: threading.Event, reload: threading.Event | None = None
) -> None:
    """Forward until `stop` is set.

    Raises:
        ConfigError: no output is configured.
        StartupError: a library is missing, a folder cannot be written, or another forwarder runs.
    """
    settings = loaded.settings
    if not settings.forward:
        text = "expected an output such as {name: centre, type: nats, servers: [nats://centre]}, "
        raise ConfigError([loaded.problem(("forward",), f"{text}got none: nothing to forward")])
    make_runtime_dir(settings)
    prepare_state_dir(Path(settings.state_dir), loaded.file)
    with ExitStack() as cleanup:
        folder = storage.forward_positions(settings).folder
        positions = PositionFolder(folder)
        cleanup.callback(positions.close)
        in_use = _InUse(settings)
        spool = HealthSpool(storage.health_spool(settings).folder)
        cleanup.callback(spool.close)
        to = Reporting.open(settings, "forward", forward_endpoint(settings), cleanup)
        outputs = Outputs(lambda: in_use.settings, box_identity(settings), spool)
        cleanup.callback(outputs.close)
        health = _HealthFeeds(settings, HealthMinutes(spool))
        cleanup.callback(health.close)
        outputs.follow(settings.forward)
        status = _StatusThread(lambda: in_use.settings, Path(loaded.file), outputs)
        cleanup.callback(status.close)
        status.start()
        report = ForwardReport(
            to,
            lambda: outputs.running,
            lambda: health.hears_workers,
            (positions.outage, spool.outage),
            status.families,
        )
        reloader = _reloader(reload or threading.Event(), loaded, in_use, outputs, report)
        identity = box_identity(settings)
        logger.info("ready: forwards as %s of %s", identity.box, identity.site)
        while not stop.is_set():
            positions.stay_in_place()
            health.read()
            report.tick()
            reloader.poll(report.notifier)
            stop.wait(WAIT_S)
        report.notifier.stopping("waiting for what is on its way")


class _InUse:
    """The current settings, which a reload replaces."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


class _HealthFeeds:
    """Reads the health messages of all workers into `HealthMinutes`."""

    def __init__(self, settings: Settings, minutes: HealthMinutes) -> None:
        self._minutes = minutes
        self._feeds: dict[str | None, Subscriber] = {
            name: worker_feed(of_worker(settings, name), TOPICS, None)
            for name in worker_names(settings)
        }

    @property
    def hears_workers(self) -> bool:
        """Whether all workers have published recently."""
        return all(feed.is_publisher_there for feed in self._feeds.values())

    def read(self) -> None:
        """Read the messages that have arrived, without waiting."""
        for name, feed in self._feeds.items():
            for _ in range(MAX_BATCH):
                if (item := feed.receive(0.0)) is None:
                    break
                self._minutes.add(item, name)
        self._minutes.tick()

    def close(self) -> None:
        """Close all sockets."""
        for feed in self._feeds.values():
            feed.close()


class _StatusThread:
    """Publishes reports on this box, when they have news and at intervals.

    It is a thread because a report may take a few seconds. Its fleet agent also follows roll-outs.

    Args:
        settings: returns the current settings.
        file: the configuration file.
    """

    def __init__(self, settings: Callable[[], Settings], file: Path, outputs: Outputs) -> None:
        self._settings = settings
        self._file = file
        self._outputs = outputs
        self._stopping = threading.Event()
        self._limited_log = LimitedLog(logger)
        self._agent: FleetAgent | None = None
        self._thread = threading.Thread(target=self._run, name="box status", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def families(self) -> list[Family]:
        """Return the metrics of this box's clock."""
        agent = self._agent
        return [] if agent is None else agent.families()

    def close(self) -> None:
        """Stop the thread, in bounded time."""
        self._stopping.set()
        self._thread.join(_AGENT_LEAVES_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            settings = self._settings()
            try:
                with self._make(settings) as agent:
                    self._agent = agent
                    due = DueReports()
                    while not self._stopping.is_set() and self._settings() is settings:
                        if due.is_due(report := agent.report()):
                            self._outputs.publish_status(report.encode())
                        self._stopping.wait(REPORT_EVERY_S)
            except AstStreamError as error:
                self._limited_log.warning("the status of this box is not made: %s", error)
                self._stopping.wait(REPORT_EVERY_S)
            except Exception as error:  # the boundary: the thread must not end silently
                self._limited_log.warning("the status of this box is not made: %r", error)
                self._stopping.wait(REPORT_EVERY_S)

    def _make(self, settings: Settings) -> FleetAgent:
        return FleetAgent(
            settings,
            self._file,
            outputs=lambda: output_reports(self._outputs.running),
            is_stopped=self._stopping.is_set,
        )


def _reloader(
    requested: threading.Event,
    loaded: LoadedSettings,
    in_use: _InUse,
    outputs: Outputs,
    report: ForwardReport,
) -> Reloader:
    """Return a reloader that starts and stops outputs and follows changed streams."""

    def apply(new: LoadedSettings) -> None:
        if not new.settings.forward:
            raise UsageError("forward: expected an output; to forward nothing, stop this process")
        before, in_use.settings = in_use.settings, new.settings
        try:
            outputs.follow(new.settings.forward)
        except AstStreamError:
            in_use.settings = before
            raise

    return Reloader(
        requested,
        Path(loaded.file),
        loaded.settings,
        "forward",
        parts=lambda new: {
            **new.model_dump(include={"runtime_dir", "state_dir", "transport"}),
            "metrics": new.metrics.model_dump(),
            "workers": [*new.workers],
            "alerts": {"rules": bool(new.alerts.rules)},
            "fleet": new.fleet.model_dump(),
            "forward": {output.name: output.model_dump() for output in new.forward},
            "streams": {stream.name: stream.source.can_end for stream in new.streams},
        },
        live=frozenset({"forward", "streams"}),
        apply=apply,
        on_waiting=report.note_restart_needed,
    )
