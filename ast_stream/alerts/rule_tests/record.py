"""A stretch of the past as a rule test: what was heard, and what the rules make of it today.

Streams get other names, unless a rule asks for them by name; their labels are kept, because rules
match on them. What is expected is what the test itself gives, so that it passes until a rule or
the engine changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ast_stream.alerts.model import Transition
from ast_stream.alerts.rule_tests.schema import duration_text
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.told import Told, read_event
from ast_stream.units import NS_PER_SECOND, format_time

WITHIN = "1s"  # how much later an alert may come before the test fails
AFTERWARDS_NS = 120 * NS_PER_SECOND  # for what hangs on timers after the last sound


@dataclass
class RecordedSound:
    """One event between its messages; nanoseconds of stream time."""

    told: Told
    offset_ns: int | None = None
    peak: float = 0.0


@dataclass
class Recording:
    """Sounds of a stretch of time, by the id of their event.

    Args:
        rules: streams that they name keep their names.
    """

    rules: RuleSet
    sounds: dict[str, RecordedSound] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def hear(self, bodies: Iterable[dict[str, Any]], from_ns: int, to_ns: int) -> None:
        """Take the sounds whose onset lies in [`from_ns`, `to_ns`); other bodies say nothing."""
        for body in bodies:
            told = read_event(body)
            if told is None or not from_ns <= told.onset_ns < to_ns:
                continue
            sound = self.sounds.setdefault(told.id, RecordedSound(told))
            sound.peak = max(sound.peak, told.peak)
            sound.offset_ns = told.offset_ns or sound.offset_ns

    @property
    def start_ns(self) -> int:
        """The whole second at which the test begins."""
        first = min(one.told.onset_ns for one in self.sounds.values())
        return first // NS_PER_SECOND * NS_PER_SECOND

    def lines(self, rule_files: Sequence[str], name: str, detector: str) -> Iterator[str]:
        """Yield a test file up to what is expected."""
        sounds = sorted(self.sounds.values(), key=lambda one: one.told.onset_ns)
        streams = {one.told.stream: one.told.labels for one in sounds}
        yield f"rules: {json.dumps(list(rule_files))}"
        yield f"detector: {detector}"
        yield "tests:"
        yield f"  - name: {json.dumps(name)}"
        yield f"    start: {json.dumps(format_time(self.start_ns))}"
        last = max(one.offset_ns or one.told.at_ns for one in sounds) + AFTERWARDS_NS
        yield f"    until: {-(-(last - self.start_ns) // NS_PER_SECOND)}s"
        yield "    streams:"
        for stream, labels in streams.items():
            yield f"      {self._name(stream)}: {json.dumps(labels, ensure_ascii=False)}"
        yield "    events:"
        for one in sounds:
            dur = "" if one.offset_ns is None else f"dur: {self._length(one)}, "
            yield (
                f"      - {{at: {duration_text(one.told.onset_ns - self.start_ns)}, "
                f"class: {json.dumps(one.told.label, ensure_ascii=False)}, {dur}"
                f"score: {one.peak:g}, stream: {self._name(one.told.stream)}}}"
            )

    def expected_lines(self, transitions: Sequence[Transition]) -> Iterator[str]:
        """Yield what a test expects that gives these transitions."""
        told = [
            one
            for one in transitions
            if one.to_state == "resolved"
            or (one.to_state == "firing" and one.from_state != "recovering")
        ]
        yield "    expect:" if told else "    expect: []"
        for one in told:
            texts = dict(one.alert.annotations)
            shown = f", annotations: {json.dumps(texts, ensure_ascii=False)}" if texts else ""
            yield (
                f"      - {{at: {duration_text(one.at_ns - self.start_ns)}, within: {WITHIN}, "
                f"alert: {one.alert.rule}, state: {one.to_state}{shown}}}"
            )

    def _length(self, one: RecordedSound) -> str:
        assert one.offset_ns is not None
        return duration_text(max(0, one.offset_ns - one.told.onset_ns))

    def _name(self, stream: str) -> str:
        """Return what a stream is called in the test."""
        named = {name for rule in self.rules.rules for name in _named_streams(rule.matchers)}
        if stream not in self._names:
            number = len(self._names) + 1
            self._names[stream] = stream if stream in named else f"stream-{number}"
        return self._names[stream]


def _named_streams(matchers: Iterable[Any]) -> Iterator[str]:
    for matcher in matchers:
        yield from matcher.named_streams or ()
        yield from _named_streams(matcher.exceptions)
