"""Learning without labels: what is hidden stays hidden, what is told is compared, and it helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import AUDIOSET_NORMALIZATION, AstDims
from ast_stream.soundscape.mixing import Window
from ast_stream.training.fit import Trainer
from ast_stream.training.initialize import new_model
from ast_stream.training.pretraining import MaskedAutoencoder, pretraining_recipe
from ast_stream.training.recipe import Recipe
from ast_stream.training.state import Metrics

DIMS = AstDims(
    n_classes=2, hidden_size=64, n_layers=1, n_heads=1, intermediate_size=128,
    frequency_stride=16, time_stride=16, max_frames=48, layer_norm_eps=1e-6,
)  # fmt: skip
RECIPE = Recipe(
    steps=60, batch_size=8, report_every=10, save_every=10, precision="fp32", drop_path=0.0
)
N_SAMPLES = 8000


class Tones:
    """Windows of one tone each."""

    def __init__(self) -> None:
        self.labels = ["Tone", "Noise"]
        self.has_examples = [True, True]

    def draw_batch(self, seed: int, step: int, size: int) -> list[Window]:
        rng = np.random.default_rng((seed, step))
        t = np.arange(N_SAMPLES) / 16_000
        tones = [
            0.1 * np.sin(2 * np.pi * rng.uniform(300, 4000) * t)
            + 0.001 * rng.standard_normal(N_SAMPLES)
            for _ in range(size)
        ]
        nothing, everything = np.zeros(2, np.float32), np.ones(2, np.float32)
        return [Window(one.astype(np.float32), 48, nothing, everything) for one in tones]


def autoencoder(dims: AstDims = DIMS) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(AudioSpectrogramTransformer(dims)).eval()


def pretrain(
    folder: Path, stop_after: int | None = None
) -> tuple[MaskedAutoencoder, list[Metrics]]:
    """Return the averaged model and the reports."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(new_model(DIMS, RECIPE))
    recipe = pretraining_recipe(RECIPE, 60)
    trainer = Trainer(model, Tones(), recipe, folder, AUDIOSET_NORMALIZATION)
    reports = list(trainer.run(should_stop=lambda: trainer.step == stop_after))
    return trainer.average, reports


@pytest.mark.parametrize("stride", [16, 10])
def test_patches_are_those_that_the_model_embeds(stride: int) -> None:
    dims = replace(DIMS, frequency_stride=stride, time_stride=stride)
    model = autoencoder(dims)
    fbank = torch.randn(1, 48, 128)
    patches = model._patches(fbank)[0]
    assert patches.shape == (dims.n_frequency_patches * dims.n_time_patches, 256)
    for row in range(0, dims.n_frequency_patches, 3):
        for column in range(dims.n_time_patches):
            low, first = row * stride, column * stride
            square = fbank[0, first : first + 16, low : low + 16].T.flatten()
            expected = (square - square.mean()) / (square.var() + 0.05).sqrt()
            torch.testing.assert_close(patches[row * dims.n_time_patches + column], expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.01, 0.25, 0.75, 0.99]))
def test_what_is_hidden_is_not_seen(seed: int, share: float) -> None:
    model = autoencoder()
    fbank = torch.randn(2, 48, 128)
    n_patches = DIMS.n_frequency_patches * DIMS.n_time_patches
    n_seen = min(n_patches - 1, max(1, round(share * n_patches)))
    torch.manual_seed(seed)
    seen = torch.rand(2, n_patches).argsort(dim=1)[:, :n_seen]
    told: list[torch.Tensor] = []
    decode = model._decode
    model._decode = lambda *args: told.append(decode(*args)) or told[-1]  # type: ignore
    torch.manual_seed(seed)
    with torch.no_grad():
        error = model(fbank, share)
        changed = fbank.clone()
        hidden = next(one for one in range(n_patches) if one not in seen[0])
        row, column = divmod(hidden, DIMS.n_time_patches)
        changed[0, column * 16 : column * 16 + 16, row * 16 : row * 16 + 16].normal_(5.0)
        torch.manual_seed(seed)
        other = model(changed, share)
    torch.testing.assert_close(told[0], told[1], rtol=0, atol=0)
    assert error != other


def test_error_falls_and_the_encoder_is_what_learns(tmp_path: Path) -> None:
    before = new_model(DIMS, RECIPE)
    after, reports = pretrain(tmp_path)
    assert reports[-1]["loss"] < 0.6 * reports[0]["loss"]
    moved = after.encoder.blocks[0].attn.qkv.weight - before.blocks[0].attn.qkv.weight
    assert moved.norm() > 0.01
    torch.testing.assert_close(after.encoder.head.weight, before.head.weight)


def test_stopped_pretraining_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = pretrain(tmp_path / "whole")
    pretrain(tmp_path / "stopped", stop_after=23)
    resumed, _ = pretrain(tmp_path / "stopped")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)
