"""A teacher's opinion: by class name, of the same windows, and nothing where it knows nothing."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from tiny_model import TINY_DIMS, TINY_LABELS, tiny_checkpoint

from ast_stream.errors import CheckpointError
from ast_stream.model.dims import Scoring
from ast_stream.model.fbank import normalize
from ast_stream.model.tagger import Tagger
from ast_stream.training.losses import label_loss, teacher_loss
from ast_stream.training.teacher import CheckpointTeacher

WINDOW_S = 1.0  # of 128 frames, as published


def _fbank() -> torch.Tensor:
    return torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 3 - 6


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_scores_are_those_of_the_checkpoint_in_the_order_of_the_student(scoring: Scoring) -> None:
    checkpoint = replace(tiny_checkpoint(), scoring=scoring)
    teacher = CheckpointTeacher(checkpoint, ["Doorbell", "Siren", "Bark"], WINDOW_S)
    got = teacher.scores(_fbank())
    tagger = Tagger(checkpoint, "cpu", "fp32", "math")
    expected = torch.from_numpy(tagger.window_scores(normalize(_fbank(), checkpoint.normalization)))
    torch.testing.assert_close(got[:, [2, 1]], expected[:, [0, 1]], atol=0.02, rtol=0)  # bf16
    assert teacher.is_taught.tolist() == [0.0, 1.0, 1.0]
    assert not got[:, 0].any()


def test_classes_it_does_not_know_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CheckpointTeacher(tiny_checkpoint(), ["Bark", "Doorbell", "Glass"], WINDOW_S)
    assert "does not know Doorbell, Glass" in caplog.text


def test_a_teacher_of_longer_windows_is_cut_to_ours() -> None:
    teacher = CheckpointTeacher(tiny_checkpoint(), TINY_LABELS, 0.64)
    assert teacher.scores(_fbank()[:, :64]).shape == (3, 3)


def test_a_teacher_of_shorter_windows_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"with windows of 2\.56 s or more, got one with 1 s"):
        CheckpointTeacher(tiny_checkpoint(), TINY_LABELS, 2.56)


def test_a_teacher_without_any_of_the_classes_is_refused() -> None:
    stranger = replace(tiny_checkpoint(dims=replace(TINY_DIMS, n_classes=5)))
    with pytest.raises(CheckpointError, match="with some of the classes, got none of Bark"):
        CheckpointTeacher(stranger, ["Bark"], WINDOW_S)


def test_agreeing_with_the_teacher_costs_least() -> None:
    opinions, is_taught = torch.tensor([[0.9, 0.2, 0.0]]), torch.tensor([1.0, 1.0, 0.0])
    agreeing = torch.logit(torch.tensor([[0.9, 0.2, 0.5]])).requires_grad_()
    teacher_loss(agreeing, opinions, is_taught).backward()
    assert agreeing.grad is not None
    torch.testing.assert_close(agreeing.grad, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_the_losses_of_the_paper_are_torchs() -> None:
    logits, targets = torch.randn(4, 3), torch.eye(3)[torch.tensor([0, 2, 1, 1])]
    weights = torch.ones(4, 3)
    functional = torch.nn.functional
    torch.testing.assert_close(
        label_loss("bce", logits, targets, weights),
        functional.binary_cross_entropy_with_logits(logits, targets),
    )
    torch.testing.assert_close(
        label_loss("ce", logits, targets, weights),
        functional.cross_entropy(logits, torch.tensor([0, 2, 1, 1])),
    )
