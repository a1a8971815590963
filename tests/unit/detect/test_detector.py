"""The detector gives the same events however the audio comes: in blocks, resumed, with others."""

import functools

import numpy as np
import pytest
from detector_events import EPOCH, blocks, events_of
from hypothesis import given, settings
from hypothesis import strategies as st
from reactive_model import tones_and_noise

from ast_stream.detect import Detector
from ast_stream.detect import detector as detector_module
from ast_stream.detect.detector import LONGEST_SILENT_HOLE
from ast_stream.detect.state import DetectorState
from ast_stream.errors import UsageError
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Gap, Scores
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.units import SAMPLE_RATE

HOP_S = 0.25


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(10.0)


def detection(smoothing_s: float = 0.0) -> DetectionSettings:
    return DetectionSettings(
        defaults=DetectionDefaults(
            onset_threshold=0.5, confirm_s=0.5, hold_s=0.25, smoothing_s=smoothing_s
        )
    )


def build(tagger: Tagger, smoothing_s: float = 0.0, **options: object) -> Detector:
    return Detector(tagger, detection(smoothing_s), hop_s=HOP_S, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def undisturbed(tagger: Tagger, pcm: Pcm16) -> dict[float, list[Event]]:
    """Events of `pcm` in one run without trouble, by the time constant of smoothing."""
    return {smoothing_s: events_of(build(tagger, smoothing_s), pcm) for smoothing_s in (0.0, 0.3)}


def test_fixture_makes_events_but_none_of_background(tagger: Tagger, pcm: Pcm16) -> None:
    events = events_of(build(tagger), pcm)
    assert {event.label for event in events} <= {"Bark", "Siren"}
    assert sum(event.type == "begin" for event in events) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("size", [160, 333, 1600, 4000, 16_001, 70_000, 160_000])
def test_events_do_not_depend_on_the_block_size(
    tagger: Tagger, pcm: Pcm16, undisturbed: dict[float, list[Event]], size: int
) -> None:
    assert events_of(build(tagger), pcm, size) == undisturbed[0.0]


def test_windows_score_as_the_same_waveform_given_to_the_tagger(tagger: Tagger, pcm: Pcm16) -> None:
    seen: list[Scores] = []
    events_of(build(tagger, on_scores=seen.append, min_context_s=None), pcm)
    full = [window for window in seen if window.end_sample <= len(pcm)]
    waveforms = np.stack(
        [pcm[window.end_sample - tagger.window_samples : window.end_sample] for window in full]
    )
    expected = tagger.scores(waveforms.astype(np.float32) / np.float32(32768))
    assert len(full) == (10 - tagger.window_s) / HOP_S + 1
    np.testing.assert_allclose(np.stack([window.scores for window in full]), expected, atol=1e-5)


def test_first_windows_hold_what_there_is_padded_as_in_training(tagger: Tagger, pcm: Pcm16) -> None:
    seen: list[Scores] = []
    events_of(build(tagger, on_scores=seen.append, min_context_s=0.5), pcm)
    assert seen[0].end_sample == 8_000
    expected = tagger.scores(pcm[None, :8_000].astype(np.float32) / np.float32(32768))[0]
    np.testing.assert_allclose(seen[0].scores, expected, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(1, 159_999), min_size=1, max_size=4),
    smoothing_s=st.sampled_from([0.0, 0.3]),
)
def test_detector_resumed_after_a_kill_gives_what_one_gives_that_never_stopped(
    tagger: Tagger,
    pcm: Pcm16,
    undisturbed: dict[float, list[Event]],
    cuts: list[int],
    smoothing_s: float,
) -> None:
    whole = undisturbed[smoothing_s]
    events: dict[tuple[str, str, int], Event] = {}

    def keep(new: list[Event]) -> None:
        events.update({(event.id, event.type, event.at_sample): event for event in new})

    detector = build(tagger, smoothing_s)
    detector.open("mic", EPOCH)
    position = 0
    for cut in sorted(cuts):
        detector.push("mic", position, pcm[position:cut])
        position = max(position, cut)
        keep(detector.run())
        state = detector.export("mic")
        detector = build(
            tagger, smoothing_s
        )  # the worker is gone; only the journal and the ring are left
        position = detector.context_needed(state)
        detector.resume("mic", EPOCH, position, state)
    detector.push("mic", position, pcm[position:])
    keep(detector.run() + detector.flush("mic"))
    assert sorted(events) == sorted((e.id, e.type, e.at_sample) for e in whole)
    assert all(event in events.values() for event in whole)


@pytest.mark.slow
def test_resumed_anywhere_in_half_a_minute_all_scores_are_those_of_an_undisturbed_run(
    tagger: Tagger,
) -> None:
    rng = np.random.default_rng(13)
    hop = SAMPLE_RATE // 2
    pcm = tones_and_noise(30.0)
    states: list[DetectorState] = []
    expected: dict[int, bytes] = {}

    def build(kept: dict[int, bytes]) -> Detector:
        keep = functools.partial(keep_scores, kept)
        return Detector(tagger, detection(), hop_s=0.5, on_scores=keep)

    detector = build(expected)
    detector.open("mic", EPOCH)
    for start, block in blocks(pcm, hop):
        detector.push("mic", start, block)
        detector.run()
        states.append(detector.export("mic"))

    for state in states[:-1:3]:
        scores: dict[int, bytes] = {}
        detector = build(scores)
        at = detector.context_needed(state)
        detector.resume("mic", EPOCH, at, state)
        until = min(len(pcm), at + 14 * SAMPLE_RATE)  # more than is staged at once
        while at < until:
            # ring replies bring up to 10 s, and the next may come before anything is scored
            reply = pcm[at : at + int(rng.choice([1, 700, 16_000, 64_000, 160_000]))]
            detector.push("mic", at, reply)
            at += len(reply)
            if rng.random() < 0.5:
                detector.run(int(rng.integers(1, 9)))
        detector.run()
        assert min(scores) == max(state.position, hop) + hop
        assert scores == {end: expected[end] for end in scores}


def keep_scores(kept: dict[int, bytes], scores: Scores) -> None:
    assert scores.end_sample not in kept, "a window was scored twice"
    kept[scores.end_sample] = scores.scores.tobytes()


@pytest.mark.slow
def test_bounded_runs_serve_all_streams_in_turn(tagger: Tagger, pcm: Pcm16) -> None:
    detector = build(tagger)
    for number in range(5):
        detector.open(f"mic-{number}", EPOCH)
        detector.push(f"mic-{number}", 0, pcm[: 8 * SAMPLE_RATE])
    while detector.has_due:
        detector.run(2)
        positions = [detector.position(stream) for stream in detector.streams]
        assert max(positions) - min(positions) <= detector.hop


def test_end_of_a_stream_is_scored_in_bounded_pieces_and_gives_the_same_events(
    tagger: Tagger, pcm: Pcm16
) -> None:
    detector = build(tagger)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, pcm)
    detector.begin_flush("mic")
    events: list[Event] = []
    n_runs = 0
    while detector.is_ending("mic"):
        assert detector.has_due
        events += detector.run(1)
        n_runs += 1
    assert detector.streams == []
    assert n_runs >= len(pcm) / (HOP_S * SAMPLE_RATE)
    assert events == events_of(build(tagger), pcm)


def test_audio_is_refused_while_the_end_of_a_stream_is_not_scored(
    tagger: Tagger, pcm: Pcm16
) -> None:
    detector = build(tagger)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, pcm[:40_000])
    detector.begin_gap(Gap("mic", EPOCH, 40_000, 16_000, "device_lost"))
    with pytest.raises(ValueError, match="its end is not scored yet"):
        detector.push("mic", 56_000, pcm[56_000:])
    detector.run()
    detector.push("mic", 56_000, pcm[56_000:])
    assert detector.received("mic") == len(pcm)


@pytest.mark.slow
def test_streams_together_give_what_each_gives_alone(tagger: Tagger, pcm: Pcm16) -> None:
    detector = build(tagger)
    clips = {"a": pcm, "b": pcm[20_000:], "c": pcm[::-1].copy(), "d": pcm // 2, "e": pcm[5:]}
    events: list[Event] = []
    for number, stream in enumerate(clips):  # they come one after the other
        detector.open(stream, EPOCH)
        for known in list(clips)[: number + 1]:
            start = detector.received(known)
            detector.push(known, start, clips[known][start : start + 9_000])
        events += detector.run()
    for stream, clip in clips.items():
        start = detector.received(stream)
        detector.push(stream, start, clip[start:])
    events += detector.run()
    for stream in clips:
        events += detector.flush(stream)
    assert detector.streams == []
    for stream, clip in clips.items():
        alone = events_of(build(tagger), clip, stream=stream)
        assert [event for event in events if event.stream == stream] == alone


def test_gap_ends_open_events_and_starts_a_new_context(tagger: Tagger, pcm: Pcm16) -> None:
    seen: list[Scores] = []
    detector = build(tagger, on_scores=seen.append)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, pcm[:40_000])
    detector.run()
    ended = detector.gap(Gap("mic", EPOCH, 40_000, 16_000, "device_lost"))
    assert {event.reason for event in ended if event.type == "end"} <= {"gap", "quiet"}
    assert detector.open_events("mic") == []
    seen.clear()
    detector.push("mic", 56_000, pcm[56_000:90_000])
    detector.run()
    assert seen[0].end_sample == 72_000  # a second of context behind the gap


def test_short_hole_is_silence_and_does_not_end_events(tagger: Tagger, pcm: Pcm16) -> None:
    holed = pcm.copy()
    holed[40_000 : 40_000 + LONGEST_SILENT_HOLE] = 0
    detector = build(tagger)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, pcm[:40_000])
    events = detector.run()
    events += detector.gap(Gap("mic", EPOCH, 40_000, LONGEST_SILENT_HOLE, "overflow"))
    detector.push("mic", 40_000 + LONGEST_SILENT_HOLE, pcm[40_000 + LONGEST_SILENT_HOLE :])
    events += detector.run() + detector.flush("mic")
    assert events == events_of(build(tagger), holed)


@pytest.mark.parametrize("n_samples", [0, 1, 399, 400, 4_000, 12_345])
def test_recordings_shorter_than_the_context_are_heard_or_quietly_nothing(
    tagger: Tagger, pcm: Pcm16, n_samples: int
) -> None:
    seen: list[Scores] = []
    events = events_of(build(tagger, on_scores=seen.append), pcm[20_000 : 20_000 + n_samples])
    assert bool(seen) == (n_samples >= 400)
    assert all(0 <= event.onset_sample <= n_samples for event in events)
    assert all((event.offset_sample or 0) <= n_samples for event in events)


def test_every_begin_gets_one_end_when_streams_are_closed(tagger: Tagger, pcm: Pcm16) -> None:
    detector = build(tagger)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, pcm[:50_000])
    events = detector.run() + detector.close("mic", "shutdown")
    begun = [event.id for event in events if event.type == "begin"]
    assert sorted(begun) == sorted(event.id for event in events if event.type == "end")
    assert begun


def test_gate_keeps_quiet_windows_from_the_model(tagger: Tagger, pcm: Pcm16) -> None:
    what = detection().model_copy(update={"gate_dbfs": -40.0})
    seen: list[Scores] = []
    detector = Detector(tagger, what, hop_s=HOP_S, on_scores=seen.append)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, (pcm[:16_000] // 100).astype(np.int16))
    detector.run()
    assert detector.is_gated("mic")
    assert not seen[-1].scores.any()
    n_gated = detector.n_gated
    assert (detector.n_scored, n_gated) == (0, len(seen))
    loud = np.random.default_rng(1).normal(0, 5000, 16_000)
    detector.push("mic", 16_000, loud.astype(np.int16))
    detector.run()
    assert detector.n_scored == len(seen) - n_gated > 0
    assert detector.n_gated == n_gated


def test_wider_stride_keeps_the_scores_between(tagger: Tagger, pcm: Pcm16) -> None:
    seen: list[Scores] = []
    detector = build(tagger, on_scores=seen.append)
    detector.open("mic", EPOCH)
    detector.set_stride("mic", 2)
    detector.push("mic", 0, pcm[:64_000])
    detector.run()
    pairs = [window for window in seen if window.end_sample >= 2 * SAMPLE_RATE]
    even = [window for window in pairs if window.end_sample // 4_000 % 2 == 0]
    odd = [window for window in pairs if window.end_sample // 4_000 % 2 == 1]
    for before, after in zip(even, odd, strict=False):
        assert np.array_equal(before.scores, after.scores)


@pytest.mark.parametrize("stride", [1, 2])
def test_several_windows_of_a_stream_at_once_give_the_same_events(
    tagger: Tagger, pcm: Pcm16, stride: int
) -> None:
    def run(hops_at_once: int) -> tuple[list[Event], list[Scores], DetectorState]:
        seen: list[Scores] = []
        detector = build(tagger, on_scores=seen.append, hops_at_once=hops_at_once)
        for stream in ("mic", "other"):
            detector.open(stream, EPOCH)
            detector.set_stride(stream, stride)
        detector.push("mic", 0, pcm[:100_000])
        detector.push("other", 0, pcm[:7_000])  # not behind
        events = detector.run()
        events += detector.gap(Gap("mic", EPOCH, 100_000, 8_000, "device_lost"))
        detector.push("mic", 108_000, pcm[100_000:])
        detector.push("other", 7_000, pcm[7_000:])
        events += detector.run()
        state = detector.export("other")
        events += detector.flush("mic") + detector.close("other", "shutdown")
        return sorted(events, key=lambda e: e.stream), sorted(seen, key=lambda s: s.stream), state

    def resumed(state: DetectorState, hops_at_once: int) -> list[Event]:
        detector = build(tagger, hops_at_once=hops_at_once)
        start = detector.context_needed(state)
        detector.resume("other", EPOCH, start, state)
        detector.push("other", start, pcm[start:])
        detector.push("other", len(pcm), pcm)
        return detector.run() + detector.flush("other")

    events, scores, state = run(1)
    many_events, many_scores, many_state = run(8)
    assert events == many_events
    assert state == many_state
    for one, other in zip(scores, many_scores, strict=True):
        assert (one.stream, one.end_sample) == (other.stream, other.end_sample)
        assert np.array_equal(one.scores, other.scores)
    assert resumed(state, 1) == resumed(state, 8)


@pytest.mark.parametrize("hops_at_once", [1, 4])
def test_no_step_takes_more_windows_than_memory_is_meant_for(
    tagger: Tagger, pcm: Pcm16, monkeypatch: pytest.MonkeyPatch, hops_at_once: int
) -> None:
    monkeypatch.setattr(detector_module, "WINDOWS_AT_ONCE", 8)
    sizes: list[int] = []
    monkeypatch.setattr(tagger, "_on_batch", lambda n_windows, _seconds: sizes.append(n_windows))
    detector = build(tagger, hops_at_once=hops_at_once)
    for number in range(12):
        detector.open(f"mic-{number}", EPOCH)
        detector.push(f"mic-{number}", 0, pcm[:64_000])
    detector.run(6)
    assert sum(sizes) <= 6
    detector.run()
    assert max(sizes) <= 8
    assert not detector.has_due


def test_sample_out_of_order_is_refused(tagger: Tagger, pcm: Pcm16) -> None:
    detector = build(tagger)
    detector.open("mic", EPOCH)
    with pytest.raises(ValueError, match="expected sample 0 next, got 160"):
        detector.push("mic", 160, pcm[:160])


def test_more_streams_than_slots_are_refused(tagger: Tagger) -> None:
    detector = build(tagger, max_streams=2)
    detector.open("a", EPOCH)
    detector.open("b", EPOCH)
    with pytest.raises(UsageError, match="all 2 slots are taken"):
        detector.open("c", EPOCH)


def test_other_settings_hold_from_the_next_window_on_and_open_events_still_end(
    tagger: Tagger, pcm: Pcm16
) -> None:
    half = len(pcm) // 2
    detector = build(tagger)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, pcm[:half])
    before = detector.run()
    deaf = DetectionSettings(defaults=DetectionDefaults(onset_threshold=1.0))
    detector.use(deaf)
    detector.push("mic", half, pcm[half:])
    after = detector.run() + detector.flush("mic")
    begun = [event.id for event in before if event.type == "begin"]
    assert begun
    assert [event for event in after if event.type == "begin"] == []
    assert sorted(event.id for event in before + after if event.type == "end") == sorted(begun)
    again = build(tagger)
    again.use(deaf)
    again.use(detection())
    assert events_of(again, pcm) == events_of(build(tagger), pcm)


def test_gate_can_be_changed_while_it_runs(tagger: Tagger, pcm: Pcm16) -> None:
    detector = build(tagger)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, pcm[: 3 * SAMPLE_RATE] // 1000)
    detector.run()
    assert not detector.is_gated("mic")
    detector.use(detection().model_copy(update={"gate_dbfs": -40.0}))
    detector.push("mic", 3 * SAMPLE_RATE, pcm[: 3 * SAMPLE_RATE] // 1000)
    detector.run()
    assert detector.is_gated("mic")


def test_settings_that_do_not_fit_the_model_change_nothing(tagger: Tagger, pcm: Pcm16) -> None:
    detector = build(tagger)
    with pytest.raises(UsageError, match="no such thing"):
        detector.use(DetectionSettings.model_validate({"classes": {"no such thing": {}}}))
    assert events_of(detector, pcm) == events_of(build(tagger), pcm)


def test_hop_longer_than_the_window_or_without_whole_frames_is_refused(tagger: Tagger) -> None:
    with pytest.raises(UsageError, match=r"at most the window of 1 s, got 2"):
        Detector(tagger, hop_s=2.0)
    with pytest.raises(UsageError, match=r"multiple of 0\.01 s"):
        Detector(tagger, hop_s=0.003)


def test_scores_that_are_no_numbers_count_as_nothing(
    tagger: Tagger, pcm: Pcm16, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = build(tagger)
    healthy = tagger.window_scores

    def overflowing(windows: object) -> np.ndarray:
        scores = healthy(windows)  # type: ignore[arg-type]
        scores[:, 1] = np.nan
        return scores

    monkeypatch.setattr(tagger, "window_scores", overflowing)
    events = events_of(detector, pcm)
    assert {event.label for event in events} == {"Bark"}
    assert detector.nan_scores > 0


def test_ids_differ_beyond_the_end_of_the_audio(tagger: Tagger) -> None:
    for seed in range(6):
        for seconds in (3.0, 4.3, 5.1):
            events = events_of(build(tagger), tones_and_noise(seconds, seed))
            begun = [event.id for event in events if event.type == "begin"]
            assert len(begun) == len(set(begun))
