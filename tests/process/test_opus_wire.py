"""Opus between two boxes: events are those of the samples that it leaves, whatever happens."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from opus_boxes import OPUS, PATIENCE_S, Events, opus_boxes, undisturbed_events
from reactive_model import tones_and_noise

from ast_stream.messages.audio import Pcm16

SECONDS = 16.0


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(SECONDS)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, pcm: Pcm16) -> Events:
    events = undisturbed_events(checkpoint, pcm, OPUS)
    assert len(events) > 4
    return events


def test_live_opus_gives_the_events_of_the_samples_that_it_leaves(
    checkpoint: Path, pcm: Pcm16, expected: Events
) -> None:
    with opus_boxes(checkpoint, pcm, OPUS, {"block_s": 0.07}) as boxes:
        boxes.start_worker()
        boxes.start_capture()
        boxes.wait_for_the_end(SECONDS + PATIENCE_S)
        counted = boxes.counters()
        assert boxes.finish() == (expected, [])
        assert counted["opus_decoded"] > 20
        assert "opus_differs" not in counted
        assert boxes.network.bytes_sent < 0.6 * 2 * len(pcm)


def test_a_killed_worker_and_a_cut_network_lose_and_repeat_nothing(
    checkpoint: Path, pcm: Pcm16, expected: Events
) -> None:
    with opus_boxes(checkpoint, pcm, OPUS) as boxes:
        boxes.start_worker()
        boxes.start_capture()
        boxes.wait_for_events(2)
        boxes.worker.kill("worker")
        boxes.start_worker()
        boxes.wait_for_events(4)
        boxes.network.cut()
        threading.Event().wait(3.0)
        boxes.network.mend()
        boxes.wait_for_the_end(SECONDS + PATIENCE_S)
        assert boxes.finish() == (expected, [])
