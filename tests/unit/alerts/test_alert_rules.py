from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ast_stream.alerts.model_facts import UNKNOWN_WINDOW_S, model_facts
from ast_stream.alerts.rule_files import RuleFiles
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.cli.demo import _rules
from ast_stream.cli.run import child_specs
from ast_stream.errors import ConfigError
from ast_stream.settings.alerts import AlertSettings
from ast_stream.settings.load import load_file
from ast_stream.settings.model import ModelSettings

RULES: dict[str, Any] = {
    "version": 1,
    "groups": [{"name": "g", "rules": [{"alert": "a", "match": {"class": "Bark"}}]}],
}

AST = {"model_type": "audio-spectrogram-transformer"}


def files(folder: Path, now_s: list[float]) -> RuleFiles:
    config = {
        "streams": [{"name": "porch", "source": {"type": "stdin"}}],
        "model": {"checkpoint": str(folder)},
        "alerts": {"rules": ["rules.yaml"]},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return RuleFiles(load_file(folder / "config.yaml"), lambda: now_s[0])


def test_rules_lie_beside_the_configuration_and_changes_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    now_s = [0.0]
    found = files(tmp_path, now_s)
    assert [rule.name for rule in found.load().rules] == ["a"]
    now_s[0] = 10.0
    assert not found.have_changed()
    os.utime(tmp_path / "rules.yaml", ns=(1, 1))
    assert not found.have_changed()  # it does not check so often
    now_s[0] = 20.0
    assert found.have_changed()


def test_invalid_file_gives_no_rules_and_is_not_read_again_until_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    now_s = [0.0]
    found = files(tmp_path, now_s)
    found.load()
    (tmp_path / "rules.yaml").write_text("version: 2\n")
    now_s[0] = 10.0
    assert found.have_changed()
    assert found.reload() is None
    assert "rules.yaml:1" in caplog.text
    assert "the rules in force stay as they were" in caplog.text
    now_s[0] = 20.0
    assert not found.have_changed()
    (tmp_path / "rules.yaml").unlink()
    now_s[0] = 30.0
    assert found.have_changed()


def test_labels_and_window_are_read_from_the_checkpoint(tmp_path: Path) -> None:
    config = AST | {"id2label": {"1": "Bark", "0": "Speech"}, "max_length": 200}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = model_facts(ModelSettings(checkpoint=str(tmp_path)))
    assert (facts.labels, facts.window_s) == (("Speech", "Bark"), 2.0)
    shorter = model_facts(ModelSettings(checkpoint=str(tmp_path), window_s=1.0))
    assert shorter.window_s == 1.0


def test_run_starts_the_alerts_process_where_there_are_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    files(tmp_path, [0.0])
    config = tmp_path / "config.yaml"
    settings = load_file(config).settings
    alerts, *others = child_specs(settings, config)
    assert alerts.argv[-3:] == ("alerts", "-c", str(config))
    assert (alerts.is_optional, alerts.ends_last) == (True, True)
    assert [spec.name for spec in others] == ["worker", "capture porch"]
    without = settings.model_copy(update={"alerts": AlertSettings()})
    assert [spec.name for spec in child_specs(without, config)] == ["worker", "capture porch"]


def test_class_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    config = AST | {"id2label": {"0": "Speech"}, "max_length": 200}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    with pytest.raises(ConfigError, match="Bark"):
        files(tmp_path, [0.0]).load()


def test_checkpoint_that_is_elsewhere_has_no_known_labels() -> None:
    facts = model_facts(ModelSettings(checkpoint="someone/ast-model"))
    assert (facts.labels, facts.window_s) == (None, UNKNOWN_WINDOW_S)


@pytest.mark.parametrize("labels", [None, ("Siren", "Speech", "Telephone bell ringing")])
def test_rules_of_the_demo_hold_for_the_model(
    tmp_path: Path, labels: tuple[str, ...] | None
) -> None:
    (tmp_path / "rules.yaml").write_text(json.dumps(_rules(labels)))
    rules = load_rules([tmp_path / "rules.yaml"], labels=labels, actions=())
    assert [rule.name for rule in rules.rules] == ["alarm_sounding", "telephone_again"]


def test_demo_has_no_rules_for_a_model_that_knows_nothing_of_its_scene() -> None:
    assert _rules(("Speech",)) is None


ALIASES = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghijklmnop")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        ALIASES,
        "groups: " + "[" * 5000,
        "groups: " + "{a: " * 5000,
        "a: &a {b: *a}\ngroups: *a",
        'groups: [{name: "\\0", rules: [{alert: a, match: {class: Bark}}]}]',
        'groups: [{name: "\\ud800", rules: [{alert: a, match: {class: Bark}}]}]',
        "groups: [{name: g, rules: [{alert: a, match: {class: Bark}, for: 1e300}]}]",
        "groups: [{name: g, rules: [{alert: a, match: {class: Bark}, limit: 1e300}]}]",
        "ontology: /dev/zero\ngroups: [{name: g, rules: [{alert: a, match: {class: Bark}}]}]",
        'ontology: "a\\0b"\ngroups: [{name: g, rules: [{alert: a, match: {class: Bark}}]}]',
    ],
)
def test_nothing_in_a_rule_file_takes_the_rules_in_force_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    now_s = [0.0]
    found = files(tmp_path, now_s)
    found.load()
    (tmp_path / "rules.yaml").write_text(text)
    now_s[0] = 10.0
    assert found.have_changed()
    assert found.reload() is None
    assert f"{tmp_path}/rules.yaml" in caplog.text
    assert "the rules in force stay as they were" in caplog.text
    assert "Traceback" not in caplog.text
    assert max(map(len, caplog.messages)) < 1000
