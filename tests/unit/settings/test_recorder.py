from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from ast_stream.errors import ConfigError
from ast_stream.recorder.process import run_recorder
from ast_stream.settings.check import check_classes
from ast_stream.settings.load import load_file, load_settings
from ast_stream.settings.schema import Settings
from ast_stream.settings.storage import clips, kept, undeclared

STREAMS = [{"name": "porch", "source": {"type": "scene"}}]


def loaded(folder: Path, **sections: object) -> Settings:
    file = folder / "config.yaml"
    state = {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")}
    file.write_text(json.dumps({"streams": STREAMS} | state | sections))  # JSON is YAML
    return load_settings(file)


def test_what_takes_all_or_a_list_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classes: expected all or a list, got 'Speech'"):
        loaded(tmp_path, recorder={"clips": [{"classes": "Speech"}]})


def test_an_empty_section_keeps_a_clip_of_every_event(tmp_path: Path) -> None:
    recorder = loaded(tmp_path, recorder={}).recorder
    assert recorder is not None
    assert recorder.keeps_sound
    (policy,) = recorder.clips
    assert (policy.classes, policy.streams, policy.when) == ("all", "all", "event")


@pytest.mark.parametrize(
    ("recorder", "sentence"),
    [
        ({"clips": [{"streams": ["porhc"]}]}, "no stream 'porhc'; did you mean 'porch'?"),
        ({"clips": [{"when": "always"}]}, "expected event, alert, best or never, got 'always'"),
        ({"clips": [{"pre_s": 60}]}, "recorder.clips[0].pre_s: expected at most 20, got 60"),
        ({"max_clip_s": 600}, "recorder.max_clip_s: expected at most 120, got 600"),
        ({"format": "mp3"}, "recorder.format: expected flac or opus, got 'mp3'"),
        ({"clips": [{"classes": []}]}, "recorder.clips[0].classes: "),
        ({"clip": []}, "unknown key 'clip'; did you mean 'clips'?"),
    ],
)
def test_what_a_recorder_cannot_do_is_said_in_a_sentence(
    tmp_path: Path, recorder: object, sentence: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, recorder=recorder)
    (problem,) = refused.value.problems
    assert sentence in str(problem)


def test_a_sensor_keeps_no_clips_and_may_keep_a_history(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recorder.clips: expected \[\] with privacy: sensor"):
        loaded(tmp_path, recorder={}, privacy="sensor")
    assert loaded(tmp_path, recorder={"clips": []}, privacy="sensor").recorder is not None


def test_clips_are_declared_where_they_are_kept_and_not_elsewhere(tmp_path: Path) -> None:
    recording, silent = loaded(tmp_path, recorder={}), loaded(tmp_path)
    clip = clips(recording).folder / "porch" / "2026-11-20" / "x.flac"
    assert list(undeclared(recording, iter([clip]))) == []
    assert list(undeclared(silent, iter([clip]))) == [clip]
    assert "clips" in {one.name for one in kept(recording)}


def test_classes_of_policies_are_checked_against_the_checkpoint(tmp_path: Path) -> None:
    loaded(tmp_path, recorder={"clips": [{"classes": ["Brak", "bark", "Smoke alarm!"]}]})
    file = load_file(tmp_path / "config.yaml")
    problems = check_classes(file, ["Bark", "Siren"])
    assert [problem.path for problem in problems] == ["recorder.clips[0].classes"] * 2
    assert "unknown class 'Brak'; did you mean 'Bark'" in problems[0].text


def test_a_recorder_without_its_section_says_what_is_missing(tmp_path: Path) -> None:
    loaded(tmp_path)
    with pytest.raises(ConfigError, match="recorder: expected a section such as"):
        run_recorder(load_file(tmp_path / "config.yaml"), threading.Event())
    assert not (tmp_path / "state").exists()
