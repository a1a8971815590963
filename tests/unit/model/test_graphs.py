"""Batches by graphs: padded and cut, in memory that is there, and never mixed up."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from eager_device import EagerDevice, on_eager_device
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.errors import StartupError
from ast_stream.model.dims import AstDims
from ast_stream.model.graphs import (
    BUCKETS,
    MEMORY_SHARE,
    GraphRunner,
    bucket_for,
    buckets_within,
    window_bytes,
)
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.tagger import Tagger

BASE = AstDims(n_classes=527)
GB = 10**9


def _tagger(device: EagerDevice, *, frames: bool = False) -> Tagger:
    checkpoint = tiny_checkpoint(0, frames=FrameDecisions() if frames else None)
    return on_eager_device(Tagger(checkpoint, "cpu", "fp32", "math"), device)


def _windows(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn((n, TINY_DIMS.max_frames, TINY_DIMS.n_mels), generator=generator)


@pytest.mark.parametrize("n_windows", [0, 1, 3, 17, 33])
def test_a_batch_of_any_size_scores_as_without_graphs(n_windows: int) -> None:
    few = EagerDevice(free_bytes=_bytes_for(16))
    tagger = _tagger(few)
    assert tagger.full_batch == 16
    plain = Tagger(tiny_checkpoint(), "cpu", "fp32", "math")
    windows = _windows(n_windows)
    np.testing.assert_allclose(
        tagger.window_scores(windows), plain.window_scores(windows), atol=1e-6, rtol=0
    )


def test_frames_score_as_without_graphs() -> None:
    tagger, windows = _tagger(EagerDevice(_bytes_for(4)), frames=True), _windows(7)
    plain = Tagger(tagger.checkpoint, "cpu", "fp32", "math")
    np.testing.assert_allclose(
        tagger.frame_logits(windows), plain.frame_logits(windows), atol=1e-5, rtol=0
    )


def test_results_that_are_waited_for_late_are_not_written_over() -> None:
    tagger = _tagger(EagerDevice(_bytes_for(8)))
    batches = [_windows(n) for n in (8, 3, 20, 1)]
    alone = [tagger.window_scores(windows) for windows in batches]
    begun = [tagger.begin_window_scores(windows) for windows in batches]
    for windows in batches:
        windows.fill_(torch.nan)  # nor read late
    for awaited, expected in zip(begun, alone, strict=True):
        np.testing.assert_array_equal(awaited(), expected)


def test_an_error_of_the_device_comes_where_its_result_is_waited_for_and_in_no_other() -> None:
    device = EagerDevice()
    tagger = _tagger(device)
    device.broken_downloads.add(1)
    begun = [tagger.begin_window_scores(_windows(n)) for n in (1, 2, 4)]
    assert begun[0]().shape == (1, 3)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        begun[1]()
    assert begun[2]().shape == (4, 3)


def test_time_is_told_once_where_batches_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, float]] = []
    tagger = _tagger(EagerDevice())
    tagger._on_batch = lambda n, seconds: told.append((n, seconds))
    clock = iter([10.0, 11.0, 14.0, 15.0])  # begun, begun, there, there
    monkeypatch.setattr("ast_stream.model.tagger.time.perf_counter", lambda: next(clock))
    for awaited in [tagger.begin_window_scores(_windows(n)) for n in (2, 4)]:
        awaited()
    assert told == [(2, 4.0), (4, 1.0)]


def test_all_batch_sizes_are_captured_before_they_come() -> None:
    device = EagerDevice(_bytes_for(16))
    tagger = _tagger(device)
    tagger.prepare(500)
    assert device.captured == 5  # 1, 2, 4, 8, 16
    tagger.window_scores(_windows(13))
    assert device.captured == 5


def test_no_more_is_captured_than_can_come() -> None:
    device = EagerDevice(_bytes_for(64))
    _tagger(device).prepare(3)
    assert device.captured == 3


def test_batch_sizes_without_memory_are_left_out_and_this_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = EagerDevice(_bytes_for(32), room=8)
    tagger = _tagger(device)
    with caplog.at_level(logging.WARNING):
        tagger.prepare(500)
    assert tagger.full_batch == 8
    assert device.released == 3  # 16, 24, 32
    assert "no memory for batches of 16 windows" in caplog.text
    assert tagger.window_scores(_windows(20)).shape == (20, 3)


def test_no_memory_for_a_single_window_ends_the_start() -> None:
    with pytest.raises(StartupError, match=r"device cpu: no memory for a batch of 1: CUDA out of"):
        _tagger(EagerDevice(_bytes_for(4), room=0)).prepare(2)


@pytest.mark.parametrize(
    ("free_gb", "dtype", "math", "largest"),
    [
        (140, torch.float16, False, 256),  # an H200 with nothing else on it
        (22, torch.float16, False, 256),
        (15, torch.float16, False, 128),
        (7, torch.float16, False, 64),
        (7, torch.float32, False, 32),
        (140, torch.float16, True, 192),
        (22, torch.float16, True, 32),
        (0, torch.float16, False, 1),  # tried, and refused with a sentence if need be
    ],
)
def test_batches_of_ast_base_take_half_of_the_free_memory(
    free_gb: float, dtype: torch.dtype, math: bool, largest: int
) -> None:
    each = window_bytes(BASE, dtype, holds_attention=math)
    buckets = buckets_within(int(free_gb * GB), each)
    assert buckets == BUCKETS[: len(buckets)]
    assert buckets[-1] == largest


def test_padding_stays_below_a_third_of_batches_that_are_not_small() -> None:
    assert [bucket_for(n) for n in (1, 3, 9, 17, 64, 65, 256)] == [1, 4, 16, 24, 64, 96, 256]
    for n_windows in range(9, BUCKETS[-1] + 1):
        assert (bucket_for(n_windows) - n_windows) / bucket_for(n_windows) < 0.45
    for n_windows in range(16, BUCKETS[-1] + 1):
        assert (bucket_for(n_windows) - n_windows) / bucket_for(n_windows) < 1 / 3


def test_a_runner_says_what_it_may_batch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _tagger(EagerDevice(_bytes_for(96)))
    assert "batches of up to 96 windows on cpu" in caplog.text
    assert GraphRunner.runs_ahead


def _bytes_for(bucket: int) -> int:
    """Return free memory that just has room for a batch of the tiny model."""
    each = window_bytes(TINY_DIMS, torch.float32, holds_attention=False)
    return int(bucket * 2 * each / MEMORY_SHARE) + 1
