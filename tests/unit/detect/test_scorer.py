"""The level meter and its gate do not depend on how many hops come at once."""

import numpy as np
import pytest

from ast_stream.detect.scorer import LevelMeter
from ast_stream.messages.audio import Pcm16

WINDOW, HOP = 8_000, 2_000


def hops(seed: int, n_hops: int) -> Pcm16:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.choice([3, 300, 9_000], n_hops), HOP)
    samples = (rng.normal(0, 1, n_hops * HOP) * loudness).clip(-32_000, 32_000)
    return samples.astype(np.int16)


def test_gate_of_many_hops_at_once_is_the_gate_of_each_alone() -> None:
    pcm = hops(1, 40)
    single, batched = LevelMeter(WINDOW, HOP, -40.0), LevelMeter(WINDOW, HOP, -40.0)
    single.grow(1)
    batched.grow(1)
    slot = np.array([0])
    alone = [
        single.measure(slot, pcm[None, start : start + HOP])[0, 0]
        for start in range(0, len(pcm), HOP)
    ]
    together = np.concatenate(
        [
            batched.measure(slot, pcm[None, start : start + 8 * HOP])[:, 0]
            for start in range(0, 80_000, 16_000)
        ]
    )
    assert together.tolist() == alone
    assert True in alone
    assert False in alone


def test_loud_hop_keeps_the_gate_open_as_long_as_the_window_holds_it() -> None:
    meter = LevelMeter(WINDOW, HOP, -40.0)
    meter.grow(1)
    quiet, loud = np.zeros((1, HOP), np.int16), np.full((1, HOP), 9_000, np.int16)
    seen = [bool(meter.measure(np.array([0]), pcm)[0, 0]) for pcm in [quiet, loud, *[quiet] * 5]]
    assert seen == [True, False, False, False, False, True, True]
    assert meter.level_dbfs(0) == -120.0


def test_without_a_gate_silence_passes() -> None:
    meter = LevelMeter(WINDOW, HOP, None)
    meter.grow(1)
    assert not meter.measure(np.array([0]), np.zeros((1, HOP), np.int16)).any()


def test_level_is_that_of_the_newest_hop() -> None:
    meter = LevelMeter(WINDOW, HOP, None)
    meter.grow(2)
    meter.measure(np.array([1]), np.full((1, HOP), 16_384, np.int16))
    assert meter.level_dbfs(1) == pytest.approx(-6.02, abs=0.01)
    assert meter.level_dbfs(0) == -120.0
