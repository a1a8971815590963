"""`ast-stream rules`: check, test, explain and backtest on the command line."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rule_bodies import event, sound
from tiny_model import save_tiny

from ast_stream.cli.app import run_command_line
from ast_stream.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
LABELS = "Bark\nSiren\nAlarm\n"
RULES = """
groups:
  - name: house
    rules:
      - alert: bark
        match: {class: Bark, score: {min: 0.6}, stream: {room: [hall, attic]}}
        severity: low
        actions: [phone]
        annotations: {summary: "{{ label }} on {{ stream.name }}"}
      - alert: both
        sequence: {within: 10s, steps: [{match: {class: Bark}}, {match: {class: Siren}}]}
"""
TESTS = """
rules: [rules.yaml]
labels: [Bark, Siren, Alarm]
tests:
  - name: a bark
    start: "2026-03-29T00:30:00+01:00"
    streams: {one: {room: hall}}
    events: [{at: 5s, class: Bark, dur: 3s, stream: one, score: 0.8}]
    restart_at: [6s]
    expect:
      - {at: 5s, alert: bark, labels: {stream: one, severity: low},
         annotations: {summary: Bark on one}}
      - {at: 8s, alert: bark, state: resolved}
    deliveries: 2
"""
SCORES = """
rules: [rules.yaml]
labels: [Bark, Siren, Alarm]
detector: {window: 2s, hop: 250ms, confirm: 250ms}
tests:
  - name: scores
    start: "2026-03-29T00:30:00+01:00"
    streams: {one: {room: hall}}
    scores:
      - {stream: one, class: Bark, values: "0x8 0.5+0.1x4 0.9x20 _x2 0x20"}
      - {stream: one, class: Alarm, values: "0.4x40"}
    expect:
      - {at: 3250ms, alert: bark}  # an update each second tells of the higher score
      - {at: 8s, within: 2s, alert: bark, state: resolved}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "tests.yaml").write_text(TESTS)
    (tmp_path / "labels.txt").write_text(LABELS)
    return tmp_path


def rules(folder: Path, command: str, *args: str) -> int:
    """Run a command with the labels of the test instead of a checkpoint."""
    return run_command_line(["rules", command, *args, "--labels", str(folder / "labels.txt")])


def test_check_of_clean_rules_prints_nothing_on_stdout(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rules(folder, "check", str(folder / "rules.yaml"), "--strict") == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2 rules, 0 warnings" in printed.err


def test_check_of_mistakes_exits_1_and_says_where(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "rules.yaml"
    file.write_text(RULES.replace("class: Siren", "class: Sirene"))
    assert rules(folder, "check", str(file)) == 1
    assert capsys.readouterr().out == (
        f"{file}:11:74: error E105: groups[0].rules[1].sequence.steps[1].match.class: "
        "the model has no class 'Sirene'; did you mean 'Siren'?\n"
    )


def test_check_exits_1_on_warnings_only_when_strict(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "rules.yaml"
    file.write_text("classes: {dogs: [Bark]}\n" + RULES)
    assert rules(folder, "check", str(file)) == 0
    assert "warning W207: classes.dogs" in capsys.readouterr().out
    assert rules(folder, "check", str(file), "--strict") == 1


def test_check_exits_2_on_wrong_usage(folder: Path) -> None:
    assert rules(folder, "check", str(folder / "no.yaml")) == 2
    assert rules(folder, "check") == 2


def test_tests_pass_and_are_written_as_junit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = folder / "report.xml"
    assert rules(folder, "test", str(folder / "tests.yaml"), "--junit", str(report)) == 0
    assert "passed" in capsys.readouterr().out
    (suite,) = ET.parse(report).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")


@pytest.mark.parametrize(
    ("old", "new", "failure"),
    [
        ("at: 5s, alert", "at: 6s, alert", "line 11: expected bark firing at 6s, got it at 5s"),
        ("severity: low}", "severity: high}", 'got labels {"severity": "low", "stream": "one"}'),
        ("Bark on one", "Bark on two", 'got annotations {"summary": "Bark on one"}'),
        ("deliveries: 2", "deliveries: 1", "expected 1 deliveries, got 2"),
        (
            "      - {at: 8s, alert: bark, state: resolved}\n",
            "",
            "unexpected: bark resolved at 8s (severity=low, stream=one)",
        ),
        ("score: 0.8", "score: 0.5", "line 11: expected bark firing at 5s, got none"),
    ],
)
def test_test_that_fails_says_what_it_expected_and_got(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, failure: str
) -> None:
    assert old in TESTS
    (folder / "tests.yaml").write_text(TESTS.replace(old, new) + "    until: 20s\n")
    report = folder / "report.xml"
    assert rules(folder, "test", str(folder / "tests.yaml"), "--junit", str(report)) == 1
    assert failure in capsys.readouterr().out
    assert ET.parse(report).getroot()[0].get("failures") == "1"


def test_scores_go_through_the_decision_stage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "scores.yaml").write_text(SCORES)
    code = rules(folder, "test", str(folder / "scores.yaml"))
    assert (code, capsys.readouterr().out.count("passed")) == (0, 1)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("alert: bark, labels", "alert: bork, labels", "E109: tests[0].expect[0]: no rule file"),
        ("class: Bark", "class: Cat", "E105: tests[0].events[0]: the model has no class 'Cat'"),
        ("stream: one", "stream: two", "the stream 'two' is not under 'streams' of this test"),
        (
            "2026-03-29T00:30:00+01:00",
            "2026-03-29T00:30:00",
            "expected a time with its offset from UTC such as",
        ),
        ("at: 5s, class", "at: 5, class", "expected a duration such as 30s, 5m or 1h30m, got 5"),
        ("rules.yaml", "nowhere.yaml", "no such rule file"),
    ],
)
def test_test_files_that_cannot_be_used_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, problem: str
) -> None:
    (folder / "tests.yaml").write_text(TESTS.replace(old, new))
    assert rules(folder, "test", str(folder / "tests.yaml")) == 1
    assert problem in capsys.readouterr().out


def test_explain_says_what_a_rule_matches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rules(folder, "explain", str(folder / "rules.yaml")) == 0
    printed = capsys.readouterr().out
    assert "  classes: Bark\n  score: at least 0.6\n  stream room: attic or hall\n" in printed
    assert "  step 2: classes: Siren\n  sequence: within 10s\n" in printed
    assert "  actions: phone\n" in printed


def test_rule_about_the_small_model_of_a_cascade_is_explained_checked_and_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "model")
    label = json.loads((model / "config.json").read_text())["id2label"]["0"]
    file = tmp_path / "rules.yaml"
    file.write_text(
        "groups:\n  - name: house\n    rules:\n"
        f"      - {{alert: both, match: {{class: {label}, watcher_score: {{min: 0.3}}}}, "
        'annotations: {summary: "the small model says {{ watcher_score }}"}}\n'
    )
    config = tmp_path / "config.yaml"
    cascade = {"checkpoint": str(model), "cascade": {"checkpoint": str(model)}}
    config.write_text(
        f"streams: [{{name: a, source: {{type: scene}}}}]\nmodel: {json.dumps(cascade)}\n"
    )
    command = ["rules", "explain", str(file), "-c", str(config)]
    assert run_command_line(command) == 0
    assert "  score of the small model: at least 0.3\n" in capsys.readouterr().out

    assert run_command_line(["rules", "check", str(file), "-c", str(config)]) == 0
    assert "W214" not in capsys.readouterr().out
    assert run_command_line(["rules", "check", str(file), "--model", str(model)]) == 0
    assert "warning W214: groups[0].rules[0].match.watcher_score: " in capsys.readouterr().out

    tests = tmp_path / "tests.yaml"
    tests.write_text(
        f"rules: [rules.yaml]\nlabels: [{label}]\ntests:\n  - name: both\n"
        '    start: "2026-03-29T00:30:00+01:00"\n    streams: {one: {}}\n    events:\n'
        f"      - {{at: 1s, class: {label}, dur: 1s, stream: one, watcher_score: 0.2}}\n"
        f"      - {{at: 8s, class: {label}, dur: 1s, stream: one, watcher_score: 0.4}}\n"
        "    expect:\n"
        "      - {at: 8s, alert: both, annotations: {summary: the small model says 0.4}}\n"
        "      - {at: 9s, alert: both, state: resolved}\n"
    )
    assert run_command_line(["rules", "test", str(tests)]) == 0, capsys.readouterr().out


def test_a_rule_for_one_class_without_latin_letters_matches_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "zh")
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {"0": "警报", "1": "狗叫", "2": "海浪"}
    (model / "config.json").write_text(json.dumps(config))
    rule = 'alert: dog, match: {class: "狗叫"}'
    file = tmp_path / "dog.yaml"
    file.write_text(f"version: 1\ngroups: [{{name: hall, rules: [{{{rule}}}]}}]\n")
    assert run_command_line(["rules", "explain", str(file), "--model", str(model)]) == 0
    assert "  classes: 狗叫 (" in capsys.readouterr().out
    (tmp_path / "events.jsonl").write_text(
        "".join(json.dumps(body) + "\n" for body in sound("a", "海浪", 0, 9))
    )
    args = ["--events", str(tmp_path / "events.jsonl"), "--model", str(model)]
    assert run_command_line(["rules", "backtest", str(file), *args]) == 0
    assert "dog      0 fired" in capsys.readouterr().out


def test_backtest_reads_the_log_and_plain_bodies_alike(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = [
        *sound("a", "Bark", 0, 2, labels={"room": "hall"}),
        *sound("b", "Siren", 5, 8),
        *sound("c", "Bark", 3600, 3602, labels={"room": "hall"}, stream="other"),
    ]
    plain, log = folder / "plain.jsonl", folder / "log.jsonl"
    plain.write_text("".join(json.dumps(body) + "\n" for body in bodies) + "no JSON\n")
    log.write_text(
        "".join(json.dumps({"crc": "0", "topic": "event/", "body": b}) + "\n" for b in bodies)
    )
    printed = []
    for file in (plain, log):
        command = ["rules", "backtest", str(folder / "rules.yaml"), "--events", str(file)]
        assert run_command_line(command) == 0
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0][:-1] == printed[1]
    assert printed[0][-1] == "lines that are not messages: 1"
    assert printed[1][0] == (
        "2027-01-15T08:00:00Z  firing    bark                      severity=low stream=hall  "
        "Bark on hall"
    )
    assert any(line.startswith("bark      2 fired") for line in printed[1])
    assert any(line.startswith("both      1 fired") for line in printed[1])


@pytest.mark.parametrize(
    ("hours", "n_barks", "rate"), [(48, 5, "2.5/day"), (24, 5, "5.0/day"), (12, 7, "14.0/day"),
     (1, 3, "72.0/day"), (0.5, 2, "96.0/day"), (0.001, 2, "-/day")],
)  # fmt: skip
def test_backtest_gives_the_rate_of_what_was_listened_to_however_short_that_was(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    hours: float,
    n_barks: int,
    rate: str,
) -> None:
    events = folder / "events.jsonl"
    last_s = hours * 3600
    onsets = [last_s * n / (n_barks - 1) for n in range(n_barks)]
    bodies = [
        {**body, "captured": body["onset"]}
        for n, at_s in enumerate(onsets)
        for body in sound(f"e{n}", "Bark", at_s, at_s + 0.5, stream=f"s{n}")[:1]
    ]
    events.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    rules = folder / "plain.yaml"
    rules.write_text("groups: [{name: g, rules: [{alert: bark, match: {class: Bark}}]}]")
    assert run_command_line(["rules", "backtest", str(rules), "--events", str(events)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"bark      {n_barks} fired")
    assert f" {rate} " in line


def test_backtest_says_which_firings_were_suppressed_and_why(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, events = folder / "cooling.yaml", folder / "events.jsonl"
    rule = "{alert: bark, match: {class: Bark}, cooldown: 1m}"
    rules.write_text(f"groups: [{{name: g, rules: [{rule}]}}]")
    bodies = [body for n in range(4) for body in sound(f"e{n}", "Bark", 10 * n, 10 * n + 1)]
    events.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    assert run_command_line(["rules", "backtest", str(rules), "--events", str(events)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("bark      1 fired")
    assert last.endswith("|  suppressed: 3 by cooldown")


def test_explain_says_what_the_model_distinguishes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["rules", "explain", str(CONFIGS / "alerts.yaml")]) == 0
    printed = capsys.readouterr().out.split("\n\n")
    (smoke,) = [line for line in printed if line.startswith("smoke_alarm ")]
    (dog,) = [line for line in printed if line.startswith("dog_barking_long ")]
    assert re.search(
        r"  latency: up to \d\.\d s after a sound has begun, "
        r"and up to \d\.\d s after it has ended\n",
        smoke,
    )
    assert re.search(r"  resolution: pauses of less than \d\.\d s count as sound\n", dog)
    (level,) = [line for line in printed if line.startswith("workshop_loud ")]
    assert "latency:" not in level


def test_backtest_gives_json_lines_and_the_summary_aside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "events.jsonl"
    begin = event("begin", "a", "Bark", 0, 0, labels={"room": "hall"})
    file.write_text(json.dumps(begin) + "\n")
    command = ["rules", "backtest", str(folder / "rules.yaml"), "--events", str(file), "--json"]
    assert run_command_line(command) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["state"] for line in printed.out.splitlines()] == [
        "firing",
        "resolved",
    ]
    assert "1 fired" in printed.err


def test_backtest_refuses_what_is_no_log_of_events(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "labels.txt"
    assert (
        run_command_line(["rules", "backtest", str(folder / "rules.yaml"), "--events", str(file)])
        == 2
    )
    assert (
        "labels.txt: expected JSON lines of events, got 3 others and no event"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "options",
    [
        ("backtest", "--events", "."),
        ("record", "--events", ".", "--out", "new-tests.yaml"),
        ("explain", "--labels", "."),
        ("explain", "--config", "."),
    ],
)
def test_folder_in_place_of_a_file_is_wrong_usage(
    folder: Path,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    command, *rest = options
    assert run_command_line(["rules", command, "rules.yaml", *rest]) == 2
    assert "is a directory" in capsys.readouterr().err


def test_backtest_needs_events_or_audio(folder: Path) -> None:
    assert run_command_line(["rules", "backtest", str(folder / "rules.yaml")]) == 2


def test_stretch_of_the_past_becomes_a_test_that_passes_until_a_rule_changes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, test = folder / "log.jsonl", folder / "tests" / "recorded.yaml"
    test.parent.mkdir()
    bodies = [
        *sound("a", "Bark", 0, 2, labels={"room": "hall"}, stream="front-door"),
        *sound("b", "Bark", 60, 62, labels={"room": "attic"}, stream="attic-of-ann"),
        *sound("c", "Bark", 7200, 7202, labels={"room": "hall"}, stream="front-door"),
    ]
    bodies[0]["watcher_score"] = 0.7  # of a cascade; what the end says of it counts, too
    bodies[1]["watcher_score"] = 0.2
    log.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    rules = folder / "rules.yaml"
    both = rules.read_text().replace(
        "score: {min: 0.6}", "score: {min: 0.6}, watcher_score: {min: 0.5}"
    )
    (folder / "both.yaml").write_text(both)
    command = ["rules", "record", str(rules), "--events", str(log), "--out", str(test)]
    assert run_command_line([*command, "--to", "2027-01-15T09:00:00Z"]) == 0
    assert "2 sounds, 4 firings and resolutions" in capsys.readouterr().err
    written = test.read_text()
    assert "front-door" not in written
    assert "ann" not in written.replace("annotations", "")
    assert run_command_line(["rules", "test", str(test)]) == 0
    assert "watcher_score: 0.7, score: 0.9" in written
    rules.write_text(rules.read_text().replace("{min: 0.6}", "{min: 0.95}"))
    assert run_command_line(["rules", "test", str(test)]) == 1
    command[2] = str(folder / "both.yaml")
    assert run_command_line(command) == 0
    assert "3 sounds, 2 firings and resolutions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "2030-01-01T00:00:00Z"], "expected 1 to 1000 sounds, got 0"),
        (["--to", "noon"], "--to: expected a time with its offset from UTC such as"),
    ],
)
def test_stretch_without_sounds_is_no_test(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    log = folder / "log.jsonl"
    log.write_text(json.dumps(event("begin", "a", "Bark", 0, 0)) + "\n")
    command = ["rules", "record", str(folder / "rules.yaml"), "--events", str(log)]
    assert run_command_line([*command, "--out", str(folder / "t.yaml"), *options]) == 2
    assert message in capsys.readouterr().err


def test_rules_that_are_shipped_are_right_and_pass_their_tests() -> None:
    # not --strict: what a score keeps out depends on the checkpoint that is bundled
    assert run_command_line(["rules", "check", str(CONFIGS / "alerts.yaml")]) == 0
    assert run_command_line(["rules", "test", str(CONFIGS / "alerts-tests.yaml")]) == 0


def test_errors_of_rule_files_carry_their_problems(folder: Path) -> None:
    from ast_stream.alerts.rules.compile import load_rules

    (folder / "rules.yaml").write_text("groups: []")
    with pytest.raises(
        ConfigError, match=r"rules\.yaml:1:1: error E101: groups: expected at least"
    ):
        load_rules([folder / "rules.yaml"])
