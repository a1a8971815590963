"""The agent of a box in its fleet: makes reports, measures the clock, follows roll-outs.

It runs in the forwarder, whose outputs send the reports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from ast_stream.fleet.buckets import FleetStore
from ast_stream.fleet.clock import ClockWatch
from ast_stream.fleet.follower import Check, RolloutFollower, check_in_process
from ast_stream.fleet.report import REPORT_EVERY_S, BoxReporter, clock_families
from ast_stream.messages.fleet import BoxReport, OutputReport, RolloutReport, WorkerReport
from ast_stream.runtime.metrics import Family
from ast_stream.runtime.nats import NatsConnection, read_login
from ast_stream.settings.fleet import box_identity, models_output
from ast_stream.settings.schema import Settings

logger = logging.getLogger(__name__)


class FleetAgent:
    """Reports on a box and follows roll-outs.

    `report` is called by one thread, and may take a few seconds.

    Args:
        settings: of the box, with all workers.
        config: the configuration file.
        outputs: returns the state of the forwarder's outputs.
        every_s: interval at which `report` will be called.
        is_stopped: polled while waiting for answers.
        check: checks a model; None: in a separate process.

    Raises:
        StartupError: the credentials for the servers that announce roll-outs cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        config: Path,
        *,
        outputs: Callable[[], Sequence[OutputReport]] = lambda: (),
        every_s: float = REPORT_EVERY_S,
        is_stopped: Callable[[], bool] = lambda: False,
        check: Check | None = None,
    ) -> None:
        self._clock = ClockWatch(settings.fleet.ntp)
        self._workers: Sequence[WorkerReport] = ()
        self._connection: NatsConnection | None = None
        self.follower: RolloutFollower | None = None
        if (output := models_output(settings)) is not None:
            identity = box_identity(settings)

            read_login("fleet.models", output, output.credential)  # errors are reported at start
            self._connection = NatsConnection(
                lambda: read_login("fleet.models", output, output.credential),
                f"ast-stream models {identity.key}",
                f"fleet.models: the NATS server {', '.join(output.servers)}",
                timeout_s=output.timeout_s,
            )
            store = FleetStore(self._connection, output.bucket, output.domain)
            self.follower = RolloutFollower(
                settings,
                store,
                lambda: self._workers,
                check or check_in_process(config, lambda: self._is_stopped()),
            )
        self._reporter = BoxReporter(
            settings,
            config,
            outputs=outputs,
            rollout=self._rollout,
            clock=self._clock,
            every_s=every_s,
            is_stopped=is_stopped,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start measuring the clock and following roll-outs, in threads."""
        self._clock.start()
        if self._connection is not None and self.follower is not None:
            self._connection.start()
            self.follower.start()

    def report(self) -> BoxReport:
        """Return a report on the current state of the box."""
        report = self._reporter.report()
        self._workers = report.workers
        return report

    def families(self) -> list[Family]:
        """Return the metrics of the clock."""
        return clock_families(self._clock)

    def close(self) -> None:
        """Stop all threads, in bounded time."""
        if self.follower is not None:
            self.follower.close()
        if self._connection is not None:
            self._connection.close()
        self._reporter.close()

    def _rollout(self) -> RolloutReport | None:
        return None if self.follower is None else self.follower.report()

    def _is_stopped(self) -> bool:
        return self.follower is not None and self.follower.is_stopped
