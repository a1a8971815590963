"""The worker's copy of the audio gives back what went in, at the index it had."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.worker.history import PcmHistory


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 150)), min_size=1, max_size=8),
    start=st.integers(0, 300),
    length=st.integers(0, 200),
)
def test_history_returns_the_newest_samples_with_silence_in_holes(
    pieces: list[tuple[int, int]], start: int, length: int
) -> None:
    history, whole, rng = PcmHistory(100), np.zeros(0, np.int16), np.random.default_rng(1)
    for hole, n_samples in pieces:
        pcm = rng.integers(-999, 999, n_samples).astype(np.int16)
        whole = np.concatenate([whole, np.zeros(hole, np.int16)])
        history.write(len(whole), pcm)
        whole = np.concatenate([whole, pcm])
    first, read = history.read(start, start + length)
    assert len(whole) - history.oldest <= 100
    assert np.array_equal(read, whole[first : first + len(read)])
    wanted = range(max(start, history.oldest), min(start + length, len(whole)))
    assert len(read) == len(wanted)


def test_restart_forgets_the_epoch_before() -> None:
    history = PcmHistory(100)
    history.write(0, np.ones(50, np.int16))
    history.restart(1000)
    history.write(1000, np.full(10, 2, np.int16))
    first, read = history.read(0, 2000)
    assert first == 1000
    assert read.tolist() == [2] * 10
