"""`ast-stream evaluate` from clips to figures, with models of a few weights."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny_model import save_tiny

from ast_stream.cli.app import run_command_line
from ast_stream.runtime.lifecycle import EXIT_CONFIG, EXIT_CRASH, EXIT_USAGE
from ast_stream.units import SAMPLE_RATE

FOLDS = ("1", "2")
LABELS = ("Bark", "Siren")
QUICK = ("--repeats", "1", "--negative-hours", "0.005", "--generated", "1", "--threads", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of two classes in each of two folds."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = [["file", "label", "fold"]]
    for label, sound in (("Bark", rng.standard_normal), ("Siren", lambda n: np.sin(np.arange(n)))):
        for number in range(4):
            name = f"{label}-{number}.wav"
            soundfile.write(folder / name, 0.2 * sound(SAMPLE_RATE // 2), SAMPLE_RATE)
            rows.append([name, label, FOLDS[number % 2]])
    with (folder / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model for each fold, by its own account trained on the other; of all folds; silent."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        fold: str(save_tiny(folder / fold, seed=number, provenance={"test_folds": [fold]}))
        for number, fold in enumerate(FOLDS)
    }
    whole = str(save_tiny(folder / "whole", provenance={"test_folds": []}))
    return made | {"silent": str(save_tiny(folder / "silent")), "whole": whole}


def evaluate(*arguments: str | Path) -> int:
    return run_command_line(["evaluate", *QUICK, *map(str, arguments)])


def _table(folder: Path, rows: list[list[Any]], *columns: str) -> Path:
    table = folder / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label", *columns], *rows])
    return table


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_with_a_cascade_it_says_how_many_windows_the_model_was_asked_about(
    data: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (data, "--model", models["silent"], "--cascade", models["1"], "--json")
    assert evaluate(*arguments) == 0
    (note,) = (note for note in figures(capsys)["notes"] if "cascade" in note)
    said = re.search(r"the model was asked about ([\d.]+)% of (\d+) windows", note)
    assert said is not None
    assert 0 < float(said[1]) <= 100
    assert int(said[2]) > 50


def test_a_fold_is_measured_at_all_levels(
    data: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(data, "--model", models["1"], "--test-fold", "1", "--json") == 0
    result = figures(capsys)
    assert result["clips"]["pooled"]["n_clips"] == 4
    assert result["streams"]["n_sounds"] == 5  # with one generated siren
    assert set(result["streams"]["by_label"]) == {"Bark", "Siren"}
    assert result["alarms"]["n_sounds"] == 1
    assert result["negatives"]["hours"] == pytest.approx(0.005)
    assert result["models"][0]["folds"] == ["1"]


def test_one_clip_of_a_class_is_enough_to_measure(
    data: Path, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = _table(tmp_path, [[data.parent / f"{label}-0.wav", label] for label in LABELS])
    assert evaluate(table, "--model", models["1"], "--generated", "0", "--json") == 0
    assert figures(capsys)["clips"]["pooled"]["n_clips"] == 2


def test_cross_validation_judges_every_clip_once(
    data: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--model", models["1"], "--model", models["2"], "--cross-validate"]
    assert evaluate(data, *chosen, "--json") == 0
    result = figures(capsys)
    assert result["clips"]["pooled"]["n_clips"] == 8
    assert [model["folds"] for model in result["models"]] == [["1"], ["2"]]
    assert [model["n_clips"] for model in result["models"]] == [4, 4]
    assert result["streams"]["n_sounds"] == 9  # generated sounds are shared out, not repeated
    accuracies = [model["accuracy"] for model in result["models"]]
    assert result["clips"]["mean_accuracy"] == pytest.approx(np.mean(accuracies))


@pytest.mark.slow
def test_sounds_are_laid_again_until_there_are_enough_hours(
    data: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--model", models["1"], "--model", models["2"], "--cross-validate"]
    assert evaluate(data, *chosen, "--hours", "0.03", "--generated", "0", "--json") == 0
    result = figures(capsys)
    assert 0.025 < result["streams"]["hours"] < 0.06
    assert result["streams"]["n_sounds"] % 8 == 0
    assert result["alarms"] is None


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(
    data: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command: list[str | Path] = [data, "--model", models["1"], "--test-fold", "1", "--json"]
    results = []
    for seed in ("3", "3", "4"):
        assert evaluate(*command, "--seed", seed) == 0
        results.append(figures(capsys))
    assert results[0] == results[1]
    assert results[0]["streams"]["hours"] != results[2]["streams"]["hours"]


@pytest.mark.slow
def test_the_report_is_one_page_with_everything_in_it(
    data: Path, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "new" / "report"
    assert evaluate(data, "--model", models["1"], "--test-fold", "1", "--report", report) == 0
    assert "Clips: " in capsys.readouterr().out
    page = (report / "report.html").read_text("utf-8")
    content = json.loads((report / "report.json").read_text("utf-8"))
    pictures = sorted(path.stem for path in report.glob("*.png"))
    assert pictures == ["confusion", "delays", "recall", "times"]
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "http" not in page
    assert content["models"][0]["hash"] in page
    assert content["settings"]["snr_db"] == [12.0, 12.0]
    assert content["command"] in page.replace("&#x27;", "'")


@pytest.mark.slow
def test_streams_are_written_for_people_to_listen_to(
    data: Path, models: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "streams"
    assert evaluate(data, "--model", models["1"], "--write-streams", out) == 0
    for kind, n_sounds in (("mixed", 9), ("alarms", 1), ("negatives", 0)):
        (wav,) = out.glob(f"{kind}-*.wav")
        with wav.with_suffix(".tsv").open() as table:
            truth = list(csv.DictReader(table, delimiter="\t"))
        laid = json.loads(wav.with_suffix(".json").read_text("utf-8"))
        assert len(truth) == len(laid["sounds"]) == n_sounds
        assert soundfile.info(wav).duration == pytest.approx(laid["duration_s"])
        assert laid["background"][0]["kind"] == "background"


@pytest.mark.slow
@pytest.mark.usefixtures("small_files", "no_speech")
@pytest.mark.parametrize(
    ("option", "name"), [("--report", r"out/\w+\.png"), ("--write-streams", r"out/mixed-.*\.wav")]
)
def test_a_full_disk_is_one_sentence_that_names_the_file(
    data: Path,
    models: dict[str, str],
    option: str,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate(data, "--model", models["1"], option, tmp_path / "out") == EXIT_CRASH
    printed = capsys.readouterr()
    errors = printed.err.splitlines()[-1]
    assert re.match(rf"ast-stream: .*{name}: cannot be written: ", errors)
    assert ("Clips: " in printed.out) == (option == "--report")


@pytest.mark.slow
def test_own_recordings_are_heard_as_negatives(
    data: Path, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for name, rate in (("one.wav", 16_000), ("two.flac", 44_100)):
        soundfile.write(tmp_path / name, 0.01 * rng.standard_normal((rate * 9, 2)), rate)
    assert evaluate(data, "--model", models["1"], "--negatives", tmp_path, "--json") == 0
    assert figures(capsys)["negatives"]["hours"] == pytest.approx(18 / 3600, rel=1e-3)


def test_clips_a_model_was_trained_on_are_reported(
    data: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(data, "--model", models["1"], "--test-fold", "2", "--json") == 0
    assert "was trained on clips of fold 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "fold", "expected"),
    [
        ("whole", "1", "held no clips out of its training"),
        ("whole", None, "is unknown, as they have no folds"),
        ("1", None, "is unknown, as they have no folds"),
        ("whole", "held-out", ""),
        ("1", "1", ""),
        ("silent", "1", ""),
    ],
)
def test_clips_that_a_model_may_have_been_trained_on_are_reported(
    data: Path,
    models: dict[str, str],
    model: str,
    fold: str | None,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folds = [] if fold is None else [fold]
    rows = [[data.parent / f"{label}-0.wav", label, *folds] for label in LABELS]
    table = _table(tmp_path, rows, *["fold" for _ in folds])
    assert evaluate(table, "--model", models[model], "--generated", "0", "--json") == 0
    printed = capsys.readouterr()
    notes = [note for note in json.loads(printed.out)["notes"] if "espeak" not in note]
    assert len(notes) == bool(expected)
    for note in notes:
        assert expected in note
        assert note in printed.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--snr", "loud"], "--snr: expected decibels like 12 or 0..20, got 'loud'"),
        (["--snr", "20..0"], "--snr: expected decibels"),
        (["--gap", "far"], "--gap: expected seconds like 60 or 30..90, got 'far'"),
        (["--gap", "nan"], "--gap: expected seconds"),
        (["--hop", "0.333"], "hop_s: expected a positive multiple of 0.01 s, got 0.333"),
        (["--hop", "5"], "hop_s: expected at most the window"),
        (["--test-fold", "7"], "expected a fold of"),
        (["--model", "{2}"], "--model: expected one without --cross-validate, got 2"),
        (["--report", "/proc/here"], "--report: expected a folder that can be written to"),
        (["--write-streams", "/proc/here"], "--write-streams: expected a folder"),
        (["--cross-validate"], "fold 2 is tested by no model"),
        (["--cross-validate", "--test-fold", "1"], "--test-fold: expected none"),
        (["--cross-validate", "--model", "{1}"], "fold 1 is tested by several models"),
        (["--cross-validate", "--model", "{silent}"], "does not say which folds"),
    ],
)
def test_what_cannot_be_measured_is_reported_at_once(
    data: Path,
    models: dict[str, str],
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [
        models[argument.strip("{}")] if argument.startswith("{") else argument
        for argument in arguments
    ]
    assert evaluate(data, "--model", models["1"], *filled) == EXIT_USAGE
    errors = " ".join(capsys.readouterr().err.split())
    assert expected in errors


def test_columns_of_times_can_be_named(
    data: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--onset-column", "begin", "--offset-column", "end"]
    assert evaluate(data, "--model", models["1"], *named) == EXIT_CONFIG
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(": column")[0] for line in lines] == [f"{data}:1: begin", f"{data}:1: end"]


def test_unreadable_negatives_are_reported_together(
    data: Path, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noise.wav").write_bytes(b"not audio")
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), SAMPLE_RATE)
    names = ("noise.wav", "empty", "gone.wav", "none.wav")
    paths = [tmp_path / name for name in names]
    options = [part for path in paths for part in ("--negatives", path)]
    assert evaluate(data, "--model", models["1"], *options) == EXIT_CONFIG
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == len(paths)
    assert all(str(path) in line for path, line in zip(paths, lines, strict=True))


@pytest.mark.parametrize(
    ("package", "args"),
    [
        ("scipy", ["evaluate", "sounds"]),
        ("scipy", ["calibrate", "bundled"]),
        ("scipy", ["train", "sounds", "--out", "out"]),
        ("matplotlib", ["train", "sounds", "--out", "out"]),
        ("matplotlib", ["evaluate", "sounds", "--report", "out"]),
    ],
)
def test_a_missing_package_is_named_before_any_work(
    package: str,
    args: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert run_command_line(args) == EXIT_USAGE  # although there are no sounds either
    wanted = rf"ast-stream: {args[0]}.* needs {package}: pip install 'ast-stream\[train\]'"
    assert re.fullmatch(wanted, capsys.readouterr().err.strip())
    assert not list(tmp_path.iterdir())
