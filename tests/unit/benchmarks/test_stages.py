"""The stages are timed in turn, and what is timed gives what it should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ast_stream.benchmarks.alerts import time_alerts
from ast_stream.benchmarks.decision import time_decision
from ast_stream.benchmarks.features import COLUMNS, time_features
from ast_stream.benchmarks.report import Spread, cells, seconds_in_turn, times_as_fast
from ast_stream.cli.bench import app


def _report(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["versions"].keys() >= {"ast-stream", "torch", "machine"}
    return report


def test_ways_run_in_turn_and_the_clock_is_read_around_each() -> None:
    done: list[str] = []
    times = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0])
    seconds = seconds_in_turn(
        [lambda: done.append("a"), lambda: done.append("b")],
        2,
        lambda: done.append("round"),
        times.__next__,
    )
    assert done == ["a", "b", "round", "a", "b", "round"]
    assert seconds == [[1.0, 3.0], [2.0, 4.0]]


def test_ratios_are_taken_within_rounds() -> None:
    # the machine was ten times as slow in the second round
    assert times_as_fast([1.0, 10.0, 1.0], [3.0, 30.0, 2.0]) == 3.0
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0)


def test_features_of_live_streams_are_those_of_the_extractor() -> None:
    pytest.importorskip("transformers")
    report = _report(
        "features", "--streams", "1", "--streams", "3", "--window", "1.28", "--rounds", "2"
    )
    rows = report["timings"]
    assert [row["streams"] for row in rows] == [1, 1, 3, 3]
    for row in rows:
        assert row["max_error"] < 1e-4
        assert 0 < row["low_ms"] <= row["ms"] <= row["high_ms"]
    assert rows[0]["times_as_cheap"] == rows[2]["times_as_cheap"] == 1.0


def test_a_row_becomes_cells_of_a_table() -> None:
    row = time_features(1, 0.5, 0.1, 1, lambda: None)[-1]
    assert cells(COLUMNS, vars(row))[:2] == ["ast-stream, new frames only", "1"]


def test_the_decision_stage_is_timed_with_the_events_that_were_asked_for() -> None:
    timings = time_decision(20, 30, 7, 2, lambda: None)
    assert [timing.events for timing in timings[:3]] == [0, 7, 0]
    assert 0 < timings[3].events <= 7  # smoothing keeps some back
    assert [timing.smoothing_s for timing in timings] == [0.0, 0.0, 0.5, 0.5]
    report = _report("decision", "--streams", "3", "--classes", "2", "--rounds", "1")
    assert {row["streams"] for row in report["timings"]} == {3}


def test_alerts_are_timed_for_each_number_of_rules() -> None:
    timings = time_alerts([5, 10], 1, lambda: None)
    assert [timing.rules for timing in timings] == [5, 10]
    assert 0 < timings[0].transitions < timings[1].transitions
    assert 0 < timings[0].state_kib < timings[1].state_kib


@pytest.mark.parametrize("command", ["features", "decision", "alerts"])
def test_the_figures_are_a_table_without_json(command: str) -> None:
    few = {"features": ["--window", "0.5"], "decision": ["--streams", "2"], "alerts": []}
    result = CliRunner().invoke(app, [command, "--rounds", "1", *few[command]])
    assert result.exit_code == 0, result.output
    assert "min" in result.stdout.splitlines()[0]
