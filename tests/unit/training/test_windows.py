"""Training windows honour the sound; whole clips come as in the AST repository."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from foregrounds import burst

from ast_stream.audio.activity import Waveform
from ast_stream.model.fbank import Fbank, pad_frames
from ast_stream.soundscape.backgrounds import generated_backgrounds
from ast_stream.soundscape.soundbank import Foreground, Soundbank, generated_foregrounds
from ast_stream.training import windows as training_windows
from ast_stream.training.augment import SpectrogramAugmentation
from ast_stream.training.windows import (
    ClipMixing,
    ClipSampler,
    FrameGrid,
    WindowMixing,
    WindowSampler,
    published_normalization,
)
from ast_stream.units import SAMPLE_RATE, frame_count

MAX_FRAMES = 128
PLAIN = ClipMixing()
N_SAMPLES = 40_960
CLEAN = WindowMixing(
    background_only_prob=0.0,
    background_prob=0.0,
    second_sound_prob=0.0,
    floor_prob=0.0,
    partial_prob=0.0,
    telephone_prob=0.0,
    fragment_prob=0.0,
    speed=(1.0, 1.0),
)


def _clip(value: float, *classes: int, seconds: float = 0.5) -> Foreground:
    return Foreground(np.full(round(seconds * SAMPLE_RATE), value, np.float32), classes, False)


def _clip_sampler(foregrounds: list[Foreground], mixing: ClipMixing = PLAIN) -> ClipSampler:
    return ClipSampler(Soundbank(("A", "B", "C"), tuple(foregrounds), ()), MAX_FRAMES, mixing)


def _first(waveform: Waveform) -> float:
    return round(float(waveform[0]), 3)


def test_every_clip_comes_once_in_an_epoch_in_another_order_each_time() -> None:
    sampler = _clip_sampler([_clip(number / 100, 0) for number in range(10)])
    assert sampler.epoch_steps(4) == 3
    epochs = []
    for epoch in range(2):
        batches = [sampler.draw_batch(0, 3 * epoch + step, 4) for step in range(3)]
        assert [len(batch) for batch in batches] == [4, 4, 2]
        epochs.append([_first(window.waveform) for batch in batches for window in batch])
    assert sorted(epochs[0]) == sorted(epochs[1]) == [number / 100 for number in range(10)]
    assert epochs[0] != epochs[1]


def test_batches_repeat_by_seed_and_step() -> None:
    sampler = _clip_sampler(
        [_clip(number / 100, number % 3) for number in range(9)], ClipMixing(mixup_prob=1.0)
    )
    first, again, other = (sampler.draw_batch(seed, 5, 4) for seed in (0, 0, 1))
    for batch, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(batch.waveform, two.waveform)
    assert any(
        _first(batch.waveform) != _first(two.waveform)
        for batch, two in zip(first, other, strict=True)
    )


def test_a_clip_is_padded_or_cut_to_the_input_and_says_how_much_is_real() -> None:
    clips = [_clip(0.1, 0, seconds=0.5), _clip(0.1, 1, seconds=9.0)]
    sampler = _clip_sampler(clips)
    rng = np.random.default_rng(0)
    short, long = (sampler.window(rng, clip) for clip in clips)
    assert short.n_real_frames == frame_count(SAMPLE_RATE // 2) == 48
    assert long.n_real_frames == MAX_FRAMES
    assert len(short.waveform) == len(long.waveform)
    assert not short.waveform[SAMPLE_RATE // 2 :].any()


def test_mixup_mixes_labels_as_it_mixes_sounds() -> None:
    clips = [_clip(1.0, 0), _clip(0.0, 1, 2)]
    sampler = _clip_sampler(clips, ClipMixing(mixup_prob=1.0))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        window = sampler.window(rng, clips[0])
        share = float(window.waveform[0])
        np.testing.assert_allclose(window.target, [share, 1 - share, 1 - share], atol=1e-6)
        seen.add(round(share, 3))
        assert window.weight.all()
    assert 1.0 in seen  # mixed with itself
    assert 0.1 < min(seen) < max(seen - {1.0}) < 0.9  # beta(10, 10) is narrow


def test_balanced_sampling_draws_rare_classes_as_often_as_common_ones() -> None:
    foregrounds = [_clip(0.1, 0)] * 18 + [_clip(0.2, 1)] * 2
    sampler = _clip_sampler(foregrounds, ClipMixing(is_balanced=True))
    drawn = Counter(
        int(window.target.argmax())
        for step in range(100)
        for window in sampler.draw_batch(0, step, 4)
    )
    assert drawn[1] / (drawn[0] + drawn[1]) == pytest.approx(0.5, abs=0.08)


def _noises(seconds: float, count: int) -> tuple[Foreground, ...]:
    rng = np.random.default_rng(0)
    n_samples = round(seconds * SAMPLE_RATE)
    sounds = (0.001 * rng.standard_normal(n_samples) for _ in range(count))
    return tuple(Foreground(sound.astype(np.float32), (0,), False) for sound in sounds)


def test_statistics_count_masks_as_zeros_as_the_ast_repository_does() -> None:
    foregrounds = _noises(1.5, 100)
    got = published_normalization(Soundbank(("A",), foregrounds, ()), MAX_FRAMES, seed=0)
    clean = Fbank().frames(torch.from_numpy(foregrounds[0].waveform)).mean()
    # 24 bands and 128 frames are the widest masks: half of that is gone on average
    kept = (1 - 12 / 128) * 0.5
    assert got.mean == pytest.approx(kept * float(clean), rel=0.15)
    assert got.std == pytest.approx(abs(float(clean)) * np.sqrt(kept * (1 - kept)), rel=0.15)


def test_statistics_count_padding_and_are_means_over_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_windows, "PUBLISHED_MASKS", SpectrogramAugmentation(0.0, 0, 0))
    monkeypatch.setattr(training_windows, "PUBLISHED_MIXUP_PROB", 0.0)
    monkeypatch.setattr(training_windows, "PUBLISHED_BATCH", 2)
    foregrounds = _noises(0.5, 3)
    got = published_normalization(Soundbank(("A",), foregrounds, ()), MAX_FRAMES, seed=0)
    padded = [
        pad_frames(Fbank().frames(torch.from_numpy(foreground.waveform)), MAX_FRAMES)
        for foreground in foregrounds
    ]
    batches = [torch.stack(padded[:2]), torch.stack(padded[2:])]
    assert got.mean == pytest.approx(np.mean([float(batch.mean()) for batch in batches]), abs=1e-3)
    assert got.std == pytest.approx(np.mean([float(batch.std()) for batch in batches]), abs=1e-3)


def test_windows_of_a_short_sound_are_examples_only_where_they_hold_it() -> None:
    foreground = burst(3.0, 3.5)
    sampler = WindowSampler(Soundbank(("Bark",), (foreground,), ()), N_SAMPLES, CLEAN)
    n_examples = 0
    for seed in range(200):
        window = sampler.draw(np.random.default_rng(seed))
        held_s = np.count_nonzero(window.waveform) / SAMPLE_RATE
        if window.weight[0] and window.target[0] > 0:
            n_examples += 1
            assert held_s > 0.15
        elif window.weight[0]:
            assert held_s < 0.1
    assert n_examples > 100


@pytest.mark.parametrize("amplitude", [0.0, 1e-5])
def test_windows_of_silence_are_no_examples_of_a_class(amplitude: float) -> None:
    noise = np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)
    foreground = Foreground((amplitude * noise).astype(np.float32), (0,), is_generated=False)
    sampler = WindowSampler(Soundbank(("Bark",), (foreground,), ()), N_SAMPLES, CLEAN)
    windows = [sampler.draw(np.random.default_rng(seed)) for seed in range(50)]
    assert not any(window.weight[0] or window.target[0] for window in windows)


def test_a_long_sound_is_an_example_soon_after_it_enters() -> None:
    foreground = burst(1.0, 7.0)
    sampler = WindowSampler(Soundbank(("Rain",), (foreground,), ()), N_SAMPLES, CLEAN)
    held = [
        np.count_nonzero(window.waveform) / SAMPLE_RATE
        for window in (sampler.draw(np.random.default_rng(seed)) for seed in range(200))
        if window.weight[0] and window.target[0] == 1.0
    ]
    assert 0.45 < min(held) < 0.8
    assert max(held) == pytest.approx(N_SAMPLES / SAMPLE_RATE, abs=0.01)


def test_windows_at_the_edge_of_a_sound_tell_what_it_is_not() -> None:
    foreground = burst(1.0, 7.0)
    mixing = dataclasses.replace(CLEAN, edge_prob=1.0, room_prob=0.0)
    sampler = WindowSampler(
        Soundbank(("Rain", "Waves, surf"), (foreground,), ()), N_SAMPLES, mixing
    )
    windows = [sampler.draw(np.random.default_rng(seed)) for seed in range(200)]
    held_s = [np.count_nonzero(window.waveform) / SAMPLE_RATE for window in windows]
    assert max(held_s) < 0.25 * N_SAMPLES / SAMPLE_RATE
    for window in windows:
        assert window.weight[1] == 1.0
        assert window.target[1] == 0.0
    assert sum(not window.weight[0] for window in windows) > 100  # neither Rain nor without it
    entering = [bool(window.waveform[-1]) for window in windows]
    assert 110 < sum(entering) < 170  # more often: sounds are to be known soon


def test_time_patches_of_a_sound_that_has_just_begun_are_examples_before_the_window_is() -> None:
    foreground = burst(1.0, 7.0)
    mixing = dataclasses.replace(CLEAN, edge_prob=1.0, begun_prob=1.0, room_prob=0.0)
    grid = FrameGrid(N_SAMPLES // 2560, 16)
    sampler = WindowSampler(Soundbank(("Rain",), (foreground,), ()), N_SAMPLES, mixing, grid)
    windows = [sampler.draw(np.random.default_rng(seed)) for seed in range(200)]
    unclear = [window for window in windows if not window.weight[0]]
    held_s = [np.count_nonzero(window.waveform) / SAMPLE_RATE for window in unclear]
    is_example = [bool((window.frame_target[:, 0] * window.frame_weight[:, 0]).any())
                  for window in unclear]  # fmt: skip
    assert min(held for held, known in zip(held_s, is_example, strict=True) if known) < 0.35
    assert not any(known for held, known in zip(held_s, is_example, strict=True) if held < 0.15)


def test_speech_is_heard_as_single_words_too_which_are_examples() -> None:
    foreground = burst(0.0, 8.0)
    mixing = dataclasses.replace(CLEAN, fragment_prob=1.0, edge_prob=0.0, room_prob=0.0)
    for label, longest_s in (("Speech", 0.95), ("Rain", 2.56)):
        sampler = WindowSampler(Soundbank((label,), (foreground,), ()), N_SAMPLES, mixing)
        windows = [sampler.draw(np.random.default_rng(seed)) for seed in range(50)]
        held_s = [np.count_nonzero(window.waveform) / SAMPLE_RATE for window in windows]
        assert longest_s - 0.2 < max(held_s) <= longest_s
        assert all(window.target[0] == window.weight[0] == 1.0 for window in windows)


def test_some_recordings_are_heard_through_a_telephone() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8 * SAMPLE_RATE).astype(np.float32)
    foreground = Foreground(noise, (0,), is_generated=False)
    for telephone_prob, expected in ((0.0, 1.0), (1.0, 0.0)):
        mixing = dataclasses.replace(CLEAN, telephone_prob=telephone_prob, room_prob=0.0)
        sampler = WindowSampler(Soundbank(("Rain",), (foreground,), ()), N_SAMPLES, mixing)
        power = np.square(np.abs(np.fft.rfft(sampler.draw(np.random.default_rng(1)).waveform)))
        high, middle = power[-len(power) // 4 :].mean(), power[len(power) // 8 : len(power) // 4]
        assert high / middle.mean() == pytest.approx(expected, abs=0.1)


def test_generated_sounds_lie_below_backgrounds_that_would_drown_recordings() -> None:
    mixing = dataclasses.replace(
        CLEAN, background_prob=1.0, snr_db=(60.0, 60.0), generated_snr_db=(-6.0, -6.0)
    )
    background = burst(0.0, 8.0).waveform
    power = []
    for is_generated in (False, True):
        foreground = dataclasses.replace(burst(1.0, 7.0), is_generated=is_generated)
        sampler = WindowSampler(
            Soundbank(("Siren",), (foreground,), (background,)), N_SAMPLES, mixing
        )
        windows = [sampler.draw(np.random.default_rng(seed)) for seed in range(40)]
        power.append(np.mean([np.square(window.waveform).mean() for window in windows]))
    assert power[1] > 3 * power[0]


def test_the_fainter_of_two_sounds_fades_out_of_the_label() -> None:
    foregrounds = [Foreground(burst(0.0, 8.0).waveform, (index,), False) for index in (0, 1)]
    mixing = WindowMixing(background_only_prob=0.0, second_sound_prob=1.0, edge_prob=0.0)
    sampler = WindowSampler(Soundbank(("A", "B"), tuple(foregrounds), ()), N_SAMPLES, mixing)
    targets = np.stack([sampler.draw(np.random.default_rng(seed)).target for seed in range(100)])
    assert (targets.max(axis=1) == 1.0).mean() > 0.9
    fainter = targets.min(axis=1)
    assert ((fainter > 0.0) & (fainter < 1.0)).mean() > 0.3


def test_windows_repeat_by_seed_and_stay_in_range() -> None:
    foregrounds = tuple(generated_foregrounds(0, ["Siren", "Alarm"], 2))
    backgrounds = tuple(generated_backgrounds(0, 4, with_speech=False))
    sampler = WindowSampler(
        Soundbank(("Siren", "Alarm"), foregrounds, backgrounds), N_SAMPLES, WindowMixing()
    )
    for seed in range(30):
        first, again = (sampler.draw(np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(first.waveform, again.waveform)
        assert first.waveform.shape == (N_SAMPLES,)
        assert np.abs(first.waveform).max() <= 1.0
        assert 98 <= first.n_real_frames <= 254
        assert not first.waveform[first.n_real_frames * 160 + 400 :].any()


def test_time_patches_are_examples_where_the_sound_is() -> None:
    foreground = burst(3.0, 3.5)
    grid, dry = FrameGrid(N_SAMPLES // 2560, 16), dataclasses.replace(CLEAN, room_prob=0.0)
    sampler = WindowSampler(Soundbank(("Bark", "Rain"), (foreground,), ()), N_SAMPLES, dry, grid)
    n_examples = 0
    for seed in range(100):
        window = sampler.draw(np.random.default_rng(seed))
        assert window.frame_target.shape == window.frame_weight.shape == (grid.n_patches, 2)
        patches = window.waveform[: grid.n_patches * 2560].reshape(-1, 2560)
        sounding = np.count_nonzero(patches, axis=1) / 2560
        is_example = window.frame_target[:, 0] == 1.0
        assert (sounding[is_example] > 0.4).all()
        assert (sounding[(window.frame_target[:, 0] == 0) & (window.frame_weight[:, 0] > 0)] < 0.3
                ).all()  # fmt: skip
        assert not window.frame_target[:, 1].any()
        n_examples += int(is_example.sum())
    assert n_examples > 100


def test_time_patches_after_the_end_of_a_partial_window_say_nothing() -> None:
    foreground = burst(1.0, 7.0)
    mixing = dataclasses.replace(CLEAN, partial_prob=1.0)
    grid = FrameGrid(N_SAMPLES // 2560, 16)
    sampler = WindowSampler(Soundbank(("Rain",), (foreground,), ()), N_SAMPLES, mixing, grid)
    for seed in range(30):
        window = sampler.draw(np.random.default_rng(seed))
        n_real_patches = window.n_real_frames / 16
        is_weighted = window.frame_weight[:, 0] > 0
        assert not is_weighted[int(n_real_patches) + 1 :].any()


def test_sounds_without_a_class_are_drawn_and_named_nothing() -> None:
    clicks = Foreground(burst(1.0, 7.0).waveform, (), is_generated=False)
    mixing = dataclasses.replace(CLEAN, unlabelled_prob=0.5)
    bank = Soundbank(("Bark",), (burst(3.0, 3.5), clicks), ())
    sampler = WindowSampler(bank, N_SAMPLES, mixing)
    windows = [sampler.draw(np.random.default_rng(seed)) for seed in range(200)]
    is_loud_negative = [
        window.weight[0] == 1.0 and not window.target[0] and np.any(window.waveform)
        for window in windows
    ]
    assert 60 < sum(is_loud_negative) < 160


def test_some_sounds_are_drawn_by_recording_whatever_the_size_of_their_class() -> None:
    many = [burst(1.0, 7.0) for _ in range(99)]
    rare = Foreground(burst(1.0, 7.0).waveform, (1,), is_generated=False)
    rates = []
    for by_recording_prob in (0.0, 1.0):
        mixing = dataclasses.replace(CLEAN, by_recording_prob=by_recording_prob)
        sampler = WindowSampler(Soundbank(("A", "B"), (*many, rare), ()), N_SAMPLES, mixing)
        windows = [sampler.draw(np.random.default_rng(seed)) for seed in range(200)]
        rates.append(np.mean([window.target[1] > 0 for window in windows]))
    assert rates[0] > 0.3
    assert rates[1] < 0.1
