"""The report of a box: the state of its processes, its coverage, and its clock.

A report is made every few seconds, but sent only when it has news (`due_reports`). What is
expensive, the coverage of a day and the hash of the configuration, is read once a minute.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from ast_stream.box_status import BoxStatus, WorkersStatus, WorkersStatusClient
from ast_stream.coverage.ledger import read_all_spans
from ast_stream.coverage.spans import Span
from ast_stream.coverage.timeline import Coverage
from ast_stream.errors import AstStreamError
from ast_stream.fleet.clock import ClockWatch
from ast_stream.fleet.due_reports import sent_every_s
from ast_stream.labels import printable
from ast_stream.messages.audio import RingReply
from ast_stream.messages.fleet import (
    MAX_PROBLEM_CHARACTERS,
    MAX_REPORT_PROBLEMS,
    MAX_REPORT_STREAMS,
    BoxReport,
    OutputReport,
    RolloutReport,
    StreamReport,
    WorkerReport,
)
from ast_stream.messages.status import Health
from ast_stream.pool.coverage import OwnPart, own_part_of
from ast_stream.runtime.files import DamagedFileError, read_bounded
from ast_stream.runtime.logging import LimitedLog
from ast_stream.runtime.metrics import Family, figure
from ast_stream.settings.chosen_model import chosen_model
from ast_stream.settings.fleet import box_identity
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import DAY_S, coverage_ledger, unwritten_coverage
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE
from ast_stream.urls import mask
from ast_stream.version import __version__

REPORT_EVERY_S = 10.0
_ASK_TIMEOUT_S = 2.0  # for each process: a busy one answers between two turns of its loop
_RENEW_S = 60.0  # for what is expensive
_MAX_CONFIGURATION_BYTES = 16 * 1024 * 1024
_BEHIND_S = 60.0  # an output that is further behind has a problem
_DAY_NS = round(DAY_S) * NS_PER_SECOND

logger = logging.getLogger(__name__)


class BoxReporter:
    """Makes the reports of one box; used by one thread, and each report may take a few seconds.

    Args:
        settings: of the box, with all workers.
        file: the configuration file, for its hash.
        outputs: returns the state of the forwarder's outputs.
        rollout: returns the progress of the current roll-out; None: there is none.
        clock: None: create one, with the server in `fleet.ntp`.
        every_s: interval at which reports are made.
        is_stopped: polled while waiting for answers.
    """

    def __init__(
        self,
        settings: Settings,
        file: Path,
        *,
        outputs: Callable[[], Sequence[OutputReport]] = lambda: (),
        rollout: Callable[[], RolloutReport | None] = lambda: None,
        clock: ClockWatch | None = None,
        every_s: float = REPORT_EVERY_S,
        is_stopped: Callable[[], bool] = lambda: False,
        now_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._file = file
        self._outputs = outputs
        self._rollout = rollout
        self._every_s = every_s
        self._now_s = now_s
        self._wall_ns = wall_ns
        self._boot = secrets.token_hex(8)
        self._identity = box_identity(settings)
        self.clock = ClockWatch(settings.fleet.ntp) if clock is None else clock
        self._client = WorkersStatusClient(
            settings, timeout_s=_ASK_TIMEOUT_S, is_stopped=is_stopped
        )
        self._log = LimitedLog(logger)
        self._renewed_s = float("-inf")
        self._coverage: Mapping[str, Coverage] = {}
        self._part = own_part_of(settings, "fleet")
        self._hash: str | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all sockets."""
        self.clock.close()
        with self._lock:
            self._client.close()
        if self._part is not None:
            self._part.close()

    def report(self) -> BoxReport:
        """Return a report on the current state of the box."""
        with self._lock:
            found = self._client.ask()
        self.clock.start()
        self._renew()
        clock, outputs, rollout = self.clock.report(), list(self._outputs()), self._rollout()
        # lost audio reaches the centre as gaps, and a roll-out is judged by the hours heard
        present = [problem for problem in found.problems if problem not in found.losses]
        problems = [*present, clock.problem, *map(_output_problem, outputs)]
        problems.append(_rollout_problem(rollout))
        streams = self._stream_reports(found)
        time_ns = self._wall_ns()
        return BoxReport(
            site=self._identity.site,
            box=self._identity.box,
            version=__version__,
            boot=self._boot,
            time_ns=time_ns,
            every_s=sent_every_s(self._every_s, rollout, time_ns),
            configuration=self._hash,
            checkpoint=str(chosen_model(self._settings) or self._settings.model.checkpoint),
            clock=clock,
            workers=[_worker_report(name, box) for name, box in found.boxes.items()],
            streams=streams[:MAX_REPORT_STREAMS],
            streams_total=len(streams),
            outputs=outputs,
            rollout=rollout,
            problems=shortened(
                dict.fromkeys(problem for problem in problems if problem is not None)
            ),
        )

    def _renew(self) -> None:
        """Read again what is expensive, if it is due."""
        now_s = self._now_s()
        if now_s - self._renewed_s < _RENEW_S:
            return
        self._renewed_s = now_s
        self._hash = file_hash(self._file)
        try:
            self._coverage = day_coverage(self._settings, self._wall_ns(), self._part)
        except (OSError, AstStreamError) as error:
            self._log.warning("the coverage of the last day cannot be read: %s", error)
            self._coverage = {}

    def _stream_reports(self, found: WorkersStatus) -> list[StreamReport]:
        """Return all streams, the worst first."""
        healths = {
            name: health for box in found.boxes.values() for name, health in box.streams.items()
        }
        captures = {
            name: capture for box in found.boxes.values() for name, capture in box.captures.items()
        }
        names = dict.fromkeys([*(stream.name for stream in self._settings.streams), *healths])
        reports = [
            _stream_report(name, healths.get(name), captures.get(name), self._coverage)
            for name in names
        ]
        return sorted(reports, key=_badness, reverse=True)


def clock_families(clock: ClockWatch) -> list[Family]:
    """Return the metrics of this box's clock."""
    found = clock.report()
    return [
        figure(
            "ast_stream_clock_offset_seconds",
            "Seconds to add to the wall clock of this box; absent if not measured",
            found.offset_s,
        ),
        figure(
            "ast_stream_clock_uncertainty_seconds",
            "How far the measured offset of the clock may be wrong",
            found.uncertainty_s,
        ),
        figure(
            "ast_stream_clock_synchronised",
            "1 if the kernel considers its clock synchronised; absent if it does not report it",
            None if found.is_synchronised is None else float(found.is_synchronised),
        ),
    ]


def day_coverage(
    settings: Settings, now_ns: int, part: OwnPart | None = None
) -> dict[str, Coverage]:
    """Return the coverage of the last 24 hours of each stream that is in the ledger.

    Args:
        part: of the worker of a pool; streams whose part is not known are left out.

    Raises:
        OSError: the ledger cannot be read.
    """
    parts = [of_worker(settings, name) for name in worker_names(settings)]
    ledgers = [(coverage_ledger(part).folder, unwritten_coverage(part).path) for part in parts]
    since_ns = now_ns - _DAY_NS
    lasting = {stream.name for stream in settings.streams if not stream.source.can_end}
    found = {}
    for name, spans in read_all_spans(ledgers, since_ns).items():
        own = (spans, _nobody) if part is None else part.of(name, spans)
        if own is not None:
            found[name] = Coverage.of(
                name,
                own[0],
                now_ns,
                is_expected=name in lasting,
                since_ns=since_ns,
                others=own[1],
            )
    return found


def _nobody(before: Span, after: Span | None) -> Sequence[str]:
    return ()


def file_hash(file: Path) -> str | None:
    """Return `sha256:…` of a configuration file; None if it cannot be read."""
    try:
        content = read_bounded(file, _MAX_CONFIGURATION_BYTES)
    except (OSError, DamagedFileError):
        return None
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def shortened(problems: Iterable[str]) -> list[str]:
    """Return problems in a form that may leave the box: bounded, printable, without secrets."""
    found = [printable(mask(problem))[:MAX_PROBLEM_CHARACTERS] for problem in problems]
    if len(found) > MAX_REPORT_PROBLEMS:
        kept = MAX_REPORT_PROBLEMS - 1
        found = [*found[:kept], f"and {len(found) - kept} more problems"]
    return found


def _worker_report(name: str | None, box: BoxStatus) -> WorkerReport:
    if (worker := box.worker) is None:
        return WorkerReport(name=name)
    return WorkerReport(
        name=name,
        boot=box.boot,
        model=worker.model,
        device=worker.device,
        precision=worker.precision,
        attention=worker.attention,
        uptime_s=worker.uptime_s,
        windows_per_s=worker.windows_per_s,
        lag_s=worker.lag_s,
        restart_needed=worker.restart_needed,
    )


def _stream_report(
    name: str,
    health: Health | None,
    capture: RingReply | None,
    coverage: Mapping[str, Coverage],
) -> StreamReport:
    covered = coverage.get(name)
    heard = None if covered is None else covered.heard
    placement = None if capture is None else capture.placement
    if placement is None and health is not None:
        placement = health.placement
    return StreamReport(
        stream=name,
        state=None if health is None else health.state,
        placement=placement,
        detail=None if health is None else _detail(health),
        lag_s=None if health is None else health.lag_s,
        hop_s=None if health is None else health.hop_s,
        heard=None if heard is None else round(heard, 6),
        accounted_s=None if covered is None else round(covered.total / SAMPLE_RATE, 1),
    )


def _detail(health: Health) -> str | None:
    """Return what is, or recently was, wrong with a stream; None: nothing."""
    lost = None if health.recent_loss is None else health.recent_loss.text
    found = health.detail or lost
    return None if found is None else _short(found)


def _short(text: str) -> str:
    return printable(mask(text))[:MAX_PROBLEM_CHARACTERS]


def _badness(stream: StreamReport) -> tuple[bool, bool, float, float]:
    """Return a sort key that is larger the worse a stream is."""
    is_bad = stream.state in (None, "missing", "degraded")
    lost = 0.0 if stream.heard is None else 1.0 - stream.heard
    return is_bad, stream.detail is not None, stream.lag_s or 0.0, lost


def _output_problem(output: OutputReport) -> str | None:
    if output.error is not None:
        return f"forward {output.name}: {output.error}"
    if output.lag_s is not None and output.lag_s > _BEHIND_S:
        return f"forward {output.name} is {output.lag_s:.0f} s behind"
    return None


def _rollout_problem(rollout: RolloutReport | None) -> str | None:
    if rollout is None or rollout.state not in ("refused", "returned", "waiting"):
        return None
    return f"the model {rollout.wanted} is not in use: {rollout.detail}"
