"""Rule tests: a virtual clock, sounds at known times, and exactly the alerts that are expected.

Each test has its own engine. Sounds become the messages that the detector would publish, as late
as `detector` says (without it: at once); scores go through the decision stage that decides live.
At `restart_at` the state goes through its JSON form into a new engine. By default (`exact`) every
firing and every resolution must be expected; transitions to other states are compared when a test
names that state. What happens in `down_for` after a restart arrives late, as from the feed's log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.rule_test_files import (
    DetectorSettings,
    Expected,
    LoadedTests,
    RuleTest,
    TestEvent,
    TestScores,
)
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.store import Store
from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import model_facts, resolve_parameters
from ast_stream.errors import UsageError
from ast_stream.labels import slug, stable_id
from ast_stream.messages.event import EventMessage, EventType
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.status import Health
from ast_stream.model.metadata import Metadata
from ast_stream.runtime.temporary import temporary_folder
from ast_stream.sample_clock import SampleClock
from ast_stream.settings.alerts import ActionSection
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.units import NS_PER_SECOND, seconds_to_samples, whole_frames

UPDATE_NS = NS_PER_SECOND
ROUNDING_NS = 1_000  # times in messages are whole microseconds
EPOCH = "0" * 32
MODEL = "rule-test"

Message = EventMessage | Health | LevelsMessage


@dataclass(frozen=True)
class TestResult:
    """What came of one test; it passed if there is no failure."""

    __test__ = False  # not for pytest

    file: str
    name: str
    failures: list[str]


def run_tests(tests: LoadedTests) -> Iterator[TestResult]:
    """Run the tests of a file one after another."""
    for index, test in enumerate(tests.settings.tests):
        failures = TestRun(tests, test, index).failures()
        yield TestResult(tests.document.file, test.name, failures)


def transitions_of(tests: LoadedTests) -> Iterator[list[Transition]]:
    """Yield what happens in each test, whatever it expects."""
    for index, test in enumerate(tests.settings.tests):
        yield TestRun(tests, test, index).transitions()


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
        for levels in test.levels:
            for offset in range(0, levels.dur + 1, NS_PER_SECOND):
                at_ns = test.start_ns + levels.at + offset
                yield at_ns, levels.message(at_ns, test.streams[levels.stream])
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
    actions = dict.fromkeys(sorted(names), ActionSection())
    end_ns = max((transition.at_ns for transition in transitions), default=0)
    with (
        temporary_folder("rules") as folder,
        closing(Store(folder / "alerts.sqlite")) as store,
        store.transaction() as db,
    ):
        Outbox(store, actions, lambda: end_ns).enqueue(db, transitions)
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
                watcher_score=event.watcher_score,
                verifier_score=event.verifier_score,
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
