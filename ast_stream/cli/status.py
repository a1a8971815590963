"""`ast-stream status`: all processes and streams at a glance, and as a health check."""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ast_stream.cli.options import config_option, json_option
from ast_stream.cli.output import json_line
from ast_stream.cli.subscribe import default_settings
from ast_stream.cli.terminal import console, level_text, plain_table
from ast_stream.errors import WireError
from ast_stream.feed import FeedMessage, Subscriber
from ast_stream.messages.audio import ReadRequest, RingReply
from ast_stream.messages.event import EventMessage
from ast_stream.messages.query import Snapshot, SnapshotQuery
from ast_stream.messages.status import (
    ALERTS_STATUS_TOPIC,
    SOURCE_ENDED,
    AlertsStatus,
    Health,
    WorkerStatus,
)
from ast_stream.runtime.lifecycle import EXIT_CRASH, stop_on_signals
from ast_stream.settings.load import load_settings
from ast_stream.settings.paths import alerts_endpoint, query_endpoint, ring_endpoint
from ast_stream.settings.schema import Settings, StreamSettings
from ast_stream.settings.web import ALIVE_PATH
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.keys import client_keys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Sockets
from ast_stream.units import counted, samples_to_seconds

REFRESH_S = 1.0
TIMEOUT_S = 3.0  # for each answer: a worker that computes answers between two turns
_HEALTHY_STATES = ("listening", "warming", "gated")
_FAULTS = {"missing": "has no audio", "degraded": "has no sound"}  # of capture processes
_POLL_S = 0.05
NO_ENDPOINTS: Mapping[str, str] = {}


def status(
    config: Annotated[Path | None, config_option("The configuration they run from.")] = None,
    as_json: Annotated[bool, json_option("One JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for each process.")
    ] = TIMEOUT_S,
) -> None:
    """Show how all processes and streams are; exit 0 only if everything is healthy, else 1.

    Without a configuration only the worker at the usual endpoint is asked.

    Example: ast-stream status -c /etc/ast-stream/config.yaml
    """
    settings = default_settings() if config is None else load_settings(config)
    with stop_on_signals() as stop:
        clients = {
            name: StatusClient(
                of_worker(settings, name),
                is_complete=config is not None,
                timeout_s=timeout,
                is_stopped=stop.is_set,
                # there is one for all workers
                alerts=alerts_endpoint(settings) if number == 0 else None,
            )
            for number, name in enumerate(worker_names(settings))
        }

        def ask() -> WorkersStatus:
            return WorkersStatus({name: client.ask() for name, client in clients.items()})

        try:
            found = _follow(ask, stop, as_json=as_json) if watch else ask()
        finally:
            for client in clients.values():
                client.close()
    if not watch:
        _print(found, as_json=as_json)
    raise typer.Exit(EXIT_CRASH if found.problems else 0)


def _follow(
    ask: Callable[[], WorkersStatus], stop: threading.Event, *, as_json: bool
) -> WorkersStatus:
    """Show reports until `stop`; return the last one that was not cut short."""
    box = ask()
    if as_json or not sys.stdout.isatty():
        while not stop.is_set():
            _print(box, as_json=as_json)
            stop.wait(REFRESH_S)
            box = box if stop.is_set() else ask()
        return box
    with Live(box.view(), auto_refresh=False, console=console(stderr=False)) as live:
        while not stop.wait(REFRESH_S):
            latest = ask()
            if not stop.is_set():
                box = latest
                live.update(box.view(), refresh=True)
    return box


def _print(found: WorkersStatus, *, as_json: bool) -> None:
    if as_json:
        print(json_line(found.as_json()), flush=True)
    else:
        console(stderr=False).print(found.view(), crop=False)


def view(box: BoxStatus) -> RenderableType:
    """Return the tables of processes and streams, and what is not well."""
    parts: list[RenderableType] = [_processes(box)]
    if box.streams:
        parts.append(_streams(box))
    # not wrapped: problems hold paths, and are searched for
    parts += [
        Text(problem, style="red", no_wrap=True, overflow="ignore") for problem in box.problems
    ]
    parts += [
        Text(f"{process}: a restart is needed for {', '.join(keys)}", style="yellow")
        for process, keys in box.restart_needed.items()
    ]
    if not box.problems:
        parts.append(Text("everything is healthy", style="green"))
    return Group(*parts)


def _processes(box: BoxStatus) -> Table:
    table = plain_table("process", "state", "what it does")

    def add(name: str, state: str, is_healthy: bool, text: str = "") -> None:
        table.add_row(name, _state(state, is_healthy=is_healthy), text)

    if box.worker is None:
        add("worker", "no answer", False)
    else:
        add("worker", "scoring", True, worker_text(box.worker))
    for name, capture in box.captures.items():
        if capture is None:
            is_over = not any(f"of {name} does" in problem for problem in box.problems)
            add(f"capture {name}", "ended" if is_over else "no answer", is_over)
        else:
            is_healthy = capture.state in ("listening", "ended")
            add(f"capture {name}", capture.state, is_healthy, _capture_text(capture))
    if box.alerts is not None:
        state = "listening" if box.alerts.hears_worker else "no worker"
        add("alerts", state, box.alerts.hears_worker, alerts_text(box.alerts))
    elif box.has_alerts:
        add("alerts", "no answer", False)
    if box.page is not None:
        add("page", "serving" if box.page_answers else "no answer", box.page_answers, box.page)
    return table


def worker_text(worker: WorkerStatus) -> str:
    lag = "no audio yet" if worker.lag_s is None else f"lag {worker.lag_s:.1f} s"
    n_windows, n_asked = (worker.counters.get(name) for name in ("windows", "windows_asked"))
    asked = "" if not n_windows or n_asked is None else f" ({n_asked / n_windows:.0%} asked)"
    return (
        f"{worker.device} {worker.precision} {worker.attention}, "
        f"{worker.windows_per_s:g} windows/s{asked}, {lag}, up {_duration(worker.uptime_s)}"
    )


def alerts_text(alerts: AlertsStatus) -> str:
    return f"{counted(alerts.n_rules, 'rule')}, {alerts.pending} to deliver"


def _capture_text(capture: RingReply) -> str:
    audio = _duration(samples_to_seconds(capture.next))
    waiting_s = samples_to_seconds(capture.next - capture.acked)
    return capture.detail or f"{audio} of audio, {waiting_s:.1f} s not yet decided"


def _streams(box: BoxStatus) -> Table:
    figures = ("level", "lag", "open events", "gaps", "lost")
    table = plain_table("stream", "state", *figures, right=figures)
    for name, health in box.streams.items():
        labels = [event.label for event in box.events if event.stream == name]
        table.add_row(
            name,
            _state(health.state, is_healthy=health.state not in ("missing", "degraded")),
            level_text(health.level_dbfs),
            "" if health.lag_s is None else f"{health.lag_s:.1f} s",
            ", ".join(labels) or "none",
            str(health.gaps),
            f"{samples_to_seconds(health.lost_samples):.1f} s",
        )
    return table


def _state(word: str, *, is_healthy: bool) -> Text:
    return Text(word, style="green" if is_healthy else "red")


def _duration(seconds: float) -> str:
    """Return a duration in the largest unit that fits: 42 s, 5 min, 3.2 h, 2.5 d."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


@dataclass
class BoxStatus:
    """What the processes of one box answered.

    Attributes:
        worker: None: it did not answer.
        streams: health by stream, those in the configuration first.
        events: events that are open.
        captures: answer of the ring by stream in the configuration; None: no answer.
        alerts: None: no status was received.
        alerts_body: the same as it was received.
        has_alerts: there should be an alerts process.
        page: where the page is; None: there is none.
        page_answers: whether it is there.
        problems: one sentence for each.
    """

    worker: WorkerStatus | None = None
    streams: dict[str, Health] = field(default_factory=dict)
    events: list[EventMessage] = field(default_factory=list)
    captures: dict[str, RingReply | None] = field(default_factory=dict)
    alerts: AlertsStatus | None = None
    alerts_body: dict[str, Any] | None = None
    has_alerts: bool = False
    page: str | None = None
    page_answers: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def restart_needed(self) -> dict[str, list[str]]:
        """Keys of the configuration that wait for a restart, by process; only of those that do."""
        answered = {"worker": self.worker, "alerts": self.alerts}
        return {
            process: answer.restart_needed
            for process, answer in answered.items()
            if answer is not None and answer.restart_needed
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "healthy": not self.problems,
            "problems": self.problems,
            "restart_needed": self.restart_needed,
            "worker": None if self.worker is None else self.worker.to_json(),
            "streams": [health.to_json() for health in self.streams.values()],
            "events": [event.to_json() for event in self.events],
            "captures": {name: _capture_json(reply) for name, reply in self.captures.items()},
            "alerts": self.alerts_body,
            "page": None if self.page is None else {"at": self.page, "answers": self.page_answers},
        }


@dataclass
class WorkersStatus:
    """What the processes of a configuration answered: of each worker, with its streams.

    Attributes:
        boxes: by worker; None: the only one.
    """

    boxes: dict[str | None, BoxStatus]

    @property
    def problems(self) -> list[str]:
        """One sentence for each."""
        return [
            problem if name is None else f"{name}: {problem}"
            for name, box in self.boxes.items()
            for problem in box.problems
        ]

    def as_json(self) -> dict[str, Any]:
        if None in self.boxes:
            return self.boxes[None].as_json()
        return {
            "healthy": not self.problems,
            "problems": self.problems,
            "workers": {str(name): box.as_json() for name, box in self.boxes.items()},
        }

    def view(self) -> RenderableType:
        if None in self.boxes:
            return view(self.boxes[None])
        parts = [
            (Text(f"worker {name}", style="bold"), view(box)) for name, box in self.boxes.items()
        ]
        return Group(*(one for pair in parts for one in pair))


def _capture_json(reply: RingReply | None) -> dict[str, Any] | None:
    if reply is None:
        return None
    return {
        "state": reply.state,
        "detail": reply.detail,
        "epoch": reply.block.epoch,
        "samples": reply.next,
        "unacknowledged": reply.next - reply.acked,
    }


class StatusClient:
    """Asks the processes of a configuration, as often as wanted.

    Args:
        settings: of the processes.
        alerts: endpoint of the alerts process; None: it is not asked.
        is_complete: `settings` names all streams; else those that the worker knows.
        is_stopped: asked while waiting for answers.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        is_complete: bool,
        alerts: str | None = None,
        timeout_s: float = TIMEOUT_S,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._streams: Sequence[StreamSettings] = settings.streams if is_complete else ()
        self._timeout_s = timeout_s
        self._is_stopped = is_stopped
        self._sockets = Sockets(client_keys(settings.transport))
        self._worker = QueryClient(self._sockets, query_endpoint(settings), is_stopped)
        self._alerts_endpoint = alerts
        # as the alerts process, it is one for all workers
        self._has_page = is_complete and alerts is not None and settings.web.listen is not None
        self._alerts = (
            Subscriber(alerts, topics=[ALERTS_STATUS_TOPIC])
            if is_complete and settings.alerts.rules and alerts is not None
            else None
        )

    def close(self) -> None:
        if self._alerts is not None:
            self._alerts.close()
        self._sockets.close()

    def ask(self) -> BoxStatus:
        """Return how everything is now."""
        box = BoxStatus()
        self._ask_worker(box)
        for stream in self._streams:
            box.captures[stream.name] = self._ask_capture(stream.name)
        if self._alerts is not None:
            box.has_alerts = True
            self._receive_alerts_status(box)
        if self._has_page:
            box.page = self._settings.web.origin
            box.page_answers = page_answers(self._settings, self._timeout_s)
        box.problems = problems(box, self._streams, self._endpoints())
        return box

    def _endpoints(self) -> dict[str, str]:
        """Return the endpoints that are asked, so that a wrong folder shows."""
        settings, names = self._settings, [stream.name for stream in self._streams]
        captures = {f"capture {name}": ring_endpoint(settings, name) for name in names}
        asked = {"worker": query_endpoint(settings), "alerts": self._alerts_endpoint or ""}
        return asked | captures

    def _ask_worker(self, box: BoxStatus) -> None:
        frames = self._worker.ask(SnapshotQuery(), self._timeout_s)
        if frames is None:
            return
        try:
            snapshot = Snapshot.decode(frames)
        except WireError:  # something else answers at this endpoint
            return
        healths = {health.stream: health for health in snapshot.streams}
        box.events, box.worker = snapshot.events, snapshot.status
        first = [stream.name for stream in self._streams if stream.name in healths]
        box.streams = {name: healths[name] for name in dict.fromkeys([*first, *healths])}

    def _ask_capture(self, name: str) -> RingReply | None:
        socket = self._sockets.connect(
            "dealer", ring_endpoint(self._settings, name), QUERY_HWM_MESSAGES
        )
        try:
            request = ReadRequest(v=1, op="read", stream=name, epoch=None, start=0, stop=0)
            socket.send(request.encode())
            frames = socket.receive(round(self._timeout_s * 1000))
            return None if frames is None else RingReply.decode(frames, name)
        except WireError:
            return None
        finally:
            self._sockets.forget(socket)

    def _receive_alerts_status(self, box: BoxStatus) -> None:
        """Wait for the next status of the alerts process: those before are outdated."""
        assert self._alerts is not None
        while self._alerts.receive(0.0) is not None:
            pass
        end_s = time.monotonic() + self._timeout_s
        while time.monotonic() < end_s and not self._is_stopped():
            item = self._alerts.receive(_POLL_S)
            if isinstance(item, FeedMessage):
                with contextlib.suppress(WireError):
                    box.alerts = AlertsStatus.from_json(item.body, item.topic)
                    box.alerts_body = item.body
                    return


def page_answers(settings: Settings, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether the page of this box answers; its certificate may be for other names."""
    host, port = settings.web.address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection: HTTPConnection
    if settings.web.certificate is None:
        connection = HTTPConnection(host, port, timeout=timeout_s)
    else:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=timeout_s, context=context)
    try:
        connection.request("GET", ALIVE_PATH)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def problems(
    box: BoxStatus, streams: Sequence[StreamSettings], endpoints: Mapping[str, str] = NO_ENDPOINTS
) -> list[str]:
    """Return what is not well; a recording that has ended is.

    Args:
        endpoints: which socket was asked, by process: "worker", "alerts", "capture NAME".
    """

    def at(process: str) -> str:
        return f" at {endpoints[process]}" if process in endpoints else ""

    finite = {stream.name for stream in streams if stream.source.can_end}
    found = [f"the worker does not answer{at('worker')}"] if box.worker is None else []
    if box.worker is not None:
        if box.worker.disk:
            found.append(f"the worker's {box.worker.disk}")
        found += [
            f"stream {stream.name} is not known to the worker"
            for stream in streams
            if stream.name not in box.streams
        ]
    over = set()
    named = {name for name, health in box.streams.items() if health.state not in _HEALTHY_STATES}
    for name, health in box.streams.items():
        if name in finite and health.detail == SOURCE_ENDED:
            over.add(name)
        elif health.state not in _HEALTHY_STATES:
            found.append(f"stream {name} is {health.state}: {health.detail}")
    for name, capture in box.captures.items():
        if capture is None and name not in over:
            found.append(f"the capture process of {name} does not answer{at(f'capture {name}')}")
        elif capture is not None and capture.state in _FAULTS and name not in named:
            found.append(
                f"the capture process of {name} {_FAULTS[capture.state]}: {capture.detail}"
            )
    if box.has_alerts and box.alerts is None:
        found.append(f"the alerts process sends no status{at('alerts')}")
    elif box.alerts is not None and box.alerts.disk:
        found.append(f"the alerts process cannot write: {box.alerts.disk}")
    elif box.alerts is not None and not box.alerts.hears_worker:
        found.append("the alerts process receives nothing from the worker")
    if box.page is not None and not box.page_answers:
        found.append(f"the page does not answer at {box.page}")
    if box.alerts is not None:
        found += [action.text for action in box.alerts.failing]
    return found
