"""Events of a stream whose capture process is stopped for a while, or is silent, or gone."""

from __future__ import annotations

from typing import Any

import pytest
from reactive_model import tones_and_noise
from worker_harness import BLOCK, Body, Site, site

from ast_stream.messages.audio import Pcm16
from ast_stream.model.tagger import Tagger


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(16.0)


def essence(bodies: list[Body]) -> list[tuple[Any, ...]]:
    """Return all of the events that the time of day does not change; ids differ with the epoch."""
    names = ("at_sample", "type", "class", "onset_sample", "offset_sample", "reason", "mean")
    return [tuple(body[name] for name in names) for body in bodies]


def play_until_an_event_is_open(box: Site, pcm: Pcm16) -> int:
    """Play `pcm` until an event has begun; return how far."""
    for n_played in range(0, len(pcm), BLOCK):
        box.play(pcm[n_played : n_played + BLOCK])
        if box.n_open("mic"):
            return n_played + BLOCK
    raise AssertionError("no event began")


@pytest.fixture(scope="module")
def undisturbed(tagger: Tagger, pcm: Pcm16) -> list[tuple[Any, ...]]:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm)
        box.worker.finish()
        return essence(box.messages())


@pytest.mark.parametrize("stopped_s", [4, 7, 12])
def test_a_capture_process_that_was_stopped_and_lost_nothing_splits_no_event(
    tagger: Tagger, pcm: Pcm16, undisturbed: list[tuple[Any, ...]], stopped_s: int
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        n_played = play_until_an_event_is_open(box, pcm)
        capture = box.capture()
        capture.is_stopped = True
        box.tick(4 * stopped_s, seconds=0.25)
        assert box.worker.healths()[0].state == "missing"
        capture.is_stopped = False
        box.tick(4, seconds=0.1)  # it answers before its source has given anything
        box.play(pcm[n_played:])
        box.worker.finish()
        assert essence(box.messages()) == undisturbed
        assert not box.messages("gap")


def reasons(box: Site) -> list[str]:
    return [body["reason"] for body in box.messages() if body["type"] == "end"]


def test_an_event_ends_once_the_ring_has_said_for_a_while_that_nothing_is_new(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        play_until_an_event_is_open(box, pcm)
        before = len(reasons(box))
        box.tick(16, seconds=0.25)
        assert box.n_open("mic")
        box.tick(12, seconds=0.25)
        assert not box.n_open("mic")
        assert set(reasons(box)[before:]) == {"stream_lost"}


def test_an_event_ends_soon_after_its_capture_process_is_gone(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        play_until_an_event_is_open(box, pcm)
        box.kill_capture()
        box.tick(16, seconds=0.25)
        assert box.n_open("mic")
        box.tick(20, seconds=0.25)
        assert not box.n_open("mic")
        assert reasons(box)[-1] == "stream_lost"


def test_an_event_ends_although_its_capture_process_stays_stopped(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        play_until_an_event_is_open(box, pcm)
        box.capture().is_answering = False
        box.tick(110, seconds=0.5)
        assert box.n_open("mic")
        box.tick(20, seconds=0.5)
        assert not box.n_open("mic")
        assert reasons(box)[-1] == "stream_lost"


def test_a_worker_killed_while_its_capture_process_is_stopped_goes_on_with_the_event(
    tagger: Tagger, pcm: Pcm16, undisturbed: list[tuple[Any, ...]]
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        n_played = play_until_an_event_is_open(box, pcm)
        box.tick(5, seconds=0.25)
        box.capture().is_answering = False
        box.kill_worker()
        box.start_worker("mic")
        box.tick(80, seconds=0.25)
        box.capture().is_answering = True
        box.tick(10, seconds=0.25)
        box.play(pcm[n_played:])
        box.worker.finish()
        assert essence(box.messages()) == undisturbed
