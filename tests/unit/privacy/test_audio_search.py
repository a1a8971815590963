"""The search that attacks on `privacy: sensor` rely on finds what there is, and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import numpy as np
import pytest
from audio_search import AudioSearch, planted_noise

PLANTED = planted_noise(4.0)
PART = PLANTED[20_000:27_000]
SEARCH = AudioSearch(PLANTED)


@pytest.mark.parametrize(
    "written",
    [
        lambda: PART.astype("<i2").tobytes(),
        lambda: PART.astype(">i2").tobytes(),
        lambda: (PART / 32_768).astype("<f4").tobytes(),
        lambda: (PART * 0.37).astype("<i2").tobytes(),
        lambda: (PART / 100_000).astype("<f2").tobytes(),
        lambda: (
            (PART / 65_536 + np.random.default_rng(1).normal(0, 0.03, 7000)).astype("<f4").tobytes()
        ),
        lambda: json.dumps(
            {"a": 1, "pcm": base64.b64encode(PART[1:200].tobytes()).decode()}
        ).encode(),
    ],
)
def test_the_waveform_is_found_in_any_form(written: Callable[[], bytes]) -> None:
    assert SEARCH.find(b"{header}" + written() + b"tail") is not None


@pytest.mark.parametrize("seed", range(3))
def test_other_sound_and_text_are_not_it(seed: int) -> None:
    other = planted_noise(1.0, seed=seed + 50)
    assert SEARCH.find(other.tobytes()) is None
    assert SEARCH.find((other / 32_768).astype("<f4").tobytes()) is None
    assert SEARCH.find(json.dumps({"score": list(np.linspace(0, 1, 900))}).encode()) is None
    assert SEARCH.find(bytes(20_000)) is None
