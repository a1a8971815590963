"""Whatever dies when: every begin gets exactly one end, and no decided audio counts as lost."""

from __future__ import annotations

import resource
from collections import Counter

import numpy as np
import pytest
from reactive_model import tones_and_noise
from worker_harness import BLOCK, Site, site

from ast_stream.capture.sources.base import SourceStatus
from ast_stream.messages.audio import Pcm16
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(40.0)


def play_until_an_event_is_open(box: Site, pcm: Pcm16, *, journalled: bool) -> int:
    """Play `pcm` until an event has begun (and is in the journal, or not yet); return how far."""
    n_played = 0
    while n_played < len(pcm):
        box.play(pcm[n_played : n_played + BLOCK])
        n_played += BLOCK
        if open_ids(box) and not journalled:
            return n_played
        if open_ids(box) and n_played % (2 * SAMPLE_RATE) < BLOCK:
            box.tick(seconds=1.0)
            return n_played
    raise AssertionError("no event began")


def open_ids(box: Site) -> set[str]:
    kinds: dict[str, set[str]] = {}
    for body in box.messages():
        kinds.setdefault(body["id"], set()).add(body["type"])
    return {event_id for event_id, types in kinds.items() if "end" not in types}


def assert_each_begin_has_one_end(box: Site) -> None:
    counts = Counter((body["id"], body["type"]) for body in box.published)
    assert counts == Counter((body["id"], body["type"]) for body in box.messages())
    begun = {event_id for event_id, kind in counts if kind == "begin"}
    assert begun
    assert begun == {event_id for event_id, kind in counts if kind == "end"}
    assert all(count == 1 for (_, kind), count in counts.items() if kind != "update")


@pytest.mark.parametrize("journalled", [False, True])
def test_worker_and_capture_killed_together_leave_no_event_open(
    tagger: Tagger, pcm: Pcm16, journalled: bool
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        play_until_an_event_is_open(box, pcm, journalled=journalled)
        box.kill_worker()
        box.now_s += 3
        box.start_capture()
        box.start_worker("mic")
        box.play(np.zeros(3 * SAMPLE_RATE, np.int16))
        box.worker.finish()
        assert_each_begin_has_one_end(box)


@pytest.mark.parametrize("journalled", [False, True])
def test_worker_away_longer_than_the_ring_leaves_no_event_open(
    tagger: Tagger, pcm: Pcm16, journalled: bool
) -> None:
    with site(tagger) as box:
        box.start_capture(ring_s=10)
        box.start_worker("mic")
        play_until_an_event_is_open(box, pcm, journalled=journalled)
        box.kill_worker()
        box.play(np.zeros(30 * SAMPLE_RATE, np.int16))
        box.start_worker("mic")
        box.play(np.zeros(3 * SAMPLE_RATE, np.int16))
        box.worker.finish()
        assert_each_begin_has_one_end(box)
        assert len(box.messages("gap")) == 1


def test_event_ended_while_its_capture_process_was_silent_gets_no_second_end(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        n_played = play_until_an_event_is_open(box, pcm, journalled=True)
        box.kill_worker()
        box.start_worker("mic")
        box.tick(60, seconds=0.25)  # the device hangs: no audio for 15 s
        box.play(pcm[n_played:])
        box.worker.finish()
        assert_each_begin_has_one_end(box)


def test_stream_that_is_not_in_the_configuration_resumes_its_event(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture("guest")
        box.start_worker("mic")
        n_played = 0
        while not open_ids(box):
            box.play(pcm[n_played : n_played + BLOCK], "guest")
            n_played += BLOCK
        box.tick(2, seconds=1.0)
        before = open_ids(box)
        box.kill_worker()
        box.start_worker("mic")
        box.play(pcm[n_played:], "guest")
        box.worker.finish()
        assert_each_begin_has_one_end(box)
        reasons = {body["id"]: body["reason"] for body in box.messages() if body["type"] == "end"}
        assert "restart" not in {reasons[event_id] for event_id in before}
        assert not box.messages("gap")


def test_journal_that_could_not_be_written_makes_no_audio_lost(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture(ring_s=10)
        box.start_worker("mic")
        box.play(pcm[: 3 * SAMPLE_RATE])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # as good as a full disk
        box.play(pcm[3 * SAMPLE_RATE : 25 * SAMPLE_RATE])
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        box.kill_worker()
        box.start_worker("mic")
        box.play(pcm[25 * SAMPLE_RATE : 30 * SAMPLE_RATE])
        assert not box.messages("gap")


def test_worker_starts_from_a_journal_of_a_stream_that_never_spoke(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 2 * SAMPLE_RATE])
        box.tick(5, seconds=0.5)
        box.kill_worker()
        box.start_worker("mic", settings="others")  # from after the last sample, with no audio yet
        box.tick(5, seconds=0.5)
        box.kill_worker()
        box.start_worker("mic", settings="others")
        box.play(pcm[2 * SAMPLE_RATE : 4 * SAMPLE_RATE])
        assert not box.messages("gap")


def test_garbage_from_the_ring_does_not_stop_the_worker(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[:SAMPLE_RATE])
        capture = box.capture()
        replies = [[b"\xff"], [b"{}"], [b"[1]", b""], [b"{", b"\0"], [b"a"] * 5]
        for reply in replies:
            capture.garbage = reply
            box.tick(seconds=1.0)
            capture.garbage = None
            box.tick(3, seconds=0.3)
        box.play(pcm[SAMPLE_RATE : 12 * SAMPLE_RATE])
        assert box.messages()


@pytest.mark.slow
def test_what_a_full_disk_kept_out_of_the_log_is_derived_again_after_a_kill(
    tagger: Tagger, pcm: Pcm16
) -> None:
    def messages(*, is_disturbed: bool) -> list[tuple[object, ...]]:
        with site(tagger) as box:
            box.start_capture()
            box.start_worker("mic")
            box.play(pcm[: 4 * SAMPLE_RATE])
            events, away = box.folder / "events", box.folder / "away"
            if is_disturbed:
                events.rename(away)
                events.touch()  # as good as a full disk
            box.play(pcm[4 * SAMPLE_RATE : 14 * SAMPLE_RATE])
            if is_disturbed:
                box.kill_worker()
                events.unlink()
                away.rename(events)
                box.start_worker("mic")
            box.play(pcm[14 * SAMPLE_RATE : 20 * SAMPLE_RATE])
            box.tick(20, seconds=0.02)  # what was late on a busy machine comes from the ring
            box.worker.finish()
            names = ("at_sample", "type", "class", "onset_sample", "offset_sample", "reason")
            return [tuple(body[name] for name in names) for body in box.messages()]

    undisturbed = messages(is_disturbed=False)
    assert len(undisturbed) > 10
    assert messages(is_disturbed=True) == undisturbed


def test_acknowledgements_go_on_after_a_ring_was_silent_and_after_a_kill(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 4 * SAMPLE_RATE])
        capture = box.capture()
        assert capture.ring.acked > 0
        capture.is_answering = False
        box.tick(100, seconds=0.03)  # requests, because nothing comes; they are not answered
        capture.is_answering = True
        before = capture.ring.acked
        box.play(pcm[4 * SAMPLE_RATE : 9 * SAMPLE_RATE])
        assert capture.ring.acked > before + 2 * SAMPLE_RATE
        box.kill_worker()
        before = capture.ring.acked
        box.start_worker("mic")
        box.play(pcm[9 * SAMPLE_RATE : 14 * SAMPLE_RATE])
        assert capture.ring.acked > before + 2 * SAMPLE_RATE
        assert capture.server.n_malformed == 0


def test_an_end_that_the_ring_did_not_hear_of_is_acknowledged_again(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 4 * SAMPLE_RATE])
        capture = box.capture()
        capture.status = SourceStatus("ended")
        for _ in range(2):
            assert not capture.server.is_done_with
            box.send_newest("mic", 0)
            box.tick(40, seconds=0.25)
            assert capture.server.is_done_with
            capture.server.is_confirmed = False  # as if the acknowledgement was lost on its way


def test_event_of_an_epoch_that_was_not_journalled_yet_goes_on_after_a_kill(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 12 * SAMPLE_RATE])
        box.tick(2, seconds=1.0)
        box.kill_worker()
        before = {body["id"] for body in box.messages()}
        box.start_capture()  # another epoch, whose first seconds come at once
        box.play(pcm[: 4 * SAMPLE_RATE])
        box.start_worker("mic")
        for _ in range(100):
            box.tick(seconds=0.02)
            if open_ids(box) - before:
                break
        begun = open_ids(box) - before
        assert begun
        box.kill_worker()
        box.start_worker("mic")
        box.play(pcm[4 * SAMPLE_RATE : 12 * SAMPLE_RATE])
        box.worker.finish()
        assert_each_begin_has_one_end(box)
        reasons = {body["id"]: body["reason"] for body in box.messages() if body["type"] == "end"}
        assert "restart" not in {reasons[event_id] for event_id in begun}


@pytest.mark.parametrize("is_full_at_start", [False, True])
@pytest.mark.parametrize("first_killed", ["capture", "worker"])
def test_what_a_full_disk_kept_out_of_the_log_is_known_after_worker_and_capture_are_killed(
    tagger: Tagger, pcm: Pcm16, first_killed: str, is_full_at_start: bool
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        events, away = box.folder / "events", box.folder / "away"
        events.rename(away)
        events.touch()  # as good as a full disk
        n_played = play_until_an_event_is_open(box, pcm, journalled=True)
        if first_killed == "capture":
            box.start_capture()
            while open_ids(box):  # published, and read by whoever listens
                box.play(pcm[n_played : n_played + BLOCK])
                n_played += BLOCK
            box.kill_worker()
        else:
            box.kill_worker()
            box.start_capture()
        if not is_full_at_start:
            events.unlink()
            away.rename(events)
        box.start_worker("mic")
        box.play(pcm[n_played : n_played + 6 * SAMPLE_RATE])
        box.worker.finish()
        assert_each_begin_has_one_end(box)


def test_gap_at_the_end_of_an_epoch_is_published_once_also_where_more_is_lost_after_a_kill(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 6 * SAMPLE_RATE])
        box.tick(seconds=1.1)  # journalled
        box.play(pcm[6 * SAMPLE_RATE : 6 * SAMPLE_RATE + 5 * BLOCK])
        box.start_capture()
        n_played = 6 * SAMPLE_RATE + 5 * BLOCK
        while not box.messages("gap"):
            box.play(pcm[n_played : n_played + BLOCK])
            n_played += BLOCK
        box.kill_worker()
        box.start_worker("mic")
        box.play(pcm[n_played : n_played + 4 * SAMPLE_RATE])
        ranges = [(body["start"], body["start"] + body["samples"]) for body in box.messages("gap")]
        assert len(ranges) == 2, "what the killed worker had not decided is lost, too"
        (first_start, _), (second_start, second_stop) = ranges
        assert second_start < second_stop == first_start
