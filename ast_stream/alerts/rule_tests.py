"""Rule tests: a virtual clock, sounds at known times, and exactly the alerts that are expected.

Each test has its own engine. Sounds become the messages that the detector would
publish, as late as `detector` says (without it: at once); scores go through the decision stage
that decides live. At `restart_at` the state goes through its JSON form into a new engine. By
default (`exact`) every firing and every resolution must be expected; transitions to other states
are compared when a test names that state. What happens in `down_for` after a restart arrives late,
as from the feed's log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ast_stream.alerts.delivery_schedule import FEED, Route
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.fields import Duration, Names, PositiveDuration, RuleSection
from ast_stream.alerts.rules.problems import RuleProblem, problem_at
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.store import Store
from ast_stream.alerts.transitions import Transition, stable_id
from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import model_facts, resolve_parameters
from ast_stream.errors import ConfigError, UsageError
from ast_stream.labels import find_label, slug
from ast_stream.messages.alert import AlertState
from ast_stream.messages.event import EventMessage, EventType
from ast_stream.messages.status import Health, StreamState
from ast_stream.model.metadata import Metadata
from ast_stream.sample_clock import SampleClock
from ast_stream.settings.explain import explain
from ast_stream.settings.schema import DetectionDefaults, DetectionSettings
from ast_stream.settings.yaml import Document, read_document
from ast_stream.units import (
    NS_PER_SECOND,
    SILENCE_DBFS,
    parse_time,
    seconds_to_samples,
    whole_frames,
)

MAX_HOPS = 100_000
UPDATE_NS = NS_PER_SECOND
ROUNDING_NS = 1_000  # times in messages are whole microseconds
EPOCH = "0" * 32
MODEL = "rule-test"
_TERM = re.compile(
    r"(?:_|(?P<value>\d+(?:\.\d+)?)(?P<step>[+-]\d+(?:\.\d+)?)?)(?:x(?P<times>\d+))?\Z"
)

Message = EventMessage | Health


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
        listed: list[OnStream] = [*self.events, *self.scores, *self.health]
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


@dataclass(frozen=True)
class TestResult:
    """What came of one test; it passed if there is no failure."""

    __test__ = False  # not for pytest

    file: str
    name: str
    failures: list[str]


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


def run_tests(tests: LoadedTests) -> Iterator[TestResult]:
    """Run the tests of a file one after another."""
    for index, test in enumerate(tests.settings.tests):
        failures = TestRun(tests, test, index).failures()
        yield TestResult(tests.document.file, test.name, failures)


def transitions_of(tests: LoadedTests) -> Iterator[list[Transition]]:
    """Yield what happens in each test, whatever it expects."""
    for index, test in enumerate(tests.settings.tests):
        yield TestRun(tests, test, index).transitions()


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


@dataclass
class TestRun:
    """One test while it runs."""

    __test__ = False  # not for pytest

    tests: LoadedTests
    test: RuleTest
    index: int

    def failures(self) -> list[str]:
        """Run the test and return what is wrong."""
        if self.test.scores and self.tests.labels is None:
            return ["scores need the classes of a model: 'labels' in the file, or a checkpoint"]
        return self._compare(self.transitions())

    def transitions(self) -> list[Transition]:
        """Run the test and return all that happened."""
        rules, detector = self.tests.rules, self.tests.settings.detector
        timing = DetectionTiming() if detector is None else detector.timing
        engine = Engine(rules, now_ns=self.test.start_ns, timing=timing)
        found = engine.resume()
        timeline = sorted(self._timeline(timing), key=lambda entry: entry[0])
        end = self._end(timeline)
        for at_ns, message in timeline:
            if at_ns > end:
                break
            found += engine.advance(at_ns)
            if message is None:
                state = json.loads(json.dumps(engine.export()))
                up_ns = at_ns + self.test.down_for
                engine = Engine(rules, state, now_ns=up_ns, timing=timing)
                found += engine.resume()
            else:
                found += engine.process(message)
        return found + engine.advance(end)

    def _timeline(self, timing: DetectionTiming) -> Iterator[tuple[int, Message | None]]:
        """Yield stream times and messages; None is a restart."""
        test = self.test
        for number, event in enumerate(test.events):
            for message in _event_messages(event, number, test, timing):
                yield message.captured_ns, message
        for health in test.health:
            for offset in range(0, health.dur + 1, NS_PER_SECOND):
                at_ns = test.start_ns + health.at + offset
                yield (
                    at_ns,
                    Health(
                        stream=health.stream,
                        labels=test.streams[health.stream],
                        state=health.state,
                        level_dbfs=health.level_dbfs,
                        published_ns=at_ns,
                    ),
                )
        if test.scores:
            detector = self.tests.settings.detector or DetectorSettings.model_validate(
                {"window": "2s", "hop": "250ms"}
            )
            yield from _decide(test, detector, self.tests.labels or ())
        for offset in test.restart_at:
            yield test.start_ns + offset, None

    def _end(self, timeline: list[tuple[int, Message | None]]) -> int:
        start = self.test.start_ns
        if self.test.until is not None:
            return start + self.test.until
        expected = [start + expect.at + expect.within for expect in self.test.expect]
        return max([start, *expected, *(at_ns for at_ns, _ in timeline)])

    def _compare(self, found: list[Transition]) -> list[str]:
        named = {expect.state for expect in self.test.expect} | {"firing", "resolved"}
        start = self.test.start_ns
        left = [
            transition
            for transition in found
            if transition.to_state in named
            and (transition.is_announced or transition.to_state != "firing")
        ]
        failures = []
        for number, expected in enumerate(self.test.expect):
            reasons = [_difference(expected, transition, start) for transition in left]
            if "" in reasons:
                del left[reasons.index("")]
                continue
            line = self.tests.document.lines.get(("tests", self.index, "expect", number))
            what = f"{expected.alert} {expected.state} at {duration_text(expected.at)}"
            near = [
                reason
                for reason, transition in zip(reasons, left, strict=True)
                if _is_near(expected, transition)
            ]
            failures.append(f"line {line}: expected {what}, got {near[0] if near else 'none'}")
        if self.test.exact:
            failures += [f"unexpected: {_describe(transition, start)}" for transition in left]
        if self.test.deliveries is not None:
            n_deliveries = _count_deliveries(self.tests.rules, found)
            if n_deliveries != self.test.deliveries:
                failures.append(f"expected {self.test.deliveries} deliveries, got {n_deliveries}")
        return failures


def _is_near(expected: Expected, transition: Transition) -> bool:
    return transition.alert.rule == expected.alert and transition.to_state == expected.state


def _difference(expected: Expected, transition: Transition, start: int) -> str:
    """Return how a transition differs from what is expected, nothing if it does not."""
    if not _is_near(expected, transition):
        return _describe(transition, start)
    late_ns = transition.at_ns - start - expected.at
    if not -ROUNDING_NS <= late_ns <= expected.within + ROUNDING_NS:
        return f"it at {duration_text(transition.at_ns - start)}"
    for name in ("labels", "annotations"):
        wanted, got = getattr(expected, name), dict(getattr(transition.alert, name))
        if wanted is not None and wanted != got:
            return f"{name} {json.dumps(got, ensure_ascii=False, sort_keys=True)}"
    if expected.reason is not None and expected.reason != transition.alert.reason:
        return f"reason {transition.alert.reason}"
    return ""


def _describe(transition: Transition, start: int) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in sorted(transition.alert.labels.items()))
    at = duration_text(transition.at_ns - start)
    return f"{transition.alert.rule} {transition.to_state} at {at} ({labels})"


def _count_deliveries(rules: RuleSet, transitions: list[Transition]) -> int:
    """Return how many rows a real outbox gets, besides the feed's; each action has both kinds."""
    names = {name for rule in rules.rules for name in rule.actions or ()}
    routes = dict.fromkeys(sorted(names), Route(frozenset({"firing", "resolved"})))
    end_ns = max((transition.at_ns for transition in transitions), default=0)
    with (
        TemporaryDirectory(prefix="ast-stream-rules-") as folder,
        closing(Store(Path(folder) / "alerts.sqlite")) as store,
        store.transaction() as db,
    ):
        Outbox(store, routes, lambda: end_ns).enqueue(db, transitions)
        query = "SELECT count(*) FROM deliveries WHERE action <> ?"
        return int(db.execute(query, (FEED,)).fetchone()[0])


def _event_messages(
    event: TestEvent, number: int, test: RuleTest, timing: DetectionTiming
) -> Iterator[EventMessage]:
    """Yield one sound's begin, an update each second, and its end."""
    onset = test.start_ns + event.at
    offset = None if event.dur is None else onset + event.dur
    begin_at = onset + timing.latency_ns
    end_at = None if offset is None else max(begin_at, offset + timing.smear_ns)
    last = begin_at if end_at is None else end_at
    times: list[tuple[EventType, int]] = [("begin", begin_at)]
    times += [("update", time) for time in range(begin_at + UPDATE_NS, last, UPDATE_NS)]
    times += [] if end_at is None else [("end", end_at)]
    for kind, at_ns in times:
        if kind not in event.lost:
            yield EventMessage(
                id=event.id or stable_id("rule-test", str(number)),
                type=kind,
                stream=event.stream,
                labels=test.streams[event.stream],
                class_=slug(event.class_),
                label=event.class_,
                score=event.score,
                peak=event.score,
                onset_ns=onset,
                offset_ns=offset if kind == "end" else None,
                captured_ns=at_ns,
            )


def _decide(
    test: RuleTest, detector: DetectorSettings, labels: Sequence[str]
) -> Iterator[tuple[int, EventMessage]]:
    """Yield stream time and every event message that the test's scores bring about.

    The first window ends one hop after the test's start.

    Raises:
        UsageError: a hop or window that is no multiple of 10 ms.
    """
    try:
        whole_frames(detector.hop_s, "detector.hop")
        whole_frames(detector.window_s, "detector.window")
    except ValueError as error:
        raise UsageError(f"rules test: {error}") from error
    for stream in sorted({track.stream for track in test.scores}):
        tracks = [track for track in test.scores if track.stream == stream]
        yield from _decide_stream(test, stream, tracks, detector, labels)


def _decide_stream(
    test: RuleTest,
    stream: str,
    tracks: list[TestScores],
    detector: DetectorSettings,
    labels: Sequence[str],
) -> Iterator[tuple[int, EventMessage]]:
    hop = seconds_to_samples(detector.hop_s)
    names = SlotNames(1)
    slot = names.add(stream, EPOCH)
    decision = _new_decision(detector, labels, names)
    clock = SampleClock.from_start(test.start_ns)
    for number, row in enumerate(_rows(tracks, labels)):
        if row is None:
            continue
        end = (number + 1) * hop
        at_ns = clock.time_ns(end)
        events = decision.step(
            np.array([slot]),
            np.array([end]),
            np.array([row], np.float32),
            context_starts=np.array([0]),
            first_scored=np.array([hop]),
            audio_ends=np.array([end]),
        )
        for event in events:
            yield (
                at_ns,
                EventMessage.of(
                    event,
                    clock,
                    labels=test.streams[stream],
                    audio_end=end,
                    scored=clock.moment(end),
                    model=MODEL,
                ),
            )


def _new_decision(detector: DetectorSettings, labels: Sequence[str], names: SlotNames) -> Decision:
    unmeasured = Metadata(default_onset_threshold=detector.onset_threshold)
    facts = model_facts(labels, detector.window_s, unmeasured)
    defaults = DetectionDefaults(**detector.confirm_and_hold_s)
    settings = DetectionSettings(defaults=defaults)
    return Decision(resolve_parameters(settings, facts, detector.hop_s), names)


def _rows(tracks: list[TestScores], labels: Sequence[str]) -> list[list[float] | None]:
    """Return the scores of all classes for each hop; None where no window is scored."""
    by_name = {slug(label): index for index, label in enumerate(labels)}
    rows: list[list[float] | None] = []
    for number in range(max(len(track.values) for track in tracks)):
        row: list[float] | None = [0.0] * len(labels)
        for track in tracks:
            value = track.values[number] if number < len(track.values) else 0.0
            if value is None:
                row = None
            elif row is not None:
                row[by_name[slug(track.class_)]] = value
        rows.append(row)
    return rows


def duration_text(time_ns: int) -> str:
    """Return a stretch of time in seconds, e.g. `12.5s`."""
    return f"{time_ns / NS_PER_SECOND:.10g}s"
