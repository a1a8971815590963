"""Status and metrics of the forwarder: each second on its feed, for Prometheus, and as a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ast_stream.forward.sender import Sender
from ast_stream.messages.fleet import OutputReport
from ast_stream.messages.status import ForwardStatus, OutputStatus
from ast_stream.runtime.logging import Outage
from ast_stream.runtime.metrics import Family, figure
from ast_stream.settings.forward import ForwardOutput
from ast_stream.transport.process_report import ProcessReport, Reporting
from ast_stream.units import counted

Senders = Mapping[str, tuple[ForwardOutput, Sender]]
"""By name: the settings and the sender of each output."""


class ForwardReport(ProcessReport[ForwardStatus]):
    """Reports once a second.

    Args:
        senders: returns the current senders.
        hears: returns whether the feeds of all workers are being received.
        more_families: returns metrics besides those of the outputs.
    """

    def __init__(
        self,
        to: Reporting,
        senders: Callable[[], Senders],
        hears: Callable[[], bool],
        outages: Sequence[Outage],
        more_families: Callable[[], Sequence[Family]] = lambda: (),
    ) -> None:
        super().__init__(to)
        self._senders = senders
        self._hears = hears
        self._outages = outages
        self._more_families = more_families

    def status(self) -> ForwardStatus:
        """Return the status of all outputs."""
        senders = self._senders().values()
        outputs = [output_status(settings, sender) for settings, sender in senders]
        problems = [output.disk for output in outputs]
        problems += [outage.text for outage in self._outages]
        return ForwardStatus(
            hears_workers=self._hears(),
            outputs=outputs,
            disk="; ".join(filter(None, problems)) or None,
            restart_needed=list(self.restart_needed),
        )

    def families(self, status: ForwardStatus) -> list[Family]:
        """Return the metrics of all outputs, and `more_families`."""
        return [*families(self._senders(), status), *self._more_families()]

    def describe(self, status: ForwardStatus) -> str:
        """Return a status as a line for people."""
        return describe(status)


def output_status(settings: ForwardOutput, sender: Sender) -> OutputStatus:
    """Return the status of an output."""
    output = sender.output
    return OutputStatus(
        name=output.name,
        kind=settings.type,
        is_connected=output.error is None,
        waiting=sender.waiting,
        oldest_s=sender.oldest_s,
        sent=sender.sent.total(),
        bytes=sender.bytes,
        lost=sender.positions.lost,
        reconnects=output.reconnects,
        duplicates=output.duplicates,
        error=sender.error,
        disk=sender.positions.outage.text,
    )


def output_reports(senders: Senders) -> list[OutputReport]:
    """Return the state of the outputs for the report of the box."""
    return [
        OutputReport(
            name=sender.output.name,
            is_connected=sender.output.error is None,
            waiting=sender.waiting,
            lag_s=sender.oldest_s,
            lost=sender.positions.lost,
            error=sender.error,
        )
        for _, sender in senders.values()
    ]


def describe(status: ForwardStatus) -> str:
    """Return a status as a line for people."""
    waiting = sum(output.waiting for output in status.outputs)
    sent = counted(sum(output.sent for output in status.outputs), "message")
    failing = [f"{output.name}: {output.error}" for output in status.outputs if output.error]
    unheard = "" if status.hears_workers else ", waiting for the worker"
    disk = f", {status.disk}" if status.disk else ""
    wrong = f"; {'; '.join(failing)}" if failing else ""
    outputs = counted(len(status.outputs), "output")
    return f"{outputs}, {sent} sent, {waiting} waiting{unheard}{disk}{wrong}"


def families(senders: Senders, status: ForwardStatus) -> list[Family]:
    """Return the metrics of all outputs."""
    outputs = status.outputs

    def each(name: str, help: str, values: Mapping[str, float | None]) -> Family:
        return figure(name, help, {(key,): value for key, value in values.items()}, ("output",))

    return [
        figure(
            "ast_stream_forward_sent_total",
            "Messages that the broker has confirmed",
            {
                (name, kind): float(count)
                for name, (_, sender) in senders.items()
                for kind, count in sender.sent.items()
            },
            ("output", "kind"),
        ),
        each(
            "ast_stream_forward_sent_bytes_total",
            "Bytes of the bodies of these messages",
            {output.name: output.bytes for output in outputs},
        ),
        each(
            "ast_stream_forward_waiting",
            "Messages that the broker has not confirmed",
            {output.name: output.waiting for output in outputs},
        ),
        each(
            "ast_stream_forward_oldest_waiting_seconds",
            "Age of the oldest message that waits; 0: none does",
            {output.name: output.oldest_s or 0.0 for output in outputs},
        ),
        each(
            "ast_stream_forward_lost_total",
            "Messages that this box no longer had when it could have sent them, of all runs",
            {output.name: output.lost for output in outputs},
        ),
        each(
            "ast_stream_forward_connected",
            "1 while there is a connection to the broker",
            {output.name: output.is_connected for output in outputs},
        ),
        each(
            "ast_stream_forward_reconnects_total",
            "Connections that were lost and made again",
            {output.name: output.reconnects for output in outputs},
        ),
        each(
            "ast_stream_forward_duplicates_total",
            "Messages that the broker said it had already",
            {output.name: output.duplicates for output in outputs},
        ),
        figure(
            "ast_stream_forward_disk_failing",
            "1 while positions or health summaries cannot be written",
            status.disk is not None,
        ),
        figure(
            "ast_stream_forward_hears_workers",
            "1 while messages of the workers arrive",
            status.hears_workers,
        ),
    ]
