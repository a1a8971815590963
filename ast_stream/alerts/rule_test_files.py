"""Files of rule tests: what happens on streams, and the alerts that must follow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.field_types import Duration, Names, PositiveDuration, RuleSection
from ast_stream.alerts.rules.problems import RuleProblem, problem_at
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.errors import ConfigError
from ast_stream.labels import find_label
from ast_stream.messages.alert import AlertState
from ast_stream.messages.levels import BAND_NAMES, LevelsMessage
from ast_stream.messages.status import StreamState
from ast_stream.settings.explain import explain
from ast_stream.settings.yaml import Document, read_document
from ast_stream.units import NS_PER_SECOND, SILENCE_DBFS, parse_time

MAX_HOPS = 100_000
_TERM = re.compile(
    r"(?:_|(?P<value>\d+(?:\.\d+)?)(?P<step>[+-]\d+(?:\.\d+)?)?)(?:x(?P<times>\d+))?\Z", re.ASCII
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
    """Return a time written by hand, in nanoseconds since 1970.

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
    """How late the detector reports sounds, and how it decides on scores."""

    window: PositiveDuration
    hop: PositiveDuration
    onset_threshold: float = Field(default=0.5, ge=0, le=1)
    confirm: Duration = 750_000_000
    hold: Duration = 750_000_000

    @property
    def window_s(self) -> float:
        """Length of a window in seconds."""
        return self.window / NS_PER_SECOND

    @property
    def hop_s(self) -> float:
        """Seconds between windows."""
        return self.hop / NS_PER_SECOND

    @property
    def confirm_and_hold_s(self) -> dict[str, float]:
        """Both in seconds, by the names that they have in the configuration."""
        return {"confirm_s": self.confirm / NS_PER_SECOND, "hold_s": self.hold / NS_PER_SECOND}

    @property
    def timing(self) -> DetectionTiming:
        """How late it reports sounds."""
        return DetectionTiming.of(self.window_s, self.hop_s, **self.confirm_and_hold_s)


class OnStream(RuleSection):
    """What happens on one stream."""

    stream: str


class SoundOnStream(OnStream):
    """What is heard of one class on one stream."""

    class_: str = Field(alias="class")


class TestEvent(SoundOnStream):
    """A sound that the detector finds, from its onset to its offset."""

    at: Duration = Field(description="onset, from `start`")
    dur: Duration | None = Field(default=None, description="null: it does not end")
    score: float = Field(default=0.9, ge=0, le=1)
    watcher_score: float | None = Field(
        default=None, ge=0, le=1, description="of the small model of a cascade; null: none"
    )
    verifier_score: float | None = Field(
        default=None, ge=0, le=1, description="of the verifier of its class; null: none"
    )
    id: str | None = None
    lost: list[str] = Field(default_factory=list, description="messages that do not come: begin …")


class TestScores(SoundOnStream):
    """Scores of one class on one stream, for the real decision stage."""

    values: Annotated[list[float | None], BeforeValidator(_scores)]


class TestHealth(OnStream):
    """Health messages once a second, from `at` for `dur`."""

    at: Duration
    dur: Duration = 0
    state: StreamState = "listening"
    level_dbfs: float | None = Field(default=-50.0, ge=SILENCE_DBFS, le=0)


class TestLevels(OnStream):
    """Sound levels of a calibrated stream once a second, from `at` for `dur`, dB re 20 µPa."""

    at: Duration
    dur: Duration = 0
    laeq: float = Field(default=50.0, ge=-20, le=200)
    laf_max: float | None = Field(default=None, description="null: as `laeq`, like all below")
    laf_min: float | None = None
    l10: float | None = None
    l50: float | None = None
    l90: float | None = None
    third_octaves: dict[str, float] = Field(
        default_factory=dict, description="by nominal centre in Hz"
    )

    @field_validator("third_octaves")
    @classmethod
    def _bands_are_known(cls, bands: dict[str, float]) -> dict[str, float]:
        for name in bands:
            if name not in BAND_NAMES:
                raise ValueError(f"expected centres such as '63' or '1000', got '{name}'")
        return bands

    def message(self, at_ns: int, labels: dict[str, str]) -> LevelsMessage:
        """Return the message of a second that is published then."""

        def or_laeq(level: float | None) -> float:
            return self.laeq if level is None else level

        return LevelsMessage(
            stream=self.stream,
            labels=labels,
            epoch="test",
            start_sample=0,
            time_ns=at_ns - NS_PER_SECOND,
            calibrated=True,
            laeq=self.laeq,
            laf_max=or_laeq(self.laf_max),
            laf_min=or_laeq(self.laf_min),
            l10=or_laeq(self.l10),
            l50=or_laeq(self.l50),
            l90=or_laeq(self.l90),
            third_octaves=self.third_octaves,
            published_ns=at_ns,
        )


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
    """One test: what happens on the streams, and which alerts that must cause."""

    name: str = Field(min_length=1)
    start: str
    streams: dict[str, dict[str, str]] = Field(default_factory=dict)
    events: list[TestEvent] = Field(default_factory=list)
    scores: list[TestScores] = Field(default_factory=list)
    health: list[TestHealth] = Field(default_factory=list)
    levels: list[TestLevels] = Field(default_factory=list)
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
        listed: list[OnStream] = [*self.events, *self.scores, *self.health, *self.levels]
        for given in listed:
            if given.stream not in self.streams:
                raise ValueError(f"the stream '{given.stream}' is not under 'streams' of this test")
        return self

    @property
    def start_ns(self) -> int:
        """Stream time at which it begins."""
        return parse_time(self.start)


class RuleTestFile(RuleSection):
    """Rule files, and tests of them all together."""

    rules: Names
    labels: list[str] | None = Field(default=None, description="classes of the model")
    detector: DetectorSettings | None = None
    tests: list[RuleTest] = Field(min_length=1)


@dataclass(frozen=True)
class LoadedTests:
    """A test file with the rules it tests."""

    document: Document
    settings: RuleTestFile
    rules: RuleSet
    labels: tuple[str, ...] | None


def load_tests(path: Path, *, labels: Sequence[str] | None = None) -> LoadedTests:
    """Return the tests in a file, and the rules, whose paths are relative to it.

    Args:
        labels: classes of the model, where the file does not list any.

    Raises:
        ConfigError: either cannot be used.
    """
    document = read_document(path, "tests", "test file")
    problems = list(document.problems)
    try:
        settings = RuleTestFile.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        known = {problem.line for problem in problems}
        problems += [
            RuleProblem(found.file, found.line, found.path, found.text)
            for found in explain(details, RuleTestFile, document.file, document.lines)
            if found.line not in known
        ]
        raise ConfigError(problems) from error
    if problems:
        raise ConfigError(problems)
    labels = settings.labels or labels
    rules = load_rules([path.parent / name for name in settings.rules], labels=labels)
    tests = LoadedTests(document, settings, rules, None if labels is None else tuple(labels))
    problems += _unknown_names(tests)
    if problems:
        raise ConfigError(problems)
    return tests


def _unknown_names(tests: LoadedTests) -> Iterator[RuleProblem]:
    """Yield tests of alerts and classes that do not exist: they would always pass."""
    alerts = {rule.name for rule in tests.rules.rules}
    for t, test in enumerate(tests.settings.tests):
        for e, expected in enumerate(test.expect):
            if expected.alert not in alerts:
                text = f"no rule file has the alert '{expected.alert}'"
                yield problem_at(tests.document, ("tests", t, "expect", e), "E109", text)
        listed: dict[str, Sequence[SoundOnStream]] = {"events": test.events, "scores": test.scores}
        for kind, sounds in listed.items():
            for e, sound in enumerate(sounds):
                if tests.labels is not None and find_label(sound.class_, tests.labels) is None:
                    text = f"the model has no class '{sound.class_}'"
                    yield problem_at(tests.document, ("tests", t, kind, e), "E105", text)
