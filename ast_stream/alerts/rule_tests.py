"""Rule tests: a virtual clock, sounds at known times, and exactly the alerts that are expected.

Each test has its own engine. Sounds become the messages that the detector would publish, as late
as `detector` says (without it: at once); scores go through the real decision stage, which whoever
runs the tests supplies. At `restart_at` the state goes through its JSON form into a new engine.
By default (`exact`) every firing and every resolution must be expected; transitions to other
states are compared when a test names that state. What is heard in `down_for` after a restart
comes late, as from the feed's log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model import DetectionTiming, Transition, stable_id
from ast_stream.alerts.problems import RuleProblem, problem_at
from ast_stream.alerts.rule_files import load_rules
from ast_stream.alerts.rule_test_schema import (
    DetectorSettings,
    Expected,
    RuleTest,
    RuleTestFile,
    TestEvent,
    TestHealth,
    TestScores,
    duration_text,
)
from ast_stream.alerts.rules import RuleSet
from ast_stream.errors import ConfigError
from ast_stream.labels import slug
from ast_stream.messages import PROTOCOL_VERSION, format_time, parse_time
from ast_stream.settings.explain import explain
from ast_stream.settings.load import Document, read_document
from ast_stream.units import NS_PER_SECOND

UPDATE_NS = NS_PER_SECOND
ROUNDING_NS = 1_000  # times in messages are whole microseconds

Body = dict[str, Any]
Decide = Callable[[RuleTest, DetectorSettings, Sequence[str]], list[tuple[int, Body]]]
"""Sends scores through the decision stage: stream time and body of each event message."""


class Ledger(Protocol):
    """Where the deliveries of a test are counted."""

    def take(self, transitions: list[Transition]) -> None:
        """Take what one message or timer brought about."""

    def rows(self) -> int:
        """Return how many deliveries there are."""


@dataclass(frozen=True)
class TestResult:
    """What came of one test; it passed if there is no failure."""

    __test__ = False  # not for pytest

    file: str
    name: str
    failures: list[str]


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
    document = read_document(path, "tests")
    problems = list(document.problems)
    try:
        settings = RuleTestFile.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        known = {problem.line for problem in problems}
        for one in explain(details, RuleTestFile, document.file, document.lines):
            if one.line not in known:
                problems.append(RuleProblem(one.file, one.line, one.path, one.text))
        raise ConfigError(problems) from error
    if problems:
        raise ConfigError(problems)
    known_labels = settings.labels or labels
    paths = [path.parent / name for name in settings.rules]
    rules = load_rules(paths, labels=known_labels)
    _check_names(document, settings, {rule.name for rule in rules.rules}, known_labels)
    return LoadedTests(
        document, settings, rules, None if known_labels is None else tuple(known_labels)
    )


def run_tests(
    tests: LoadedTests, decide: Decide | None, new_ledger: Callable[[RuleSet], Ledger]
) -> Iterator[TestResult]:
    """Run the tests of a file one after another.

    Args:
        decide: the decision stage; None: tests with scores fail.
        new_ledger: makes the outbox of one test.
    """
    for index, test in enumerate(tests.settings.tests):
        failures = _Run(tests, test, index, new_ledger(tests.rules)).failures(decide)
        yield TestResult(tests.document.file, test.name, failures)


def detection_timing(detector: DetectorSettings | None) -> DetectionTiming:
    """Return the timing that a test file's `detector` stands for."""
    if detector is None:
        return DetectionTiming()
    return DetectionTiming.of(
        detector.window / NS_PER_SECOND,
        detector.hop / NS_PER_SECOND,
        confirm_s=detector.confirm / NS_PER_SECOND,
        hold_s=detector.hold / NS_PER_SECOND,
    )


def _check_names(
    document: Document,
    settings: RuleTestFile,
    alerts: Collection[str],
    labels: Sequence[str] | None,
) -> None:
    """Refuse tests of alerts and classes that do not exist: they would always pass."""
    problems = []
    known = None if labels is None else {*labels, *(slug(label) for label in labels)}
    for t, test in enumerate(settings.tests):
        for e, expected in enumerate(test.expect):
            if expected.alert not in alerts:
                text = f"no rule file has the alert '{expected.alert}'"
                problems.append(problem_at(document, ("tests", t, "expect", e), "E109", text))
        sounds: list[tuple[str, int, TestEvent | TestScores]] = [
            *(("events", e, event) for e, event in enumerate(test.events)),
            *(("scores", e, track) for e, track in enumerate(test.scores)),
        ]
        for kind, e, one in sounds:
            if known is not None and one.class_ not in known:
                text = f"the model has no class '{one.class_}'"
                problems.append(problem_at(document, ("tests", t, kind, e), "E105", text))
    if problems:
        raise ConfigError(list(problems))


@dataclass
class _Run:
    """One test while it runs."""

    tests: LoadedTests
    test: RuleTest
    index: int
    ledger: Ledger

    def failures(self, decide: Decide | None) -> list[str]:
        """Run the test and return what is wrong."""
        if self.test.scores and (decide is None or self.tests.labels is None):
            return ["scores need the classes of a model: 'labels' in the file, or a checkpoint"]
        return self._compare(self._transitions(decide))

    def _transitions(self, decide: Decide | None) -> list[Transition]:
        start = parse_time(self.test.start)
        timing = detection_timing(self.tests.settings.detector)
        engine = Engine(self.tests.rules, now_ns=start, timing=timing)
        found = engine.resume()
        timeline = sorted(self._timeline(start, timing, decide), key=lambda entry: entry[0])
        end = self._end(start, timeline)
        for at_ns, topic, body in timeline:
            if at_ns > end:
                break
            found += self._take(engine.advance(at_ns))
            if body is None:
                state = json.loads(json.dumps(engine.export()))
                up_ns = at_ns + self.test.down_for
                engine = Engine(self.tests.rules, state, now_ns=up_ns, timing=timing)
                found += self._take(engine.resume())
            else:
                found += self._take(engine.on_message(topic, body))
        return found + self._take(engine.advance(end))

    def _take(self, transitions: list[Transition]) -> list[Transition]:
        self.ledger.take(transitions)
        return transitions

    def _timeline(
        self, start: int, timing: DetectionTiming, decide: Decide | None
    ) -> Iterator[tuple[int, str, Body | None]]:
        for number, event in enumerate(self.test.events):
            for at_ns, body in _event_bodies(event, number, start, timing, self.test.streams):
                yield at_ns, "event/", body
        for health in self.test.health:
            for at_ns, body in _health_bodies(health, start, self.test.streams):
                yield at_ns, "health/", body
        if self.test.scores and decide is not None:
            detector = self.tests.settings.detector or DetectorSettings.model_validate(
                {"window": "2s", "hop": "250ms"}
            )
            for at_ns, body in decide(self.test, detector, self.tests.labels or ()):
                yield at_ns, "event/", body
        for offset in self.test.restart_at:
            yield start + offset, "", None

    def _end(self, start: int, timeline: list[tuple[int, str, Body | None]]) -> int:
        if self.test.until is not None:
            return start + self.test.until
        expected = [start + one.at + one.within for one in self.test.expect]
        return max([start, *expected, *(at_ns for at_ns, _, _ in timeline)])

    def _compare(self, found: list[Transition]) -> list[str]:
        named = {one.state for one in self.test.expect} | {"firing", "resolved"}
        start = parse_time(self.test.start)
        left = [
            one
            for one in found
            if one.to_state in named
            and not (one.from_state == "recovering" and one.to_state == "firing")
        ]
        failures = []
        for number, expected in enumerate(self.test.expect):
            reasons = [_difference(expected, one, start) for one in left]
            if "" in reasons:
                del left[reasons.index("")]
                continue
            line = self.tests.document.lines.get(("tests", self.index, "expect", number))
            what = f"{expected.alert} {expected.state} at {duration_text(expected.at)}"
            near = [r for r, one in zip(reasons, left, strict=True) if _is_near(expected, one)]
            failures.append(f"line {line}: expected {what}, got {near[0] if near else 'none'}")
        if self.test.exact:
            failures += [f"unexpected: {_tell(one, start)}" for one in left]
        rows = self.ledger.rows()
        if self.test.deliveries is not None and rows != self.test.deliveries:
            failures.append(f"expected {self.test.deliveries} deliveries, got {rows}")
        return failures


def _is_near(expected: Expected, one: Transition) -> bool:
    return one.alert.rule == expected.alert and one.to_state == expected.state


def _difference(expected: Expected, one: Transition, start: int) -> str:
    """Return how a transition differs from what is expected, nothing if it does not."""
    if not _is_near(expected, one):
        return _tell(one, start)
    late_ns = one.at_ns - start - expected.at
    if not -ROUNDING_NS <= late_ns <= expected.within + ROUNDING_NS:
        return f"it at {duration_text(one.at_ns - start)}"
    for name in ("labels", "annotations"):
        wanted, got = getattr(expected, name), dict(getattr(one.alert, name))
        if wanted is not None and wanted != got:
            return f"{name} {json.dumps(got, ensure_ascii=False, sort_keys=True)}"
    if expected.reason is not None and expected.reason != one.alert.reason:
        return f"reason {one.alert.reason}"
    return ""


def _tell(one: Transition, start: int) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in sorted(one.alert.labels.items()))
    return f"{one.alert.rule} {one.to_state} at {duration_text(one.at_ns - start)} ({labels})"


def _event_bodies(
    event: TestEvent,
    number: int,
    start: int,
    timing: DetectionTiming,
    streams: dict[str, dict[str, str]],
) -> Iterator[tuple[int, Body]]:
    """Yield the messages of one sound: begin, an update each second, end."""
    onset = start + event.at
    offset = None if event.dur is None else onset + event.dur
    begin_at = onset + timing.latency_ns
    end_at = None if offset is None else max(begin_at, offset + timing.smear_ns)
    times = [("begin", begin_at)]
    last = begin_at if end_at is None else end_at
    times += [("update", at) for at in range(begin_at + UPDATE_NS, last, UPDATE_NS)]
    times += [] if end_at is None else [("end", end_at)]
    for kind, at_ns in times:
        if kind not in event.lost:
            yield (
                at_ns,
                {
                    "v": PROTOCOL_VERSION,
                    "id": event.id or stable_id("rule-test", str(number)),
                    "type": kind,
                    "stream": event.stream,
                    "labels": streams[event.stream],
                    "class": slug(event.class_),
                    "label": event.class_,
                    "score": event.score,
                    "peak": event.score,
                    "onset": format_time(onset),
                    "offset": format_time(offset) if kind == "end" and offset else None,
                    "captured": format_time(at_ns),
                },
            )


def _health_bodies(
    health: TestHealth, start: int, streams: dict[str, dict[str, str]]
) -> Iterator[tuple[int, Body]]:
    for offset in range(0, health.dur + 1, NS_PER_SECOND):
        at_ns = start + health.at + offset
        yield (
            at_ns,
            {
                "stream": health.stream,
                "labels": streams[health.stream],
                "state": health.state,
                "level_dbfs": health.level_dbfs,
                "published": format_time(at_ns),
            },
        )
