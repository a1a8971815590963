"""How all processes of one configuration are: asked over their sockets, judged in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ast_stream.cli.run import can_end
from ast_stream.errors import WireError
from ast_stream.feed import FeedMessage, Subscriber
from ast_stream.messages.audio import ReadRequest, decode_ring_reply, encode_request
from ast_stream.messages.event import ALERTS_STATUS_TOPIC, SOURCE_ENDED
from ast_stream.messages.query import decode_answer
from ast_stream.settings.paths import alerts_endpoint, query_endpoint, ring_endpoint
from ast_stream.settings.schema import Settings, StreamSettings
from ast_stream.transport.query_client import QueryClient
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Sockets

TIMEOUT_S = 3.0  # for each answer: a worker that computes answers between two turns
_WELL = ("listening", "warming", "gated")
_AILING = {"missing": "has no audio", "degraded": "has no sound"}  # of capture processes
_LOOK_EVERY_S = 0.05
NOWHERE: Mapping[str, str] = {}


@dataclass
class Report:
    """What the processes answered.

    Attributes:
        worker: its status message; None: it did not answer.
        streams: health by stream, those in the configuration first.
        events: events that are open.
        captures: by stream in the configuration: state, detail and samples; None: no answer.
        alerts: status message of the alerts process; None: it was not heard.
        has_alerts: there should be one.
        problems: what is not well, in sentences.
    """

    worker: dict[str, Any] | None = None
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    captures: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    alerts: dict[str, Any] | None = None
    has_alerts: bool = False
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "healthy": not self.problems,
            "problems": self.problems,
            "worker": self.worker,
            "streams": list(self.streams.values()),
            "events": self.events,
            "captures": self.captures,
            "alerts": self.alerts,
        }


class Enquiry:
    """Asks the processes of a configuration, as often as wanted.

    Args:
        settings: of the processes.
        is_complete: `settings` names all streams; else the worker's word is taken for them.
        is_stopped: asked while waiting for answers.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        is_complete: bool,
        timeout_s: float = TIMEOUT_S,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._streams: Sequence[StreamSettings] = settings.streams if is_complete else ()
        self._timeout_s = timeout_s
        self._is_stopped = is_stopped
        self._sockets = Sockets()
        self._worker = QueryClient(self._sockets, query_endpoint(settings), is_stopped)
        self._alerts = (
            Subscriber(alerts_endpoint(settings), topics=[ALERTS_STATUS_TOPIC])
            if is_complete and settings.alerts.rules
            else None
        )

    def close(self) -> None:
        """Close the sockets."""
        if self._alerts is not None:
            self._alerts.close()
        self._sockets.close()

    def ask(self) -> Report:
        """Return how everything is now."""
        report = Report()
        self._ask_worker(report)
        for stream in self._streams:
            report.captures[stream.name] = self._ask_capture(stream.name)
        if self._alerts is not None:
            report.has_alerts, report.alerts = True, self._hear_alerts()
        report.problems = problems(report, self._streams, self._places())
        return report

    def _places(self) -> dict[str, str]:
        """Return the sockets that are asked: whoever looks in the wrong folder must see which."""
        captures = {
            f"capture {one.name}": ring_endpoint(self._settings, one.name) for one in self._streams
        }
        return {
            "worker": query_endpoint(self._settings),
            "alerts": alerts_endpoint(self._settings),
            **captures,
        }

    def _ask_worker(self, report: Report) -> None:
        frames = self._worker.ask("snapshot", self._timeout_s)
        if frames is None:
            return
        try:
            body = decode_answer(frames)
            healths = {one["stream"]: one for one in body["streams"]}
            report.events, report.worker = body["events"], body["status"]
        except (WireError, KeyError, TypeError):  # something else answers at this endpoint
            return
        first = [stream.name for stream in self._streams if stream.name in healths]
        report.streams = {name: healths[name] for name in dict.fromkeys([*first, *healths])}

    def _ask_capture(self, name: str) -> dict[str, Any] | None:
        socket = self._sockets.connect(
            "dealer", ring_endpoint(self._settings, name), QUERY_HWM_MESSAGES
        )
        try:
            request = ReadRequest(v=1, op="read", stream=name, epoch=None, start=0, stop=0)
            socket.send([encode_request(request)])
            frames = socket.receive(round(self._timeout_s * 1000))
            if frames is None:
                return None
            reply = decode_ring_reply(frames, name)
        except WireError:
            return None
        finally:
            self._sockets.forget(socket)
        return {
            "state": reply.state,
            "detail": reply.detail,
            "epoch": reply.block.epoch,
            "samples": reply.next,
            "unacknowledged": reply.next - reply.acked,
        }

    def _hear_alerts(self) -> dict[str, Any] | None:
        """Return the next status of the alerts process: those before are of the past."""
        assert self._alerts is not None
        while self._alerts.receive(0.0) is not None:
            pass
        end_s = time.monotonic() + self._timeout_s
        while time.monotonic() < end_s and not self._is_stopped():
            item = self._alerts.receive(_LOOK_EVERY_S)
            if isinstance(item, FeedMessage):
                return item.body
        return None


def problems(
    report: Report, streams: Sequence[StreamSettings], places: Mapping[str, str] = NOWHERE
) -> list[str]:
    """Return what is not well; a recording that has come to its end is.

    Args:
        places: which socket was asked, by process: "worker", "alerts", "capture NAME".
    """

    def at(process: str) -> str:
        return f" at {places[process]}" if process in places else ""

    finite = {one.name for one in streams if can_end(one.source)}
    found = [f"the worker does not answer{at('worker')}"] if report.worker is None else []
    if report.worker is not None:
        if report.worker.get("disk"):
            found.append(f"the worker's {report.worker['disk']}")
        found += [
            f"stream {one.name} is not known to the worker"
            for one in streams
            if one.name not in report.streams
        ]
    over = set()
    named = {name for name, one in report.streams.items() if one["state"] not in _WELL}
    for name, health in report.streams.items():
        if name in finite and health["detail"] == SOURCE_ENDED:
            over.add(name)
        elif health["state"] not in _WELL:
            found.append(f"stream {name} is {health['state']}: {health['detail']}")
    for name, capture in report.captures.items():
        if capture is None and name not in over:
            found.append(f"the capture process of {name} does not answer{at(f'capture {name}')}")
        elif capture is not None and capture["state"] in _AILING and name not in named:
            found.append(
                f"the capture process of {name} {_AILING[capture['state']]}: {capture['detail']}"
            )
    if report.has_alerts and report.alerts is None:
        found.append(f"the alerts process is not heard{at('alerts')}")
    elif report.alerts is not None and report.alerts.get("disk"):
        found.append(f"the alerts process cannot write: {report.alerts['disk']}")
    elif report.alerts is not None and not report.alerts["hears"]:
        found.append("the alerts process does not hear the worker")
    if report.alerts is not None:
        found += [str(one["text"]) for one in report.alerts.get("failing", ())]
    return found
