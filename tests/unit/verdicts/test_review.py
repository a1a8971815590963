"""From verdicts to a verifier in force: history, clips, `review`, and what is heard then."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reviewed_box import EVERY_S, day, judge_all, make_box

from ast_stream.cli.app import run_command_line
from ast_stream.cli.calibrate import AudioOptions
from ast_stream.dataset.annotations import LabelledClip
from ast_stream.dataset.clips import load_recordings, read_data
from ast_stream.dataset.tables import Columns
from ast_stream.detect.verifiers import VerifiersFile
from ast_stream.evaluation.scoring import isolated_spec
from ast_stream.history.database import History
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.settings.load import load_settings
from ast_stream.soundscape.backgrounds import generated_backgrounds
from ast_stream.soundscape.mixing import mix_soundscape
from ast_stream.training.config import TrainingConfig
from ast_stream.training.data import prepare_data
from ast_stream.units import SAMPLE_RATE
from ast_stream.verdicts.rescoring import ClipRescoring
from ast_stream.verdicts.reviewed_events import history_path, reviewed_events


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bool]]:
    """Give the configuration of a box whose events are all judged, and what they were."""
    config, truth = make_box(tmp_path_factory.mktemp("box"))
    judge_all(config, truth)
    return config, truth


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run_command_line([str(one) for one in arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run_command_line([str(one) for one in arguments]) != 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_the_box_takes_tones_for_barks(box: tuple[Path, dict[str, bool]]) -> None:
    _, truth = box
    assert (sum(truth.values()), len(truth)) == (15, 30)


def test_clips_give_the_very_events_that_were_heard_live(
    box: tuple[Path, dict[str, bool]],
) -> None:
    from ast_stream.model.loading import load_model

    config, truth = box
    settings = load_settings(config)
    rescoring = ClipRescoring(
        load_model(settings.model), settings.model, settings.detection,
        Path(settings.state_dir) / "clips",
    )  # fmt: skip
    with History.open_read_only(history_path(settings)) as history:
        reviewed = reviewed_events(history)
    assert {one.event.id for one in reviewed} == set(truth)
    heard = [rescoring.rescore(one) for one in reviewed]
    assert all(one is not None and one.is_same for one in heard)


@pytest.mark.slow
def test_what_was_judged_wrong_does_not_begin_again(
    box: tuple[Path, dict[str, bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, truth = box
    out = tmp_path / "verifiers.safetensors"
    said = ask(capsys, "review", "fit", "-c", config, "--out", out)
    n_wrong = len(truth) - sum(truth.values())
    (row,) = [line for line in said.splitlines() if line.startswith("Bark")]
    assert f"{n_wrong} of {n_wrong}" in row  # on days that it was not fitted to
    assert f"0 of {sum(truth.values())}" in row
    assert f"verifiers: {{file: {out}, action: drop}}" in said
    assert [one.label for one in VerifiersFile.read(out).description.classes] == ["Bark"]

    pcm, is_noise = day(8, seed=77)
    recording = tmp_path / "next-day.wav"
    soundfile.write(recording, pcm, SAMPLE_RATE, subtype="PCM_16")
    before = scanned(capsys, recording, config)
    assert sorted(before) == list(range(len(is_noise)))
    text = config.read_text()
    dropping = tmp_path / "dropping.yaml"
    dropping.write_text(text.replace("model: {", f"model: {{verifiers: {{file: {out}}}, "))
    assert sorted(scanned(capsys, recording, dropping)) == [
        number for number, noise in enumerate(is_noise) if noise
    ]
    tagging = tmp_path / "tagging.yaml"
    tagging.write_text(
        text.replace("model: {", f"model: {{verifiers: {{file: {out}, action: tag}}, ")
    )
    tagged = scanned(capsys, recording, tagging)
    assert sorted(tagged) == sorted(before)
    assert {number for number, event in tagged.items() if event["verifier_score"] > 0.5} == set(
        scanned(capsys, recording, dropping)
    )
    # compared with what is in force now
    again = ask(capsys, "review", "fit", "-c", dropping, "--out", tmp_path / "new.safetensors")
    assert f"{n_wrong} of {n_wrong} withheld" in again


def scanned(
    capsys: pytest.CaptureFixture[str], recording: Path, config: Path
) -> dict[int, dict[str, float]]:
    """Return the events of a recording by the number of the sound that each is of."""
    lines = ask(capsys, "scan", recording, "-c", config, "--json").splitlines()
    events = [json.loads(line) for line in lines]
    return {int((event["onset_s"] - 3) // EVERY_S): event for event in events}


def test_reviewed_clips_are_a_training_set_in_which_nothing_leaks(
    box: tuple[Path, dict[str, bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, truth = box
    said = ask(capsys, "review", "export", tmp_path, "-c", config)
    assert f"{len(truth)} clips" in said
    with (tmp_path / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["event"]: row["label"] for row in rows} == {
        event: "Bark" if is_right else "-" for event, is_right in truth.items()
    }
    folds_of: dict[str, set[str]] = {}
    for row in rows:
        folds_of.setdefault(row["group"], set()).add(row["fold"])
    assert len(folds_of) == 3
    assert all(len(folds) == 1 for folds in folds_of.values())
    clips = load_recordings(read_data(tmp_path / "clips.csv"))
    assert len(clips) == len(truth)
    assert all(len(clip.waveform) < 4 * SAMPLE_RATE for clip in clips)


def test_training_keeps_the_sounds_of_one_time_on_one_side(
    box: tuple[Path, dict[str, bool]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ast_stream.training.data.MIN_HELD_OUT_BACKGROUNDS", 1)
    config, truth = box
    ask(capsys, "review", "export", tmp_path / "reviewed", "-c", config)
    rng = np.random.default_rng(0)
    for label, number in itertools.product(("Bark", "Whistle"), range(4)):
        path = tmp_path / "sounds" / label / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(SAMPLE_RATE), SAMPLE_RATE)
    data = prepare_data(
        TrainingConfig(
            tmp_path / "sounds",
            verdicts=tmp_path / "reviewed",
            held_out_ratio=0.4,
            n_generated=0,
            n_backgrounds=1,
        ),
        None,
    )

    def days(clips: list[LabelledClip]) -> set[str]:
        return {clip.row["fold"] for clip in clips if clip.row}

    trained = days([*data.clips, *data.unlabelled_clips])
    assert len(trained) == 2
    assert days(data.held_out_clips)
    assert trained.isdisjoint(days(data.held_out_clips))
    # those called wrong are sounds that must not be named; one day of them is held out with it
    assert len(data.unlabelled_clips) == 10
    reviewed = [clip for clip in (*data.clips, *data.held_out_clips) if clip.row]
    assert {clip.labels for clip in reviewed} == {("Bark",)}
    assert len(reviewed) == sum(truth.values())


def test_calibration_hears_what_was_called_wrong_as_a_sound_of_no_class(
    box: tuple[Path, dict[str, bool]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, truth = box
    ask(capsys, "review", "export", tmp_path / "reviewed", "-c", config)
    checkpoint = load_checkpoint(load_settings(config).model.checkpoint)
    options = AudioOptions(verdicts=tmp_path / "reviewed", negative_hours=0)
    audio, _ = options.audio(checkpoint, Columns(), is_partial=False)
    (sounds,) = [foregrounds for unseen, foregrounds in audio.sounds if unseen.clips]
    assert [one.classes for one in sounds].count((0,)) == sum(truth.values())
    assert [one.classes for one in sounds].count(()) == len(truth) - sum(truth.values())
    spec = isolated_spec(1.0, 20.0)
    backgrounds = generated_backgrounds(0, 2, labels=checkpoint.labels)
    rng = np.random.default_rng(0)
    mixed = mix_soundscape(rng, sounds, backgrounds, checkpoint.labels, spec)
    assert [event.label for event in mixed.truth] == ["Bark"] * sum(truth.values())
    (tmp_path / "empty").mkdir()
    assert "expected a folder with clips.csv" in refusal(
        capsys, "calibrate", checkpoint.origin, "--verdicts", tmp_path / "empty"
    )


def test_verdicts_are_set_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, truth = make_box(tmp_path, n_days=1, n_sounds=4)
    first, second, *_ = truth
    ask(capsys, "review", "set", first, "wrong", "-c", config, "--by", "ann")
    ask(capsys, "review", "set", first, "other", "-c", config, "--label", "Cough")
    listed = ask(capsys, "review", "list", "-c", config, "--verdict", "other", "--json")
    (event,) = [json.loads(line) for line in listed.splitlines()]
    assert (event["id"], event["verdict"], event["verdict_label"]) == (first, "other", "Cough")
    assert Path(event["clips"][0]).is_file()
    waiting = ask(capsys, "review", "list", "-c", config, "--class", "bark", "--open")
    assert second in waiting
    assert first not in waiting
    assert "expected right, wrong, other, unsure, got 'bad'" in refusal(
        capsys, "review", "set", second, "bad", "-c", config
    )
    assert "expected the id of an event" in refusal(
        capsys, "review", "set", "nothing", "wrong", "-c", config
    )
    few = refusal(capsys, "review", "fit", "-c", config)
    assert "expected at least 20 events with a verdict" in few
    assert "got 0 right and 1 wrong" in few
    assert "expected a class of the model, got 'yodel'" in refusal(
        capsys, "review", "fit", "-c", config, "--class", "yodel"
    )


def test_without_a_recorder_there_is_nothing_to_review(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("streams: [{name: porch, source: {type: stdin}}]\n")
    assert "without a section 'recorder'" in refusal(capsys, "review", "list", "-c", config)
