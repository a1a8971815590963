"""An engine state that version 1 of the format stored is continued, not lost."""

from __future__ import annotations

import json
from pathlib import Path

from rule_bodies import START, at, event, health, rules_from

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.transitions import Transition

# the state after 40 s of sound with the rules below and one more, `removed`, and what the program
# that wrote it made of the messages in `MORE`
STORED = json.loads((Path(__file__).parent / "engine_state_v1.json").read_text("utf-8"))
RULES = (
    "alert: plain, match: {class: Bark}, keep_firing_for: 30s, cooldown: 5m, "
    "annotations: {summary: 'Bark on {{ stream.name }}'}",
    "alert: long, match: {class: Siren}, for: 60s, tolerate: 3s",
    "alert: many, match: {class: Knock}, count: {min: 3, within: 60s}",
    "alert: steps, sequence: {within: 60s, steps: "
    "[{match: {class: Knock}}, {match: {class: Alarm}}]}, group_by: []",
    "alert: quiet, absent: {match: {class: Alarm}, for: 2m}",
    "alert: loud, level: {louder_than_dbfs: -30, for: 20s}",
    "alert: gone, level: {missing: true, stream: {id: yard}, for: 1m}",
)
MORE = [
    event("update", "s2", "Siren", 45, 31),
    health(46, level=-20.0),
    event("begin", "k3", "Knock", 50, 49),
    event("begin", "a2", "Alarm", 51, 50),
    event("end", "a2", "Alarm", 53, 50, 52),
    health(61, level=-20.0),
    event("update", "s2", "Siren", 85, 31),
    event("begin", "b2", "Bark", 90, 89),
    event("end", "b2", "Bark", 95, 89, 94),
    event("end", "s2", "Siren", 100, 31, 99),
]


def facts(transition: Transition) -> list[object]:
    alert = transition.alert
    return [
        transition.at_ns - START,
        alert.rule,
        transition.to_state,
        alert.id,
        alert.started_ns - START,
        alert.suppressed,
        list(alert.events),
        alert.reason,
        list(transition.actions),
        dict(alert.annotations),
    ]


def test_state_of_version_1_is_continued_as_the_program_that_wrote_it_would_have_done() -> None:
    engine = Engine(rules_from(*RULES), STORED["state"], now_ns=at(40))
    found = engine.resume()
    for body in MORE:
        found += engine.on_message("health/" if "level_dbfs" in body else "event/", body)
    found += engine.advance(at(700))
    assert [facts(transition) for transition in found] == STORED["transitions"]
