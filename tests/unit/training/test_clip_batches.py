"""Batches of whole clips: every clip once an epoch, mixed and balanced as in the AST repository."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ast_stream.audio.activity import Waveform
from ast_stream.model.fbank import Fbank, pad_frames
from ast_stream.soundscape.takes import Material, Take
from ast_stream.training import statistics
from ast_stream.training.augment import SpectrogramAugmentation
from ast_stream.training.clip_batches import ClipMaker, ClipMixing
from ast_stream.training.statistics import published_normalization
from ast_stream.units import SAMPLE_RATE, frame_count

MAX_FRAMES = 128
PLAIN = ClipMixing()


def _take(value: float, *classes: int, seconds: float = 0.5) -> Take:
    return Take(np.full(round(seconds * SAMPLE_RATE), value, np.float32), classes, False)


def _maker(takes: list[Take], mixing: ClipMixing = PLAIN) -> ClipMaker:
    return ClipMaker(Material(("A", "B", "C"), tuple(takes), ()), MAX_FRAMES, mixing)


def _first(waveform: Waveform) -> float:
    return round(float(waveform[0]), 3)


def test_every_clip_comes_once_in_an_epoch_in_another_order_each_time() -> None:
    maker = _maker([_take(number / 100, 0) for number in range(10)])
    assert maker.epoch_steps(4) == 3
    epochs = []
    for epoch in range(2):
        batches = [maker.draw_batch(0, 3 * epoch + step, 4) for step in range(3)]
        assert [len(batch) for batch in batches] == [4, 4, 2]
        epochs.append([_first(window.waveform) for batch in batches for window in batch])
    assert sorted(epochs[0]) == sorted(epochs[1]) == [number / 100 for number in range(10)]
    assert epochs[0] != epochs[1]


def test_batches_repeat_by_seed_and_step() -> None:
    maker = _maker(
        [_take(number / 100, number % 3) for number in range(9)], ClipMixing(mixup_share=1.0)
    )
    first, again, other = (maker.draw_batch(seed, 5, 4) for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.waveform, two.waveform)
    assert any(
        _first(one.waveform) != _first(two.waveform) for one, two in zip(first, other, strict=True)
    )


def test_a_clip_is_padded_or_cut_to_the_input_and_says_how_much_is_real() -> None:
    maker = _maker([_take(0.1, 0, seconds=0.5), _take(0.1, 1, seconds=9.0)])
    rng = np.random.default_rng(0)
    short, long = (maker.window(rng, maker._takes[index]) for index in (0, 1))
    assert short.n_real_frames == frame_count(SAMPLE_RATE // 2) == 48
    assert long.n_real_frames == MAX_FRAMES
    assert len(short.waveform) == len(long.waveform)
    assert not short.waveform[SAMPLE_RATE // 2 :].any()


def test_mixup_mixes_labels_as_it_mixes_sounds() -> None:
    maker = _maker([_take(1.0, 0), _take(0.0, 1, 2)], ClipMixing(mixup_share=1.0))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        window = maker.window(rng, maker._takes[0])
        share = float(window.waveform[0])
        np.testing.assert_allclose(window.target, [share, 1 - share, 1 - share], atol=1e-6)
        seen.add(round(share, 3))
        assert window.weight.all()
    assert 1.0 in seen  # mixed with itself
    assert 0.1 < min(seen) < max(seen - {1.0}) < 0.9  # beta(10, 10) is narrow


def test_balanced_sampling_draws_rare_classes_as_often_as_common_ones() -> None:
    takes = [_take(0.1, 0)] * 18 + [_take(0.2, 1)] * 2
    maker = _maker(takes, ClipMixing(is_balanced=True))
    drawn = Counter(
        int(window.target.argmax())
        for step in range(100)
        for window in maker.draw_batch(0, step, 4)
    )
    assert drawn[1] / (drawn[0] + drawn[1]) == pytest.approx(0.5, abs=0.08)


def _noise_takes(seconds: float, count: int) -> tuple[Take, ...]:
    rng = np.random.default_rng(0)
    n_samples = round(seconds * SAMPLE_RATE)
    sounds = (0.001 * rng.standard_normal(n_samples) for _ in range(count))
    return tuple(Take(sound.astype(np.float32), (0,), False) for sound in sounds)


def test_statistics_count_masks_as_zeros_as_the_ast_repository_does() -> None:
    takes = _noise_takes(1.5, 100)
    got = published_normalization(Material(("A",), takes, ()), MAX_FRAMES, seed=0)
    clean = Fbank().frames(torch.from_numpy(takes[0].waveform)).mean()
    # 24 bands and 128 frames are the widest masks: half of that is gone on average
    kept = (1 - 12 / 128) * 0.5
    assert got.mean == pytest.approx(kept * float(clean), rel=0.15)
    assert got.std == pytest.approx(abs(float(clean)) * np.sqrt(kept * (1 - kept)), rel=0.15)


def test_statistics_count_padding_and_are_means_over_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "PUBLISHED_MASKS", SpectrogramAugmentation(0.0, 0, 0))
    monkeypatch.setattr(statistics, "PUBLISHED_MIXUP_SHARE", 0.0)
    monkeypatch.setattr(statistics, "PUBLISHED_BATCH", 2)
    takes = _noise_takes(0.5, 3)
    got = published_normalization(Material(("A",), takes, ()), MAX_FRAMES, seed=0)
    padded = [
        pad_frames(Fbank().frames(torch.from_numpy(take.waveform)), MAX_FRAMES) for take in takes
    ]
    batches = [torch.stack(padded[:2]), torch.stack(padded[2:])]
    assert got.mean == pytest.approx(np.mean([float(one.mean()) for one in batches]), abs=1e-3)
    assert got.std == pytest.approx(np.mean([float(one.std()) for one in batches]), abs=1e-3)
