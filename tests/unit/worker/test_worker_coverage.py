"""The worker accounts for every sample once, whatever dies when and whatever is lost."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from reactive_model import tones_and_noise
from worker_harness import BLOCK, HOP_S, Site, site

from ast_stream.coverage.spans import Span
from ast_stream.messages.audio import Pcm16
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

HOP = seconds_to_samples(HOP_S)


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(40.0)


def assert_complete(spans: list[Span], *, from_sample: int = 0) -> None:
    """Each epoch from its first sample on, in order, without a hole or an overlap."""
    assert spans
    for _, of_epoch in itertools.groupby(spans, key=lambda span: span.epoch):
        at = from_sample
        for span in of_epoch:
            assert span.start_sample == at, spans
            at = span.stop_sample
    epochs = [epoch for epoch, _ in itertools.groupby(span.epoch for span in spans)]
    assert len(set(epochs)) == len(epochs)


def samples_by_kind(spans: list[Span]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for span in spans:
        counts[span.kind] += span.samples
    return counts


def finish(box: Site) -> None:
    box.tick(30, seconds=0.1)  # a worker that has just resumed reads the ring first
    box.worker.finish()


def without_time(spans: list[Span]) -> list[tuple[str, int, int]]:
    return [(span.kind, span.start_sample, span.samples) for span in spans]


def test_steady_listening_is_one_span_up_to_the_last_scored_window(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        began_ns = box.capture().began_ns
        box.start_worker("mic")
        box.play(pcm)
        finish(box)
        (span,) = box.spans()
        assert (span.kind, span.start_sample, span.samples) == ("listened", 0, len(pcm))
        assert abs(span.time_ns - began_ns) < 1000


@pytest.mark.slow
def test_worker_killed_at_any_time_leaves_no_hole_and_no_overlap(tagger: Tagger) -> None:
    """Silence for the gate, sounds, holes; kills between any two blocks, and a reader beside it."""
    rng = random.Random(16)
    pcm = tones_and_noise(60.0)
    for start_s in (5, 20, 31):  # long enough for a window of nothing else
        pcm[start_s * SAMPLE_RATE : (start_s + 7) * SAMPLE_RATE] = 0
    pieces: list[tuple[int, int, bool]] = []  # start, stop, and whether the source skips it
    at = 0
    while at < len(pcm):
        stop = min(len(pcm), at + BLOCK * rng.randint(1, 40))
        pieces.append((at, stop, rng.random() < 0.2))
        at = stop

    def play(n_kills: int) -> list[Span]:
        kills = set(rng.sample(range(len(pieces)), n_kills))
        with site(tagger) as box:
            box.gate_dbfs = -60.0
            box.start_capture()
            box.start_worker("mic")
            for number, (start, stop, is_lost) in enumerate(pieces):
                if is_lost:
                    box.capture().ring.skip(stop - start, "overflow")
                    box.now_s += (stop - start) / SAMPLE_RATE
                    box.tick()
                else:
                    box.play(pcm[start:stop])
                if number in kills:
                    assert_complete(box.spans() or [whole()])
                    box.kill_worker()
                    box.start_worker("mic")
            finish(box)
            published = sum(body["samples"] for body in box.messages("gap"))
            spans = box.spans()
            assert samples_by_kind(spans)["gap"] == published
            assert {span.reason for span in spans if span.kind == "gap"} == {"overflow"}
            assert spans[-1].stop_sample == box.n_captured()
            return spans

    undisturbed = play(0)
    assert_complete(undisturbed)
    assert {span.kind for span in undisturbed} == {"listened", "gated", "gap", "degraded"}
    for span, after in itertools.pairwise(undisturbed):
        # with windows this short none reaches the last samples in front of a gap
        assert span.kind != "degraded" or (span.samples < HOP and after.kind == "gap")
    for n_kills in (3, 20):
        killed = play(n_kills)
        assert_complete(killed)
        assert without_time(killed) == without_time(undisturbed)


def whole() -> Span:
    """A span that is complete by itself, for a ledger that is still empty."""
    return Span(stream="a", epoch="b", kind="listened", start_sample=0, samples=1, time_ns=0)


def test_audio_that_the_ring_kept_while_no_worker_ran_was_listened_to(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 10 * SAMPLE_RATE])
        box.kill_worker()
        box.capture_only(pcm[10 * SAMPLE_RATE : 30 * SAMPLE_RATE])
        box.start_worker("mic")
        box.play(pcm[30 * SAMPLE_RATE :])
        finish(box)
        assert without_time(box.spans()) == [("listened", 0, len(pcm))]


def test_worker_away_for_longer_than_the_ring_leaves_the_gap_of_its_record(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture(ring_s=10)
        box.start_worker("mic")
        box.play(pcm[: 5 * SAMPLE_RATE])
        box.kill_worker()
        box.play(pcm[5 * SAMPLE_RATE : 35 * SAMPLE_RATE])
        box.start_worker("mic")
        box.play(pcm[35 * SAMPLE_RATE :])
        finish(box)
        spans = box.spans()
        assert_complete(spans)
        (gap,) = box.messages("gap")
        (found,) = (span for span in spans if span.kind == "gap")
        assert (found.start_sample, found.samples, found.reason) == (
            gap["start"],
            gap["samples"],
            gap["reason"],
        )
        assert spans[-1].stop_sample == len(pcm)


def test_time_in_which_no_capture_process_ran_is_missing(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 10 * SAMPLE_RATE])
        first = box.capture().began_ns
        box.tick(30, seconds=0.1)
        box.start_capture()
        second = box.capture().began_ns
        box.play(pcm[: 10 * SAMPLE_RATE])
        finish(box)
        spans = box.spans()
        assert_complete(spans)
        assert [span.kind for span in spans] == ["listened", "missing", "listened"]
        assert spans[1].reason == "capture_restart"
        assert abs(spans[1].stop_ns - second) < 1_000_000
        assert abs(spans[0].time_ns - first) < 1000
        (gap,) = box.messages("gap")
        assert gap["samples"] == spans[1].samples


@pytest.mark.slow
def test_overload_is_degraded_and_costs_no_sample(tagger: Tagger) -> None:
    pcm = tones_and_noise(60.0)
    with site(tagger) as box:
        box.start_capture(ring_s=60)
        box.start_worker("mic")
        began_s = box.now_s
        box.window_cost_s = 2.5 * HOP_S
        box.play_live({"mic": pcm}, began_s + 30)
        box.window_cost_s = 0.0
        box.play_live({"mic": pcm}, began_s + 60)
        box.worker.finish()
        spans = box.spans()
        assert_complete(spans)
        kinds = [span.kind for span in spans]
        assert kinds == ["listened", "degraded", "listened"]
        assert sum(span.samples for span in spans) > 58 * SAMPLE_RATE


@pytest.mark.slow
def test_room_too_quiet_to_score_is_gated_and_no_loss(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.gate_dbfs = -60.0
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 10 * SAMPLE_RATE])
        box.play(np.zeros(20 * SAMPLE_RATE, np.int16))
        box.play(pcm[: 10 * SAMPLE_RATE])
        finish(box)
        spans = box.spans()
        assert_complete(spans)
        assert [span.kind for span in spans] == ["listened", "gated", "listened"]
        quiet_s = spans[1].samples / SAMPLE_RATE
        assert 20 - tagger.window_s <= quiet_s <= 20


@pytest.mark.slow
def test_clock_that_is_set_ends_a_span_and_loses_no_sample(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 20 * SAMPLE_RATE])
        box.set_by_ns = box.capture().set_by_ns = 3600 * 10**9
        box.play(pcm[20 * SAMPLE_RATE :])
        finish(box)
        before, after = box.spans()
        assert_complete([before, after])
        assert after.time_ns - before.stop_ns == 3600 * 10**9
        assert before.samples == 20 * SAMPLE_RATE


@pytest.mark.slow
def test_full_disk_loses_nothing_that_fits_into_memory(
    tagger: Tagger, pcm: Pcm16, small_files: None
) -> None:
    with site(tagger) as box:
        box.gate_dbfs = -60.0
        box.start_capture()
        box.start_worker("mic")
        for _ in range(4):
            box.play(pcm[: 3 * SAMPLE_RATE])
            box.play(np.zeros(4 * SAMPLE_RATE, np.int16))
        finish(box)
        spans = box.spans()
        assert_complete(spans)
        assert spans[-1].stop_sample == 28 * SAMPLE_RATE


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [False, True])
def test_worker_of_another_model_goes_on_where_the_one_before_it_ended(
    tagger: Tagger, pcm: Pcm16, is_stopped: bool
) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 10 * SAMPLE_RATE + BLOCK])
        if is_stopped:
            box.worker.finish()
        box.kill_worker()
        box.start_worker("mic", settings="other")  # it has no use for the journal
        box.play(pcm[10 * SAMPLE_RATE + BLOCK :])
        finish(box)
        assert without_time(box.spans()) == [("listened", 0, len(pcm))]


@pytest.mark.slow
def test_streams_are_accounted_for_each_by_itself(tagger: Tagger, pcm: Pcm16) -> None:
    with site(tagger) as box:
        box.start_capture("mic")
        box.start_capture("guest")  # not in the configuration
        box.start_worker("mic")
        box.play(pcm[: 5 * SAMPLE_RATE], "mic")
        box.play(pcm[: 7 * SAMPLE_RATE], "guest")
        box.kill_worker()
        box.start_worker("mic")
        box.play(pcm[7 * SAMPLE_RATE :], "guest")
        finish(box)
        assert without_time(box.spans("mic")) == [("listened", 0, 5 * SAMPLE_RATE)]
        assert without_time(box.spans("guest")) == [("listened", 0, len(pcm))]


def test_gap_that_was_published_keeps_its_reason_when_its_worker_and_capture_are_killed(
    tagger: Tagger, pcm: Pcm16
) -> None:
    """The second run finds it to be a part of what it lacks of the old capture process."""
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[: 5 * SAMPLE_RATE])
        journal = box.journal_path.read_bytes()
        unwritten = {path: path.read_bytes() for path in box.folder.glob("unwritten*")}
        box.capture().ring.skip(3 * HOP, "overflow")
        box.now_s += 3 * HOP / SAMPLE_RATE
        box.play(pcm[5 * SAMPLE_RATE : 6 * SAMPLE_RATE])
        assert [gap["reason"] for gap in box.messages("gap")] == ["overflow"]
        box.kill_worker()
        box.journal_path.write_bytes(journal)  # as if it had been killed before it saved again
        for path, content in unwritten.items():
            path.write_bytes(content)
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm[6 * SAMPLE_RATE : 8 * SAMPLE_RATE])
        finish(box)
        published: Counter[str] = Counter()
        for gap in box.messages("gap"):
            published[gap["reason"]] += gap["samples"]
        accounted: Counter[str] = Counter()
        for span in box.spans():
            if span.reason is not None:
                accounted[span.reason] += span.samples
        assert_complete(box.spans())
        assert accounted == published
        assert set(published) == {"overflow", "capture_restart"}
