"""What rules would have made of events that are already known: a week of them in seconds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model import DetectionTiming, Transition
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.units import NS_PER_SECOND, parse_time

_SETTLE_NS = 3600 * NS_PER_SECOND  # after the last event, so that what hangs on timers ends


@dataclass
class BacktestReport:
    """What a backtest found.

    Attributes:
        fired: alerts by rule, also rules that never fired.
        held_back: firings that did not happen, by rule and reason.
        first_ns, last_ns: stream time of the first and the last event.
        heard_ns: how much was listened to, in which the events were; None: from first to last.
        damaged: lines that are no messages.
    """

    fired: Counter[str] = field(default_factory=Counter)
    held_back: dict[str, dict[str, int]] = field(default_factory=dict)
    events: int = 0
    damaged: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    heard_ns: int | None = None

    def add_heard(self, heard_ns: int) -> None:
        """Add to what was listened to."""
        self.heard_ns = (self.heard_ns or 0) + heard_ns


def read_messages(lines: Iterable[bytes], report: BacktestReport) -> Iterator[dict[str, Any]]:
    """Yield event and gap bodies of JSON lines: of the worker's log, of `subscribe`, or plain."""
    for line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        body = entry.get("body", entry) if isinstance(entry, dict) else None
        if isinstance(body, dict):
            yield body
        else:
            report.damaged += 1


def backtest(
    rules: RuleSet,
    bodies: Iterable[dict[str, Any]],
    report: BacktestReport,
    timing: DetectionTiming | None = None,
) -> Iterator[Transition]:
    """Yield each firing and resolution as it would have been told; fills in `report`.

    After the last event an hour passes without sound. Absence is counted from the first event.
    """
    report.fired.update({rule.name: 0 for rule in rules.rules})
    engine: Engine | None = None
    for body in bodies:
        if engine is None:
            start_ns = _captured(body)
            if start_ns is None:
                report.damaged += 1
                continue
            report.first_ns = start_ns
            engine = Engine(rules, now_ns=start_ns, timing=timing)
        kind = "gap/" if "samples" in body else "health/" if "level_dbfs" in body else "event/"
        yield from _told(engine.on_message(kind, body), report)
        report.last_ns = engine.now_ns
    if engine is not None:
        yield from _told(engine.advance(engine.now_ns + _SETTLE_NS), report)
        report.events = engine.counters.events
        report.damaged += engine.counters.malformed
        report.held_back = engine.counters.held_back


def _captured(body: dict[str, Any]) -> int | None:
    try:
        return parse_time(body.get("captured") or body.get("time") or body["published"])
    except (KeyError, TypeError, ValueError):
        return None


def _told(transitions: list[Transition], report: BacktestReport) -> Iterator[Transition]:
    for one in transitions:
        if one.to_state == "resolved":
            yield one
        elif one.to_state == "firing" and one.from_state != "recovering":
            report.fired[one.alert.rule] += 1
            yield one
