"""The engine of alert rules timed against a stream of events.

Begin and end messages of 50 classes on 20 streams, 2 000 a second of stream time, as late as
a window of 2.56 s makes them; rules are of every kind. The state is exported once a second of
stream time, as the service does, and that counts.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rules.compile import compile_rules
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.benchmarks.report import Spread, TableColumn, seconds_in_turn
from ast_stream.settings.yaml import parse_document
from ast_stream.units import NS_PER_SECOND, format_time

START = 1_800_000_000 * NS_PER_SECOND
N_CLASSES, N_STREAMS = 50, 20
LENGTHS_S = (0.5, 0.5, 2.0, 8.0)
RATE = 2000  # messages a second of stream time
TIMING = DetectionTiming.of(2.56, 0.25)
KINDS = (
    "match: {{class: c{0}}}, cooldown: 10s",
    "match: {{any_of: [c{0}, c{1}]}}, for: 5s, tolerate: 2s",
    "match: {{class: c{0}, score: {{min: 0.7}}}}, count: {{min: 5, within: 30s}}",
    "sequence: {{within: 10s, steps: [{{match: {{class: c{0}}}}}, {{match: {{class: c{1}}}}}]}}",
    "absent: {{match: {{class: c{0}}}, for: 1m}}",
)

COLUMNS = (
    TableColumn("rules", "{rules}"),
    TableColumn("messages/s", "{per_s:.0f}"),
    TableColumn("min", "{low_per_s:.0f}"),
    TableColumn("max", "{high_per_s:.0f}"),
    TableColumn("transitions", "{transitions}"),
    TableColumn("state KiB", "{state_kib:.0f}"),
)


@dataclass(frozen=True)
class AlertsTiming:
    """How many messages go through a set of rules.

    Attributes:
        per_s: messages a second of one core's time: median over the rounds.
        transitions: of alerts, in all rounds.
        state_kib: what is stored of the engine after the last round, in KiB.
    """

    rules: int
    per_s: float
    low_per_s: float
    high_per_s: float
    transitions: int
    state_kib: float


class _Rules:
    """A set of rules, run on one second of stream time after the other."""

    def __init__(self, n_rules: int) -> None:
        self._engine = Engine(make_rules(n_rules), now_ns=START, timing=TIMING)
        self.n_transitions = self.n_bytes = 0

    def hear(self, messages: Sequence[dict[str, Any]]) -> None:
        for body in messages:
            self.n_transitions += len(self._engine.on_message("event/", body))
        self.n_bytes = len(json.dumps(self._engine.export()))


def time_alerts(
    rule_counts: Sequence[int], n_rounds: int, on_round: Callable[[], None]
) -> list[AlertsTiming]:
    """Return a timing for each number of rules; a round is a second of stream time."""
    messages = bodies((1 + n_rounds) * RATE, RATE)
    now = list(itertools.islice(messages, RATE))
    all_rules = [_Rules(n_rules) for n_rules in rule_counts]
    for rules in all_rules:  # the first second is not timed
        rules.hear(now)

    def next_second() -> None:
        now[:] = itertools.islice(messages, RATE)
        on_round()

    now[:] = itertools.islice(messages, RATE)
    seconds = seconds_in_turn(
        [partial(rules.hear, now) for rules in all_rules],
        n_rounds,
        next_second,
        time.process_time,
    )
    timings = []
    for n_rules, rules, of_rules in zip(rule_counts, all_rules, seconds, strict=True):
        per_s = Spread.of([RATE / duration for duration in of_rules])
        timings.append(
            AlertsTiming(
                n_rules, per_s.median, per_s.low, per_s.high, rules.n_transitions,
                rules.n_bytes / 1024,
            )
        )  # fmt: skip
    return timings


def make_rules(n_rules: int) -> RuleSet:
    """Return rules of every kind over all classes."""
    lines = []
    for number in range(n_rules):
        trigger = KINDS[number % len(KINDS)].format(number % N_CLASSES, (number + 7) % N_CLASSES)
        lines.append(f"      - {{alert: rule-{number}, {trigger}}}")
    text = "groups:\n  - name: bench\n    rules:\n" + "\n".join(lines)
    return compile_rules([parse_document(text, "bench.yaml", "groups")])


def bodies(n_messages: int, rate: int) -> Iterator[dict[str, Any]]:
    """Yield begin and end messages in the order in which they are published."""
    waiting: list[tuple[int, int, dict[str, Any]]] = []
    n_yielded, sound = 0, 0
    while n_yielded < n_messages:
        onset_ns = START + sound * 2 * NS_PER_SECOND // rate
        length_ns = round(LENGTHS_S[sound % len(LENGTHS_S)] * NS_PER_SECOND)
        for kind, at_ns in (
            ("begin", onset_ns + TIMING.latency_ns),
            ("end", max(onset_ns + TIMING.latency_ns, onset_ns + length_ns + TIMING.smear_ns)),
        ):
            body = _body(sound, kind, at_ns, onset_ns, onset_ns + length_ns)
            heapq.heappush(waiting, (at_ns, 2 * sound + (kind == "end"), body))
        sound += 1
        while waiting and waiting[0][0] <= onset_ns and n_yielded < n_messages:
            yield heapq.heappop(waiting)[2]
            n_yielded += 1


def _body(sound: int, kind: str, at_ns: int, onset_ns: int, offset_ns: int) -> dict[str, Any]:
    number = sound * 7 % N_CLASSES
    stream = sound // 3 % N_STREAMS
    return {
        "id": f"event-{sound}",
        "type": kind,
        "stream": f"mic-{stream}",
        "labels": {"room": f"room-{stream % 5}"},
        "class": f"c{number}",
        "label": f"c{number}",
        "peak": 0.5 + sound % 50 / 100,
        "onset": format_time(onset_ns),
        "offset": format_time(offset_ns) if kind == "end" else None,
        "captured": format_time(at_ns),
    }
