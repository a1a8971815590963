"""A circular buffer gives back what went in, at the index it had."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.audio.pcm import SampleBuffer, SlotBuffers


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), min_size=1, max_size=8),
    first_sample=st.integers(0, 300),
    start=st.integers(0, 600),
    length=st.integers(0, 200),
)
def test_read_returns_the_newest_samples_with_silence_in_holes(
    pieces: list[tuple[int, int]], first_sample: int, start: int, length: int
) -> None:
    buffer, rng = SampleBuffer(100, first_sample), np.random.default_rng(1)
    whole = np.zeros(first_sample, np.int16)
    for hole, n_samples in pieces:
        pcm = rng.integers(-999, 999, n_samples).astype(np.int16)
        whole = np.concatenate([whole, np.zeros(hole, np.int16), pcm])
        buffer.append_silence(hole)
        buffer.append(pcm)
    first, read = buffer.read(start, start + length)
    assert buffer.end == len(whole)
    assert buffer.oldest == max(first_sample, len(whole) - 100)
    assert np.array_equal(read, whole[first : first + len(read)])
    expected = range(max(start, buffer.oldest), min(start + length, len(whole)))
    assert len(read) == len(expected)


def test_what_was_read_stays_when_it_is_overwritten() -> None:
    buffer = SampleBuffer(100)
    buffer.append(np.ones(100, np.int16))
    _, read = buffer.read(0, 100)
    buffer.append(np.zeros(100, np.int16))
    assert read.tolist() == [1] * 100


def test_restart_forgets_the_epoch_before() -> None:
    buffer = SampleBuffer(100)
    buffer.append(np.ones(50, np.int16))
    buffer.restart(1000)
    buffer.append(np.full(10, 2, np.int16))
    first, read = buffer.read(0, 2000)
    assert first == 1000
    assert read.tolist() == [2] * 10


def test_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity: expected at least 1 sample, got 0"):
        SampleBuffer(0)


def test_samples_that_are_still_needed_cannot_be_overwritten() -> None:
    buffers = SlotBuffers(1_000)
    buffers.grow(1)
    buffers.restart(0, 300)
    buffers.write(0, 300, np.ones(1_000, np.int16))
    with pytest.raises(ValueError, match="expected at most 0 samples at 1300, got 1"):
        buffers.write(0, 1_300, np.ones(1, np.int16))
    buffers.release(np.array([0]), np.array([500]))
    buffers.write(0, 1_300, np.ones(200, np.int16))
    with pytest.raises(ValueError, match="released"):
        buffers.read(np.array([0]), np.array([499]), 10)
