"""Backtests of rules on recorded events, and recordings of the past as rule tests.

In a recorded test, streams get other names, unless a rule asks for them by name; their labels are
kept, because rules match on them. It expects what the rules make of it today, so that it passes
until a rule or the engine changes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rule_tests import duration_text
from ast_stream.alerts.rules.match import Matcher
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.errors import WireError
from ast_stream.messages.event import EventMessage, GapMessage, content_without_topic
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.status import Health
from ast_stream.units import NS_PER_SECOND, format_time

Message = EventMessage | GapMessage | Health | LevelsMessage

_SETTLE_NS = 3600 * NS_PER_SECOND  # after the last event, for timers that still run
_WITHIN = "1s"  # how much later an alert may come before a recorded test fails
_AFTERWARDS_NS = 120 * NS_PER_SECOND  # for timers that run after the last sound of a recorded test


@dataclass
class BacktestReport:
    """What a backtest found.

    Attributes:
        fired: alerts by rule, also rules that never fired.
        suppressed: suppressed firings, by rule and reason.
        first_ns, last_ns: stream time of the first and the last event.
        listened_ns: duration of the audio the events are from; None: from first to last.
        damaged: lines that are not messages.
        not_judged: rules that go by messages of health or levels, where there are none.
    """

    fired: Counter[str] = field(default_factory=Counter)
    suppressed: dict[str, dict[str, int]] = field(default_factory=dict)
    events: int = 0
    damaged: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    listened_ns: int | None = None
    not_judged: list[str] = field(default_factory=list)

    def add_listened(self, duration_ns: int) -> None:
        """Add the duration of one recording."""
        self.listened_ns = (self.listened_ns or 0) + duration_ns


def read_messages(lines: Iterable[bytes], report: BacktestReport) -> Iterator[Message]:
    """Yield the messages of JSON lines: of the worker's log, of `subscribe`, or plain."""
    for line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            body = entry.get("body", entry) if isinstance(entry, dict) else None
            yield content_without_topic(body if isinstance(body, dict) else {})
        except (ValueError, RecursionError, WireError):
            report.damaged += 1


def backtest(
    rules: RuleSet,
    messages: Iterable[Message],
    report: BacktestReport,
    timing: DetectionTiming | None = None,
) -> Iterator[Transition]:
    """Yield each firing and resolution that would have been announced; fills in `report`.

    After the last event an hour passes without sound. Absence is counted from the first event.
    Rules about levels and coverage go by messages of health and levels alone, up to the last one.
    """
    report.fired.update({rule.name: 0 for rule in rules.rules})
    by_health = {rule.name for rule in rules.rules if rule.trigger.reads_health}
    by_levels = {rule.name for rule in rules.by_levels}
    has_health = has_levels = False
    engine: Engine | None = None
    for message in messages:
        if engine is None:
            report.first_ns = _time_ns(message)
            if report.first_ns is None:
                report.damaged += 1
                continue
            engine = Engine(rules, now_ns=report.first_ns, timing=timing, has_health=False)
        has_health = has_health or isinstance(message, Health)
        has_levels = has_levels or isinstance(message, LevelsMessage)
        yield from _counted(engine.process(message), report)
        report.last_ns = engine.now_ns
    if engine is not None:
        settled = engine.advance(engine.now_ns + _SETTLE_NS)
        yield from _counted(
            [transition for transition in settled if transition.alert.rule not in by_health], report
        )
        report.events = engine.counters.events
        report.suppressed = engine.counters.suppressed_by_rule
    not_judged = set() if has_health else by_health - by_levels
    report.not_judged = sorted(not_judged | (set() if has_levels else by_levels))


def _time_ns(message: Message) -> int | None:
    match message:
        case EventMessage():
            return message.captured_ns
        case GapMessage():
            return message.time_ns
    return message.published_ns


def _counted(transitions: list[Transition], report: BacktestReport) -> Iterator[Transition]:
    for transition in transitions:
        if transition.is_announced:
            if transition.to_state == "firing":
                report.fired[transition.alert.rule] += 1
            yield transition


@dataclass
class RecordedTest:
    """A stretch of time as a rule test.

    Attributes:
        rules: streams that they name keep their names.
        sounds: the first message about each, by id, with what later ones said of scores and offset.
    """

    rules: RuleSet
    sounds: dict[str, EventMessage] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def add(self, messages: Iterable[Message], from_ns: int, to_ns: int) -> None:
        """Add the sounds whose onset lies in [`from_ns`, `to_ns`); other messages are ignored."""
        for event in messages:
            if isinstance(event, EventMessage) and from_ns <= event.onset_ns < to_ns:
                known = self.sounds.get(event.id, event)
                of_watcher = [
                    version.watcher_score
                    for version in (known, event)
                    if version.watcher_score is not None
                ]
                so_far = {
                    "peak": max(known.peak, event.peak),
                    "watcher_score": max(of_watcher, default=None),
                    "offset_ns": event.offset_ns or known.offset_ns,
                }
                self.sounds[event.id] = known.model_copy(update=so_far)

    @property
    def start_ns(self) -> int:
        """The whole second at which the test begins."""
        first = min(sound.onset_ns for sound in self.sounds.values())
        return first // NS_PER_SECOND * NS_PER_SECOND

    def lines(self, rule_files: Sequence[str], name: str, detector: str) -> Iterator[str]:
        """Yield a test file up to what is expected."""
        sounds = sorted(self.sounds.values(), key=lambda sound: sound.onset_ns)
        streams = {sound.stream: sound.labels for sound in sounds}
        yield f"rules: {json.dumps(list(rule_files))}"
        yield f"detector: {detector}"
        yield "tests:"
        yield f"  - name: {json.dumps(name)}"
        yield f"    start: {json.dumps(format_time(self.start_ns))}"
        last = max(sound.offset_ns or sound.captured_ns for sound in sounds) + _AFTERWARDS_NS
        yield f"    until: {-(-(last - self.start_ns) // NS_PER_SECOND)}s"
        yield "    streams:"
        for stream, labels in streams.items():
            yield f"      {self._name(stream)}: {json.dumps(labels, ensure_ascii=False)}"
        yield "    events:"
        for sound in sounds:
            dur = ""
            if sound.offset_ns is not None:
                dur = f"dur: {duration_text(max(0, sound.offset_ns - sound.onset_ns))}, "
            others = ""
            if sound.watcher_score is not None:
                others += f"watcher_score: {sound.watcher_score:g}, "
            if sound.verifier_score is not None:
                others += f"verifier_score: {sound.verifier_score:g}, "
            yield (
                f"      - {{at: {duration_text(sound.onset_ns - self.start_ns)}, "
                f"class: {json.dumps(sound.label, ensure_ascii=False)}, {dur}{others}"
                f"score: {sound.peak:g}, stream: {self._name(sound.stream)}}}"
            )

    def expected_lines(self, transitions: Sequence[Transition]) -> Iterator[str]:
        """Yield what a test must expect so that these transitions pass."""
        announced = [transition for transition in transitions if transition.is_announced]
        yield "    expect:" if announced else "    expect: []"
        for transition in announced:
            texts = dict(transition.alert.annotations)
            shown = f", annotations: {json.dumps(texts, ensure_ascii=False)}" if texts else ""
            yield (
                f"      - {{at: {duration_text(transition.at_ns - self.start_ns)}, "
                f"within: {_WITHIN}, alert: {transition.alert.rule}, "
                f"state: {transition.to_state}{shown}}}"
            )

    def _name(self, stream: str) -> str:
        """Return what a stream is called in the test."""
        named = {name for rule in self.rules.rules for name in _named_streams(rule.matchers)}
        if stream not in self._names:
            number = len(self._names) + 1
            self._names[stream] = stream if stream in named else f"stream-{number}"
        return self._names[stream]


def _named_streams(matchers: Iterable[Matcher]) -> Iterator[str]:
    for matcher in matchers:
        yield from matcher.named_streams or ()
        yield from _named_streams(matcher.exceptions)
