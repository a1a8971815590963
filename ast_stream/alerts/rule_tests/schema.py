"""What a file of rule tests may say; see `rule_tests` for what it means."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ast_stream.alerts.model import AlertState
from ast_stream.alerts.rules.schema import Duration, Names, PositiveDuration, RuleSection
from ast_stream.messages.event import StreamState
from ast_stream.units import NS_PER_SECOND, SILENCE_DBFS, parse_time

MAX_HOPS = 100_000
_TERM = re.compile(
    r"(?:_|(?P<value>\d+(?:\.\d+)?)(?P<step>[+-]\d+(?:\.\d+)?)?)(?:x(?P<times>\d+))?\Z"
)


def parse_scores(text: str) -> list[float | None]:
    """Return the scores in promtool's notation, one for each hop; None: no window was scored.

    >>> parse_scores("0x2 0.9 _")
    [0.0, 0.0, 0.9, None]
    >>> parse_scores("0.5+0.1x2")
    [0.5, 0.6, 0.7]

    Raises:
        ValueError: it is not that, or a score is not from 0 to 1.
    """
    scores: list[float | None] = []
    for term in text.split():
        match = _TERM.match(term)
        if match is None:
            raise ValueError(f"expected scores such as '0x8 0.9x40 _x4', got '{term}'")
        times = int(match["times"] or 1)
        if len(scores) + times > MAX_HOPS:
            raise ValueError(f"expected at most {MAX_HOPS} scores, got more")
        if match["value"] is None:
            scores += [None] * times
            continue
        first, step = float(match["value"]), float(match["step"] or 0)
        # as promtool has it: with a step, the first value comes before the counted ones
        n_values = times + (match["step"] is not None)
        values = [round(first + step * n, 6) for n in range(n_values)]
        if any(not 0 <= value <= 1 for value in values):
            raise ValueError(f"expected scores from 0 to 1, got '{term}'")
        scores += values
    return scores


def _scores(value: object) -> object:
    return parse_scores(value) if isinstance(value, str) else value


def parse_moment(text: str) -> int:
    """Return a time that somebody wrote, in nanoseconds since 1970.

    Raises:
        ValueError: it is none, or does not say its offset from UTC.
    """
    try:
        return parse_time(text)
    except ValueError:
        form = "2026-03-29T01:30:00+01:00"
        raise ValueError(
            f"expected a time with its offset from UTC such as {form}, got '{text}'"
        ) from None


class DetectorSettings(RuleSection):
    """How late the detector tells of sounds, and how it decides on scores."""

    window: PositiveDuration
    hop: PositiveDuration
    onset_threshold: float = Field(default=0.5, ge=0, le=1)
    confirm: Duration = 750_000_000
    hold: Duration = 750_000_000


class TestEvent(RuleSection):
    """A sound that the detector finds, from its onset to its offset."""

    at: Duration = Field(description="onset, from `start`")
    class_: str = Field(alias="class")
    dur: Duration | None = Field(default=None, description="null: it does not end")
    score: float = Field(default=0.9, ge=0, le=1)
    stream: str
    id: str | None = None
    lost: list[str] = Field(default_factory=list, description="messages that do not come: begin …")


class TestScores(RuleSection):
    """Scores of one class on one stream, for the real decision stage."""

    stream: str
    class_: str = Field(alias="class")
    values: Annotated[list[float | None], BeforeValidator(_scores)]


class TestHealth(RuleSection):
    """Health messages once a second, from `at` for `dur`."""

    at: Duration
    stream: str
    dur: Duration = 0
    state: StreamState = "listening"
    level_dbfs: float | None = Field(default=-50.0, ge=SILENCE_DBFS, le=0)


class Expected(RuleSection):
    """A transition that must come; keys left out may be anything."""

    at: Duration
    within: Duration = Field(default=0, description="up to this much later than `at`")
    alert: str
    state: AlertState = "firing"
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    reason: str | None = None


class RuleTest(RuleSection):
    """One test: what is heard, and what must come of it."""

    name: str = Field(min_length=1)
    start: str
    streams: dict[str, dict[str, str]] = Field(default_factory=dict)
    events: list[TestEvent] = Field(default_factory=list)
    scores: list[TestScores] = Field(default_factory=list)
    health: list[TestHealth] = Field(default_factory=list)
    restart_at: list[Duration] = Field(default_factory=list)
    down_for: Duration = 0
    until: PositiveDuration | None = None
    expect: list[Expected]
    exact: bool = True
    deliveries: int | None = Field(default=None, ge=0, description="rows in the outbox at the end")

    @field_validator("start")
    @classmethod
    def _is_a_time(cls, start: str) -> str:
        parse_moment(start)
        return start

    @model_validator(mode="after")
    def _streams_are_there(self) -> RuleTest:
        used = [one.stream for one in self.events]
        used += [one.stream for one in self.scores]
        used += [one.stream for one in self.health]
        for stream in used:
            if stream not in self.streams:
                raise ValueError(f"the stream '{stream}' is not under 'streams' of this test")
        return self


class RuleTestFile(RuleSection):
    """Rule files, and tests of them all together."""

    rules: Names
    labels: list[str] | None = Field(default=None, description="classes of the model")
    detector: DetectorSettings | None = None
    tests: list[RuleTest] = Field(min_length=1)


def duration_text(time_ns: int) -> str:
    """Return a stretch of time in seconds, e.g. `12.5s`."""
    return f"{time_ns / NS_PER_SECOND:.10g}s"
