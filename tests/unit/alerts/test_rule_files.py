"""Rule files: what is refused and in which words, what names mean, what only warns."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import make_strange
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model
from rule_bodies import LABELS, health, rules_from, sound

from ast_stream.alerts.backtest import BacktestReport, backtest
from ast_stream.alerts.model_facts import DetectorFacts
from ast_stream.alerts.notification import Notification, notification_of
from ast_stream.alerts.rules.compile import compile_rules, load_rules
from ast_stream.alerts.rules.field_types import RuleSection
from ast_stream.alerts.rules.lint import lint
from ast_stream.alerts.rules.match import EventMatch, Ontology, UnknownName
from ast_stream.alerts.rules.schema import RuleSettings
from ast_stream.alerts.triggers.count import Count
from ast_stream.alerts.triggers.level import Level
from ast_stream.errors import ConfigError, Problem
from ast_stream.messages.event import content_without_topic
from ast_stream.settings.alerts import AlertSettings
from ast_stream.settings.yaml import parse_document

ONTOLOGY = [
    {"id": "1", "name": "Animal", "child_ids": ["2", "6"]},
    {"id": "2", "name": "Dog", "child_ids": ["3", "4"]},
    {"id": "3", "name": "Bark", "child_ids": []},
    {"id": "4", "name": "Growling", "child_ids": []},
    {"id": "5", "name": "Alarm", "child_ids": ["7"]},
    {"id": "6", "name": "Cat", "child_ids": ["4"]},
    {"id": "7", "name": "Siren", "child_ids": []},
]
HEAD = "groups:\n  - name: house\n    rules:\n      - "


def alerts_with(*names: str, **kinds: list[str]) -> AlertSettings:
    """Return settings with actions that deliver both kinds, and others that deliver some."""
    both = {name: {"type": "log"} for name in names}
    some = {name: {"type": "log", "on": on} for name, on in kinds.items()}
    return AlertSettings.model_validate({"actions": both | some})


def problems_of(text: str, **keywords: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compile_rules(
            [parse_document(text, "r.yaml", "groups")],
            labels=LABELS,
            **keywords,  # type: ignore[arg-type]
        )
    return [str(problem) for problem in caught.value.problems]


def of_rule(text: str) -> str:
    return HEAD + "{" + text + "}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            of_rule("alert: a, match: {class: Bork}"),
            "r.yaml:4:28: error E105: groups[0].rules[0].match.class: the model has no class "
            "'Bork'; did you mean 'Bark'?",
        ),
        (
            of_rule("alert: a, match: {any_of: [Bark, Sirn]}"),
            "r.yaml:4:43: error E105: groups[0].rules[0].match.any_of[1]: the model has no class "
            "'Sirn'; did you mean 'Siren'?",
        ),
        (
            of_rule("alert: a, mach: {class: Bark}"),
            "r.yaml:4:20: error E101: groups[0].rules[0].mach: unknown key 'mach'; "
            "did you mean 'match'?",
        ),
        (
            of_rule("alert: a, match: {klass: Bark}"),
            "r.yaml:4:28: error E101: groups[0].rules[0].match.klass: unknown key 'klass'; "
            "did you mean 'class'?",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, for: 30"),
            "r.yaml:4:42: error E101: groups[0].rules[0].for: expected a duration such as 30s, 5m "
            "or 1h30m, got 30",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, for: 0s"),
            "r.yaml:4:42: error E101: groups[0].rules[0].for: expected more than 0s, got '0s'",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, cooldown: 2y"),
            "r.yaml:4:42: error E101: groups[0].rules[0].cooldown: expected a duration such as "
            "30s, 5m or 1h30m, got '2y'",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, cooldown: 400d"),
            "r.yaml:4:42: error E101: groups[0].rules[0].cooldown: expected at most 366d, "
            "got '400d'",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, severity: urgent"),
            "r.yaml:4:42: error E101: groups[0].rules[0].severity: expected informational, low, "
            "medium, high or critical, got 'urgent'",
        ),
        (
            of_rule("alert: My Alert, match: {class: Bark}"),
            "r.yaml:4:10: error E101: groups[0].rules[0].alert: expected a name of lower-case "
            "letters, digits, '-' and '_', at most 63, got 'My Alert'",
        ),
        (
            of_rule("alert: a"),
            "r.yaml:4:9: error E102: groups[0].rules[0]: expected 'match', sequence, absent, level "
            "or coverage, got neither",
        ),
        (
            of_rule("alert: a, for: 3s"),
            "r.yaml:4:9: error E102: groups[0].rules[0]: expected 'match' beside 'for'",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, for: 3s, count: {min: 2, within: 5s}"),
            "r.yaml:4:51: error E102: groups[0].rules[0].count: expected one trigger, "
            "got for and count",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, absent: {match: {class: Bark}, for: 5s}"),
            "r.yaml:4:20: error E102: groups[0].rules[0].match: with 'absent' expected what to "
            "match inside 'absent', got 'match' beside it",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, tolerate: 3s"),
            "r.yaml:4:42: error E102: groups[0].rules[0].tolerate: 'tolerate' belongs to 'for', "
            "got no 'for'",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, count: {min: 1, within: 5s}"),
            "r.yaml:4:50: error E101: groups[0].rules[0].count.min: expected at least 2, got 1",
        ),
        (
            of_rule("alert: a, match: {class: Bark, score: {min: 1.5}}"),
            "r.yaml:4:49: error E101: groups[0].rules[0].match.score.min: expected at most 1, "
            "got 1.5",
        ),
        (
            of_rule("alert: a, sequence: {within: 5s, steps: [{match: {class: Bark}}]}"),
            "r.yaml:4:43: error E101: groups[0].rules[0].sequence.steps: expected at least 2, "
            "got 1",
        ),
        (
            of_rule("alert: a, level: {louder_than_dbfs: -10, missing: true}"),
            "r.yaml:4:20: error E101: groups[0].rules[0].level: expected exactly one of "
            "louder_than_dbfs, quieter_than_dbfs, louder_than_db, quieter_than_db, "
            "digital_silence, missing, got "
            "louder_than_dbfs and missing",
        ),
        (
            of_rule("alert: a, level: {missing: true, for: 1s}"),
            "r.yaml:4:20: error E101: groups[0].rules[0].level: with 'missing' expected 'for' of "
            "at least 3s, as health comes each 1s",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, when: nite"),
            "r.yaml:4:42: error E103: groups[0].rules[0].when: there is no window 'nite'",
        ),
        (
            "windows: {n: {from: 25:00, to: 06:00, timezone: UTC}}\n"
            + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:15: error E103: windows.n.from: expected a time such as 22:00, got '25:00'",
        ),
        (
            "windows: {n: {from: 22:00, timezone: UTC}}\n"
            + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:11: error E103: windows.n: expected both 'from' and 'to', got one of them",
        ),
        (
            "windows: {n: {from: 06:00, to: 06:00, timezone: UTC}}\n"
            + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:11: error E103: windows.n: expected 'from' and 'to' to differ; for the whole "
            "day leave both out",
        ),
        (
            "windows: {n: {days: [monday], timezone: UTC}}\n"
            + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:15: error E103: windows.n.days: expected days such as mon or mon-fri, "
            "got 'monday'",
        ),
        (
            "windows: {n: {dates: [2026-12-24..2026-01-02], timezone: UTC}}\n"
            + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:15: error E103: windows.n.dates: expected the first day before the last, "
            "got '2026-12-24..2026-01-02'",
        ),
        (
            "windows: {n: {days: mon, timezone: Europe/Pariss}}\n"
            + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:26: error E103: windows.n.timezone: expected a time zone such as "
            "Europe/Paris, got 'Europe/Pariss'; did you mean 'Europe/Paris'?",
        ),
        (
            of_rule("alert: a, match: {group: dogs}"),
            "r.yaml:4:28: error E106: groups[0].rules[0].match.group: there is no class group "
            "'dogs' under 'classes'",
        ),
        (
            of_rule("alert: a, match: {under: Dog}"),
            "r.yaml:4:28: error E106: groups[0].rules[0].match.under: 'Dog' is a branch, which "
            "needs 'ontology: FILE' (AudioSet's ontology.json) at the top of this file",
        ),
        (
            "ontology: nowhere.json\n" + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:1: error E106: ontology: nowhere.json: cannot be read: "
            "No such file or directory",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, annotations: {s: '{{ steam.name }}'}"),
            "r.yaml:4:56: error E107: groups[0].rules[0].annotations.s: unknown field "
            "'steam.name'; did you mean 'stream.name'?",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, annotations: {s: '{{ score | upper }}'}"),
            "r.yaml:4:56: error E107: groups[0].rules[0].annotations.s: unknown filter 'upper'; "
            "expected int or none",
        ),
        (
            of_rule("alert: a, match: {class: Bark}")
            + "inhibit:\n  - {source: {alert: b}, target: {alert: a}}\n",
            "r.yaml:6:15: error E109: inhibit[0].source.alert: there is no alert 'b'",
        ),
        (
            of_rule("alert: a, match: {class: Bark}")
            + "inhibit:\n  - {source: {}, target: {alert: a}}\n",
            "r.yaml:6:6: error E101: inhibit[0].source: expected 'alert' or 'severity', "
            "got neither",
        ),
        (
            of_rule("alert: a, match: {class: Bark, not: {}}"),
            "r.yaml:4:41: error E101: groups[0].rules[0].match.not: expected something that is "
            "not meant, got nothing",
        ),
        (
            of_rule("alert: a, match: {class: Bark}") + "actions: {phone: {}}\n",
            "r.yaml:5:1: error E101: actions: unknown key 'actions'; known here: version, "
            "defaults, ontology, classes, windows, groups, inhibit",
        ),
        ("version: 1\n", "r.yaml: error E101: groups: the key 'groups' is missing"),
        (
            "version: 2\n" + of_rule("alert: a, match: {class: Bark}"),
            "r.yaml:1:1: error E101: version: expected 1, got 2",
        ),
        (
            of_rule("alert: a, match: {class: Bark}, match: {class: Siren}"),
            "r.yaml:4: error E100: groups[0].rules[0].match: given twice, first on line 4",
        ),
        (
            of_rule("alert: a, match: {class: yes: no}"),
            None,
        ),
    ],
)
def test_mistakes_are_reported_where_they_are(text: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(ConfigError, match="this is not valid YAML"):
            parse_document(text, "r.yaml", "groups")
    else:
        assert problems_of(text) == [message]


def test_every_mistake_is_reported_at_once() -> None:
    text = of_rule("alert: a, match: {class: Bork}, when: n, annotations: {s: '{{ x }}'}")
    assert len(problems_of(text)) == 3


def test_wrong_keys_of_one_rule_do_not_hide_what_is_wrong_with_the_next() -> None:
    text = """
defaults: {timezone: Europe/Berln}
windows: {night: {from: 22:00, to: 06:00}, days: {days: mon}}
groups:
  - name: house
    rules:
      - {alert: one, match: {clas: Bark}}
      - {alert: two, match: {class: cry}, when: nigth}
      - {alert: three, match: {class: Bark, any_of: [Siren]}, for: 3s}
inhibit:
  - {source: {alert: one}, target: {alert: two}}
"""
    with pytest.raises(ConfigError) as caught:
        compile_rules([parse_document(text, "rules.yaml", "groups")], labels=LABELS)
    assert [str(problem) for problem in caught.value.problems] == [
        "rules.yaml:2:12: error E103: defaults.timezone: expected a time zone such as "
        "Europe/Paris, got 'Europe/Berln'; did you mean 'Europe/Berlin'?",
        "rules.yaml:7:30: error E101: groups[0].rules[0].match.clas: unknown key 'clas'; "
        "did you mean 'class'?",
        "rules.yaml:8:30: error E105: groups[0].rules[1].match.class: the model has no class "
        "'cry'; did you mean 'Baby cry, infant cry'?",
        "rules.yaml:8:43: error E103: groups[0].rules[1].when: there is no window 'nigth'; "
        "did you mean 'night'?",
        "rules.yaml:9:24: error E105: groups[0].rules[2].match: no class is in all of the keys "
        "given; of one key any will do",
    ]


def test_alert_named_twice_over_two_files_is_refused() -> None:
    text = of_rule("alert: a, match: {class: Bark}")
    documents = [parse_document(text, name, "groups") for name in ("one.yaml", "two.yaml")]
    with pytest.raises(ConfigError) as caught:
        compile_rules(documents)
    assert str(caught.value) == (
        "two.yaml:4:10: error E108: groups[0].rules[0].alert: the alert 'a' is there twice, "
        "first at one.yaml:4"
    )


def test_unknown_action_is_refused_where_actions_are_known() -> None:
    text = of_rule("alert: a, match: {class: Bark}, actions: [phon]")
    assert problems_of(text, actions=["phone"]) == [
        "r.yaml:4:52: error E104: groups[0].rules[0].actions[0]: unknown action 'phon'; "
        "did you mean 'phone'?"
    ]


def test_file_that_is_not_there_is_a_problem_with_a_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"error E100: no such rule file"):
        load_rules([tmp_path / "no.yaml"])


def test_branch_holds_everything_below_also_over_several_parents(tmp_path: Path) -> None:
    ontology = Ontology.parse(json.dumps(ONTOLOGY))
    assert ontology.branch("Animal > Bark") == {"Bark"}
    assert ontology.branch("dog") == {"Dog", "Bark", "Growling"}
    assert ontology.branch("Cat") == {"Cat", "Growling"}
    with pytest.raises(UnknownName, match="'Siren' does not lie under 'Animal'"):
        ontology.branch("Animal > Siren")
    with pytest.raises(UnknownName, match="the ontology has no 'Dogg'; did you mean 'Dog'"):
        ontology.branch("Animal > Dogg")


def test_loop_in_an_ontology_does_no_harm() -> None:
    looped = [
        {"id": "1", "name": "A", "child_ids": ["2"]},
        {"id": "2", "name": "B", "child_ids": ["1"]},
    ]
    assert Ontology.parse(json.dumps(looped)).under("A") == {"A", "B"}


@pytest.mark.parametrize("text", ["{", "[1]", '[{"id": "1"}]', '{"a": 1}', "[" * 5000])
def test_what_is_no_ontology_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a list of nodes"):
        Ontology.parse(text)


def test_branch_matches_the_classes_of_the_model_and_warns_of_members_elsewhere(
    tmp_path: Path,
) -> None:
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "ontology: ontology.json\n" + of_rule("alert: a, match: {under: Animal > Dog}")
    )
    loaded = load_rules([rules], labels=["Bark", "Growling", "Siren"])
    assert loaded.rules[0].matchers[0].slugs == frozenset({"bark", "growling"})
    (warning,) = lint(loaded)
    assert str(warning).endswith(
        ":5:28: warning W208: groups[0].rules[0].match.under: members that also lie elsewhere: "
        "Growling (Cat)"
    )


FACTS = DetectorFacts(
    thresholds={"bark": 0.5, "siren": 0.6, "knock": 0.4},
    without_events=["alarm"],
    window_s=2.0,
    hop_s=0.5,
    apart_s={"bark": 2.25, "siren": 3.0, "knock": 2.0},
    shortest_s={"bark": 0.5, "siren": 1.5, "knock": 0.25},
    longest_s={"bark": 600.0, "siren": 600.0, "knock": 60.0},
)


@pytest.mark.parametrize(
    ("rule", "top", "warning"),
    [
        (
            "alert: a, match: {class: Bark, score: {min: 0.4}}",
            "",
            "W201: groups[0].rules[0].match.score: a score of 0.4 keeps nothing out: the "
            "detector's own threshold is 0.5",
        ),
        (
            "alert: a, match: {class: Knock}, for: 5s",
            "",
            "W202: groups[0].rules[0].for: knock: such sounds do not last; 'count' is for repeats",
        ),
        (
            "alert: a, match: {class: Bark}, count: {min: 6, within: 10s}",
            "",
            "W203: groups[0].rules[0].count.within: at most 5 events of these classes fit into "
            "it: with windows of 2 s, sounds less than 2.25 s apart are one event",
        ),
        (
            "alert: a, sequence: {within: 9s, steps: [{match: {class: Bark}}, "
            "{match: {class: Siren}}]}, group_by: [class]",
            "",
            "W204: groups[0].rules[0].group_by: grouped by class, but no class fits every step",
        ),
        (
            "alert: a, sequence: {within: 9s, steps: [{match: {class: Bark, stream: {id: x}}}, "
            "{match: {class: Siren, stream: {id: y}}}]}",
            "",
            "W204: groups[0].rules[0].sequence: grouped by stream, but no stream fits every step; "
            "write group_by: []",
        ),
        (
            "alert: a, sequence: {within: 2s, steps: [{match: {class: Bark}}, "
            "{match: {class: Bark}}]}",
            "",
            "W204: groups[0].rules[0].sequence.within: bark 2 times within it: sounds less "
            "than 2.25 s apart are one event",
        ),
        (
            "alert: a, match: {any_of: [Bark, Siren]}, count: {min: 10, within: 9s}",
            "",
            "W203: groups[0].rules[0].count.within: at most 9 events of these classes fit into "
            "it: with windows of 2 s, sounds less than 2.25 s apart are one event",
        ),
        (
            "alert: a, absent: {match: {class: Siren}, for: 1s}",
            "",
            "W203: groups[0].rules[0].absent.for: fires at every pause that is heard at all: "
            "with windows of 2 s those are longer than 1.5 s",
        ),
        (
            "alert: a, sequence: {within: 300ms, steps: [{match: {class: Bark}}, "
            "{match: {class: Siren}}]}",
            "",
            "W203: groups[0].rules[0].sequence.within: which came first is not known so exactly: "
            "onsets are 0.5 s apart",
        ),
        (
            "alert: a, match: {class: Siren}, for: 1500ms",
            "",
            "W211: groups[0].rules[0].for: keeps nothing out: no event of these classes is "
            "shorter than 1.5 s",
        ),
        (
            "alert: a, match: {class: Siren}, for: 20m, tolerate: 500ms",
            "",
            "W212: groups[0].rules[0].for: events are cut after 600 s (max_duration_s), and the "
            "next may begin 0.75 s later: needs 'tolerate: 1s' or more",
        ),
        (
            "alert: a, match: {class: Bark}",
            "windows: {n: {days: mon, timezone: UTC}}",
            "W205: windows.n: no rule uses the window 'n'",
        ),
        (
            "alert: a, match: {class: Bark}",
            "classes: {g: [Bark]}",
            "W207: classes.g: no rule uses the class group 'g'",
        ),
        (
            "alert: a, match: {class: Alarm}",
            "",
            "W209: groups[0].rules[0].match: alarm: makes no events: "
            "background, or off unless detection.classes enables it",
        ),
        (
            "alert: a, match: {class: Bark}, when: n, unless: n",
            "windows: {n: {days: mon, timezone: UTC}}",
            "W210: groups[0].rules[0].unless: 'n' is in 'when' and in 'unless': the rule can "
            "never fire",
        ),
        (
            "alert: a, absent: {match: {class: Bark}, for: 5s}, group_by: [class]",
            "",
            "W210: groups[0].rules[0].group_by: 'absent' has no class to group by",
        ),
    ],
)
def test_rules_that_do_not_mean_what_they_say_are_warned_of(
    rule: str, top: str, warning: str
) -> None:
    (found,) = lint(rules_from(rule, top=top), FACTS)
    assert str(found).split(" warning ")[1] == warning


def test_unused_action_is_warned_of() -> None:
    rules = rules_from("alert: a, match: {class: Bark}, actions: [phone]")
    (found,) = lint(rules, alerts=alerts_with("phone", "mail"))
    assert found.code == "W206"
    assert "'mail'" in found.text


@pytest.mark.parametrize(
    "rule",
    [
        "alert: a, match: {class: Bark, score: {min: 0.7}}",
        "alert: a, match: {class: Siren}, for: 5s",
        "alert: a, match: {class: Knock}, for: 500ms",
        "alert: a, match: {class: Siren}, for: 20m, tolerate: 1s",
        "alert: a, match: {class: Siren}, for: 10m",
        "alert: a, match: {any_of: [Bark, Siren]}, for: 1s",
        "alert: a, absent: {match: {class: Siren}, for: 2s}",
        "alert: a, match: {class: Bark}, count: {min: 5, within: 10s}",
        "alert: a, match: {class: Bark}, count: {min: 9, within: 10s}, group_by: []",
        "alert: a, sequence: {within: 9s, steps: [{match: {class: Bark}}, {match: {}}]}",
        "alert: a, level: {quieter_than_dbfs: -80, for: 5s}",
    ],
)
def test_sound_rules_are_not_warned_of(rule: str) -> None:
    assert lint(rules_from(rule), FACTS) == []


@pytest.mark.parametrize(
    ("without_watcher", "match", "warning"),
    [
        (
            {"bark", "siren", "knock"}, "class: Bark",
            "without model.cascade no event has one: nothing matches",
        ),
        (
            {"siren", "knock"}, "any_of: [Bark, Siren]",
            "siren: the small model of model.cascade does not know it: nothing of it matches",
        ),
        ({"siren"}, "class: Bark", None),
        ({"siren"}, "stream: {id: hall}", None),
    ],
)  # fmt: skip
def test_rule_that_asks_for_a_score_of_a_small_model_that_gives_none_is_warned_of(
    without_watcher: set[str], match: str, warning: str | None
) -> None:
    facts = replace(FACTS, without_watcher=frozenset(without_watcher))
    rule = f"alert: a, match: {{{match}, watcher_score: {{min: 0.3}}}}"
    found = [problem.text for problem in lint(rules_from(rule), facts)]
    assert found == ([] if warning is None else [warning])


_KEY_WORDS = (
    "alert match for tolerate count sequence absent level group_by when unless severity labels "
    "annotations actions class any_of under group not score stream min within steps missing"
)
_KEYS = st.sampled_from(_KEY_WORDS.split())
_WORDS = st.sampled_from(["Bark", "a", "3s", "night", "critical", "x: y", "", "{{ label }}", "id"])
_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), _WORDS)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_no_rule_whatever_its_shape_is_more_than_refused(rule: dict[str, Any]) -> None:
    content = {"groups": [{"name": "g", "rules": [{"alert": "a"} | rule]}]}
    document = parse_document(json.dumps(content), "r.yaml", "groups")
    refused: list[Problem] = []
    try:
        lint(compile_rules([document], labels=LABELS), FACTS)
    except ConfigError as error:
        refused = error.problems
    assert all(str(problem).startswith("r.yaml:1:") for problem in refused)


def test_rule_has_the_actions_of_its_group_or_of_the_file_where_it_says_nothing() -> None:
    text = """
defaults: {actions: [mail]}
groups:
  - name: loud
    actions: phone
    rules:
      - {alert: of_group, match: {class: Bark}}
      - {alert: own, match: {class: Bark}, actions: [pager, mail]}
      - {alert: nobody, match: {class: Bark}, actions: []}
  - name: quiet
    rules:
      - {alert: of_file, match: {class: Bark}}
"""
    rules = compile_rules([parse_document(text, "r.yaml", "groups")], labels=LABELS)
    assert {rule.name: rule.actions for rule in rules.rules} == {
        "of_group": ("phone",),
        "own": ("pager", "mail"),
        "nobody": (),
        "of_file": ("mail",),
    }
    with pytest.raises(ConfigError) as raised:
        compile_rules([parse_document(text, "r.yaml", "groups")], labels=LABELS, actions=["mail"])
    assert [str(problem).split(" ", 1)[0] for problem in raised.value.problems] == [
        "r.yaml:5:5:",
        "r.yaml:8:54:",
    ]


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        (
            "",
            "'a' notifies nobody: expected 'actions' here, in its group or in 'defaults', got none "
            "('actions: []' if its alerts are for the feed alone)",
        ),
        (", actions: [late]", "'a' notifies nobody when it fires: 'late' does not deliver firings"),
    ],
)
def test_rule_that_notifies_nobody_is_warned_of(actions: str, text: str) -> None:
    found = lint(
        rules_from(f"alert: a, match: {{class: Bark}}{actions}"),
        alerts=alerts_with("phone", late=["resolved"]),
    )
    (warning,) = [warning for warning in found if warning.code == "W213"]
    assert (warning.line, warning.text) == (5, text)


@pytest.mark.parametrize("actions", ["actions: []", "actions: [phone]", "actions: [late, phone]"])
def test_rule_that_notifies_somebody_or_means_nobody_is_not_warned_of(actions: str) -> None:
    rules = rules_from(f"alert: a, match: {{class: Bark}}, {actions}")
    assert "W213" not in [
        warning.code for warning in lint(rules, alerts=alerts_with("phone", late=["resolved"]))
    ]


EVERYTHING = """
{"version": 1, "ontology": "o.json", "classes": {"c": ["Bark"]},
 "defaults": {"timezone": "UTC", "severity": "low", "cooldown": "1s", "keep_firing_for": "1s",
              "group_by": ["stream"], "actions": ["phone"], "resume_window": "1h"},
 "windows": {"n": {"timezone": "UTC", "days": ["mon-fri"], "dates": ["2026-01-01..2026-12-31"],
                   "from": "22:00", "to": "06:00"}},
 "groups": [{"name": "g", "labels": {"a": "b"}, "actions": ["phone"], "rules": [
   {"alert": "a", "match": {"class": "Bark", "stream": {"id": "hall"}, "score": {"min": 0.1},
                            "not": {"class": "Siren"}}, "for": "1s", "tolerate": "1s",
    "when": ["n"], "unless": ["n"], "limit": 3, "labels": {"c": "d"}, "severity": "high",
    "annotations": {"summary": "{{ stream.name }} {{ labels.c }}"}, "actions": ["phone"]},
   {"alert": "b", "match": {"group": "c"}, "count": {"min": 2, "within": "5s"}},
   {"alert": "c", "sequence": {"within": "9s", "steps": [{"match": {"class": "Bark"}},
                                                         {"match": {"any_of": ["Siren"]}}]}},
   {"alert": "d", "absent": {"match": {"class": "Bark"}, "for": "5s"}},
   {"alert": "e", "level": {"louder_than_dbfs": -20, "for": "3s"}},
   {"alert": "f", "level": {"missing": true, "for": "3s"}}]}],
 "inhibit": [{"source": {"alert": "a"}, "target": {"severity": ["low"]}, "equal": ["stream"]}]}
"""
STRANGE: tuple[Any, ...] = (
    None, True, -1, 1e300, 10**40, "", "\0", "\ud800", "\u202e", "1e300d", "9" * 5000 + "d",
    "366d", "0s", [], {}, [[]], [None], ["\ud800"], {"a": None}, {"\0": "\0"}, {"": ""},
    "{{" * 1000, "x" * 9000, ["x"] * 500, "/dev/zero", "../" * 200, ".nan", "9999-12-31",
)  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, warning in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(warning, (*path, key))


@pytest.mark.slow
def test_whatever_stands_in_a_rule_file_is_refused_in_sentences_or_works(tmp_path: Path) -> None:
    whole = json.loads(EVERYTHING)
    (tmp_path / "o.json").write_text("[" * 50_000)
    chance = random.Random(13)
    bodies = [*sound("x", "Bark", 0, 9), *sound("y", "Siren", 3, 5), health(11, level=-3.0)]
    messages = [content_without_topic(body) for body in bodies]
    n_used = 0
    for path in list(paths(whole))[1:]:
        for strange in chance.sample(STRANGE, 2):
            changed = json.loads(EVERYTHING.replace('"o.json"', "null"))
            inside = changed
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = strange
            file = tmp_path / "r.yaml"
            file.write_text(json.dumps(changed))
            try:
                rules = load_rules([file], labels=LABELS, actions=["phone"])
            except ConfigError as error:
                for problem in error.problems:
                    assert isinstance(problem, Problem)
                    assert 10 < len(problem.text) < 700
                continue
            n_used += 1
            for transition in backtest(rules, messages, BacktestReport()):
                notification = notification_of(transition)
                assert (
                    notification is None
                    or Notification.decode(notification.encode()) == notification
                )
    assert n_used > 5


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "nested", "nowhere"])
def test_ontology_that_is_none_is_reported_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    if kind == "nested":
        (tmp_path / "o.json").write_text("[" * 100_000)
    elif kind != "nowhere":
        make_strange(tmp_path / "o.json", kind)
    (tmp_path / "r.yaml").write_text(
        "ontology: o.json\ngroups: [{name: g, rules: [{alert: a, match: {class: Bark}}]}]"
    )
    with pytest.raises(ConfigError) as raised:
        load_rules([tmp_path / "r.yaml"], labels=LABELS)
    (problem,) = raised.value.problems
    assert f"E106: ontology: {tmp_path}/o.json: " in str(problem)


@pytest.mark.parametrize(
    ("written", "key", "section"),
    [
        ("alert: a, match: {class: Knock}", "match", EventMatch),
        ("alert: a, match: {class: Knock}, count: {min: 3, within: 60s}", "count", Count),
        ("alert: a, level: {missing: true, for: 1m}", "level", Level),
    ],
)
def test_key_that_sections_of_a_rule_learn_changes_only_rules_that_set_it(
    written: str, key: str, section: type[RuleSection]
) -> None:
    (rule,) = rules_from(written).rules
    newer = create_model("Newer", __base__=section, learnt=(float | None, None))
    replaced: dict[str, Any] = {key: (newer | None, None)}
    settings = create_model("NewerSettings", __base__=RuleSettings, **replaced)
    data = rule.document.data["groups"][0]["rules"][0]
    upgraded = replace(rule, settings=settings.model_validate(data))
    assert upgraded.digest == rule.digest
    data[key]["learnt"] = 0.5
    assert replace(rule, settings=settings.model_validate(data)).digest != rule.digest
