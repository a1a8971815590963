"""Helpers of the alert tests: rules from text, feed bodies at seconds of a virtual clock."""

from __future__ import annotations

import json
from typing import Any

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rules.compile import compile_rules
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.labels import slug
from ast_stream.settings.yaml import parse_document
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time

START = 1_800_000_000 * NS_PER_SECOND  # 2027-01-15T08:00:00Z
LABELS = ("Bark", "Siren", "Alarm", "Knock", "Baby cry, infant cry")


def rules_from(
    *rules: str, top: str = "", labels: tuple[str, ...] | None = LABELS, **keywords: Any
) -> RuleSet:
    """Return rules written as YAML flow mappings, one text each, in one group."""
    listed = "".join(f"      - {{{rule}}}\n" for rule in rules)
    text = f"{top}\ngroups:\n  - name: house\n    rules:\n{listed}"
    return compile_rules([parse_document(text, "rules.yaml", "groups")], labels=labels, **keywords)


def at(seconds: float) -> int:
    return START + round(seconds * NS_PER_SECOND)


def event(
    kind: str,
    name: str,
    label: str,
    captured: float,
    onset: float,
    offset: float | None = None,
    *,
    peak: float = 0.9,
    stream: str = "hall",
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "id": name,
        "type": kind,
        "stream": stream,
        "labels": labels or {},
        "class": slug(label),
        "label": label,
        "peak": peak,
        "score": peak,
        "onset": format_time(at(onset)),
        "offset": None if offset is None else format_time(at(offset)),
        "captured": format_time(at(captured)),
    }


def sound(name: str, label: str, onset: float, offset: float, **more: Any) -> list[dict[str, Any]]:
    """Return begin and end of a sound that is published at once."""
    return [
        event("begin", name, label, onset, onset, **more),
        event("end", name, label, offset, onset, offset, **more),
    ]


def health(
    seconds: float,
    state: str = "listening",
    level: float | None = -50.0,
    stream: str = "hall",
    *,
    silence_s: float = 0.0,
) -> dict[str, Any]:
    return {
        "stream": stream,
        "labels": {},
        "state": state,
        "silence_s": silence_s,
        "level_dbfs": level,
        "published": format_time(at(seconds)),
    }


def gap(start: float, duration_s: float, stream: str = "hall") -> dict[str, Any]:
    return {
        "stream": stream,
        "epoch": "e",
        "start": 0,
        "samples": round(duration_s * SAMPLE_RATE),
        "duration_s": duration_s,
        "reason": "overflow",
        "time": format_time(at(start)),
    }


def engine_of(rules: RuleSet, timing: DetectionTiming | None = None) -> Engine:
    return Engine(rules, now_ns=START, timing=timing)


def restarted(
    engine: Engine, rules: RuleSet, seconds: float | None = None, **keywords: Any
) -> Engine:
    """Return the engine as after kill -9 and a start at a time; None: at once."""
    state = json.loads(json.dumps(engine.export()))
    now_ns = engine.now_ns if seconds is None else at(seconds)
    return Engine(rules, state, now_ns=now_ns, **keywords)


def news(transitions: list[Transition]) -> list[tuple[float, str, str]]:
    """Return seconds, rule and state of what is announced."""
    return [
        (
            round((transition.at_ns - START) / NS_PER_SECOND, 3),
            transition.alert.rule,
            transition.to_state,
        )
        for transition in transitions
        if transition.to_state == "resolved"
        or (transition.to_state == "firing" and transition.from_state != "recovering")
    ]


def run(engine: Engine, bodies: list[dict[str, Any]], until: float) -> list[Transition]:
    """Give an engine bodies in the order of their times, then time until."""
    found = engine.resume()
    for body in sorted(bodies, key=lambda body: str(body.get("captured") or body["published"])):
        topic = "health/" if "level_dbfs" in body else "event/"
        found += engine.on_message(topic, body)
    return found + engine.advance(at(until))
