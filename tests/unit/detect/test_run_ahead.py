"""Windows are begun while those before them are on their way: the same events, in order."""

from __future__ import annotations

import numpy as np
import pytest
from detector_events import EPOCH, events_of
from eager_device import EagerDevice, on_eager_device
from reactive_model import framed_checkpoint, tones_and_noise

from ast_stream.detect import Detector
from ast_stream.detect import detector as detector_module
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Gap, Scores
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings

HOP_S = 0.25
STREAMS = ("a", "b", "c")
DETECTION = DetectionSettings(
    defaults=DetectionDefaults(onset_threshold=0.5, confirm_s=0.5, hold_s=0.25), gate_dbfs=-55
)


def build(tagger: Tagger, scores: list[Scores] | None = None, hops_at_once: int = 4) -> Detector:
    return Detector(
        tagger, DETECTION, hop_s=HOP_S, hops_at_once=hops_at_once,
        on_scores=None if scores is None else scores.append,
    )  # fmt: skip


def ahead(tagger: Tagger) -> tuple[Tagger, EagerDevice]:
    device = EagerDevice()
    return on_eager_device(Tagger(tagger.checkpoint, "cpu", "fp32", "math"), device), device


def several(live: Detector) -> list[Event]:
    """Return the events of streams that are behind, of which one has a gap and one ends."""
    for number, name in enumerate(STREAMS):
        live.open(name, EPOCH)
        live.push(name, 0, tones_and_noise(5.0, seed=number + 1))
    live.set_stride("b", 2)
    live.begin_gap(Gap("a", EPOCH, 80_000, 16_000, "overflow"))
    live.begin_flush("c")
    events = live.run(max_windows=7)
    events += live.run()
    live.push("a", 96_000, tones_and_noise(4.0, seed=7))
    return events + live.run() + live.flush("a") + live.flush("b")


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make three streams more than one step takes, so that steps follow each other."""
    monkeypatch.setattr(detector_module, "WINDOWS_AT_ONCE", 4)


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(10.0)


@pytest.fixture(scope="module")
def framed() -> Checkpoint:
    return framed_checkpoint()


def test_streams_that_are_behind_have_the_same_events_and_scores(tagger: Tagger) -> None:
    expected_scores: list[Scores] = []
    expected = several(build(tagger, expected_scores))
    fast, device = ahead(tagger)
    scores: list[Scores] = []
    found = several(build(fast, scores))
    assert [(e.type, e.id, e.onset_sample) for e in found] == [
        (e.type, e.id, e.onset_sample) for e in expected
    ]
    assert sum(event.type == "begin" for event in found) >= 3
    assert [(s.stream, s.end_sample) for s in scores] == [
        (s.stream, s.end_sample) for s in expected_scores
    ]
    for one, other in zip(scores, expected_scores, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4, rtol=0)
    assert _most_begun(device) == 2


def test_a_recording_at_once_has_the_events_of_one_in_blocks(tagger: Tagger, pcm: Pcm16) -> None:
    expected = events_of(build(tagger, hops_at_once=1), pcm)
    fast, device = ahead(tagger)
    found = events_of(build(fast), pcm, size=len(pcm))
    assert [(e.id, e.type) for e in found if e.type != "update"] == [
        (e.id, e.type) for e in expected if e.type != "update"
    ]
    assert _most_begun(device) == 2


def test_frames_are_decided_in_order_as_well(framed: Checkpoint, pcm: Pcm16) -> None:
    plain = Tagger(framed, "cpu", "fp32", "math")
    fast, device = ahead(plain)
    expected, found = several(build(plain)), several(build(fast))
    assert [(e.type, e.id) for e in found] == [(e.type, e.id) for e in expected]
    assert found
    assert _most_begun(device) == 2


def test_results_are_waited_for_in_the_order_in_which_they_were_begun(tagger: Tagger) -> None:
    fast, device = ahead(tagger)
    several(build(fast))
    waits = [number for word, number in device.log if word == "wait"]
    assert waits == sorted(waits) == list(range(len(waits)))


def test_nothing_is_on_its_way_when_a_turn_is_over(tagger: Tagger, pcm: Pcm16) -> None:
    fast, device = ahead(tagger)
    live = build(fast)
    live.open("mic", EPOCH)
    live.push("mic", 0, pcm[:64_000])
    for _turn in range(3):
        live.run(max_windows=5)
        words = [word for word, _number in device.log]
        assert words.count("begin") == words.count("wait") > 0


def test_an_error_of_the_device_ends_the_turn_that_it_is_in(tagger: Tagger, pcm: Pcm16) -> None:
    fast, device = ahead(tagger)
    device.broken_downloads.add(2)
    live = build(fast)
    live.open("mic", EPOCH)
    live.push("mic", 0, pcm[:64_000])
    with pytest.raises(RuntimeError, match="illegal memory access"):
        live.run()


def test_without_such_a_device_windows_are_decided_before_others_are_begun(
    tagger: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, device = ahead(tagger)
    monkeypatch.setattr(type(fast._runner), "runs_ahead", False)
    several(build(fast))
    assert _most_begun(device) == 1


def _most_begun(device: EagerDevice) -> int:
    """Return how many results were on their way at once, at most."""
    begun = most = 0
    for word, _number in device.log:
        begun += 1 if word == "begin" else -1
        most = max(most, begun)
    return most
