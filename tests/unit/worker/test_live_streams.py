"""Streams that come, go and change while a worker runs: the others never notice."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from reactive_model import tones_and_noise
from worker_harness import BLOCK, Body, Site, site

from ast_stream.coverage.spans import HEARD, Span
from ast_stream.coverage.timeline import Coverage
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.status import STREAM_REMOVED
from ast_stream.model.tagger import Tagger
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

SECOND = SAMPLE_RATE


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(40.0)


def play(box: Site, pcm: Pcm16, first_s: float, until_s: float, *names: str) -> None:
    """Capture the same part of `pcm` on several streams at once."""
    for first in range(round(first_s * SECOND), round(until_s * SECOND), BLOCK):
        for name in names:
            box.capture(name).write(pcm[first : first + BLOCK])
            box.send_newest(name)
        box.now_s += BLOCK / SAMPLE_RATE
        box.tick()
    box.tick()  # the last blocks arrive


def of_stream(box: Site, name: str) -> list[Body]:
    """Return the event messages of a stream without what counts all streams' messages."""
    counted = ("seq", "prev_seq", "previous", "boot", "epoch", "id")
    bodies = [body for body in box.messages() if body["stream"] == name]
    return [{key: value for key, value in body.items() if key not in counted} for body in bodies]


def spans_of_audio(box: Site, name: str) -> list[tuple[str, int, int]]:
    return [
        (span.kind, span.start_sample, span.samples)
        for span in box.spans(name)
        if span.kind != "off"
    ]


def n_heard(box: Site, name: str) -> int:
    return sum(span.samples for span in box.spans(name) if span.kind in HEARD)


def finish(box: Site) -> None:
    box.tick(10, seconds=0.1)
    box.worker.finish()


def changes_of(spans: list[Span]) -> list[str | None]:
    return [span.reason for span in spans if span.kind == "off"]


def test_others_go_on_bit_equal_while_streams_come_and_go(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture("a")
        box.start_worker("a")
        for turn in range(8):
            for first_s, until_s in ((0, 1.3), (1.3, 3), (3, 4)):
                play(box, pcm, 4 * turn + first_s, 4 * turn + until_s, "a")
        finish(box)
        undisturbed = of_stream(box, "a")
        assert len(undisturbed) > 10
    with site(tagger) as box:
        box.start_capture("a")
        box.start_worker("a")
        for turn in range(8):
            play(box, pcm, 4 * turn, 4 * turn + 1.3, "a")
            box.start_capture("b")
            box.use_streams("a", "b")
            play(box, pcm, 4 * turn + 1.3, 4 * turn + 3, "a", "b")
            box.use_streams("a")
            play(box, pcm, 4 * turn + 3, 4 * turn + 4, "a")
        finish(box)
        assert of_stream(box, "a") == undisturbed
        assert spans_of_audio(box, "a") == [("listened", 0, 32 * SECOND)]
        assert {body["stream"] for body in box.messages()} == {"a", "b"}


def test_all_audio_that_came_before_a_removal_is_decided_and_open_events_end(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture("a")
        box.start_capture("b")
        box.start_worker("a", "b")
        n_played = 0.0
        while box.n_open("b") == 0:
            play(box, pcm, n_played, n_played + 0.5, "a", "b")
            n_played += 0.5
        box.use_streams("a")
        play(box, pcm, n_played, n_played + 2, "a")
        ends = [body for body in box.messages() if body["stream"] == "b" and body["type"] == "end"]
        assert ends[-1]["reason"] == "shutdown"
        assert box.n_open("b") == 0
        assert n_heard(box, "b") == box.n_captured("b")
        assert [health.stream for health in box.worker.healths()] == ["a"]
        assert box.farewells == [("b", "missing", STREAM_REMOVED)]


def test_time_in_which_a_stream_is_not_configured_is_off_and_no_loss(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture("a")
        box.start_capture("b")
        box.start_worker("a", "b")
        play(box, pcm, 0, 5, "a", "b")
        box.use_streams("a")
        play(box, pcm, 5, 12, "a")
        now_ns = round(box.now_s * NS_PER_SECOND)
        removed = Coverage.of("b", box.spans("b"), now_ns, is_expected=False)
        assert changes_of(box.spans("b")) == ["removed"]
        assert (removed.heard, removed.samples["missing"]) == (1.0, 0)
        assert removed.off == 7 * SECOND

        box.start_capture("b")  # a new process
        box.use_streams("a", "b")
        play(box, pcm, 12, 16, "a", "b")
        finish(box)
        again = Coverage.of("b", box.spans("b"), round(box.now_s * NS_PER_SECOND), is_expected=True)
        assert changes_of(box.spans("b")) == ["removed", "added"]
        assert again.samples["listened"] == 9 * SECOND
        assert abs(again.off - 7 * SECOND) <= BLOCK
        assert abs(again.total + again.off - 16 * SECOND) <= 2
        for before, after in pairwise(again.stretches):
            assert abs(after.time_ns - before.stop_ns) <= NS_PER_SECOND // SAMPLE_RATE


def test_removed_stream_is_not_resumed_by_the_next_worker(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture("a")
        box.start_capture("b")
        box.start_worker("a", "b")
        play(box, pcm, 0, 5, "a", "b")
        box.use_streams("a")
        box.tick(3)
        box.kill_worker()
        box.start_worker("a")
        assert '"b"' not in box.journal_path.read_text()
        box.tick(10, seconds=1.0)
        assert changes_of(box.spans("b")) == ["removed"]


def test_blocks_of_a_removed_stream_do_not_bring_it_back(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture("a")
        box.start_capture("b")
        box.start_worker("a", "b")
        play(box, pcm, 0, 3, "a", "b")
        box.use_streams("a")
        play(box, pcm, 3, 20, "a", "b")  # its capture process does not end
        assert [health.stream for health in box.worker.healths()] == ["a"]
        assert n_heard(box, "b") == 3 * SECOND


def test_stream_that_comes_back_at_once_waits_until_it_has_left(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture("a")
        box.start_worker("a")
        play(box, pcm, 0, 3.1, "a")
        box.use_streams("other")
        box.start_capture("a")
        box.use_streams("a")
        play(box, pcm, 3.1, 8.1, "a")
        finish(box)
        assert changes_of(box.spans("a")) == ["removed", "added"]
        assert n_heard(box, "a") == 3.1 * SECOND + 5 * SECOND
        epochs = {body["epoch"] for body in box.messages()}
        assert len(epochs) == 2


def test_event_keeps_the_labels_with_which_it_has_begun(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture("a")
        box.start_worker("a")
        n_played = 0.0
        while box.n_open("a") == 0:
            play(box, pcm, n_played, n_played + 0.5, "a")
            n_played += 0.5
        box.worker.use_streams([replace(box.config("a"), labels={"room": "porch"})])
        play(box, pcm, n_played, n_played + 20, "a")
        finish(box)
        labels: dict[str, set[str | None]] = {body["id"]: set() for body in box.messages()}
        for body in box.messages():
            labels[body["id"]].add(body["labels"].get("room"))
        assert all(len(rooms) == 1 for rooms in labels.values())
        assert set().union(*labels.values()) == {None, "porch"}


def test_new_stream_waits_for_the_slot_of_one_that_leaves(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        names = [f"s{number}" for number in range(64)]
        box.start_capture("s0")
        box.start_worker(*names)
        play(box, np.tile(pcm, 2), 0, 3.1, "s0")
        box.start_capture("new")
        box.use_streams("new", *names[1:])
        play(box, pcm, 0, 4, "new")
        finish(box)
        assert spans_of_audio(box, "new") == [("listened", 0, 4 * SECOND)]
