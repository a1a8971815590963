"""A hundred rules against a stream of events: messages a second of one core, and memory.

    .venv/bin/python tests/benchmarks/bench_rules.py [--rules 100] [--events 1000000]

Begin and end messages of 50 classes on 20 streams, 2 000 a second of stream time, as late as
a window of 2.56 s makes them; rules are of every kind. The state is exported once a second of
stream time, as the service does. Times are of the processor, so that load does not matter.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rules.compile import compile_rules
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.settings.yaml import parse_document
from ast_stream.units import NS_PER_SECOND, format_time

START = 1_800_000_000 * NS_PER_SECOND
N_CLASSES, N_STREAMS = 50, 20
LENGTHS_S = (0.5, 0.5, 2.0, 8.0)
TIMING = DetectionTiming.of(2.56, 0.25)
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
    parser.add_argument("--events", type=int, default=1_000_000, help="messages")
    parser.add_argument("--rate", type=int, default=2000, help="messages a second of stream time")
    options = parser.parse_args()
    engine = Engine(make_rules(options.rules), now_ns=START, timing=TIMING)
    n_transitions, slowest_s, second_s, busy_s = 0, 0.0, 0.0, 0.0
    for done, body in enumerate(bodies(options.events, options.rate), start=1):
        begun_s = time.process_time()
        n_transitions += len(engine.on_message("event/", body))
        if done % options.rate == 0:
            json.dumps(engine.export())
        took_s = time.process_time() - begun_s
        busy_s, second_s = busy_s + took_s, second_s + took_s
        if done % options.rate == 0:
            slowest_s, second_s = max(slowest_s, second_s), 0.0
        if done % max(1, options.events // 10) == 0:
            size_kb = len(json.dumps(engine.export())) / 1024
            print(
                f"{done:>9} messages  {done / busy_s:>8.0f} a second  "
                f"state {size_kb:>6.0f} KiB  process {resident_mb():.0f} MiB",
                flush=True,
            )
    print(
        f"{options.rules} rules, {options.events} messages in {busy_s:.1f} s of one core: "
        f"{options.events / busy_s:.0f} a second, {n_transitions} transitions; "
        f"a second of {options.rate} messages took at most {slowest_s:.2f} s"
    )


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


def resident_mb() -> float:
    """Return the memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


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


if __name__ == "__main__":
    main()
