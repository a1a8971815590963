"""From recordings to a checkpoint that loads, is calibrated, and carries its attributions."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_model import TINY_LABELS, save_tiny, tiny_checkpoint

from ast_stream.dataset.tables import Columns
from ast_stream.errors import CheckpointError, ConfigError, UsageError
from ast_stream.labels import slug
from ast_stream.model.ast import change_stride
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.model.metadata import FrameDecisions, PlattScaling
from ast_stream.model.selfcheck import self_check
from ast_stream.model.tagger import Tagger
from ast_stream.soundscape.soundbank import Foreground, Soundbank
from ast_stream.training.config import Optimization, TrainingConfig, esc50
from ast_stream.training.data import prepare_data, split_backgrounds
from ast_stream.training.finetune import inherited, initial_model
from ast_stream.training.session import TrainingMonitor, train
from ast_stream.training.state import Metrics
from ast_stream.training.windows import ClipMixing
from ast_stream.units import SAMPLE_RATE

N_CLIPS = 4
N_BACKGROUNDS = 3  # held out


class Recorded(TrainingMonitor):
    """Keeps all that is reported to it."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.reports: list[Metrics] = []
        self.ratios: list[float] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def report(self, metrics: Metrics) -> None:
        self.reports.append(metrics)

    def measured(self, ratio: float) -> None:
        self.ratios.append(ratio)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """Two classes of four clips each, tones and noise, in two folds; a model of a few weights."""
    # speech takes its time
    monkeypatch.setattr("ast_stream.training.data.MIN_HELD_OUT_BACKGROUNDS", N_BACKGROUNDS)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(N_CLIPS):
        tone = 0.2 * np.sin(np.arange(SAMPLE_RATE) * (0.3 + 0.01 * number))
        for label, sound in (("Whistle", tone), ("Hiss", 0.1 * rng.standard_normal(SAMPLE_RATE))):
            name = f"{label}-{number}.wav"
            soundfile.write(tmp_path / name, sound, SAMPLE_RATE)
            rows.append([name, label, number % 2, "someone", "CC-BY"])
    with (tmp_path / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["file", "label", "fold", "author", "licence"], *rows])
    optimization = Optimization(
        steps=3, batch_size=4, report_every=1, evaluate_every=2, precision="fp32"
    )
    return TrainingConfig(
        data=tmp_path / "labels.csv",
        columns=Columns(),
        test_folds=("1",),
        n_generated=2,
        n_backgrounds=5,
        width=64,
        n_layers=1,
        optimization=optimization,
        negatives_s=30.0,
        licence="CC0-1.0",
    )


@pytest.mark.slow
def test_training_ends_in_a_calibrated_checkpoint(config: TrainingConfig, tmp_path: Path) -> None:
    progress = Recorded()
    trained = train(config, tmp_path / "out", progress)
    loaded = load_checkpoint(str(tmp_path / "out" / "checkpoint"))
    assert loaded.hash == trained.hash
    assert {"Hiss", "Whistle", "Siren", "Alarm"} < set(loaded.labels)
    metadata = loaded.metadata
    assert set(metadata.onset_thresholds) == set(loaded.labels)
    assert metadata.licence == "CC0-1.0"
    assert metadata.provenance["test_folds"] == ["1"]
    assert metadata.provenance["recipe"]["steps"] == 3
    assert self_check(Tagger(loaded, "cpu", "fp32", "math")).against == "golden"
    assert "clip_accuracy" in progress.reports[1]
    assert "clip_accuracy" not in progress.reports[0]


@pytest.mark.slow
def test_attributions_name_the_clips_that_were_trained_on(
    config: TrainingConfig, tmp_path: Path
) -> None:
    train(replace(config, n_generated=0), tmp_path / "out")
    with (tmp_path / "out" / "checkpoint" / "ATTRIBUTIONS.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N_CLIPS
    assert {row["fold"] for row in rows} == {"0"}
    assert {row["author"] for row in rows} == {"someone"}


def test_a_test_fold_that_does_not_exist_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="test fold: expected one of 0, 1, got '7'"):
        train(replace(config, test_folds=("7",)), tmp_path / "out")


@pytest.mark.slow
def test_a_checkpoint_of_the_same_classes_is_trained_on(
    config: TrainingConfig, tmp_path: Path
) -> None:
    config = replace(config, n_generated=0)
    first = train(config, tmp_path / "first")
    still = replace(
        config,
        start=str(tmp_path / "first" / "checkpoint"),
        optimization=replace(config.optimization, learning_rate=0.0),
    )
    second = train(still, tmp_path / "second")
    for name, tensor in first.state_dict.items():
        assert torch.equal(second.state_dict[name], tensor)  # nothing learnt, nothing lost


def test_a_start_with_shorter_windows_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    config = replace(config, start=str(save_tiny(tmp_path / "tiny")), window_s=1.6)
    with pytest.raises(UsageError, match=r"expected windows of 1.6 s or more, got .* 1 s"):
        train(config, tmp_path / "second")


@pytest.mark.slow
def test_known_classes_are_kept_with_their_thresholds(
    config: TrainingConfig, tmp_path: Path
) -> None:
    start = save_tiny(tmp_path / "tiny", onset_thresholds={"Bark": 0.35}, rise_on_s={"Bark": 0.2})
    config = config.override(
        start=str(start),
        keep_classes=True,
        n_generated=0,
        negatives_s=20.0,
        budget_per_h=1e6,  # weights that are random alarm all the time
        optimizer="adam",
        head_rate=10.0,
        patch_ratio=1.0,
    )
    trained = train(config, tmp_path / "out")
    assert trained.labels == [*TINY_LABELS, "Hiss", "Whistle"]
    assert trained.metadata.onset_thresholds["Bark"] == 0.35
    assert trained.metadata.rise_on_s["Bark"] == 0.2
    assert {"Hiss", "Whistle"} <= set(trained.metadata.onset_thresholds)
    assert trained.metadata.provenance["teacher"] == load_checkpoint(str(start)).hash
    before = load_checkpoint(str(start)).state_dict
    for name in ("head.weight", "head.bias"):  # no example says anything about them
        assert torch.equal(
            trained.state_dict[name][: len(TINY_LABELS)], before[name].half().float()
        )
    assert not torch.equal(
        trained.state_dict["blocks.0.mlp.fc1.weight"],
        before["blocks.0.mlp.fc1.weight"].half().float(),
    )
    strict = train(replace(config, budget_per_h=0.5), tmp_path / "strict")
    assert strict.metadata.onset_thresholds["Bark"] > 0.35
    assert "Bark" in strict.metadata.provenance["raised_thresholds"]
    heard = train(replace(config, budget_per_h=0.5, heard=("bark",)), tmp_path / "heard")
    assert heard.metadata.onset_thresholds["Bark"] == 0.35  # may really be heard
    with pytest.raises(UsageError, match="--heard: expected a class of --start, got 'Hiss'"):
        train(replace(config, heard=("Hiss",)), tmp_path / "unknown")


@pytest.mark.parametrize(("n", "held"), [(1, 1), (4, 1), (10, 2), (60, 12), (360, 72)])
def test_backgrounds_that_choose_thresholds_are_spread_over_the_recording(
    n: int, held: int
) -> None:
    pieces = [np.full(1, number, np.float32) for number in range(n)]
    trained, held_out = split_backgrounds(pieces)
    assert len(held_out) == held
    assert len(trained) == n - held
    if n == 360:  # an hour: some minutes of each quarter
        quarters = {int(4 * piece[0] / n) for piece in held_out}
        assert quarters == {0, 1, 2, 3}


def test_a_start_that_decides_by_frames_hands_down_how_and_what_it_leaves_off() -> None:
    frames = FrameDecisions(
        delay_s=0.32,
        onset_thresholds={"Bark": 0.7, "Siren": 0.9},
        confirm_s={"Bark": 0.48},
        score_maps={"Bark": PlattScaling(scale=1.5)},
    )
    start = tiny_checkpoint(frames=frames, off=["Bark", "Siren"])
    siren = Foreground(np.ones(SAMPLE_RATE, np.float32), classes=(1,), is_generated=False)
    held_out = Soundbank(("Bark", "Siren", "Doorbell"), (siren,), ())
    known = inherited(start, ["Bark", "Siren", "Doorbell"], held_out)
    assert known.off == ["Bark"]  # of the other there are examples
    assert known.frames == frames.model_copy(update={"onset_thresholds": {"Bark": 0.7}})


@pytest.mark.slow
def test_a_fine_tuned_checkpoint_gives_the_same_logits_in_transformers(
    config: TrainingConfig, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = replace(
        config,
        start=str(save_tiny(tmp_path / "tiny")),
        n_generated=0,
        negatives_s=0.0,
        optimization=replace(config.optimization, learning_rate=0.01),
    )
    trained = train(config, tmp_path / "out")
    assert trained.metadata.onset_thresholds == {}  # none were asked for
    folder = tmp_path / "out" / "checkpoint"
    model = transformers.ASTForAudioClassification.from_pretrained(folder, dtype=torch.float32)
    windows = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(windows).logits
        got = load_checkpoint(str(folder)).build_model()(windows)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert model.config.id2label == {0: "Hiss", 1: "Whistle"}


def test_rows_of_known_classes_go_along_with_their_labels(
    config: TrainingConfig, tmp_path: Path
) -> None:
    start = load_checkpoint(str(save_tiny(tmp_path)))
    model = initial_model(config, start, ["Doorbell", "Siren", "Bark"])
    before = start.state_dict["head.weight"]
    parameters = dict(model.named_parameters())
    assert torch.equal(parameters["head.weight"][1:], before[[1, 0]])
    assert float(model.head.bias[0].detach()) == float(start.state_dict["head.bias"].min())
    assert torch.equal(
        parameters["blocks.1.mlp.fc1.weight"], start.state_dict["blocks.1.mlp.fc1.weight"]
    )


def test_a_start_goes_to_a_finer_grid_of_patches(config: TrainingConfig, tmp_path: Path) -> None:
    start = load_checkpoint(str(save_tiny(tmp_path)))
    model = initial_model(replace(config, stride=8), start, start.labels)
    dims, weights = change_stride(start.dims, start.state_dict, 8)
    assert model.dims == dims
    assert torch.equal(model.pos_embed.detach(), weights["pos_embed"])
    with pytest.raises(UsageError, match="--stride: expected at most the 16 of a patch"):
        initial_model(replace(config, stride=17), start, start.labels)


def test_a_share_of_each_class_is_held_out_and_listed(
    config: TrainingConfig, tmp_path: Path
) -> None:
    config = replace(config, test_folds=(), held_out_ratio=0.25, n_generated=0)
    data = prepare_data(config, None)
    assert sorted(clip.labels for clip in data.held_out_clips) == [("Hiss",), ("Whistle",)]
    assert len(data.clips) == 2 * (N_CLIPS - 1)
    assert not {clip.path for clip in data.clips} & {clip.path for clip in data.held_out_clips}


def test_stretches_that_touch_are_held_out_together(config: TrainingConfig, tmp_path: Path) -> None:
    hiss = 0.1 * np.random.default_rng(0).standard_normal(80 * SAMPLE_RATE)
    soundfile.write(tmp_path / "day.wav", hiss, SAMPLE_RATE)
    rows = [("Hiss", 10.0 * number, 10.0 * number + 4) for number in range(8)]
    rows += [
        ("Whistle", 10.0 * number + 2, 10.0 * number + 3) for number in range(8)
    ]  # cut each in three
    with (tmp_path / "day.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file", "label", "onset", "offset"])
        writer.writerows(["day.wav", *row] for row in rows)
    config = replace(
        config, data=tmp_path / "day.csv", test_folds=(), held_out_ratio=0.25, n_generated=0
    )
    held = prepare_data(config, None).held_out_clips
    spans = sorted(clip.section for clip in held if clip.section)
    assert len(spans) == 2 * 3
    for first, second, third in (spans[:3], spans[3:]):
        assert first.onset_s + 4 == third.offset_s
        assert (first.offset_s, second.offset_s) == (second.onset_s, third.onset_s)


def test_other_clips_are_another_identity(config: TrainingConfig, tmp_path: Path) -> None:
    config = replace(config, n_generated=0, n_backgrounds=1)
    fewer = replace(config, columns=Columns(where={"fold": ["0", "1"], "label": ["Hiss"]}))
    facts = [prepare_data(choice, None).facts for choice in (config, config, fewer)]
    assert facts[0] == facts[1]
    assert facts[0]["content"] != facts[2]["content"]
    soundfile.write(tmp_path / "Hiss-0.wav", np.full(SAMPLE_RATE, 0.1), SAMPLE_RATE)
    assert prepare_data(config, None).facts["content"] != facts[0]["content"]  # recorded anew


@pytest.mark.slow
def test_the_list_of_clips_of_another_training_is_left_alone(
    config: TrainingConfig, tmp_path: Path
) -> None:
    train(config, tmp_path / "run")
    listed = (tmp_path / "run" / "clips.csv").read_text()
    other = replace(config, test_folds=("0",))
    with pytest.raises(CheckpointError, match="expected the settings of the training run there"):
        train(other, tmp_path / "run")
    assert (tmp_path / "run" / "clips.csv").read_text() == listed


def test_a_training_never_writes_over_the_table_of_its_data(
    config: TrainingConfig, tmp_path: Path
) -> None:
    table = (tmp_path / "labels.csv").rename(tmp_path / "clips.csv")
    before = table.read_text()
    with pytest.raises(UsageError, match=r"whose clips\.csv it would write over"):
        train(replace(config, data=table), tmp_path)
    assert table.read_text() == before


@pytest.mark.slow
def test_a_finished_training_says_so(config: TrainingConfig, tmp_path: Path) -> None:
    progress = Recorded()
    for _ in range(2):
        train(config, tmp_path / "run", progress)
    assert progress.phases.count(f"{tmp_path / 'run'}: trained to its last step before") == 1


@pytest.mark.slow
def test_a_training_says_how_much_it_has_measured(config: TrainingConfig, tmp_path: Path) -> None:
    progress = Recorded()
    train(config, tmp_path / "run", progress)
    ratios = progress.ratios
    assert len(ratios) > 3
    assert ratios == sorted(ratios)
    assert 0 < ratios[0] < 0.5
    assert ratios[-1] == 1


@pytest.mark.slow
def test_windows_shorter_than_any_context_can_be_trained_on(
    config: TrainingConfig, tmp_path: Path
) -> None:
    trained = train(replace(config, window_s=0.5), tmp_path / "run")
    assert trained.window_s == 0.5


def test_own_backgrounds_are_trained_on_but_the_last_of_them(
    config: TrainingConfig, tmp_path: Path
) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(50 * SAMPLE_RATE)
    soundfile.write(tmp_path / "room.wav", noise, SAMPLE_RATE)
    config = replace(config, backgrounds=(tmp_path / "room.wav",), n_generated=0, n_backgrounds=0)
    data = prepare_data(config, None)
    assert len(data.soundbank.backgrounds) == 4
    assert len(data.held_out.backgrounds) == N_BACKGROUNDS + 1


def test_whole_clips_are_trained_on_with_the_recipes_of_the_paper(
    config: TrainingConfig, tmp_path: Path
) -> None:
    optimization = replace(
        esc50(config.data).optimization, epochs=2, batch_size=3, precision="fp32", report_every=1
    )
    config = replace(
        config,
        optimization=optimization,
        mixing=ClipMixing(),
        n_generated=0,
        window_s=1.0,
        max_frames=128,
        negatives_s=0.0,
    )
    progress = Recorded()
    trained = train(config, tmp_path / "out", progress)
    assert progress.reports[-1]["step"] == 4  # two epochs of four clips, three and one at a time
    assert trained.dims.max_frames == 128
    assert trained.normalization.mean < 0
    assert trained.metadata.provenance["mixing"]["mixup_prob"] == 0.0


def test_clips_with_several_labels_are_refused_where_one_is_needed(
    config: TrainingConfig, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(
        table.read_text().replace("Whistle-0.wav,Whistle", "Whistle-0.wav,Whistle;Hiss")
    )
    config = replace(
        config,
        optimization=replace(config.optimization, loss="ce"),
        mixing=ClipMixing(),
        n_generated=0,
    )
    with pytest.raises(UsageError, match="expected one label for each clip"):
        prepare_data(config, None)


@pytest.mark.parametrize(
    ("label", "other", "topic"),
    [("hiss", "Hiss", "hiss"), ("\u304c", "\u304b\u3099", slug("\u304c"))],
)
def test_labels_with_one_topic_are_refused_by_name(
    config: TrainingConfig, tmp_path: Path, label: str, other: str, topic: str
) -> None:
    table = tmp_path / "labels.csv"
    text = table.read_text().replace(",Whistle,", f",{label},").replace(",Hiss,", f",{other},")
    table.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        prepare_data(config, None)
    first, second = sorted([label, other])
    expected = f"expected a label with a topic of its own, got {topic!r} as of {first!r}"
    assert str(caught.value) == f"{table}: {second}: {expected}"


def test_labels_without_latin_letters_can_be_trained_on(
    config: TrainingConfig, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    text = table.read_text().replace(",Whistle,", ",玄関,").replace(",Hiss,", ",声,")
    table.write_text(text, encoding="utf-8")
    assert {"玄関", "声"} <= set(prepare_data(config, None).soundbank.labels)


def test_a_label_that_a_checkpoint_could_not_have_is_refused_before_the_first_step(
    config: TrainingConfig, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace(",Hiss,", ",Hi\x1b[2Jss,"))
    with pytest.raises(ConfigError, match=r"expected printable text for a class, got 'Hi\\x1b"):
        prepare_data(config, None)


def test_a_label_with_the_topic_of_a_kept_class_is_refused(
    config: TrainingConfig, tmp_path: Path
) -> None:
    start = load_checkpoint(str(save_tiny(tmp_path / "tiny")))
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace(",Hiss,", f",{TINY_LABELS[0].upper()},"))
    with pytest.raises(ConfigError, match=f"as of {TINY_LABELS[0]!r}"):
        prepare_data(replace(config, keep_classes=True), start)
