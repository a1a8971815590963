"""A hundred rules against a stream of events: messages per second of one core, and memory.

    .venv/bin/python tests/benchmarks/bench_rules.py [--rules 100] [--events 1000000]

Events are begin and end messages of 50 classes on 20 streams, 2 000 a second of stream time; rules
are of every kind. The state is exported once a second, as the service does.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from typing import Any

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model import DetectionTiming
from ast_stream.alerts.rule_files import compile_rules
from ast_stream.alerts.rules import RuleSet
from ast_stream.messages import format_time
from ast_stream.settings.load import parse_document
from ast_stream.units import NS_PER_SECOND

START = 1_800_000_000 * NS_PER_SECOND
N_CLASSES, N_STREAMS = 50, 20
KINDS = (
    "match: {{class: c{0}}}, cooldown: 10s",
    "match: {{any_of: [c{0}, c{1}]}}, for: 5s, tolerate: 2s",
    "match: {{class: c{0}, score: {{min: 0.7}}}}, count: {{min: 5, within: 30s}}",
    "sequence: {{within: 10s, steps: [{{match: {{class: c{0}}}}}, {{match: {{class: c{1}}}}}]}}",
    "absent: {{match: {{class: c{0}}}, for: 1m}}",
)


def main() -> None:
    """Print a line for each tenth of the events, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=2000, help="messages a second of stream time")
    options = parser.parse_args()
    engine = Engine(make_rules(options.rules), now_ns=START, timing=DetectionTiming.of(2.56, 0.25))
    n_told, started_s = 0, time.perf_counter()
    busy_s = 0.0
    for done, body in enumerate(bodies(options.events, options.rate), start=1):
        begun_s = time.perf_counter()
        n_told += len(engine.on_event(body))
        if done % options.rate == 0:
            engine.export()
        busy_s += time.perf_counter() - begun_s
        if done % max(1, options.events // 10) == 0:
            size_kb = len(json.dumps(engine.export())) / 1024
            memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{done:>9} messages  {done / busy_s:>8.0f} per second  "
                f"state {size_kb:>6.0f} KiB  process at most {memory_mb:.0f} MiB"
            )
    print(
        f"{options.rules} rules, {options.events} messages in {busy_s:.1f} s of rules "
        f"({time.perf_counter() - started_s:.1f} s with making them): "
        f"{options.events / busy_s:.0f} per second, {n_told} transitions"
    )


def make_rules(n_rules: int) -> RuleSet:
    """Return rules of every kind over all classes."""
    lines = []
    for number in range(n_rules):
        trigger = KINDS[number % len(KINDS)].format(number % N_CLASSES, (number + 7) % N_CLASSES)
        lines.append(f"      - {{alert: rule-{number}, {trigger}}}")
    text = "groups:\n  - name: bench\n    rules:\n" + "\n".join(lines)
    return compile_rules([parse_document(text, "bench.yaml", "groups")])


def bodies(n_events: int, rate: int) -> Iterator[dict[str, Any]]:
    """Yield begin and end messages; each sound lasts half a second or five."""
    for number in range(n_events):
        at_ns = START + number * NS_PER_SECOND // rate
        sound, is_end = divmod(number, 2)
        length_ns = NS_PER_SECOND // 2 if sound % 3 else 5 * NS_PER_SECOND
        onset_ns = at_ns - (length_ns if is_end else 0)
        yield {
            "id": f"event-{sound}",
            "type": "end" if is_end else "begin",
            "stream": f"mic-{sound % N_STREAMS}",
            "labels": {"room": f"room-{sound % 5}"},
            "class": f"c{sound * 7 % N_CLASSES}",
            "label": f"c{sound * 7 % N_CLASSES}",
            "peak": 0.5 + sound % 50 / 100,
            "onset": format_time(onset_ns),
            "offset": format_time(at_ns) if is_end else None,
            "captured": format_time(at_ns),
        }


if __name__ == "__main__":
    main()
