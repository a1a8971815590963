"""Messages as a box sends them, and settings of outputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter

from ast_stream.forward.cloud_events import cloud_event
from ast_stream.forward.output import OutgoingMessage, Output, OutputError
from ast_stream.forward.source import Cursor, Item
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import ForwardOutput

PATIENCE_S = 60.0
BOX = BoxIdentity("home", "attic")
LARGE = 5000  # bytes


def output_settings(**values: Any) -> Any:
    """Return the settings of one output."""
    return TypeAdapter(ForwardOutput).validate_python({"name": "centre", **values})


def outgoing(n: int, **data: Any) -> OutgoingMessage:
    """Return one of many messages."""
    body = {"v": 1, "id": f"e{n}", **data}
    return cloud_event(
        BOX, "event", body, id=f"e{n}.begin", time_ns=n, stream="porch", name="bark", detail="begin"
    )


def send_until_taken(output: Output, batch: Sequence[OutgoingMessage]) -> None:
    """Send as the forwarder does: again and again."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            if output.memory is not None:
                output.memory.kept()
            assert output.send(batch) == len(batch)
            return
        except OutputError:
            time.sleep(0.05)
    pytest.fail(f"not taken: {output.error}")


class Numbers:
    """A source of numbered messages, some of which are large."""

    name = "numbers"

    def __init__(self, cursor: Cursor, n_messages: int, large: Sequence[int] = ()) -> None:
        self._next = cursor or 0
        self.n_messages = n_messages
        self.since_ns = 0
        self._large = large

    def behind(self, cursor: Cursor) -> Numbers:
        """Return this, read from a position on."""
        self._next = cursor or 0
        return self

    def read(self, limit: int, wait_s: float) -> list[Item]:
        found: list[Item] = []
        while self._next < self.n_messages and len(found) < limit:
            n = self._next
            data = {"n": n, "text": "x" * (LARGE if n in self._large else 0)}
            message = cloud_event(BOX, "gap", data, id=f"{n}.gap", time_ns=None, stream="porch")
            self._next += 1
            found.append(Item(message, self._next, self.since_ns))
        return found

    def count(self, cursor: Cursor) -> int:
        return self.n_messages - (cursor or 0)

    def close(self) -> None:
        pass
