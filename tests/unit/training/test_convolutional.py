"""The convolutional teacher: it learns, resumes like any training, and steers a student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_stream.model.dims import AUDIOSET_NORMALIZATION, AstDims
from ast_stream.soundscape.mixing import Window
from ast_stream.training.convolutional import (
    ConvolutionalDims,
    ConvolutionalNetwork,
    ConvolutionalTeacher,
)
from ast_stream.training.fit import Trainer
from ast_stream.training.initialize import new_model
from ast_stream.training.presets import CONVOLUTIONAL_RECIPE
from ast_stream.training.recipe import Recipe

N_SAMPLES = 8000
DIMS = ConvolutionalDims(n_classes=2, max_frames=48, channels=(8, 8), strides=(2, 2))
RECIPE = replace(
    CONVOLUTIONAL_RECIPE,
    steps=80,
    batch_size=8,
    warmup_steps=3,
    save_every=10,
    precision="fp32",
    learning_rate=1e-2,
    ema_decay=0.9,
)


class Textures:
    """Windows with a tone (class 0), noise (class 1), or neither: no matter where."""

    def __init__(self) -> None:
        self.labels = ["Tone", "Noise"]
        self.has_examples = [True, True]

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        rng = np.random.default_rng((seed, step))
        return [self._draw(rng) for _ in range(size)]

    def _draw(self, rng: np.random.Generator) -> Window:
        what = int(rng.integers(3))
        t = np.arange(N_SAMPLES) / 16_000
        tone = 0.1 * np.sin(2 * np.pi * rng.uniform(500, 4000) * t)
        noise = 0.1 * rng.standard_normal(N_SAMPLES)
        waveform = np.asarray((tone, noise, 0.01 * noise)[what], np.float32)
        target = np.array([what == 0, what == 1], np.float32)
        return Window(waveform, 48, target, np.ones(2, np.float32))


def _train(folder: Path, recipe: Recipe = RECIPE) -> ConvolutionalNetwork:
    torch.manual_seed(0)
    network = ConvolutionalNetwork(DIMS)
    trainer = Trainer(network, Textures(), recipe, folder, AUDIOSET_NORMALIZATION)
    list(trainer.run())
    return trainer.average


def test_it_learns_to_tell_tones_from_noise(tmp_path: Path) -> None:
    teacher = ConvolutionalTeacher(_train(tmp_path), AUDIOSET_NORMALIZATION)
    trainer = Trainer(
        ConvolutionalNetwork(DIMS), Textures(), RECIPE, tmp_path / "new", AUDIOSET_NORMALIZATION
    )
    windows = Textures().draw_batch(9, 0, 24)
    fbank, _ = trainer._features(windows)
    scores = teacher.scores(fbank).numpy()
    targets = np.stack([window.target for window in windows])
    assert scores.shape == (24, 2)
    assert np.mean((scores > 0.5) == (targets > 0.5)) > 0.9


def test_a_killed_training_of_it_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole")
    torch.manual_seed(0)
    first = Trainer(
        ConvolutionalNetwork(DIMS), Textures(), RECIPE, tmp_path / "cut", AUDIOSET_NORMALIZATION
    )
    list(first.run(should_stop=lambda: first.step == 17))
    resumed = _train(tmp_path / "cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("opinion", [0.05, 0.95])
def test_a_student_follows_its_teacher(tmp_path: Path, opinion: float) -> None:
    class Stubborn:
        is_taught = torch.ones(2)

        def scores(self, fbank: torch.Tensor) -> torch.Tensor:
            return torch.full((len(fbank), 2), opinion)

    recipe = Recipe(
        steps=15, batch_size=8, learning_rate=3e-3, warmup_steps=1, teacher_weight=1.0,
        precision="fp32", patch_share=1.0, drop_path=0.0,
    )  # fmt: skip
    dims = AstDims(2, 64, 1, 1, 64, 16, 16, 16, 48)
    trainer = Trainer(
        new_model(dims, recipe), Textures(), recipe, tmp_path, AUDIOSET_NORMALIZATION,
        teacher=Stubborn(),
    )  # fmt: skip
    list(trainer.run())
    fbank, _ = trainer._features(Textures().draw_batch(5, 0, 4))
    with torch.no_grad():
        scores = torch.sigmoid(trainer.model.eval()(AUDIOSET_NORMALIZATION.apply(fbank)))
    assert ((scores > 0.5) == (opinion > 0.5)).all()
