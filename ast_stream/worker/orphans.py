"""Events that an earlier run of the worker began and never ended."""

from __future__ import annotations

from typing import Any

from ast_stream.transport.event_log import EventLog
from ast_stream.units import samples_to_seconds

Body = dict[str, Any]


class Orphans:
    """The last message of each event that had no `end` when the log was opened.

    The same audio derives most of them again: those are claimed. The rest must be ended, because
    the audio is gone that would.
    """

    def __init__(self, event_log: EventLog) -> None:
        self._bodies = {body["id"]: body for body in event_log.open_events()}

    @property
    def streams(self) -> set[str]:
        """Streams that have some."""
        return {body["stream"] for body in self._bodies.values()}

    def claim(self, event_id: str) -> None:
        """Take out an event that goes on."""
        self._bodies.pop(event_id, None)

    def take(
        self,
        stream: str,
        *,
        except_epoch: str | None = None,
        of_epoch: str | None = None,
        before: int | None = None,
    ) -> list[Body]:
        """Take out events of a stream and return their `end` messages.

        Args:
            except_epoch: leave those of this epoch.
            of_epoch: take only those of this epoch.
            before: take only those last heard before this sample.
        """
        taken = [
            body
            for body in self._bodies.values()
            if body["stream"] == stream
            and body["epoch"] != except_epoch
            and of_epoch in (None, body["epoch"])
            and (before is None or body["at_sample"] < before)
        ]
        for body in taken:
            del self._bodies[body["id"]]
        return [ended_by_restart(body) for body in taken]


def ended_by_restart(body: Body) -> Body:
    """Return the `end` of an orphan: it is known to have lasted until its last message."""
    offset_sample = max(body["at_sample"], body["onset_sample"])
    return body | {
        "type": "end",
        "mean": body["score"],
        "offset": body["captured"],
        "offset_sample": offset_sample,
        "duration_s": samples_to_seconds(offset_sample - body["onset_sample"]),
        "duration_reliable": False,
        "reason": "restart",
    }
