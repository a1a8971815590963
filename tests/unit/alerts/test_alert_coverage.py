"""Rules about coverage: what was lost counts, deliberate silence and what is caught up do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rule_bodies import START, at, engine_of, gap, health, news, restarted, rules_from

from ast_stream.alerts.backtest import BacktestReport, backtest
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.rule_test_files import load_tests
from ast_stream.alerts.rule_tests import run_tests
from ast_stream.errors import ConfigError
from ast_stream.messages.event import EventMessage, GapMessage
from ast_stream.messages.status import SOURCE_ENDED, Health
from ast_stream.units import SAMPLE_RATE

# 36 s of an hour may be lost
RULES = rules_from("alert: deaf, coverage: {heard_below_percent: 99, of_last: 1h}")
HOUR = 3600


def reported(
    second: float,
    decided_s: float,
    epoch: str = "aaaaaaaa",
    lost_s: float = 0.0,
    lag_s: float = 0.5,
    **more: Any,
) -> dict[str, Any]:
    """Return the health of a stream as a worker reports it."""
    figures = {"epoch": epoch, "audio_s": decided_s + lag_s, "lag_s": lag_s}
    lost_samples = round(lost_s * SAMPLE_RATE)
    return health(second) | figures | {"lost_samples": lost_samples} | more


def heard(first: float, last: float, ahead_s: float = 0.0, **more: Any) -> Iterator[dict[str, Any]]:
    """Yield the health of each second of a stream that is listened to without a break."""
    for second in range(round(first), round(last)):
        yield reported(second, second - ahead_s, **more)


def told(engine: Engine, bodies: Iterator[dict[str, Any]], until: float) -> list[Transition]:
    """Give an engine health as it comes, and time as the worker has scored it."""
    found = []
    for body in bodies:
        found += engine.on_message("health/", body)
        found += engine.advance(engine.now_ns)
    return found + engine.advance(at(until))


def test_a_stream_that_is_heard_without_a_break_never_fires() -> None:
    assert told(engine_of(RULES), heard(0, 3 * HOUR), 3 * HOUR) == []


def test_deliberate_silence_is_no_loss() -> None:
    quiet = heard(100, 2 * HOUR, state="gated", level_dbfs=-80.0)
    assert told(engine_of(RULES), quiet, 2 * HOUR) == []


def test_lost_audio_fires_once_when_it_is_too_much_and_is_over_when_it_is_long_ago() -> None:
    engine = engine_of(RULES)
    found = told(engine, heard(0, 1000), 1000)
    # 40 s were overwritten in the ring: a gap record, and the position jumps
    found += told(engine, heard(1000, 3 * HOUR, lost_s=40.0), 3 * HOUR)
    assert [(rule, state) for _, rule, state in news(found)] == [
        ("deaf", "firing"),
        ("deaf", "resolved"),
    ]
    fired_s, resolved_s = (second for second, _, _ in news(found))
    assert fired_s == 1000.0
    assert resolved_s == pytest.approx(1000 + HOUR, abs=HOUR / 50)
    assert found[0].alert.started_ns <= at(1000)


def test_many_small_losses_add_up() -> None:
    engine = engine_of(RULES)
    found = []
    for minute in range(120):
        first = 60 * minute
        found += told(engine, heard(first, first + 60, lost_s=1.0 * minute), first + 60)
    fired = news(found)
    assert [state for _, _, state in fired] == ["firing"]
    assert 36 * 60 <= fired[0][0] <= 38 * 60


def test_less_than_may_be_lost_does_not_fire() -> None:
    engine = engine_of(RULES)
    found = told(engine, heard(0, 1000), 1000)
    assert found + told(engine, heard(1000, 2 * HOUR, lost_s=35.0), 2 * HOUR) == []


def test_a_worker_that_is_away_fires_while_nobody_reports() -> None:
    engine = engine_of(RULES)
    told(engine, heard(0, 100), 99)
    assert news(engine.advance(at(134.9))) == []
    assert news(engine.advance(at(140))) == [(135.0, "deaf", "firing")]


def test_what_a_worker_finds_in_the_ring_after_it_was_away_is_heard() -> None:
    engine = engine_of(RULES)
    found = told(engine, heard(0, 100), 99)
    found += engine.advance(at(130))
    assert news(found + told(engine, heard(130, 2 * HOUR), 2 * HOUR)) == []


def test_what_a_restarted_capture_process_missed_is_lost() -> None:
    engine = engine_of(RULES)
    found = told(engine, heard(0, 100), 99)
    missing = (health(second) | {"state": "missing"} for second in range(100, 150))
    found += told(engine, missing, 149)
    # the gap record of the time between the two counts as lost samples as well
    again = heard(150, HOUR, ahead_s=150.0, epoch="bbbbbbbb", lost_s=50.0)
    found += told(engine, again, HOUR)
    assert news(found) == [(135.0, "deaf", "firing")]


def test_time_before_a_stream_was_first_seen_is_not_lost() -> None:
    assert told(engine_of(RULES), heard(500, 1000, ahead_s=480.0), 1000) == []


def test_a_stream_that_a_rule_names_is_expected_from_the_start() -> None:
    rules = rules_from(
        "alert: deaf, coverage: {stream: {id: hall}, heard_below_percent: 99, of_last: 1h}"
    )
    assert news(engine_of(rules).advance(at(60))) == [(36.0, "deaf", "firing")]


def test_a_source_that_has_ended_is_expected_no_longer() -> None:
    engine = engine_of(RULES)
    found = told(engine, heard(0, 100), 99)
    ended = health(100) | {"state": "missing", "level_dbfs": None, "detail": SOURCE_ENDED}
    assert told(engine, iter([ended]), 3 * HOUR) + found == []


def test_an_alert_survives_a_restart_fires_once_and_resolves() -> None:
    engine = engine_of(RULES)
    found = told(engine, heard(0, 1000), 1000)
    found += told(engine, heard(1000, 1010, lost_s=40.0), 1010)
    again = restarted(engine, RULES, 1015)
    found += again.resume()
    found += told(again, heard(1015, 3 * HOUR, lost_s=40.0), 3 * HOUR)
    assert [state for _, _, state in news(found)] == ["firing", "resolved"]


def test_loss_before_a_restart_counts_after_it() -> None:
    engine = engine_of(RULES)
    found = told(engine, heard(0, 100, lost_s=0.0), 100)
    found += told(engine, heard(100, 110, lost_s=20.0), 110)
    again = restarted(engine, RULES, 120)
    found += told(again, heard(120, 130, lost_s=20.0), 130)
    assert news(found) == []
    assert news(told(again, heard(130, 140, lost_s=37.0), 140)) == [(130.0, "deaf", "firing")]


def test_time_in_which_this_process_was_off_is_known_from_what_the_worker_says() -> None:
    engine = engine_of(RULES)
    told(engine, heard(0, 100), 100)
    again = restarted(engine, RULES, 700)
    assert news(again.resume() + told(again, heard(700, 800), 800)) == []
    again = restarted(again, RULES, 1500)
    lost = heard(1500, 1501, lost_s=40.0)
    assert [state for _, _, state in news(told(again, lost, 1501))] == ["firing"]


def test_time_in_which_everything_was_off_is_not_lost() -> None:
    engine = engine_of(RULES)
    told(engine, heard(0, 100), 100)
    again = restarted(engine, RULES, 700)
    found = again.resume() + again.advance(at(710))
    found += told(again, heard(710, 800, ahead_s=705.0, epoch="bbbbbbbb"), 800)
    assert news(found) == []


def test_the_text_says_how_much_was_lost() -> None:
    rules = rules_from(
        "alert: deaf, coverage: {heard_below_percent: 99, of_last: 1h},"
        ' annotations: {summary: "{{ stream.name }}: {{ active_s | int }} s"}'
    )
    engine = engine_of(rules)
    told(engine, heard(0, 100), 100)
    (transition,) = told(engine, heard(100, 101, lost_s=40.0), 101)
    assert transition.alert.annotations == {"summary": "hall: 40 s"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("{heard_below_percent: 99.9, of_last: 1h}", "at least 10 s that may be lost, got 3.6 s"),
        ("{heard_below_percent: 100, of_last: 1d}", "less than 100"),
        ("{heard_below_percent: 99}", "of_last"),
        ("{heard_below_percent: 99, of_last: 1d, for: 1m}", "for"),
    ],
)
def test_what_cannot_be_told_is_refused(settings: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        rules_from(f"alert: deaf, coverage: {settings}")


def test_a_log_without_health_judges_no_rule_that_goes_by_it() -> None:
    rules = rules_from(
        "alert: deaf, coverage: {stream: {id: hall}, heard_below_percent: 99, of_last: 1h}",
        "alert: gone, level: {stream: {id: hall}, missing: true, for: 30s}",
    )
    report = BacktestReport()
    messages: list[EventMessage | GapMessage] = [GapMessage.from_json(gap(0, 100.0), "gap")]
    assert list(backtest(rules, messages, report)) == []
    assert report.not_judged == ["deaf", "gone"]


def test_a_log_with_health_is_judged() -> None:
    bodies = [*heard(0, 100), *heard(100, 110, lost_s=40.0)]
    messages = [Health.from_json(body, "health") for body in bodies]
    report = BacktestReport()
    found = list(backtest(RULES, messages, report))
    assert news(found) == [(100.0, "deaf", "firing")]
    assert report.not_judged == []
    assert report.first_ns == START


def test_rule_tests_say_what_is_lost_by_the_state_of_streams(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        "groups: [{name: g, rules: [{alert: deaf, coverage: "
        "{heard_below_percent: 99, of_last: 1h}}]}]"
    )
    (tmp_path / "tests.yaml").write_text(
        """
rules: rules.yaml
tests:
  - name: half a minute is allowed, and a minute is not
    start: "2026-11-20T10:00:00Z"
    streams: {hall: {}}
    health:
      - {stream: hall, at: 0s, dur: 100s}
      - {stream: hall, at: 101s, dur: 29s, state: missing}
      - {stream: hall, at: 131s, dur: 99s, state: gated}
      - {stream: hall, at: 231s, dur: 59s, state: missing}
      - {stream: hall, at: 291s, dur: 2h}
    restart_at: [200s]
    expect:
      - {at: 236s, within: 2s, alert: deaf}
      - {at: 1h2m, within: 5m, alert: deaf, state: resolved}
"""
    )
    assert [result.failures for result in run_tests(load_tests(tmp_path / "tests.yaml"))] == [[]]
