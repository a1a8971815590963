"""Which channel is used, and what cannot be the sound of a room."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ast_stream.audio.pcm import FAULT_AFTER_S, ChannelSelector
from ast_stream.errors import AudioError

RATE = 16_000
BLOCK = 1_600


def noise(seconds: float, n_channels: int = 1, level: float = 0.05, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return (level * generator.standard_normal((round(seconds * RATE), n_channels))).astype(
        np.float32
    )


def fed(
    pcm: npt.NDArray[Any], choice: Any = "mix", channels: ChannelSelector | None = None
) -> ChannelSelector:
    channels = channels or ChannelSelector(choice)
    for start in range(0, len(pcm), BLOCK):
        channels.select(pcm[start : start + BLOCK], RATE)
    return channels


def test_a_channel_is_taken_alone_and_counted_from_zero() -> None:
    pcm = np.arange(12, dtype=np.int16).reshape(4, 3)
    assert ChannelSelector(2).select(pcm, RATE)[:, 0].tolist() == [2, 5, 8, 11]
    assert ChannelSelector(0).select(pcm, RATE)[:, 0].tolist() == [0, 3, 6, 9]
    assert ChannelSelector().select(pcm, RATE) is pcm


@pytest.mark.parametrize(("n_channels", "there"), [(1, "only channel 0"), (2, "channels 0 to 1")])
def test_a_channel_that_is_not_there_is_named_with_those_that_are(
    n_channels: int, there: str
) -> None:
    with pytest.raises(AudioError, match=f"channel 5 is wanted .* the source has {there}"):
        ChannelSelector(5).select(np.zeros((10, n_channels), np.int16), RATE)


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_samples_that_never_change_are_a_fault_after_ten_seconds(value: float) -> None:
    silence = np.full((round((FAULT_AFTER_S - 0.1) * RATE), 1), value, np.float32)
    channels = fed(silence)
    assert channels.fault is None
    fed(silence[: 3 * RATE], channels=channels)
    assert channels.fault == (
        "digital silence for 13 s: muted, unplugged, or channels of opposite phase that cancel"
    )
    fed(noise(0.1), channels=channels)
    assert channels.fault is None


def test_the_quietest_sound_is_no_digital_silence() -> None:
    pcm = np.zeros((20 * RATE, 1), np.int16)
    pcm[::BLOCK] = 1
    assert fed(pcm).fault is None


def test_all_channels_of_an_array_that_give_nothing_are_counted() -> None:
    fault = fed(np.zeros((12 * RATE, 6), np.int16)).fault
    assert fault == "digital silence for 12 s in all 6 channels: muted or unplugged"


def test_a_dead_channel_that_was_picked_is_named_with_those_that_have_sound() -> None:
    pcm = noise(12.0, 4)
    pcm[:, [1, 2]] = 0
    assert fed(pcm, choice=1).fault == (
        "digital silence for 12 s in channel 1 of 0 to 3, while there is sound in channels 0, 3"
    )
    assert fed(pcm, choice=3).fault is None
    assert fed(pcm).fault is None


@pytest.mark.parametrize("gain", [1.0, 0.8])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_channels_of_opposite_polarity_are_reported_though_one_is_a_little_louder(
    gain: float, dtype: Any
) -> None:
    left = noise(12.0)
    pcm = np.concatenate([left, -gain * left], axis=1)
    if dtype == np.int16:
        pcm = np.rint(pcm * 32_767).astype(np.int16)
    channels = fed(pcm)
    assert channels.fault is not None
    assert channels.fault.startswith("channels 0 and 1 cancel each other when averaged, for 12 s")
    assert "channel: 0" in channels.fault
    assert fed(pcm, choice=1).fault is None


def test_pauses_neither_hide_that_channels_cancel_nor_add_to_it() -> None:
    left = noise(8.0)
    stereo = np.concatenate([left, -left], axis=1)
    pause = np.zeros((5 * RATE, 2), np.float32)
    channels = fed(np.concatenate([stereo, pause]))
    assert channels.fault is None
    fed(stereo, channels=channels)
    assert channels.fault is not None
    assert "when averaged, for 16 s" in channels.fault


def test_the_pairs_of_an_array_that_cancel_are_named() -> None:
    pcm = noise(12.0, 4)
    pcm[:, 2] = -pcm[:, 0]
    pcm[:, 3] = -pcm[:, 1]
    fault = fed(pcm).fault
    assert fault is not None
    assert fault.startswith("channels 0 and 2, 1 and 3 cancel each other")


@pytest.mark.parametrize("n_channels", [2, 6, 64])
def test_unrelated_channels_and_single_live_ones_do_not_cancel(n_channels: int) -> None:
    pcm = noise(12.0, n_channels)
    assert fed(pcm).fault is None
    pcm[:, 1:] = 0
    assert fed(pcm).fault is None


def test_wide_stereo_is_no_fault() -> None:
    middle, side = noise(12.0, seed=1), noise(12.0, seed=2)
    wide = np.concatenate([middle + 2 * side, middle - 2 * side], axis=1)
    assert fed(wide).fault is None


def test_polarity_that_is_put_right_is_well_again() -> None:
    left = noise(12.0)
    channels = fed(np.concatenate([left, -left], axis=1))
    assert channels.fault is not None
    fed(np.concatenate([left, left], axis=1)[: 2 * RATE], channels=channels)
    assert channels.fault is None


def test_samples_that_are_no_numbers_are_no_sound() -> None:
    pcm = np.full((12 * RATE, 2), np.nan, np.float32)
    assert fed(pcm).fault is not None


def test_what_is_wrong_with_a_recording_is_summed_up_at_its_end() -> None:
    left = noise(3.0)
    opposite = np.concatenate([left, -left], axis=1)
    assert fed(opposite).summary == (
        "channels 0 and 1 cancel each other when averaged, in 3 of 3 s with sound: "
        "opposite polarity; choose one channel"
    )
    assert fed(opposite, choice=0).summary is None
    assert fed(np.concatenate([opposite, noise(4.0, 2)])).summary is None
    assert fed(np.zeros((2 * RATE, 2), np.float32)).summary == "nothing but digital silence"
    assert fed(np.concatenate([np.zeros((20 * RATE, 1), np.float32), noise(0.1)])).summary is None
