"""The report of a box of a fleet: one body, sent often; the centre keeps the newest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ast_stream.messages.codec import Body, Seconds, Text, Time, decode_json, encode_json
from ast_stream.messages.pool import Placement
from ast_stream.messages.status import StreamState

MAX_REPORT_BYTES = 256 * 1024
MAX_REPORT_STREAMS = 500  # of more, those that are worst; `streams_total` counts all
MAX_REPORT_PROBLEMS = 50
MAX_PROBLEM_CHARACTERS = 400
CLOCK_LIMIT_S = 1.0  # a wall clock that is wrong by more is a problem
_DAY_S = 86_400.0  # longest that `accounted_s` can be

# of what a box says: figures that a centre can reckon with
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Part = Annotated[float, Field(ge=0, le=1)]


class ClockReport(Body):
    """How right the wall clock of a box is. It is never set by this program."""

    offset_s: Seconds | None = None
    """What has to be added to times of the box, as NTP counts it: server minus box. Negative: the
    clock of the box is ahead. None: not measured."""
    uncertainty_s: Seconds | None = None
    """How far the measurement may be wrong: half the way there and back, and the server's own."""
    server: Text | None = None
    """The server that was asked; None: none is configured."""
    age_s: Seconds | None = None
    """Seconds since it was asked."""
    error: Text | None = None
    """Why the newest attempt to measure failed; None: it did not."""
    is_synchronised: Annotated[bool | None, Field(alias="synchronised")] = None
    """Whether the kernel considers its clock synchronised; None: unknown."""
    max_error_s: Seconds | None = None
    """The kernel's bound of the error; it grows while nothing corrects the clock."""

    @property
    def problem(self) -> str | None:
        """What is wrong with the clock, a sentence; None: nothing that is known."""
        if self.offset_s is not None and self.uncertainty_s is not None:
            if abs(self.offset_s) - self.uncertainty_s <= CLOCK_LIMIT_S:
                return None
            way = "behind" if self.offset_s > 0 else "ahead of"
            return f"the clock of this box is {abs(self.offset_s):.3f} s {way} {self.server}"
        if self.is_synchronised is False:
            why = f" ({self.error})" if self.error else ""
            return f"the clock of this box is not synchronised: nothing corrects it{why}"
        return None

    @property
    def text(self) -> str:
        """How right the clock is, in a few words."""
        kernel = {True: "synchronised", False: "not synchronised", None: "kernel does not say"}
        words = [kernel[self.is_synchronised]]
        if self.offset_s is not None and self.uncertainty_s is not None:
            measured = f"{self.offset_s:+.3f} s ± {self.uncertainty_s:.3f} s to {self.server}"
            words.insert(0, measured)
        elif self.error is not None:
            words.insert(0, self.error)
        return ", ".join(words)


class WorkerReport(Body):
    """A worker of a box."""

    name: Text | None = None
    """None: the only one."""
    boot: Text | None = None
    """Its run; None, as all that follows: it does not answer."""
    model: Text | None = None
    """Hash of the checkpoint in use."""
    device: Text | None = None
    precision: Text | None = None
    attention: Text | None = None
    uptime_s: Seconds | None = None
    windows_per_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    lag_s: Seconds | None = None
    """Of the stream with the largest lag."""
    restart_needed: list[Text] = Field(default_factory=list)
    """Keys of the configuration that have changed and are not in use."""


class StreamReport(Body):
    """A stream of a box."""

    stream: Text
    state: StreamState | None = None
    """None: no worker knows it."""
    detail: Text | None = None
    lag_s: Seconds | None = None
    hop_s: Seconds | None = None
    """Seconds between scored windows at present; wider than configured under overload."""
    heard: _Part | None = None
    """Part of the last 24 hours that was not lost, 0 to 1; None: nothing is recorded of them."""
    accounted_s: Annotated[Seconds, Field(ge=0)] | None = None
    """Seconds of the last 24 hours that `heard` is a part of."""
    placement: Placement | None = None
    """Which worker of a pool has it, and since when; None: it is in no pool."""


class OutputReport(Body):
    """How far an output of the forwarder lags behind the logs of the box."""

    name: Text
    is_connected: Annotated[bool, Field(alias="connected")]
    waiting: _Count | None = None
    """Messages that the broker has not confirmed; None: not known."""
    lag_s: Seconds | None = None
    """Age of the oldest of them; None or 0 if there is none."""
    lost: _Count = 0
    """Messages that the box no longer had when it could have sent them."""
    error: Text | None = None
    """Why it does not get on; None: it does."""


RolloutState = Literal[
    "in_use", "downloading", "checking", "starting", "refused", "returned", "waiting"
]
"""What a box makes of the model that it was asked to use.

* in_use: its workers use it
* downloading, checking: the box prepares it; the workers use the one before
* starting: the workers begin again with it
* refused: it cannot be used, says `detail`; nothing was changed
* returned: workers did not work with it, says `detail`; they use the one before
* waiting: the box cannot prepare it now, says `detail`, and tries again
"""


class RolloutReport(Body):
    """What a box does about the model that the centre asks it to use."""

    wanted: Text | None = None
    """Content hash of the checkpoint that it was asked to use; None: it was not asked."""
    current: Text | None = None
    """Content hash of the one that it uses; None: the one that its configuration names."""
    previous: Text | None = None
    """What it returns to; None: the one that its configuration names."""
    state: RolloutState = "in_use"
    detail: Text | None = None
    since_ns: Time | None = None
    """When `current` was put into use, by the clock of the box."""
    began: dict[Text, _Count] = Field(default_factory=dict)
    """Events begun since then, by class."""
    began_before: dict[Text, _Count] = Field(default_factory=dict)
    """Events that began in the time before, by class."""
    before_s: Annotated[Seconds, Field(ge=0)] = 0.0
    """How much time that was."""
    restarts: _Count = 0
    """Times that workers began again since then, not counting the first."""


class BoxReport(Body):
    """How a box of a fleet is."""

    v: Literal[1] = 1
    site: Text
    box: Text
    version: Text
    """Of this program."""
    boot: Text
    """Run of the process that reports."""
    time_ns: Time
    """By the clock of the box; see `clock`."""
    every_s: Seconds = 10.0
    """When it reports next at the latest: a box that is silent for 2.5 times that is not there."""
    configuration: Text | None = None
    """`sha256:` and the hash of the configuration file; None: it cannot be read."""
    checkpoint: Text
    """What the configuration names: the model that is configured."""
    clock: ClockReport
    workers: list[WorkerReport]
    streams: list[StreamReport]
    streams_total: _Count
    """How many there are; `streams` has those that are worst if they are too many."""
    outputs: list[OutputReport] = Field(default_factory=list)
    rollout: RolloutReport | None = None
    """None: the box does not follow a centre's choice of model."""
    problems: list[Text]
    """What is not well, a sentence each."""

    def encode(self) -> bytes:
        """Return the report as JSON."""
        return encode_json(self.to_json())

    @classmethod
    def decode(cls, body: bytes) -> BoxReport:
        """Return the report in JSON from a box.

        Raises:
            WireError: it does not follow the format, or is too long.
        """
        what = "box report"
        return cls.from_json(decode_json(body, what, MAX_REPORT_BYTES, mends_text=True), what)

    @property
    def models(self) -> list[str]:
        """Hashes of the checkpoints in use, each once."""
        return list(dict.fromkeys(worker.model for worker in self.workers if worker.model))

    @property
    def lag_s(self) -> float | None:
        """Of the stream with the largest lag; None without open streams."""
        lags = [worker.lag_s for worker in self.workers if worker.lag_s is not None]
        return max(lags, default=None)

    @property
    def unheard_s(self) -> float | None:
        """Seconds of the last 24 hours that were lost, for each stream; None: nothing is known."""
        known = [
            (1.0 - min(max(stream.heard, 0.0), 1.0)) * min(max(stream.accounted_s, 0.0), _DAY_S)
            for stream in self.streams
            if stream.heard is not None and stream.accounted_s
        ]
        return sum(known) / len(known) if known else None

    @property
    def heard(self) -> float | None:
        """Part of the last 24 hours of all streams that was not lost; None: nothing is known."""
        known = [
            (stream.heard, stream.accounted_s)
            for stream in self.streams
            if stream.heard is not None and stream.accounted_s
        ]
        total_s = sum(accounted_s for _, accounted_s in known)
        return sum(heard * accounted_s for heard, accounted_s in known) / total_s if known else None
