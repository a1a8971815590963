"""`ast-stream calibrate` on a tiny model: what it writes, who checkpoints what, and wrong input."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from reactive_model import save_reactive, tones_and_noise
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.calibration import provenance
from ast_stream.calibration.budgets import parse_budget
from ast_stream.calibration.folds import unseen_reviewed
from ast_stream.calibration.scores import plain_tagger, score_stream
from ast_stream.cli.app import run_command_line
from ast_stream.dataset.annotations import LabelledClip
from ast_stream.dataset.reviewed_clips import TRAINED_ON, event_digests, read_reviewed
from ast_stream.detect.detector import Detector
from ast_stream.errors import CheckpointError, UsageError
from ast_stream.model.audioset import OFF
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.metadata import METADATA
from ast_stream.model.selfcheck import self_check
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.units import SAMPLE_RATE

USAGE, STARTUP, CONFIG = 2, 3, 78
AUDIOSET = Path(__file__).parents[2] / "golden" / "audioset_slugs.tsv"
HOURS = "0.005"  # of generated negatives: 18 s


@pytest.fixture(scope="module")
def reactive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reactive(tmp_path_factory.mktemp("reactive") / "checkpoint")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four clips each in two folds: low tones and high ones."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(4):
        for label, hz in (("Bark", 400), ("Siren", 2500)):
            time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
            name = f"{label}-{number}.wav"
            tone = 0.3 * np.sin(2 * np.pi * (hz + 40 * number) * time)
            soundfile.write(folder / name, tone, SAMPLE_RATE)
            rows.append([name, label, number % 2])
    with (folder / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["file", "label", "fold"], *rows])
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of negative audio at another rate."""
    path = tmp_path_factory.mktemp("negatives") / "night.wav"
    pcm = np.repeat(tones_and_noise(30.0, seed=5), 2)
    soundfile.write(path, pcm, 2 * SAMPLE_RATE)
    return path


def _calibrate(*args: str | Path) -> int:
    return run_command_line(["calibrate", *map(str, args), "--threads", "1"])


def _trained_without(folder: Path, source: Path, folds: list[str], **changes: Any) -> Path:
    """Write a copy of `source` whose provenance says that it held `folds` out."""
    checkpoint = load_checkpoint(str(source))
    provenance = {"test_folds": folds}
    metadata = checkpoint.metadata.model_copy(update={"provenance": provenance})
    save_checkpoint(folder, replace(checkpoint, metadata=metadata, **changes))
    return folder


def _printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_checkpoint_is_calibrated_to_a_new_folder(
    reactive: Path, clips: Path, night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calibrated"
    budgets = ("--budget", "30/h", "--budget", "bark=1/day")
    assert (
        _calibrate(
            reactive, "--data", clips, "--negatives", night, *budgets, "--out", out, "--json"
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    before, after = load_checkpoint(str(reactive)), load_checkpoint(str(out))
    assert after.hash == before.hash
    assert report["is_written"] is True
    assert (out / "model.safetensors").read_bytes() == (reactive / "model.safetensors").read_bytes()
    assert set(report["classes"]) == {"Bark", "Siren"}  # Background never makes events
    for label, figures in report["classes"].items():
        assert after.metadata.onset_thresholds[label] == figures["threshold"]
        assert 0.2 <= figures["threshold"] <= 0.99
        assert figures["n_sounds"] == 8  # four clips, twice
    assert report["classes"]["Bark"]["budget"] == "1/day"
    assert report["hours_of_negatives"] == pytest.approx(30 / 3600, abs=1e-4)
    assert self_check(Tagger(after, "cpu", "fp32", "math")).against == "golden"
    record = after.metadata.provenance["thresholds"]
    (run,) = record["runs"].values()
    assert run["model"] == before.hash
    assert (run["data"], run["clips"]) == ("labels.csv", 8)
    assert run["negative_recordings"] == ["night.wav"]
    assert str(tmp_path) not in json.dumps(record)
    assert record["classes"]["Bark"]["threshold"] == report["classes"]["Bark"]["threshold"]


@pytest.mark.slow
def test_the_budget_is_kept_by_the_detector_itself(
    reactive: Path, clips: Path, night: Path, tmp_path: Path
) -> None:
    """The false alarms that were counted are the events that live detection makes."""
    out = tmp_path / "calibrated"
    arguments = ("--data", clips, "--negatives", night, "--budget", "130/h", "--out", out)
    assert _calibrate(reactive, *arguments) == 0
    tagger = load_tagger(str(out), "cpu", "fp32", "math")
    detector = Detector(tagger, max_streams=1)
    detector.open("night", "epoch")
    events = []
    pcm, _ = soundfile.read(night, dtype="int16")
    pcm = pcm[::2].copy()
    for start in range(0, len(pcm), 1600):
        detector.push("night", start, pcm[start : start + 1600])
        events += detector.run()
    events += detector.flush("night", "quiet")
    counted = tagger.metadata.provenance["thresholds"]["classes"]
    for label in ("Bark", "Siren"):
        n_events = sum(event.type == "begin" and event.label == label for event in events)
        if counted[label]["is_met"]:
            assert n_events <= 130 * 30 / 3600
        assert abs(n_events - counted[label]["false_in_negatives"]) <= 1  # resampling differs
    assert sum(event.type == "begin" for event in events)


@pytest.mark.slow
def test_the_same_call_writes_the_same_bytes(reactive: Path, clips: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        arguments = ("--data", clips, "--negative-hours", HOURS, "--out", tmp_path / name)
        assert _calibrate(reactive, *arguments) == 0
    first, second = ((tmp_path / name / "ast_stream.json").read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.slow
def test_only_the_classes_asked_for_are_changed_and_their_trade_off_is_shown(
    reactive: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    common = ("--data", clips, "--negative-hours", HOURS)
    assert _calibrate(reactive, *common, "--out", first) == 0
    before = load_checkpoint(str(first)).metadata
    capsys.readouterr()
    asked = ("--class", "siren", "--budget", "9/h", "--seed", "1", "--in-place")
    assert _calibrate(first, *common, *asked) == 0
    shown = capsys.readouterr().out
    assert "Siren: what other budgets would choose" in shown
    for expected in ("10/h", "1/h", "1/day", "1/week", "0-6 dB", "12-20 dB"):
        assert expected in shown
    after = load_checkpoint(str(first)).metadata
    assert after.onset_thresholds["Bark"] == before.onset_thresholds["Bark"]
    assert after.score_maps["Bark"] == before.score_maps["Bark"]
    classes = after.provenance["thresholds"]["classes"]
    assert (classes["Bark"]["budget"], classes["Siren"]["budget"]) == ("0.5/h", "9/h")
    assert len(after.provenance["thresholds"]["runs"]) == 2


def test_without_a_target_nothing_is_written(
    reactive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in reactive.iterdir()}
    assert _calibrate(reactive, "--negative-hours", HOURS) == 0
    assert {path.name: path.read_bytes() for path in reactive.iterdir()} == before
    printed = capsys.readouterr()
    assert "nothing is written; give --out or --in-place" in printed.err
    assert "there are no examples of it" in printed.out


@pytest.mark.slow
def test_a_night_without_labelled_sounds_gives_all_of_527_classes_a_threshold(
    night: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [line.split("\t")[0] for line in AUDIOSET.read_text("utf-8").splitlines()]
    published = tiny_checkpoint(dims=replace(TINY_DIMS, n_classes=len(labels)))
    save_checkpoint(tmp_path / "ast", replace(published, labels=labels))
    (tmp_path / "ast" / METADATA).unlink()
    out = tmp_path / "out"
    assert _calibrate(tmp_path / "ast", "--negatives", night, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "all classes: there are no examples of it" in printed
    assert max(map(len, printed.splitlines())) < 2500  # no remark names hundreds of classes
    metadata = load_checkpoint(str(out)).metadata
    assert list(metadata.onset_thresholds) == labels
    assert len(set(metadata.onset_thresholds.values())) > 50
    assert set(metadata.confirm_s.values()) == {0.75}  # nothing to choose another by
    assert metadata.off == [label for label in labels if label in OFF]


@pytest.mark.slow
@pytest.mark.parametrize("files", [["Bark", "Siren"], ["Bark;Siren"]])
def test_one_clip_of_a_class_is_enough_to_listen_to(
    files: list[str],
    reactive: Path,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "labels.csv"
    rows = [[clips.parent / f"{labels.split(';')[0]}-0.wav", labels] for labels in files]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], *rows])
    assert _calibrate(reactive, "--data", table, "--negative-hours", HOURS, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [figures["n_sounds"] for figures in report["classes"].values()] == [2, 2]  # each twice


@pytest.mark.slow
def test_short_negative_audio_is_said_with_what_is_needed(
    reactive: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        _calibrate(reactive, "--data", clips, "--negative-hours", HOURS, "--budget", "1/day") == 0
    )
    assert "to claim 1/day you need 72 h without any" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_without_metadata_gets_some(
    reactive: Path, clips: Path, tmp_path: Path
) -> None:
    foreign, out = tmp_path / "foreign", tmp_path / "out"
    foreign.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (foreign / name).write_bytes((reactive / name).read_bytes())
    arguments = ("--data", clips, "--negative-hours", HOURS, "--hop", "0.25", "--out", out)
    assert _calibrate(foreign, *arguments, "--class", "Bark") == USAGE  # others keep their hop
    assert _calibrate(foreign, *arguments) == 0
    metadata = load_checkpoint(str(out)).metadata
    assert set(metadata.onset_thresholds) == {"Bark", "Siren", "Background"}
    assert metadata.hop_s == 0.25


@pytest.mark.slow
def test_clips_are_judged_by_checkpoints_that_held_them_out(
    reactive: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the checkpoint itself as the one that held all folds out, nothing differs."""
    fold = _trained_without(tmp_path / "fold", reactive, ["0", "1"])
    whole = _trained_without(tmp_path / "whole", reactive, [])
    common = ("--data", clips, "--negative-hours", HOURS, "--json")
    assert _calibrate(whole, *common, "--fold-checkpoint", fold) == 0
    pooled = json.loads(capsys.readouterr().out)["classes"]
    assert _calibrate(fold, *common) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == pooled


@pytest.mark.slow
def test_score_maps_of_fold_checkpoints_do_not_matter(
    reactive: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = [_trained_without(tmp_path / fold, reactive, [fold]) for fold in "01"]
    whole = _trained_without(tmp_path / "whole", reactive, [])
    common = ("--data", clips, "--negative-hours", HOURS)
    pool = [part for fold in folds for part in ("--fold-checkpoint", fold)]
    assert _calibrate(whole, *common, *pool, "--json") == 0
    first = json.loads(capsys.readouterr().out)["classes"]
    assert _calibrate(folds[0], *common, "--test-fold", "0", "--in-place") == 0
    assert load_checkpoint(str(folds[0])).metadata.score_maps
    capsys.readouterr()
    assert _calibrate(whole, *common, *pool, "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == first


@pytest.mark.slow
def test_clips_that_were_trained_on_are_refused(
    reactive: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = _trained_without(tmp_path / "trained", reactive, ["1"])
    common = (trained, "--data", clips, "--negative-hours", HOURS)
    assert _calibrate(*common, "--test-fold", "0") == USAGE
    assert "was trained on fold 0: expected --test-fold 1" in _printed(capsys)
    assert _calibrate(*common, "--test-fold", "0", "--unseen") == 0
    assert _calibrate(*common) == 0
    assert "clips of fold 0 are left out: it was trained on them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        ([["0"], ["0", "1"]], "expected each fold held out once, got 0 by"),
        ([[]], "expected a checkpoint trained with --test-fold"),
        ([["7"]], "expected clips of fold 7, which they held out, got fold 0, 1"),
    ],
)
def test_fold_checkpoints_that_do_not_fit_are_refused(
    folds: list[list[str]],
    expected: str,
    reactive: Path,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool: list[str | Path] = []
    for number, held in enumerate(folds):
        pool += ["--fold-checkpoint", _trained_without(tmp_path / str(number), reactive, held)]
    assert _calibrate(reactive, "--data", clips, *pool) == USAGE
    assert expected in _printed(capsys)


def test_fold_checkpoints_of_other_classes_are_refused(
    reactive: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["Bark", "Glass", "Background"]
    checkpoint = load_checkpoint(str(reactive))
    metadata = checkpoint.metadata.model_copy(update={"provenance": {"test_folds": ["0"]}})
    save_checkpoint(tmp_path / "other", replace(checkpoint, labels=labels, metadata=metadata))
    assert _calibrate(reactive, "--data", clips, "--fold-checkpoint", tmp_path / "other") == USAGE
    assert "got a difference at Glass, Siren" in _printed(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budget", "often"], "--budget: expected a number, '/', and h, day, week or month"),
        (["--budget", "0/h"], "no amount of audio can show that"),
        (["--budget", "1/h", "--budget", "2/h"], "--budget: expected one for all classes"),
        (["--budget", "Barc=1/h"], "got 'Barc'; did you mean 'Bark'?"),
        (["--class", "Sirene"], "--class: expected a class of the checkpoint, got 'Sirene'"),
        (["--class", "Bark", "--budget", "Siren=1/h"], "a class that is calibrated, got 'Siren'"),
        (["--class", "Background"], "got 'Background'"),
        (["--negative-hours", "0"], "expected --data, --negatives or --negative-hours"),
        (["--fold-checkpoint", "bundled"], "expected --data with the clips of their folds"),
        (["--hop", "0.333"], "hop_s"),
        (["--longest-confirm", "0"], "--longest-confirm"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], expected: str, reactive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _calibrate(reactive, *arguments) == USAGE
    text = _printed(capsys)
    assert expected in text
    assert "Traceback" not in text


def test_columns_of_times_can_be_named(
    reactive: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--onset-column", "begin", "--offset-column", "end"]
    assert _calibrate(reactive, "--data", clips, *named) == CONFIG
    text = _printed(capsys)
    assert "begin: column is missing" in text
    assert "end: column is missing" in text


def test_unusable_negatives_are_listed_together(
    reactive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "folder").mkdir()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.int16), SAMPLE_RATE)
    names = ("text.wav", "missing.wav", "folder", "empty.wav")
    given = [part for name in names for part in ("--negatives", tmp_path / name)]
    assert _calibrate(reactive, *given) == CONFIG
    text = _printed(capsys)
    for name in names:
        assert name in text
    assert "empty.wav: expected sound, got an empty file" in text


def test_negatives_of_an_unknown_class_are_refused(
    reactive: Path, night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _calibrate(reactive, "--negatives", f"Barks={night}") == CONFIG
    text = _printed(capsys)
    assert "expected LABEL=PATH with a class of the model, or a path, got 'Barks=" in text
    assert "did you mean 'Bark'?" in text


def test_a_checkpoint_of_backgrounds_alone_is_refused(
    reactive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(str(reactive))
    metadata = checkpoint.metadata.model_copy(update={"background": checkpoint.labels})
    save_checkpoint(tmp_path, replace(checkpoint, metadata=metadata))
    assert _calibrate(tmp_path, "--negative-hours", HOURS) == USAGE
    assert "expected a class that makes events" in _printed(capsys)


@pytest.mark.parametrize(
    "before", [["mine"], {"classes": 1, "runs": None}, {"classes": {"Siren": 0.5}}]
)
def test_a_provenance_of_other_form_is_replaced(
    before: Any, reactive: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(str(reactive))
    update = {"provenance": {"thresholds": before, "data": "mine"}}
    metadata = checkpoint.metadata.model_copy(update=update)
    save_checkpoint(tmp_path, replace(checkpoint, metadata=metadata))
    arguments = ("--class", "Bark", "--negative-hours", "0.002", "--in-place")
    assert _calibrate(tmp_path, *arguments) == 0
    provenance = load_checkpoint(str(tmp_path)).metadata.provenance
    assert list(provenance["thresholds"]["classes"]) == ["Bark"]
    assert provenance["data"] == "mine"


def test_a_folder_that_is_there_is_not_overwritten(
    reactive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert _calibrate(reactive, "--out", tmp_path) == USAGE
    assert "expected a new or empty folder" in _printed(capsys)
    assert _calibrate(reactive, "--out", tmp_path / "mine.txt" / "below") == USAGE
    assert "mine.txt cannot be written" in _printed(capsys)
    assert _calibrate("bundled", "--in-place") == USAGE
    assert "expected the directory of a checkpoint, got 'bundled'; use --out" in _printed(capsys)
    assert _calibrate(reactive, "--in-place", "--out", tmp_path / "new") == USAGE
    assert "got both" in _printed(capsys)


def test_a_failed_copy_leaves_nothing_behind(
    reactive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    checkpoint = load_checkpoint(str(reactive))
    with pytest.raises(CheckpointError, match=r"cannot be written"):
        provenance.write_copy(str(reactive), checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files", "no_speech")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_does_not_cost_what_was_found(
    form: list[str],
    reactive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert _calibrate(reactive, "--negative-hours", HOURS, "--out", out, *form) == STARTUP
    printed = capsys.readouterr()
    assert f"{out}: cannot be written" in printed.err
    assert "Traceback" not in printed.err
    assert "Bark" in printed.out
    assert not form or json.loads(printed.out)["is_written"] is False
    assert list(tmp_path.iterdir()) == []


def test_the_folder_to_work_in_is_no_place_for_a_copy(
    reactive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _calibrate(reactive, "--negative-hours", HOURS, "--out", ".") == USAGE
    assert "--out: expected a folder that can be replaced, got ." in _printed(capsys)


def test_a_link_to_an_empty_folder_is_written_through(reactive: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    provenance.check_target(str(reactive), tmp_path / "link", False)
    provenance.write_copy(str(reactive), load_checkpoint(str(reactive)), tmp_path / "link")
    assert load_checkpoint(str(tmp_path / "there")).labels


def test_an_interrupted_write_leaves_the_old_file_whole(
    reactive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _trained_without(tmp_path / "mine", reactive, ["0"])
    before = (folder / "ast_stream.json").read_bytes()

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt("before the replacement")

    monkeypatch.setattr("ast_stream.runtime.files.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt, match="before the replacement"):
        provenance.write_in_place(folder, load_checkpoint(str(folder)))
    assert (folder / "ast_stream.json").read_bytes() == before


def test_a_single_file_is_written_with_its_weights_unchanged(
    reactive: Path, tmp_path: Path
) -> None:
    checkpoint: Checkpoint = load_checkpoint(str(reactive))
    file = tmp_path / "weights" / "model.safetensors"
    file.parent.mkdir()
    for name in ("config.json", "model.safetensors"):
        (file.parent / name).write_bytes((reactive / name).read_bytes())
    provenance.write_copy(str(file), checkpoint, tmp_path / "out")
    assert load_checkpoint(str(tmp_path / "out")).hash == checkpoint.hash


def test_streams_of_logits_are_those_of_the_detector(reactive: Path) -> None:
    tagger = plain_tagger(load_checkpoint(str(reactive)))
    pcm = tones_and_noise(12.0)
    stream = score_stream(tagger, 0.5, [pcm])
    one_window = pcm[: 4 * SAMPLE_RATE].astype(np.float32)[-tagger.window_samples :] / np.float32(
        32_768
    )
    place = int(np.flatnonzero(stream.times_s == 4.0)[0])
    np.testing.assert_allclose(
        stream.logits[place], tagger.logits(one_window)[0], atol=5e-3, rtol=0
    )
    assert stream.duration_s == 12.0


@pytest.mark.parametrize(
    ("text", "per_day"), [("0.5/h", 12.0), ("1/day", 1.0), ("7/week", 1.0), (".5/hour", 12.0)]
)
def test_budgets_are_read_in_every_unit(text: str, per_day: float) -> None:
    assert parse_budget(text).per_h * 24 == pytest.approx(per_day)


def test_a_recording_of_a_room_alone_lowers_no_threshold(
    reactive: Path, night: Path, tmp_path: Path
) -> None:
    start = load_checkpoint(str(reactive))
    metadata = start.metadata.model_copy(
        update={
            "onset_thresholds": {"Bark": 0.6, "Siren": 0.7},
            "provenance": {"generated_takes": 3},  # Siren has a generator
        }
    )
    known, out = tmp_path / "known", tmp_path / "out"
    save_checkpoint(known, replace(start, metadata=metadata))
    assert _calibrate(known, "--negatives", night, "--out", out) == 0
    after = load_checkpoint(str(out)).metadata.onset_thresholds
    assert after["Bark"] >= 0.6
    assert after["Siren"] >= 0.7


def test_reviewed_events_that_it_was_trained_on_are_left_out(
    reactive: Path, tmp_path: Path
) -> None:
    rows = [f"e{number}.wav,Bark,e{number}" for number in range(3)]
    for number in range(3):
        soundfile.write(tmp_path / f"e{number}.wav", np.zeros(1600), SAMPLE_RATE)
    (tmp_path / "clips.csv").write_text("\n".join(["file,label,event", *rows]) + "\n")
    reviewed = read_reviewed(tmp_path, ["Bark"])
    new = load_checkpoint(str(reactive))
    assert unseen_reviewed(new, reviewed)[0].clips == reviewed

    def trained_on(*clips: LabelledClip) -> Checkpoint:
        trained = {TRAINED_ON: event_digests(clips)}
        return replace(new, metadata=new.metadata.model_copy(update={"provenance": trained}))

    unseen, (remark,) = unseen_reviewed(trained_on(*reviewed[:2]), reviewed)
    assert unseen.clips == reviewed[2:]
    assert remark.startswith("2 of 3 reviewed events are left out")
    with pytest.raises(UsageError, match="was not trained on, got 3 that it was"):
        unseen_reviewed(trained_on(*reviewed), reviewed)
