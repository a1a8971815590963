"""The interface of outputs: the messages that go out, and how an output sends them.

An output is one broker. Each has its own position in everything that this box has to send, so that
an unreachable broker does not hold up the others.

The module of an output is called `to_` and the output's `type`, and calls its class `OUTPUT`: a new
output is its settings class and its module, and nothing else. Modules are imported on demand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ast_stream.errors import AstStreamError
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import ForwardOutput

OutgoingKind = Literal["event", "gap", "alert", "coverage", "health", "lost"]
OUTGOING_KINDS: tuple[OutgoingKind, ...] = (
    "event",
    "gap",
    "alert",
    "coverage",
    "health",
    "lost",
)
STATUS = "status"  # used like a kind: the state of the box, of which the newest is retained
_NOT_IN_TOKENS = re.compile(r"[^A-Za-z0-9_-]")


class OutputError(AstStreamError):
    """A broker has not confirmed all messages; they are sent again. The text is a sentence.

    Attributes:
        confirmed: number of messages at the beginning of the batch that it has confirmed.
        is_too_large: the message after those is too large for it.
    """

    def __init__(self, text: str, confirmed: int = 0, *, is_too_large: bool = False) -> None:
        super().__init__(text)
        self.confirmed = confirmed
        self.is_too_large = is_too_large


class ReconnectedError(OutputError):
    """The broker may have lost messages before this connection: call `Memory.kept` first."""


@dataclass(frozen=True)
class OutgoingMessage:
    """One message as it leaves this box.

    Attributes:
        stream: that it is about; None: the box as a whole.
        name: class of an event, rule of an alert; None: it has none.
        id: the same whenever the message is sent again, and unique among all boxes; with the
            source it is the key by which the centre drops duplicates.
        body: a CloudEvent as JSON.
        severity: of an alert.
    """

    kind: OutgoingKind
    site: str
    box: str
    stream: str | None
    name: str | None
    id: str
    body: bytes
    severity: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a subject or topic after the prefix: site, box, kind, and what it is about.

        >>> OutgoingMessage("event", "home", "attic", "porch", "bark", "1", b"{}").parts
        ('home', 'attic', 'event', 'porch', 'bark')
        """
        about = (self.severity, self.stream, self.name)
        found = (self.site, self.box, self.kind, *(part for part in about if part is not None))
        return tuple(_NOT_IN_TOKENS.sub("_", part) or "_" for part in found)

    @property
    def source(self) -> str:
        """`/<site>/<box>`, followed by `/<stream>` if it is about a stream; as in the body."""
        return source_of(BoxIdentity(self.site, self.box), self.stream)


def source_of(identity: BoxIdentity, stream: str | None) -> str:
    """Return the `source` of a CloudEvent about a box or one of its streams."""
    return identity.source if stream is None else f"{identity.source}/{stream}"


class Memory(Protocol):
    """Which confirmed messages a broker still has, if it keeps them in memory for a while.

    A mark is a word that the broker stores in the same way as messages. If it still has a mark, it
    has everything that it confirmed before the mark.
    """

    @property
    def safe_s(self) -> float:
        """Monotonic time: what the broker had confirmed by then survives a kill of the broker."""

    def mark(self, word: str) -> None:
        """Send a mark after everything that is confirmed; never raises or waits."""

    def kept(self) -> list[str] | None:
        """Return the marks that the broker has, once for each connection; None: same connection.

        Raises:
            OutputError: the connection was lost meanwhile.
        """


class Output(Protocol):
    """One broker; `send`, `holds` and `memory` are called by one thread, the rest by another."""

    @property
    def reconnects(self) -> int:
        """Number of times that a connection was lost and made again."""

    @property
    def duplicates(self) -> int:
        """Number of messages that the broker reported as duplicates."""

    @property
    def name(self) -> str:
        """The name in the settings."""

    @property
    def error(self) -> str | None:
        """Why there is no connection, as a sentence; None while there is one."""

    @property
    def rival(self) -> str | None:
        """A warning that another box seems to have this box's name; None: no sign of it."""

    @property
    def memory(self) -> Memory | None:
        """Which confirmed messages the broker may lose; None: it writes before it confirms."""

    def check(self) -> None:
        """Read secrets and certificates as `start` will, without connecting.

        Raises:
            StartupError: one cannot be used. (A running output tries again instead.)
        """

    def start(self) -> None:
        """Start connecting, in the background."""

    def holds(self, batch: Sequence[OutgoingMessage]) -> set[str]:
        """Return the ids of the batch that the broker is known to have.

        Called after a start, before the first batch of each source is sent: some of its messages
        may have been sent before a kill that kept the position from being saved. Empty if the
        broker cannot tell.

        Raises:
            OutputError: the broker cannot be reached now.
        """

    def send(self, batch: Sequence[OutgoingMessage]) -> int:
        """Send a batch in order, and return how many messages are confirmed, from the first on.

        Raises:
            OutputError: not all are confirmed; the rest must be sent again.
            ReconnectedError: none was sent.
        """

    def publish_status(self, report: bytes) -> None:
        """Replace the retained status of this box; never raises or waits long.

        Args:
            report: JSON.
        """

    def close(self) -> None:
        """Disconnect, in bounded time, without waiting for confirmations."""


OutputMaker = Callable[[ForwardOutput, BoxIdentity], Output]
"""Returns an output that has not been started; raises StartupError if its library is missing."""
