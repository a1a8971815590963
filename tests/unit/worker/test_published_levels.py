"""Sound levels as a worker publishes them: each second once, of real samples, while read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from reactive_model import tones_and_noise
from worker_harness import Site, site

from ast_stream.levels.analysis import LOOK_BACK, SECOND, SEGMENT, SETTLING, analyse, settled
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import FeedMessage
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE

PCM = tones_and_noise(12)
Body = dict[str, Any]


@pytest.fixture
def box(tagger: Tagger) -> Iterator[Site]:
    with site(tagger) as made:
        made.read_topics += (b"levels/mic/",)
        yield made


def published(box: Site) -> list[Body]:
    """Return a list to which the bodies of levels are added."""
    bodies: list[Body] = []

    def receive(message: FeedMessage) -> None:
        if message.kind == "levels":
            bodies.append(message.body)

    box.on_sent = receive
    return bodies


def play(box: Site, pcm: Pcm16) -> None:
    """Let all of it arrive."""
    box.play(pcm)
    box.tick(4, seconds=0.1)


def levels_at(second: int) -> dict[str, float]:
    """Return what the samples of a second and of those before it give."""
    start = second * SECOND
    before = settled(PCM[None, start - SECOND - SETTLING :][:, : SETTLING + SECOND])
    (found,), _ = analyse(PCM[None, start - LOOK_BACK :][:, :SEGMENT], before)
    return {"laeq": found.laeq, "laf_max": found.laf_max, "1000": found.third_octaves[16]}


def assert_is_of(body: Body, second: int) -> None:
    expected = levels_at(second)
    found = {name: body[name] for name in ("laeq", "laf_max")}
    found["1000"] = body["third_octaves"]["1000"]
    assert body["start_sample"] == second * SECOND
    assert found == pytest.approx(expected, abs=0.006)


def test_each_second_is_published_once_it_is_whole(box: Site) -> None:
    bodies = published(box)
    box.start_capture()
    box.start_worker("mic")
    play(box, PCM[: 6 * SAMPLE_RATE + 8000])
    assert [body["start_sample"] // SECOND for body in bodies] == [2, 3, 4, 5]
    for body in bodies:
        assert_is_of(body, body["start_sample"] // SECOND)
    assert bodies[0]["calibrated"] is False
    assert len(bodies[0]["third_octaves"]) == 25
    times = [body["time"] for body in bodies]
    assert times[0].endswith("22.000000Z"), "wall time of the start of the second"


def test_levels_that_nobody_reads_are_not_computed(box: Site) -> None:
    bodies = published(box)
    box.read_topics = (b"event/", b"levels/other/")
    box.start_capture()
    box.start_worker("mic")
    play(box, PCM[: 4 * SAMPLE_RATE])
    assert bodies == []
    assert box.worker._levels._heard == {}
    box.read_topics += (b"levels/",)
    play(box, PCM[4 * SAMPLE_RATE : 8 * SAMPLE_RATE])
    assert [body["start_sample"] // SECOND for body in bodies] == [6, 7]
    assert_is_of(bodies[0], 6)


def test_a_killed_worker_goes_on_with_no_second_missing_and_repeats_the_same(box: Site) -> None:
    bodies = published(box)
    box.start_capture()
    box.start_worker("mic")
    play(box, PCM[: 5 * SAMPLE_RATE + 4000])
    n_before = len(bodies)
    box.kill_worker()
    box.capture_only(PCM[5 * SAMPLE_RATE + 4000 : 7 * SAMPLE_RATE])
    box.start_worker("mic")
    play(box, PCM[7 * SAMPLE_RATE :])
    seconds = [body["start_sample"] // SECOND for body in bodies]
    assert sorted(set(seconds)) == list(range(2, 12))
    again = seconds[n_before:]
    assert again == list(range(again[0], 12)), "in order, and in a run none twice"
    assert again[0] >= seconds[n_before - 1], "only what the journal does not cover comes again"
    for body in bodies:
        assert_is_of(body, body["start_sample"] // SECOND)


def test_no_second_holds_samples_beside_a_gap(box: Site) -> None:
    bodies = published(box)
    box.start_capture(ring_s=2)
    box.start_worker("mic")
    play(box, PCM[: 3 * SAMPLE_RATE])
    box.capture_only(PCM[3 * SAMPLE_RATE : 7 * SAMPLE_RATE])
    box.tick(50, seconds=0.1)
    play(box, PCM[7 * SAMPLE_RATE :])
    (gap,) = box.messages("gap")
    resumed = -(-(gap["start"] + gap["samples"] + SECOND + SETTLING) // SECOND)
    seconds = [body["start_sample"] // SECOND for body in bodies]
    assert seconds == [2, *range(resumed, 12)]
    for body in bodies:
        assert_is_of(body, body["start_sample"] // SECOND)


def test_a_calibration_holds_from_the_next_second_on_while_the_worker_runs(box: Site) -> None:
    bodies = published(box)
    box.start_capture()
    box.start_worker("mic")
    play(box, PCM[: 4 * SAMPLE_RATE])
    box.calibration_db = 120.0
    box.use_streams("mic")
    play(box, PCM[4 * SAMPLE_RATE : 5 * SAMPLE_RATE])
    raw, calibrated = bodies[-2:]
    assert (raw["calibrated"], calibrated["calibrated"]) == (False, True)
    expected = levels_at(4)
    assert calibrated["laeq"] == pytest.approx(expected["laeq"] + 120, abs=0.006)
    assert calibrated["third_octaves"]["1000"] == pytest.approx(expected["1000"] + 120, abs=0.006)
    assert np.isfinite(list(calibrated["third_octaves"].values())).all()
