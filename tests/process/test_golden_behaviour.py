"""Behaviour that no change of the code may alter by accident; see `golden/make_behaviour.py`."""

from __future__ import annotations

import json
from typing import Any

import golden_behaviour as golden
import numpy as np
import pytest

SCORE_TOLERANCE = 1e-3  # processors round differently; scores are in [0, 1]


def stored(name: str) -> Any:
    return json.loads((golden.STORED / f"{name}.json").read_text())


def without_scores(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("score", "peak", "mean")}


def test_scan_finds_the_stored_events_and_scores() -> None:
    events, arrays = golden.scan_command()
    expected = stored("scan")
    assert [without_scores(event) for event in events] == [without_scores(e) for e in expected]
    for event, of_old in zip(events, expected, strict=True):
        for key in ("score", "peak", "mean"):
            assert event[key] == pytest.approx(of_old[key], abs=SCORE_TOLERANCE)
    with np.load(golden.STORED / "scores.npz") as of_old:
        assert set(arrays) == set(of_old.files)
        assert arrays["labels"].tolist() == of_old["labels"].tolist()
        np.testing.assert_array_equal(arrays["times_s"], of_old["times_s"])
        assert arrays["scores"].dtype == of_old["scores"].dtype
        np.testing.assert_allclose(arrays["scores"], of_old["scores"], atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("block_samples", golden.BLOCKS)
def test_live_stream_gives_the_stored_events_at_any_block_size(block_samples: int) -> None:
    assert golden.live_events(block_samples) == stored("live")


def test_worker_that_is_killed_three_times_gives_the_stored_events() -> None:
    assert golden.events_of_a_killed_worker() == stored("live")


def test_messages_have_the_stored_bytes() -> None:
    messages = {**golden.worker_messages(), **golden.process_messages()}
    expected = stored("wire")
    assert set(messages) == set(expected)
    for kind, frames in messages.items():
        assert frames == expected[kind], kind


@pytest.mark.slow
def test_demo_finds_the_stored_sounds_and_fires_the_stored_alerts() -> None:
    report, expected = golden.demo_command(), stored("demo")
    for sound, of_old in zip(report["sounds"], expected["sounds"], strict=True):
        peak, old_peak = sound.pop("peak"), of_old.pop("peak")
        assert peak == pytest.approx(old_peak, abs=SCORE_TOLERANCE)
    assert report == expected
