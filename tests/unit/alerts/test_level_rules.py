"""Rules about sound levels in dB(A): laeq, LAF, percentiles and third octaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rule_bodies import at, engine_of, health, news, restarted, rules_from
from sample_messages import levels_message
from typer.testing import CliRunner

from ast_stream.alerts.backtest import BacktestReport, backtest, read_messages
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.rules.lint import lint
from ast_stream.cli.rules import app
from ast_stream.errors import ConfigError
from ast_stream.settings.streams import StdinSource, StreamSettings
from ast_stream.units import format_time

TESTS = """
rules: [rules.yaml]
tests:
  - name: loud nights
    start: 2026-11-20T22:00:00Z
    streams: {hall: {room: hall}}
    levels:
      - {at: 0s, dur: 4s, stream: hall, laeq: 40}
      - {at: 5s, dur: 5s, stream: hall, laeq: 72, third_octaves: {"63": 80}}
      - {at: 11s, dur: 3s, stream: hall, laeq: 40}
    expect:
      - {at: 8s, alert: loud, state: firing}
      - {at: 11s, alert: loud, state: resolved}
      - {at: 5s, alert: rumble, state: firing}
      - {at: 11s, alert: rumble, state: resolved}
"""
RULES = """
version: 1
groups:
  - name: noise
    rules:
      - {alert: loud, level: {louder_than_db: 70, for: 3s}}
      - {alert: rumble, level: {measure: 63 Hz, louder_than_db: 75}}
"""


def body(seconds: float, **levels: Any) -> dict[str, Any]:
    """Return the body of levels that are published so many seconds after the start."""
    message = levels_message(**{"stream": "hall", "labels": {}} | levels)
    return message.to_json() | {"published": format_time(at(seconds))}


def heard(engine: Engine, bodies: list[dict[str, Any]], until: float) -> list[Transition]:
    found = engine.resume()
    for each in bodies:
        topic = "health/hall/" if "level_dbfs" in each else "levels/hall/"
        found += engine.advance(at(0)) + engine.on_message(topic, each)
    return found + engine.advance(at(until))


@pytest.mark.parametrize(
    ("condition", "bad", "good"),
    [
        ("louder_than_db: 70", {"laeq": 70.1}, {"laeq": 70.0}),
        ("measure: laf_max, louder_than_db: 85", {"laf_max": 85.1}, {"laf_max": 60.0}),
        ("measure: l90, quieter_than_db: 25", {"l90": 24.9}, {"l90": 25.0}),
        (
            "measure: 63 Hz, louder_than_db: 50",
            {"third_octaves": {"63": 51.0}},
            {"third_octaves": {"63": 49.0, "80": 90.0}},
        ),
    ],
)
def test_a_measure_must_last(condition: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    rules = rules_from(f"alert: a, level: {{{condition}, for: 3s}}")
    seconds = [good, bad, bad, good, bad, bad, bad, bad, bad, good]
    bodies = [body(t, **levels) for t, levels in enumerate(seconds)]
    expected = [(7.0, "a", "firing"), (9.0, "a", "resolved")]
    assert news(heard(engine_of(rules), bodies, 12)) == expected
    engine = engine_of(rules)
    first = heard(engine, bodies[:6], 5)
    again = restarted(engine, rules, 5.5)
    assert news(first + heard(again, bodies[6:], 12)) == expected, "over a restart"


def test_levels_that_no_longer_come_are_not_known_and_health_says_nothing_of_them() -> None:
    engine = engine_of(rules_from("alert: a, level: {louder_than_db: 70}"))
    bodies = [body(0, laeq=90.0), *(health(t, level=-1.0) for t in range(1, 40))]
    assert news(heard(engine, bodies, 60)) == [(0.0, "a", "firing"), (10.0, "a", "resolved")]


def test_a_stream_that_is_not_calibrated_fires_nothing() -> None:
    engine = engine_of(rules_from("alert: a, level: {quieter_than_db: 30}"))
    bodies = [body(t, laeq=-40.0, calibrated=False) for t in range(5)]
    assert news(heard(engine, bodies, 10)) == []


@pytest.mark.parametrize(
    ("level", "problem"),
    [
        ("louder_than_db: 70, louder_than_dbfs: -20", "expected exactly one of"),
        ("louder_than_db: 70, measure: laek", "or a third octave such as '63 Hz', got 'laek'"),
        ("louder_than_db: 70, measure: 64 Hz", "got '64 Hz'; did you mean '63 Hz'?"),
        ("louder_than_dbfs: -20, measure: laeq", "'measure' goes with louder_than_db or"),
        ("louder_than_db: 500", "louder_than_db: expected at most 200, got 500"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_a_sentence(level: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        rules_from(f"alert: a, level: {{{level}}}")
    assert problem in str(error.value)


def test_only_rules_about_levels_ask_for_them() -> None:
    rules = rules_from(
        "alert: a, level: {louder_than_db: 70}",
        "alert: b, level: {louder_than_dbfs: -20}",
        "alert: c, match: {class: Bark}",
    )
    assert [rule.name for rule in rules.by_levels] == ["a"]


def test_streams_without_calibration_are_warned_of() -> None:
    rules = rules_from("alert: a, level: {stream: {room: hall}, louder_than_db: 70}")

    def stream(name: str, room: str, calibration_db: float | None) -> StreamSettings:
        return StreamSettings(
            name=name,
            labels={"room": room},
            source=StdinSource(type="stdin"),
            calibration_db=calibration_db,
        )

    streams = [stream("a", "hall", None), stream("b", "hall", 120.0), stream("c", "yard", None)]
    (found,) = lint(rules, streams=streams)
    assert (found.code, found.text.split(":")[0]) == ("W215", "a")
    assert lint(rules, streams=streams[1:]) == []


def test_rule_tests_and_backtests_know_levels(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "tests.yaml").write_text(TESTS)
    result = CliRunner().invoke(app, ["test", str(tmp_path / "tests.yaml")])
    assert result.exit_code == 0, result.output
    (tmp_path / "tests.yaml").write_text(TESTS.replace("laeq: 72", "laeq: 69"))
    assert CliRunner().invoke(app, ["test", str(tmp_path / "tests.yaml")]).exit_code == 1

    rules = rules_from("alert: loud, level: {louder_than_db: 70, for: 3s}")
    lines = [json.dumps(body(t, laeq=80.0)).encode() for t in range(6)]
    report = BacktestReport()
    fired = list(backtest(rules, read_messages(lines, report), report))
    assert [transition.to_state for transition in fired] == ["firing"]
    assert (report.damaged, report.not_judged) == (0, [])
    report = BacktestReport()
    assert (
        list(backtest(rules, read_messages([json.dumps(health(0)).encode()], report), report)) == []
    )
    assert report.not_judged == ["loud"]
