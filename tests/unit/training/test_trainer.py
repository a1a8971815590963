"""Training learns, and a training that was killed goes on with the same curve."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_stream.errors import AstStreamError, CheckpointError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import AstDims, Normalization
from ast_stream.soundscape.soundbank import Soundbank, generated_foregrounds
from ast_stream.training.augment import SpectrogramAugmentation
from ast_stream.training.compute import attend_short
from ast_stream.training.config import Optimization
from ast_stream.training.finetune import new_model
from ast_stream.training.losses import detection_loss
from ast_stream.training.state import METRICS_FILE, Metrics, plot_curves, read_metrics
from ast_stream.training.student import Student, teacher_segments, teacher_starts
from ast_stream.training.trainer import Trainer
from ast_stream.training.windows import FrameGrid, WindowMixing, WindowSampler

LABELS = ("Siren", "Telephone dialing, DTMF")
DIMS = AstDims(
    n_classes=2, hidden_size=32, n_layers=2, n_heads=2, intermediate_size=64,
    frequency_stride=16, time_stride=16, max_frames=64,
)  # fmt: skip
NORMALIZATION = Normalization(mean=-8.0, std=4.5)
TINY = Optimization(
    steps=6,
    batch_size=4,
    warmup_steps=2,
    report_every=1,
    save_every=2,
    evaluate_every=3,
    precision="fp32",
)


@pytest.fixture(scope="module")
def sampler() -> WindowSampler:
    soundbank = Soundbank(LABELS, tuple(generated_foregrounds(0, LABELS, 4)), ())
    return WindowSampler(soundbank, 64 * 160, WindowMixing(min_context_s=0.3))


def _trainer(sampler: WindowSampler, folder: Path, optimization: Optimization = TINY) -> Trainer:
    return Trainer(new_model(DIMS, optimization), sampler, optimization, folder, NORMALIZATION)


def test_a_resumed_training_gives_the_same_curve_and_weights(
    sampler: WindowSampler, tmp_path: Path
) -> None:
    whole = _trainer(sampler, tmp_path / "whole")
    expected = list(whole.run())

    killed = _trainer(sampler, tmp_path / "killed").run()
    for _ in range(5):  # the last state on disk is that of step 4
        next(killed)
    resumed = _trainer(sampler, tmp_path / "killed")
    assert resumed.step == 4
    list(resumed.run())

    assert read_metrics(tmp_path / "killed") == expected
    for before, after in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_finished_training_is_not_trained_again(sampler: WindowSampler, tmp_path: Path) -> None:
    list(_trainer(sampler, tmp_path).run())
    again = _trainer(sampler, tmp_path)
    assert list(again.run()) == []
    assert again.step == TINY.steps


def test_a_training_that_diverges_ends_and_keeps_the_last_good_state(
    sampler: WindowSampler, tmp_path: Path
) -> None:
    steep = replace(TINY, steps=50, learning_rate=1e30, gradient_clip=0.0)
    with pytest.raises(
        AstStreamError, match=r"expected a finite loss, got (nan|inf): the training"
    ):
        list(_trainer(sampler, tmp_path, steep).run())
    assert all(math.isfinite(report["loss"]) for report in read_metrics(tmp_path))


def test_a_step_whose_gradients_overflow_is_taken_by_no_optimizer(
    sampler: WindowSampler, tmp_path: Path
) -> None:
    trainer = _trainer(sampler, tmp_path)
    trainer._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [parameter.clone() for parameter in trainer.student.parameters()]
    loss = torch.stack([parameter.sum() for parameter in trainer.student.parameters()]).sum()
    trainer._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    one = next(trainer.student.parameters())
    assert one.grad is not None
    one.grad.view(-1)[0] = math.inf  # of one parameter, so of one optimizer
    trainer._update()
    for parameter, kept in zip(trainer.student.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)
    assert trainer._scaler.get_scale() == 4.0


def test_a_state_of_another_configuration_is_refused(
    sampler: WindowSampler, tmp_path: Path
) -> None:
    list(_trainer(sampler, tmp_path).run())
    with pytest.raises(
        CheckpointError, match=r"got other optimization\.learning_rate \(0\.001, now 1\.0\)"
    ):
        _trainer(sampler, tmp_path, replace(TINY, learning_rate=1.0))


def test_old_metrics_without_a_state_are_not_continued(
    sampler: WindowSampler, tmp_path: Path
) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 99}\n')
    list(_trainer(sampler, tmp_path).run())
    assert [report["step"] for report in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_measurements_of_the_averaged_model_join_the_reports(
    sampler: WindowSampler, tmp_path: Path
) -> None:
    seen: list[AudioSpectrogramTransformer] = []

    def measure(model: AudioSpectrogramTransformer) -> Metrics:
        seen.append(model)
        return {"accuracy": 0.5}

    trainer = _trainer(sampler, tmp_path)
    reports = list(trainer.run(measure))
    assert [report["step"] for report in reports if "accuracy" in report] == [3, 6]
    assert seen == [trainer.average] * 2


@pytest.mark.slow
def test_training_learns_to_tell_two_sounds(tmp_path: Path) -> None:
    soundbank = Soundbank(LABELS, tuple(generated_foregrounds(0, LABELS, 4)), ())
    clean = WindowMixing(
        background_only_prob=0.0,
        second_sound_prob=0.0,
        partial_prob=0.0,
        level_dbfs=(-20.0, -18.0),
        common_level_dbfs=(-20.0, -18.0),
    )
    sampler = WindowSampler(soundbank, 64 * 160, clean)
    optimization = replace(
        TINY, steps=50, batch_size=16, learning_rate=3e-3, warmup_steps=5, patch_ratio=1.0,
        augmentation=SpectrogramAugmentation(0.0, 0, 0),
    )  # fmt: skip
    losses = [report["loss"] for report in _trainer(sampler, tmp_path, optimization).run()]
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:4])


def test_the_learning_rate_warms_up_and_falls_to_nothing(
    sampler: WindowSampler, tmp_path: Path
) -> None:
    rates = [report["lr"] for report in _trainer(sampler, tmp_path).run()]
    assert max(rates) == pytest.approx(TINY.learning_rate)
    assert rates.index(max(rates)) == 0 or rates[0] < max(rates)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_all_patches_give_the_logits_of_the_whole_model() -> None:
    model = new_model(DIMS, TINY).eval()
    fbank = torch.randn(3, 64, 128)
    torch.testing.assert_close(Student(model)(fbank, 1.0).clip, model(fbank))
    # a ratio that rounds to all patches still goes the way of gathered patches
    torch.testing.assert_close(Student(model)(fbank, 0.99).clip, model(fbank))


def test_left_out_patches_change_with_the_generator_only() -> None:
    model = new_model(DIMS, TINY).eval()
    fbank = torch.randn(3, 64, 128)
    torch.manual_seed(0)
    first = Student(model)(fbank, 0.5).clip
    torch.testing.assert_close(first, _seeded(model, fbank, 0))
    assert (first - _seeded(model, fbank, 1)).abs().max() > 1e-4


def _seeded(model: AudioSpectrogramTransformer, fbank: torch.Tensor, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    logits: torch.Tensor = Student(model)(fbank, 0.5).clip
    return logits


def test_frame_logits_do_not_depend_on_the_order_of_patches() -> None:
    student = Student(new_model(DIMS, TINY, has_frames=True)).eval()
    fbank = torch.randn(3, 64, 128)
    whole, gathered = student(fbank, 1.0), student(fbank, 0.99)
    _, expected = student.model.forward_frames(fbank)
    torch.testing.assert_close(whole.frames, expected)
    torch.testing.assert_close(gathered.frames, whole.frames)
    assert whole.is_seen.all()


def test_time_patches_without_any_patch_are_not_seen() -> None:
    student = Student(new_model(DIMS, TINY, has_frames=True)).eval()
    torch.manual_seed(0)
    outputs = student(torch.randn(16, 64, 128), 0.05)  # 2 of 32 patches
    assert int(outputs.is_seen.sum(dim=1).min()) >= 1
    assert int(outputs.is_seen.sum(dim=1).max()) <= 2
    assert torch.isfinite(outputs.frames).all()


def test_stretches_of_a_teacher_cover_the_window_evenly() -> None:
    starts = teacher_starts(64 * 160, 6000)
    assert starts == [0, 64 * 160 - 6000]
    segments = teacher_segments(DIMS, starts, 6000)
    assert segments.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match="expected 20000 or more"):
        teacher_starts(64 * 160, 20000)


class LoudnessTeacher:
    """Scores how loud a waveform is: one class for each of two levels."""

    n_classes, n_samples = 2, 6000

    def scores(self, waveforms: np.ndarray) -> np.ndarray:
        loud = np.sqrt(np.mean(np.square(waveforms), axis=1)) > 0.02
        return np.stack([np.where(loud, 0.95, 0.05), np.where(loud, 0.05, 0.95)], axis=1).astype(
            np.float32
        )


@pytest.mark.slow
def test_heads_for_frames_and_for_a_teacher_learn(tmp_path: Path) -> None:
    soundbank = Soundbank(LABELS, tuple(generated_foregrounds(0, LABELS, 4)), ())
    sampler = WindowSampler(soundbank, 64 * 160, WindowMixing(min_context_s=0.3), FrameGrid(4, 16))
    optimization = replace(TINY, steps=80, batch_size=16, learning_rate=1e-2, distilled_ratio=1.0)
    trainer = Trainer(
        new_model(DIMS, optimization, has_frames=True), sampler, optimization, tmp_path,
        NORMALIZATION, waveform_teacher=LoudnessTeacher(),
    )  # fmt: skip
    losses = [report["loss"] for report in trainer.run()]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    assert trainer.average.frame_head is not None
    resumed = Trainer(
        new_model(DIMS, optimization, has_frames=True), sampler, optimization, tmp_path,
        NORMALIZATION, waveform_teacher=LoudnessTeacher(),
    )  # fmt: skip
    assert resumed.step == 80
    for name, weight in trainer.average_student.state_dict().items():
        assert torch.equal(resumed.average_student.state_dict()[name], weight), name


def test_attention_for_short_sequences_equals_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 20, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend_short(q, k, v), expected)


def test_the_loss_is_least_where_the_logits_say_the_truth() -> None:
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights = torch.ones(2, 2)
    right = detection_loss(torch.tensor([[8.0, -8.0], [-8.0, -8.0]]), targets, weights)
    wrong = detection_loss(torch.tensor([[-8.0, 8.0], [8.0, -8.0]]), targets, weights)
    assert right < 0.01 < 5.0 < wrong


def test_the_loss_ignores_classes_the_window_says_nothing_about() -> None:
    targets = torch.tensor([[1.0, 0.0]])
    weights = torch.tensor([[1.0, 0.0]])
    losses = [
        detection_loss(torch.tensor([[2.0, unknown]]), targets, weights) for unknown in (-9.0, 9.0)
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_curves_become_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    reports = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "map": 0.5}]
    plot_curves(reports, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    plot_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
