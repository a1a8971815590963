"""One rule test: what is heard through an engine on a virtual clock, against what is expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model import DetectionTiming, Transition
from ast_stream.alerts.rule_tests.bodies import Body, event_bodies, health_bodies
from ast_stream.alerts.rule_tests.schema import (
    DetectorSettings,
    Expected,
    RuleTest,
    RuleTestFile,
    duration_text,
)
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.settings.load import Document
from ast_stream.units import NS_PER_SECOND, parse_time

ROUNDING_NS = 1_000  # times in messages are whole microseconds

Decide = Callable[[RuleTest, DetectorSettings, Sequence[str]], list[tuple[int, Body]]]
"""Sends scores through the decision stage: stream time and body of each event message."""


class Ledger(Protocol):
    """Where the deliveries of a test are counted."""

    def take(self, transitions: list[Transition]) -> None:
        """Take what one message or timer brought about."""

    def rows(self) -> int:
        """Return how many deliveries there are."""


@dataclass(frozen=True)
class LoadedTests:
    """A test file with the rules it tests."""

    document: Document
    settings: RuleTestFile
    rules: RuleSet
    labels: tuple[str, ...] | None


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


@dataclass
class TestRun:
    """One test while it runs."""

    __test__ = False  # not for pytest

    tests: LoadedTests
    test: RuleTest
    index: int
    ledger: Ledger

    def failures(self, decide: Decide | None) -> list[str]:
        """Run the test and return what is wrong."""
        if self.test.scores and (decide is None or self.tests.labels is None):
            return ["scores need the classes of a model: 'labels' in the file, or a checkpoint"]
        return self._compare(self.transitions(decide))

    def transitions(self, decide: Decide | None) -> list[Transition]:
        """Run the test and return all that happened."""
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
            for at_ns, body in event_bodies(event, number, start, timing, self.test.streams):
                yield at_ns, "event/", body
        for health in self.test.health:
            for at_ns, body in health_bodies(health, start, self.test.streams):
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
