"""`ast-stream history` and `rules backtest --history`, on a history that a recorder would write."""

from __future__ import annotations

import csv
import importlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from history_samples import SECOND, clip, gap, published, verdict, whole_event

from ast_stream.alerts.model_facts import model_facts
from ast_stream.alerts.trials import compare, open_trials
from ast_stream.cli.app import run_command_line
from ast_stream.coverage.ledger import CoverageLedger
from ast_stream.coverage.spans import Span
from ast_stream.history.database import History
from ast_stream.history.score_log import ScoreLog
from ast_stream.messages.event import Scores16, ScoresHeader
from ast_stream.settings.load import load_settings
from ast_stream.settings.model import ModelSettings
from ast_stream.settings.storage import coverage_ledger, history_database, score_log
from ast_stream.units import format_time, samples_to_ns

NOW_NS = time.time_ns() // SECOND * SECOND
HOUR = 3600 * SECOND
FRAME = 2560
EPOCH = "ab" * 16
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box that has heard some barks and a siren in the last days."""
    folder = tmp_path_factory.mktemp("box")
    path = folder / "config.yaml"
    settings = {
        "runtime_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "streams": [
            {"name": "porch", "source": {"type": "microphone"}, "labels": {"room": "porch"}},
            {"name": "yard", "source": {"type": "microphone"}},
        ],
        "recorder": {},
    }
    path.write_text(json.dumps(settings))
    with History(history_database(load_settings(path)).path) as history:
        for number, hours in enumerate((50, 30, 5, 4, 3)):
            history.add_messages(
                whole_event(
                    f"e{number}", NOW_NS - hours * HOUR, label="Bark" if number < 4 else "Siren",
                    stream=("porch", "yard")[number % 2], peak=0.5 + number / 10,
                )
            )  # fmt: skip
        history.add_message(gap(0, time_ns=NOW_NS - 2 * HOUR))
        history.add_clip(clip("e3"))
        history.add_verdict(verdict("e4", "other", label="Car alarm"))
    return path


def run(*args: str | Path) -> int:
    return run_command_line(["history", *map(str, args)])


def listed(capsys: Capture, config: Path, *args: str) -> list[str]:
    assert run("list", "-c", config, "--json", *args) == 0
    return [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]


def test_list_shows_the_newest_events_last(config: Path, capsys: Capture) -> None:
    assert run("list", "-c", config, "--limit", "2") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "onset", "stream", "class", "duration", "peak", "verdict", "clip", "id",
    ]  # fmt: skip
    assert [row.split()[-1] for row in rows] == ["e3", "e4"]
    assert rows[0].split()[2:] == ["yard", "bark", "2.0", "s", "0.80", "clip", "e3"]
    assert rows[1].split()[2:] == ["porch", "siren", "2.0", "s", "0.90", "other", "e4"]


def test_list_takes_every_filter(config: Path, capsys: Capture) -> None:
    assert listed(capsys, config, "--class", "Bark") == ["e0", "e1", "e2", "e3"]
    assert listed(capsys, config, "--stream", "yard", "--since", "24h") == ["e3"]
    assert listed(capsys, config, "--until", "24h", "--min-score", "0.55") == ["e1"]
    assert listed(capsys, config, "--with-clip") == ["e3"]
    assert listed(capsys, config, "--verdict", "other", "--verdict", "wrong") == ["e4"]
    assert run("list", "-c", config, "--class", "Rain") == 0
    assert capsys.readouterr().err == "no such events\n"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            ["--class", "Barkk"],
            "--class: expected one that there is, got 'barkk'; did you mean 'bark'?",
        ),
        (["--stream", "attic"], "--stream: expected one that there is, got 'attic'"),
        (["--verdict", "maybe"], "--verdict: expected right, wrong, other, unsure, got 'maybe'"),
        (["--since", "yesterday"], "--since: expected a time with its offset from UTC"),
    ],
)
def test_filter_that_cannot_be_meant_is_refused_with_a_sentence(
    config: Path, capsys: Capture, args: list[str], expected: str
) -> None:
    assert run("list", "-c", config, *args) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_box_without_a_history_is_told(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps(
            {"state_dir": str(tmp_path), "streams": [{"name": "a", "source": {"type": "stdin"}}]}
        )
    )
    assert run("list", "-c", path) == 3
    assert "nothing has been written to the history yet" in capsys.readouterr().err


def test_csv_and_parquet_hold_the_same_events(
    config: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("out.csv", "out.parquet"):
        assert run("export", tmp_path / name, "-c", config, "--since", "24h") == 0
        assert capsys.readouterr().err == f"3 events in {tmp_path / name}\n"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    parquet: Any = importlib.import_module("pyarrow.parquet")  # it has no types
    table = parquet.read_table(tmp_path / "out.parquet")
    assert [row["id"] for row in rows] == table["id"].to_pylist() == ["e2", "e3", "e4"]
    assert list(rows[0]) == table.column_names
    assert rows[2]["onset"] == format_time(NOW_NS - 3 * HOUR)
    assert table["onset"].cast("int64").to_pylist()[2] == NOW_NS - 3 * HOUR
    assert (rows[2]["verdict"], rows[2]["duration_s"], rows[1]["has_clip"]) == (
        "other",
        "2.0",
        "True",
    )
    assert str(table.schema.field("onset").type) == "timestamp[ns, tz=UTC]"


def test_label_tracks_and_selection_tables_count_from_the_recordings_beginning(
    config: Path, tmp_path: Path, capsys: Capture
) -> None:
    start = format_time(NOW_NS - 5 * HOUR - 90 * SECOND)
    chosen = ("-c", config, "--since", start)
    assert run("export", "-", *chosen, "--format", "audacity") == 0
    assert capsys.readouterr().out.splitlines()[0] == "90.000000\t92.000000\tBark"
    assert run("export", tmp_path / "t.txt", *chosen, "--format", "raven", "--class", "siren") == 0
    head, row = (tmp_path / "t.txt").read_text().splitlines()
    selection = dict(zip(head.split("\t"), row.split("\t"), strict=True))
    assert selection["Begin Time (s)"] == f"{2 * 3600 + 90:.6f}"
    assert (selection["Selection"], selection["Class"], selection["Event"]) == ("1", "Siren", "e4")
    assert run("export", "-", "-c", config, "--format", "audacity") == 2
    assert "expected --start or --since" in capsys.readouterr().err


def test_export_that_cannot_be_written_is_one_sentence(config: Path, capsys: Capture) -> None:
    for out, expected in (
        ("/nowhere/x.csv", "cannot write /nowhere/x.csv: No such file or directory"),
        ("events.xlsx", "or a file that ends in .csv or .parquet, got 'events.xlsx'"),
    ):
        assert run("export", out, "-c", config) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_sql_is_answered_and_changes_nothing(config: Path, capsys: Capture) -> None:
    sql = "SELECT class, count(*) AS n, max(peak) AS best FROM events GROUP BY 1 ORDER BY 1"
    assert run("query", sql, "-c", config, "--json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"class": "bark", "n": 4, "best": 0.8},
        {"class": "siren", "n": 1, "best": 0.9},
    ]
    assert run("query", "SELECT onset, duration_s FROM all_events LIMIT 1", "-c", config) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["onset", "duration_s"]
    for wrong, expected in (
        ("DELETE FROM events", "attempt to write a readonly database"),
        ("SELECT nobody FROM events", "no such column: nobody"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
    ):
        assert run("query", wrong, "-c", config) == 2
        assert expected in capsys.readouterr().err
    assert len(listed(capsys, config)) == 5


RULES = """
version: 1
groups:
  - name: test
    rules:
      - {alert: dog, match: {class: Bark}}
      - {alert: loud_dog, match: {class: Bark, score: {min: 0.65}}}
"""


def test_rules_are_tried_on_the_history(config: Path, tmp_path: Path, capsys: Capture) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    args = ["rules", "backtest", str(rules), "--history", "-c", str(config), "--json"]
    assert run_command_line(args) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fired = [(one["rule"], one["events"]) for one in found if one["state"] == "firing"]
    assert fired == [
        ("dog", ["e0"]), ("dog", ["e1"]), ("dog", ["e2"]),
        ("loud_dog", ["e2"]), ("dog", ["e3"]), ("loud_dog", ["e3"]),
    ]  # fmt: skip
    assert run_command_line([*args, "--since", "24h"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event for one in found for event in one["events"]} == {"e2", "e3"}
    assert run_command_line(["rules", "backtest", str(rules), "--history"]) == 2
    assert "--history: expected --config, got none" in capsys.readouterr().err


def loud(n: int, spans: dict[tuple[int, int], float]) -> Scores16:
    """Return scores of frames in which one class is heard between some of them."""
    labels = model_facts(ModelSettings()).labels or ()
    scores = np.full((n, len(labels)), 0.01, np.float16)
    for (first, last), score in spans.items():
        scores[first:last, labels.index("Bark")] = score
    return scores


@pytest.fixture(scope="module")
def scored(config: Path) -> Path:
    """The same box with scores of an hour: a dog three times, less and less sure of it."""
    settings = load_settings(config)
    start_ns = NOW_NS - HOUR
    scores = loud(2000, {(300, 340): 0.99, (900, 940): 0.95, (1500, 1540): 0.2})
    place = score_log(settings)
    facts = model_facts(settings.model)
    with ScoreLog(place.folder, place.max_bytes, labels=lambda: facts.labels) as log:
        log.note_model("sha256:bundled")
        for number, row in enumerate(scores, start=1):
            header = ScoresHeader(
                stream="porch", epoch=EPOCH, end_sample=number * FRAME,
                time_ns=start_ns + samples_to_ns(number * FRAME),
            )  # fmt: skip
            log.append(published(header, number, scores=row))
    ledger = CoverageLedger(
        coverage_ledger(settings).folder, Path(settings.runtime_dir or "") / "unwritten.jsonl"
    )
    ledger.add(
        Span(
            stream="porch", epoch=EPOCH, kind="listened", start_sample=0, samples=2000 * FRAME,
            time_ns=start_ns,
        )
    )  # fmt: skip
    ledger.close()
    return config


def test_trial_shows_what_another_threshold_would_have_reported(
    scored: Path, capsys: Capture
) -> None:
    assert run("trial", "-c", scored, "--class", "bark", "--threshold", "0.1") == 0
    shown = capsys.readouterr()
    (line,) = [line for line in shown.out.splitlines() if line.startswith(("gained", "lost"))]
    assert line.split()[:1] == ["gained"]
    assert "Bark: 2 events as configured, 3 as tried: 1 gained, 0 lost" in shown.err
    assert shown.out.endswith('detection:\n  classes:\n    "Bark":\n      onset_threshold: 0.1\n')
    assert run("trial", "-c", scored, "--class", "Bark", "--threshold", "0.97", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["trial"] for one in found] == ["kept", "lost"]
    assert found[0]["onset"] == format_time(NOW_NS - HOUR + samples_to_ns(300 * FRAME))


def test_trial_that_cannot_be_is_one_sentence(scored: Path, capsys: Capture) -> None:
    for args, expected in (
        (["--class", "Barkk"], "expected a class of the model, got 'Barkk'; did you mean 'Bark'?"),
        (["--class", "Bark", "--confirm", "400"], "confirm_s: expected at most"),
        (["--class", "Bark", "--stream", "attic"], "--stream: expected one that there is"),
    ):
        assert run("trial", "-c", scored, *args) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_trial_says_where_nothing_can_be_judged(scored: Path, capsys: Capture) -> None:
    assert run("trial", "-c", scored, "--class", "Bark", "--stream", "yard") == 0
    assert "yard: there are no scores of this model in that time" in capsys.readouterr().err


def test_comparison_knows_events_by_class_stream_and_time(scored: Path) -> None:
    trials, history = open_trials(load_settings(scored))
    with history:
        changed = trials.changed("bark", hold_s=0.0, confirm_s=0.16)
        tried = trials.parameters_with({"bark": changed})
        before, after = (
            trials.run(parameters, 0, NOW_NS, classes=["bark"])[0].events
            for parameters in (trials.parameters, tried)
        )
    assert [event.onset_ns for event in compare(before, after).kept] == [
        event.onset_ns for event in after
    ]
    nothing = compare([], [])
    assert (nothing.kept, nothing.gained, nothing.lost) == ([], [], [])
    assert [event.id for event in compare(before, before[:1]).lost] == [before[1].id]
    assert [event.id for event in compare(before[1:], before).gained] == [before[0].id]


def test_trial_says_what_it_cannot_know(scored: Path, tmp_path: Path, capsys: Capture) -> None:
    settings = json.loads(scored.read_text())
    settings["model"] = {"cascade": {"checkpoint": "bundled"}}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    assert run("trial", "-c", path, "--class", "Bark") == 0
    assert "what the cascade did not ask the large model about" in capsys.readouterr().err
