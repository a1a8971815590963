"""A worker that is stopped, late or overloaded says so, and finds the same events."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from reactive_model import tones_and_noise
from worker_harness import BLOCK, HOP_S, Site, site

from ast_stream.detect import Detector
from ast_stream.detect.cascade import Cascade
from ast_stream.messages.audio import Pcm16
from ast_stream.model.tagger import Tagger
from ast_stream.settings.model import CascadeSettings
from ast_stream.units import SAMPLE_RATE, samples_to_seconds
from ast_stream.worker.overload import CHECK_EVERY_S, NARROW_AFTER_S, OverloadControl

STREAMS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(40.0)


def events_of(box: Site) -> list[dict[str, Any]]:
    """Return the events without the times at which they were scored and published."""
    late = {"seq", "boot", "scored", "published", "captured", "epoch", "id", "previous"}
    late |= {"monotonic_ns", "clock"}
    bodies = [body for body in box.messages() if body["type"] != "update"]
    return [{key: body[key] for key in body if key not in late} for body in bodies]


def undisturbed(tagger: Tagger, pcm: Pcm16) -> list[dict[str, Any]]:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        box.play(pcm)
        box.tick(10)
        return events_of(box)


def test_worker_that_was_stopped_for_half_a_minute_finds_the_same_events(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture()
        worker = box.start_worker("mic")
        box.play(pcm[: 4 * SAMPLE_RATE])
        for start in range(4 * SAMPLE_RATE, 34 * SAMPLE_RATE, BLOCK):  # SIGSTOP
            box.capture_only(pcm[start : start + BLOCK])
        box.tick()
        assert "sends no audio" not in worker.status_line()
        box.tick(20)
        box.play(pcm[34 * SAMPLE_RATE :])
        box.tick(10)
        assert events_of(box) == undisturbed(tagger, pcm)


@pytest.mark.slow
def test_backlog_of_a_slow_worker_is_not_silence(tagger: Tagger) -> None:
    pcm = tones_and_noise(90.0)
    with site(tagger) as box:
        began_s = box.now_s
        box.start_capture()
        worker = box.start_worker("mic")
        box.window_cost_s = 0.4 * HOP_S  # it catches up, slowly
        box.play_live({"mic": pcm}, began_s + 4)
        box.capture_only(pcm[box.n_captured() : box.n_captured() + 30 * SAMPLE_RATE])
        lines, lags_s = set(), []
        for second in range(35, 91):
            box.play_live({"mic": pcm}, began_s + second)
            lines.add(worker.status_line().split(",")[0])
            lags_s.append(worker.healths()[0].lag_s or 0.0)
        assert lags_s[0] > 20
        assert lags_s[-1] < 2
        assert lines == {"listening to mic"}
        box.tick(10)
        assert events_of(box) == undisturbed(tagger, pcm)


@pytest.mark.slow
def test_overload_widens_the_hop_of_all_streams_alike_and_is_over_when_it_is_over(
    tagger: Tagger,
) -> None:
    sounds = {name: tones_and_noise(110.0, seed) for seed, name in enumerate(STREAMS)}
    with site(tagger) as box:
        for name in STREAMS:
            box.start_capture(name, ring_s=60)
        worker = box.start_worker(*STREAMS)
        began_s = box.now_s
        box.window_cost_s = 2.5 * HOP_S / len(STREAMS)  # two and a half times what can be done
        lags_s, hops_s = [], []
        for second in range(1, 41):
            box.play_live(sounds, began_s + second)
            healths = worker.healths()
            lags_s.append(max(health.lag_s or 0.0 for health in healths))
            hops_s.append({health.hop_s for health in healths})
        assert all(len(hops) == 1 for hops in hops_s)
        assert max(lags_s) < 12
        assert max(lags_s[30:]) < 4
        assert {4 * HOP_S} in hops_s
        assert {health.state for health in worker.healths()} == {"degraded"}
        assert {body["stream"] for body in box.messages()} == set(STREAMS)
        box.window_cost_s = 0.0
        box.play_live(sounds, began_s + 100)
        assert {health.hop_s for health in worker.healths()} == {HOP_S}
        assert {health.state for health in worker.healths()} == {"listening"}
        assert not box.messages("gap")


@pytest.mark.slow
def test_overload_of_windows_that_just_touch_gives_up_audio_while_it_is_young(
    tagger: Tagger,
) -> None:
    sounds = {name: tones_and_noise(110.0, seed) for seed, name in enumerate(STREAMS)}
    with site(tagger) as box:
        box.hop_s = 0.75  # of windows of a second: none can be left out
        for name in STREAMS:
            box.start_capture(name, ring_s=60)
        worker = box.start_worker(*STREAMS)
        began_s = box.now_s
        box.window_cost_s = 2.0 * box.hop_s / len(STREAMS)  # twice what can be done
        lags_s, lost_s = [], []
        for second in range(1, 61):
            box.play_live(sounds, began_s + second)
            healths = worker.healths()
            lags_s.append(max(health.lag_s or 0.0 for health in healths))
            lost_s.append([samples_to_seconds(health.lost_samples) for health in healths])
        assert max(lags_s) < 20  # the rings hold 60
        assert {health.hop_s for health in healths} == {box.hop_s}
        assert {health.state for health in healths} == {"degraded"}
        assert {health.detail for health in healths} == {
            "overload: audio is given up, more windows cannot be left out"
        }
        gaps = box.messages("gap")
        assert {(body["stream"], body["reason"]) for body in gaps} == {
            (name, "overload") for name in STREAMS
        }
        assert all(10 < lost < 45 for lost in lost_s[-1])
        assert max(lost_s[-1]) - min(lost_s[-1]) < 10  # all alike
        assert {body["stream"] for body in box.messages()} == set(STREAMS)

        box.window_cost_s = 0.0
        box.play_live(sounds, began_s + 100)
        assert {health.state for health in worker.healths()} == {"listening"}
        assert max(health.lag_s or 0.0 for health in worker.healths()) < 2
        after = [body for body in box.messages("gap") if body not in gaps]
        assert len(after) <= len(STREAMS)  # nothing more is given up than was already behind
        box.tick(10)
        for name in STREAMS:
            spans = box.spans(name)
            assert sum(span.samples for span in spans if span.kind == "gap") == sum(
                body["samples"] for body in box.messages("gap") if body["stream"] == name
            )


def test_overload_is_seen_by_the_shortest_window_of_a_cascade(tagger: Tagger) -> None:
    cascade = Cascade(tagger, CascadeSettings(checkpoint="small"))
    short = tagger.window_s / 2
    cut = Tagger(tagger.checkpoint, "cpu", "fp32", window_s=short)
    assert Detector(tagger, hop_s=0.25).widest_stride == round(tagger.window_s / 0.25)
    small = Detector(tagger, hop_s=0.25, cascade=Cascade(cut, cascade.settings))
    assert small.widest_stride == round(short / 0.25)


def test_file_read_as_fast_as_possible_is_always_behind_and_not_overload(
    tagger: Tagger, pcm: Pcm16
) -> None:
    with site(tagger) as box:
        box.start_capture(is_paced=False)
        worker = box.start_worker("mic")
        box.window_cost_s = 0.8 * HOP_S
        for second in range(1, 41):
            box.play_unpaced(pcm[: second * SAMPLE_RATE], ahead_s=10.0)
            assert {health.hop_s or HOP_S for health in worker.healths()} == {HOP_S}
        box.window_cost_s = 0.0
        box.tick(20)
        assert events_of(box) == undisturbed(tagger, pcm)


def test_backlog_that_shrinks_changes_nothing() -> None:
    control = OverloadControl(16, 0.0)
    for second in range(60):
        behind_s = max(0.0, 30.0 - 0.5 * second)
        assert control.update(behind_s, float(second), is_idle=False) == 1


def test_narrower_hop_is_tried_again_later_each_time_it_was_too_much() -> None:
    control = OverloadControl(16, 0.0)
    now_s, behind_s = 0.0, 0.0
    narrowed_at = []
    stride_before = 1
    while now_s < 600:  # one of two windows can be scored, each window cannot
        now_s += 1.0
        behind_s = behind_s + 0.5 if stride_before == 1 else max(0.0, behind_s - 1.0)
        stride = control.update(behind_s, now_s, is_idle=behind_s == 0)
        if stride < stride_before:
            narrowed_at.append(now_s)
        assert stride <= 2
        stride_before = stride
    pauses = [after - before for before, after in itertools.pairwise(narrowed_at)]
    assert pauses == sorted(pauses)
    assert narrowed_at[0] < 5 * NARROW_AFTER_S
    assert pauses[-1] > 2 * pauses[0]


def test_stride_is_never_so_wide_that_a_sound_falls_between_two_windows() -> None:
    control = OverloadControl(5, 0.0)
    strides = [control.update(float(n), n * CHECK_EVERY_S, is_idle=False) for n in range(1, 30)]
    assert strides[-1] == 5
    assert sorted(strides) == strides
