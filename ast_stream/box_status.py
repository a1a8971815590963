"""The status of a box: all of its processes queried, and its problems in sentences."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Self

from ast_stream.errors import WireError
from ast_stream.feed import FeedMessage, Subscriber
from ast_stream.messages.audio import ReadRequest, RingReply
from ast_stream.messages.codec import decode_json
from ast_stream.messages.event import EventMessage
from ast_stream.messages.fleet import ClockReport
from ast_stream.messages.query import Snapshot, SnapshotQuery
from ast_stream.messages.status import (
    ALERTS_STATUS_TOPIC,
    FORWARD_STATUS_TOPIC,
    RECORDER_STATUS_TOPIC,
    SOURCE_ENDED,
    AlertsStatus,
    ForwardStatus,
    Health,
    RecorderStatus,
    WorkerStatus,
)
from ast_stream.settings.paths import (
    alerts_endpoint,
    forward_endpoint,
    page_id,
    query_endpoint,
    recorder_endpoint,
    ring_endpoint,
)
from ast_stream.settings.pool import is_capture_box
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.web import ALIVE_PATH
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.keys import client_keys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Sockets

MAX_ALIVE_BYTES = 4096
TIMEOUT_S = 3.0  # for each answer: a worker that computes answers between two turns
_HEALTHY_STATES = ("listening", "warming", "gated")
_FAULTS = {"missing": "has no audio", "degraded": "has no sound"}  # of capture processes
_POLL_S = 0.05
_HEARD_WITHIN_S = 10.0  # of its start: those who follow a worker notice it by then
NO_ENDPOINTS: Mapping[str, str] = {}


@dataclass
class BoxStatus:
    """What the processes of one box answered.

    Attributes:
        has_worker: there should be one; those of a pool are on other boxes than its streams.
        worker: None: it did not answer.
        boot: the worker's run.
        streams: health by stream, those in the configuration first.
        events: events that are open.
        captures: answer of the ring by stream in the configuration; None: no answer.
        alerts: None: no status was received.
        alerts_body: the same as it was received.
        has_alerts: there should be an alerts process.
        recorder: None: no status was received.
        has_recorder: there should be a recorder.
        forward: None: no status was received.
        has_forward: there should be a forwarder.
        page: where the page is; None: there is none.
        page_answers: whether it is there.
        problems: one sentence for each, also for those of the last minutes that are over.
    """

    has_worker: bool = True
    worker: WorkerStatus | None = None
    boot: str | None = None
    streams: dict[str, Health] = field(default_factory=dict)
    events: list[EventMessage] = field(default_factory=list)
    captures: dict[str, RingReply | None] = field(default_factory=dict)
    alerts: AlertsStatus | None = None
    alerts_body: dict[str, Any] | None = None
    has_alerts: bool = False
    recorder: RecorderStatus | None = None
    has_recorder: bool = False
    forward: ForwardStatus | None = None
    has_forward: bool = False
    page: str | None = None
    page_answers: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def losses(self) -> list[str]:
        """The problems that are over: audio that streams have lost in the last minutes."""
        return [
            f"stream {name} {health.recent_loss.text}"
            for name, health in self.streams.items()
            if health.recent_loss is not None
        ]

    @property
    def restart_needed(self) -> dict[str, list[str]]:
        """Keys of the configuration that wait for a restart, by process; only of those that do."""
        answered = {
            "worker": self.worker,
            "alerts": self.alerts,
            "recorder": self.recorder,
            "forward": self.forward,
        }
        return {
            process: answer.restart_needed
            for process, answer in answered.items()
            if answer is not None and answer.restart_needed
        }

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "healthy": not self.problems,
            "problems": self.problems,
            "losses": self.losses,
            "restart_needed": self.restart_needed,
            "worker": None if self.worker is None else self.worker.to_json(),
            "streams": [health.to_json() for health in self.streams.values()],
            "events": [event.to_json() for event in self.events],
            "captures": {name: _capture_json(reply) for name, reply in self.captures.items()},
            "alerts": self.alerts_body,
            "recorder": None if self.recorder is None else self.recorder.to_json(),
            "forward": None if self.forward is None else self.forward.to_json(),
            "page": None if self.page is None else {"at": self.page, "answers": self.page_answers},
        }


@dataclass
class WorkersStatus:
    """The answers of all processes of a configuration, by worker.

    Attributes:
        boxes: by worker; None: the only one.
        clock: of this machine; None: nobody asked.
    """

    boxes: dict[str | None, BoxStatus]
    clock: ClockReport | None = None

    @property
    def problems(self) -> list[str]:
        """One sentence for each."""
        found = _named({name: box.problems for name, box in self.boxes.items()})
        clock = None if self.clock is None else self.clock.problem
        return found if clock is None else [*found, clock]

    @property
    def losses(self) -> list[str]:
        """Those of the problems that are over: audio lost in the last minutes."""
        return _named({name: box.losses for name, box in self.boxes.items()})

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object: of the only worker, or of each by its name."""
        clock = {} if self.clock is None else {"clock": self.clock.to_json()}
        if None in self.boxes:
            own = {"healthy": not self.problems, "problems": self.problems}
            return self.boxes[None].as_json() | own | clock
        return clock | {
            "healthy": not self.problems,
            "problems": self.problems,
            "losses": self.losses,
            "workers": {str(name): box.as_json() for name, box in self.boxes.items()},
        }


def _named(problems: Mapping[str | None, Sequence[str]]) -> list[str]:
    return [
        problem if name is None else f"{name}: {problem}"
        for name, of_worker in problems.items()
        for problem in of_worker
    ]


def _capture_json(reply: RingReply | None) -> dict[str, Any] | None:
    if reply is None:
        return None
    return {
        "state": reply.state,
        "detail": reply.detail,
        "epoch": reply.block.epoch,
        "samples": reply.next,
        "unacknowledged": reply.next - reply.acked,
    } | ({} if reply.placement is None else {"placement": reply.placement.to_json()})


class StatusClient:
    """Asks the processes of a configuration, as often as wanted.

    Args:
        settings: of the processes.
        alerts, recorder, forward: endpoint of these processes; None: it is not asked.
        page: the whole configuration that the page was started with, of which `settings` may be
            one worker's part; None: the page is not asked.
        is_complete: `settings` names all streams; else those that the worker knows.
        is_stopped: asked while waiting for answers.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        is_complete: bool,
        alerts: str | None = None,
        recorder: str | None = None,
        forward: str | None = None,
        page: Settings | None = None,
        timeout_s: float = TIMEOUT_S,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._streams: Sequence[StreamSettings] = settings.streams if is_complete else ()
        self._timeout_s = timeout_s
        self._is_stopped = is_stopped
        self._sockets = Sockets(client_keys(settings.transport))
        self._worker = (
            None
            if is_complete and is_capture_box(settings)
            else QueryClient(self._sockets, query_endpoint(settings), is_stopped)
        )
        self._alerts_endpoint = alerts
        has_page = is_complete and page is not None and page.web.listen is not None
        self._page = page if has_page else None
        self._alerts = (
            Subscriber(alerts, topics=[ALERTS_STATUS_TOPIC])
            if is_complete and settings.alerts.rules and alerts is not None
            else None
        )

        self._recorder_endpoint = recorder
        self._recorder = (
            Subscriber(recorder, topics=[RECORDER_STATUS_TOPIC])
            if is_complete and settings.recorder is not None and recorder is not None
            else None
        )

        self._forward_endpoint = forward
        self._forward = (
            Subscriber(forward, topics=[FORWARD_STATUS_TOPIC])
            if is_complete and settings.forward and forward is not None
            else None
        )

    def close(self) -> None:
        """Close all sockets."""
        for feed in (self._alerts, self._recorder, self._forward):
            if feed is not None:
                feed.close()
        self._sockets.close()

    def ask(self) -> BoxStatus:
        """Return what all processes answer now; what is wrong with it, `judge` says."""
        box = BoxStatus(has_worker=self._worker is not None)
        if self._worker is not None:
            self._ask_worker(self._worker, box)
        box.captures = self._ask_captures([stream.name for stream in self._streams])
        if self._alerts is not None:
            box.has_alerts = True
            if (message := self._newest(self._alerts)) is not None:
                with contextlib.suppress(WireError):
                    box.alerts = AlertsStatus.from_json(message.body, message.topic)
                    box.alerts_body = message.body
        if self._recorder is not None:
            box.has_recorder = True
            if (message := self._newest(self._recorder)) is not None:
                with contextlib.suppress(WireError):
                    box.recorder = RecorderStatus.from_json(message.body, message.topic)
        if self._forward is not None:
            box.has_forward = True
            if (message := self._newest(self._forward)) is not None:
                with contextlib.suppress(WireError):
                    box.forward = ForwardStatus.from_json(message.body, message.topic)
        if self._page is not None:
            box.page = self._page.web.origin
            box.page_answers = page_answers(self._page, self._timeout_s)
        return box

    def judge(self, box: BoxStatus, workers: Sequence[BoxStatus]) -> None:
        """Note the problems of a box in it.

        Args:
            workers: all boxes of the configuration, whose workers the other processes follow.
        """
        box.problems = problems(box, self._streams, self._endpoints(), workers)

    def _endpoints(self) -> dict[str, str]:
        """Return the endpoints that are asked, so that a wrong folder shows."""
        settings, names = self._settings, [stream.name for stream in self._streams]
        captures = {f"capture {name}": ring_endpoint(settings, name) for name in names}
        asked = {"worker": query_endpoint(settings), "alerts": self._alerts_endpoint or ""}
        asked |= {"recorder": self._recorder_endpoint or ""}
        return asked | {"forward": self._forward_endpoint or ""} | captures

    def _ask_worker(self, worker: QueryClient, box: BoxStatus) -> None:
        frames = worker.ask(SnapshotQuery(), self._timeout_s)
        if frames is None:
            return
        try:
            snapshot = Snapshot.decode(frames)
        except WireError:  # something else answers at this endpoint
            return
        healths = {health.stream: health for health in snapshot.streams}
        box.events, box.worker, box.boot = snapshot.events, snapshot.status, snapshot.boot
        first = [stream.name for stream in self._streams if stream.name in healths]
        box.streams = {name: healths[name] for name in dict.fromkeys([*first, *healths])}

    def _ask_captures(self, names: Sequence[str]) -> dict[str, RingReply | None]:
        """Ask all rings at once: many that do not answer take no longer than one."""
        rings = {
            name: self._sockets.connect(
                "dealer", ring_endpoint(self._settings, name), QUERY_HWM_MESSAGES
            )
            for name in names
        }
        found: dict[str, RingReply | None] = dict.fromkeys(names)
        try:
            for name, socket in rings.items():
                request = ReadRequest(v=1, op="read", stream=name, epoch=None, start=0, stop=0)
                socket.send(request.encode())
            end_s = time.monotonic() + self._timeout_s
            for name, socket in rings.items():
                frames = socket.receive(round(1000 * max(0.0, end_s - time.monotonic())))
                with contextlib.suppress(WireError):
                    found[name] = None if frames is None else RingReply.decode(frames, name)
        finally:
            for socket in rings.values():
                self._sockets.forget(socket)
        return found

    def _newest(self, feed: Subscriber) -> FeedMessage | None:
        """Return the next status on a feed: those before are outdated."""
        while feed.receive(0.0) is not None:
            pass
        end_s = time.monotonic() + self._timeout_s
        while time.monotonic() < end_s and not self._is_stopped():
            item = feed.receive(_POLL_S)
            if isinstance(item, FeedMessage):
                return item
        return None


class WorkersStatusClient:
    """Asks the processes of all workers of a configuration, as `StatusClient` does."""

    def __init__(
        self,
        settings: Settings,
        *,
        is_complete: bool = True,
        timeout_s: float = TIMEOUT_S,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clients = {
            name: StatusClient(
                of_worker(settings, name),
                is_complete=is_complete,
                timeout_s=timeout_s,
                is_stopped=is_stopped,
                # there is one of each for all workers
                alerts=alerts_endpoint(settings) if number == 0 else None,
                recorder=recorder_endpoint(settings) if number == 0 else None,
                forward=forward_endpoint(settings) if number == 0 else None,
                page=settings if number == 0 else None,
            )
            for number, name in enumerate(worker_names(settings))
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self) -> WorkersStatus:
        """Return how everything is now."""
        found = {name: client.ask() for name, client in self._clients.items()}
        for name, client in self._clients.items():
            client.judge(found[name], [*found.values()])
        return WorkersStatus(found)

    def close(self) -> None:
        """Close all sockets."""
        for client in self._clients.values():
            client.close()


def page_answers(settings: Settings, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether the page of this configuration answers, and not that of another one.

    Its certificate may be for other names.
    """
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
        answer = connection.getresponse()
        body = decode_json(answer.read(MAX_ALIVE_BYTES), "answer of the page", MAX_ALIVE_BYTES)
        return answer.status == HTTPStatus.OK and body.get("page") == page_id(settings)
    except (OSError, HTTPException, WireError):
        return False
    finally:
        connection.close()


def problems(
    box: BoxStatus,
    streams: Sequence[StreamSettings],
    endpoints: Mapping[str, str] = NO_ENDPOINTS,
    workers: Sequence[BoxStatus] = (),
) -> list[str]:
    """Return what is not well; a recording that has ended is.

    Args:
        endpoints: which socket was asked, by process: "worker", "alerts", "recorder",
            "forward", "capture NAME".
        workers: of which the other processes read the feeds; empty: that of `box` alone.
    """
    unheard = _unheard(workers or [box])

    def at(process: str) -> str:
        return f" at {endpoints[process]}" if process in endpoints else ""

    finite = {stream.name for stream in streams if stream.source.can_end}
    found = []
    if box.worker is None and box.has_worker:
        found.append(f"the worker does not answer{at('worker')}")
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
    found += box.losses
    for name, capture in box.captures.items():
        if capture is None and name not in over:
            found.append(f"the capture process of {name} does not answer{at(f'capture {name}')}")
        elif capture is not None and capture.state in _FAULTS and name not in named:
            found.append(
                f"the capture process of {name} {_FAULTS[capture.state]}: {capture.detail}"
            )
        placement = None if capture is None else capture.placement
        if placement is not None and placement.worker is None:
            found.append(f"stream {name}: no worker of the pool has it")
    if box.has_alerts and box.alerts is None:
        found.append(f"the alerts process sends no status{at('alerts')}")
    elif box.alerts is not None and box.alerts.disk:
        found.append(f"the alerts process cannot write: {box.alerts.disk}")
    elif box.alerts is not None and not box.alerts.hears_worker:
        found += unheard("the alerts process")
    if box.has_recorder and box.recorder is None:
        found.append(f"the recorder sends no status{at('recorder')}")
    elif box.recorder is not None and box.recorder.disk:
        found.append(f"the recorder: {box.recorder.disk}")
    elif box.recorder is not None and not box.recorder.hears_workers:
        found += unheard("the recorder")
    if box.has_forward and box.forward is None:
        found.append(f"the forwarder sends no status{at('forward')}")
    elif box.forward is not None:
        found += _forward_problems(box.forward, unheard)
    if box.page is not None and not box.page_answers:
        found.append(f"the page does not answer at {box.page}")
    if box.alerts is not None:
        found += [action.text for action in box.alerts.failing]
    return found


def follower_state(doing: str, disk: str | None, *, hears: bool) -> tuple[str, bool]:
    """Return the state in a word or two of a process that reads feeds, and whether it is well.

    One that cannot write does not read on either: that it hears nothing is no news then.
    """
    if disk is not None:
        return "cannot write", False
    return (doing, True) if hears else ("no worker", False)


def _unheard(workers: Sequence[BoxStatus]) -> Callable[[str], list[str]]:
    """Return what says why a process receives nothing: not its own fault, as a rule.

    A worker that is gone is a problem by itself, and the silence of those who read its feed none.
    """
    answers = [box.worker for box in workers if box.has_worker]
    up_s = [worker.uptime_s for worker in answers if worker is not None]

    def sentences(process: str) -> list[str]:
        if len(up_s) < len(answers):
            return []
        if up_s and min(up_s) < _HEARD_WITHIN_S:
            return [f"the worker started {min(up_s):.0f} s ago: {process} waits for its feed"]
        return [f"{process} receives nothing from the worker"]

    return sentences


def _forward_problems(forward: ForwardStatus, unheard: Callable[[str], list[str]]) -> list[str]:
    found = [f"the forwarder: {forward.disk}"] if forward.disk else []
    if not forward.hears_workers:
        found += unheard("the forwarder")
    return found + [
        f"forward {output.name}: {output.error}" for output in forward.outputs if output.error
    ]
