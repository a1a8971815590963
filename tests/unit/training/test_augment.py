"""Augmentation changes what it should and nothing else."""

from __future__ import annotations

import pytest
import torch

from ast_stream.model.dims import AUDIOSET_NORMALIZATION
from ast_stream.model.fbank import SILENCE_LOG_MEL, normalize
from ast_stream.training.augment import (
    Augment,
    SpectrogramAugmentation,
    add_noise,
    filter_randomly,
    pad_after,
    shift_randomly,
)

OFF = SpectrogramAugmentation(filter_spread=0.0, frequency_mask=0, time_mask=0)


def _fbank(batch: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 256, 128) - 4.0


def test_without_strengths_only_padding_and_normalisation_remain() -> None:
    fbank = _fbank()
    n_real = torch.tensor([256, 254, 98, 1])
    expected = normalize(pad_after(fbank, n_real), AUDIOSET_NORMALIZATION)
    torch.testing.assert_close(Augment(OFF, AUDIOSET_NORMALIZATION)(fbank, n_real), expected)


def test_frames_after_the_real_ones_are_zero_before_normalisation() -> None:
    padded = pad_after(_fbank(2), torch.tensor([100, 256]))
    assert not padded[0, 100:].any()
    torch.testing.assert_close(padded[0, :100], _fbank(2)[0, :100])
    torch.testing.assert_close(padded[1], _fbank(2)[1])


def test_a_random_filter_is_smooth_over_frequency_and_constant_over_time() -> None:
    fbank = _fbank()
    gain = filter_randomly(fbank, 0.6) - fbank
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain), atol=1e-5, rtol=0)
    assert gain.diff(dim=2).abs().max() < 0.3
    assert gain.std() == pytest.approx(0.6, rel=0.6)
    assert (gain[0] - gain[1]).abs().max() > 0.1


def test_a_random_filter_never_goes_below_digital_silence() -> None:
    silence = torch.full((8, 10, 128), SILENCE_LOG_MEL)
    assert filter_randomly(silence, 1.0).min() == SILENCE_LOG_MEL


def test_masks_differ_between_windows_and_keep_within_their_widths() -> None:
    strengths = SpectrogramAugmentation(filter_spread=0.0, frequency_mask=16, time_mask=24)
    torch.manual_seed(3)
    fbank = torch.full((16, 256, 128), -4.0)
    masked = Augment(strengths, AUDIOSET_NORMALIZATION)(fbank, torch.full((16,), 256))
    padding = float(normalize(torch.zeros(1), AUDIOSET_NORMALIZATION))
    is_masked = torch.isclose(masked, torch.tensor(padding))
    assert is_masked.all(dim=1).sum(dim=1).max() <= 16
    assert is_masked.all(dim=2).sum(dim=1).max() <= 24
    assert len({int(count) for count in is_masked.sum(dim=(1, 2))}) > 4


def test_the_same_seed_augments_alike() -> None:
    augment = Augment(SpectrogramAugmentation(), AUDIOSET_NORMALIZATION)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(9)
        outcomes.append(augment(_fbank(), torch.full((4,), 254)))
        torch.manual_seed(10)
    torch.testing.assert_close(outcomes[0], outcomes[1])


def test_noise_is_uniform_and_of_another_level_in_each_window() -> None:
    torch.manual_seed(0)
    noise = add_noise(torch.zeros(4, 256, 128), 0.1)
    assert float(noise.min()) >= 0.0
    assert float(noise.max()) <= 0.1
    peaks = noise.amax(dim=(1, 2))
    torch.testing.assert_close(noise.mean(dim=(1, 2)), peaks / 2, rtol=0.02, atol=0)
    assert len(peaks.unique()) == 4


def test_windows_are_rolled_by_less_than_the_most() -> None:
    torch.manual_seed(0)
    windows = torch.arange(64.0)[None, :, None].expand(200, 64, 2)
    shifts = (-shift_randomly(windows, 10)[:, 0, 0] + 32) % 64 - 32
    assert (int(shifts.min()), int(shifts.max())) == (-10, 9)
    assert torch.equal(shift_randomly(windows, 0), windows)
