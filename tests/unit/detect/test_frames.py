"""Frames: on a grid of the stream, averaged over windows, decided alike however the audio comes."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from detector_events import EPOCH, blocks, events_of
from hypothesis import given, settings
from hypothesis import strategies as st
from loud_frames import SURE, LoudFrames, loud_frames, noise_bursts
from pydantic import ValidationError
from reactive_model import framed_checkpoint, tones_and_noise
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.detect import Detector
from ast_stream.detect.frames import MAX_LOGIT, FrameAverages, PatchGrid
from ast_stream.detect.state import DetectorState, FrameState
from ast_stream.messages.event import Event, Gap, Scores
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

STEP = 2_560  # samples of a frame
GRID = PatchGrid(n_patches=16, patch=16, stride=16)
WINDOW = 16 * STEP
HOPS_S = (0.5, 0.25, 0.16, 0.1, 0.33)


def detection(**defaults: float) -> DetectionSettings:
    chosen = {"onset_threshold": 0.5, "confirm_s": 0.3, "hold_s": 0.5} | defaults
    return DetectionSettings(defaults=DetectionDefaults(**chosen))


@pytest.fixture(scope="module")
def perfect() -> LoudFrames:
    return loud_frames()


@pytest.fixture(scope="module")
def framed() -> Tagger:
    return Tagger(framed_checkpoint(), "cpu", "fp32", "math")


def of_class(events: list[Event], kind: str, label: str = "Bark") -> list[Event]:
    return [event for event in events if event.type == kind and event.label == label]


# -- times of sounds


@pytest.mark.parametrize(
    "hop_s", [0.5, *(pytest.param(hop_s, marks=pytest.mark.slow) for hop_s in HOPS_S[1:])]
)
def test_onsets_and_offsets_are_those_of_the_sound_within_a_frame(
    perfect: LoudFrames, hop_s: float
) -> None:
    pcm, truth = noise_bursts(15)
    events = events_of(Detector(perfect, detection(), hop_s=hop_s), pcm)
    begins, ends = of_class(events, "begin"), of_class(events, "end")
    assert len(begins) == len(ends) == len(truth)
    onsets = np.array([event.onset_sample for event in begins]) / SAMPLE_RATE - truth[:, 0]
    offsets = np.array([event.offset_sample or 0 for event in ends]) / SAMPLE_RATE - truth[:, 1]
    for errors in (onsets, offsets):
        assert np.median(np.abs(errors)) < 0.06
        assert np.abs(errors).max() < 0.16
        assert abs(errors.mean()) < 0.04
    uncertainty_s = begins[0].uncertainty_s
    assert np.mean(np.abs(onsets) <= uncertainty_s) > 0.9


def test_sounds_are_known_sooner_with_a_smaller_hop_or_delay() -> None:
    pcm, truth = noise_bursts(8)

    def median_delay_s(delay_s: float, hop_s: float) -> float:
        detector = Detector(loud_frames(delay_s), detection(), hop_s=hop_s)
        begins = of_class(events_of(detector, pcm), "begin")
        return float(np.median([e.at_sample / SAMPLE_RATE for e in begins] - truth[:, 0]))

    at_default = median_delay_s(0.16, 0.5)
    assert at_default < 0.85
    assert median_delay_s(0.16, 0.25) < at_default
    assert median_delay_s(0.0, 0.5) < at_default


def test_windows_that_end_too_early_to_hear_a_sound_are_outweighed_by_later_ones() -> None:
    pcm, truth = noise_bursts(8)
    tagger = loud_frames(0.32)
    tagger.blind_s = 0.16
    begins = of_class(events_of(Detector(tagger, detection(), hop_s=0.16), pcm), "begin")
    assert len(begins) == len(truth)
    onsets = np.array([event.onset_sample for event in begins]) / SAMPLE_RATE
    assert np.median(np.abs(onsets - truth[:, 0])) < 0.1


def test_sounds_that_last_to_the_end_and_short_recordings_are_found(perfect: LoudFrames) -> None:
    rng = np.random.default_rng(0)
    loud = rng.normal(0, 9_000, seconds_to_samples(1.3))
    for silence_s in (0.0, 0.5, 3.21):
        pcm = np.concatenate([rng.normal(0, 5, seconds_to_samples(silence_s)), loud])
        events = events_of(Detector(perfect, detection(), hop_s=0.5), pcm.astype(np.int16))
        (begin,), (end,) = of_class(events, "begin"), of_class(events, "end")
        assert begin.onset_sample / SAMPLE_RATE == pytest.approx(silence_s, abs=0.16)
        assert end.offset_sample == len(pcm)
        assert end.reason == "stream_lost"


def test_a_gap_ends_events_and_frames_behind_it_hold_only_what_lies_there(
    perfect: LoudFrames,
) -> None:
    loud = np.random.default_rng(0).normal(0, 9_000, 2 * SAMPLE_RATE).astype(np.int16)
    detector = Detector(perfect, detection(), hop_s=0.5)
    detector.open("mic", EPOCH)
    detector.push("mic", 0, loud)
    behind = 5 * SAMPLE_RATE + 123
    events = detector.run()
    events += detector.gap(Gap("mic", EPOCH, len(loud), behind - len(loud), "lost"))
    detector.push("mic", behind, loud)
    events += detector.run() + detector.flush("mic")
    begins, ends = of_class(events, "begin"), of_class(events, "end")
    assert [end.reason for end in ends] == ["gap", "stream_lost"]
    assert ends[0].offset_sample == len(loud)
    assert begins[1].onset_sample >= behind


def test_quiet_windows_are_gated_and_their_frames_score_nothing(perfect: LoudFrames) -> None:
    pcm, truth = noise_bursts(5, pause_s=(4.0, 5.0))
    gated = detection().model_copy(update={"gate_dbfs": -50.0})
    seen: list[Scores] = []
    detector = Detector(perfect, gated, hop_s=0.5, on_scores=seen.append)
    events = events_of(detector, pcm)
    assert detector.n_gated > 0
    assert len(of_class(events, "begin")) == len(truth)
    assert min(each.scores.max() for each in seen) == pytest.approx(0, abs=1e-6)


def test_overload_scores_fewer_windows_and_still_every_frame(perfect: LoudFrames) -> None:
    pcm, truth = noise_bursts(10)
    seen: list[Scores] = []
    detector = Detector(perfect, detection(), hop_s=0.5, on_scores=seen.append)
    detector.open("mic", EPOCH)
    detector.set_stride("mic", 4)
    events = []
    for start, block in blocks(pcm, 8_000):
        detector.push("mic", start, block)
        events += detector.run()
    events += detector.flush("mic")
    assert detector.n_scored < len(pcm) / SAMPLE_RATE
    assert len(of_class(events, "begin")) == len(truth)
    np.testing.assert_array_equal(np.diff([each.end_sample for each in seen]), STEP)


# -- the same however the audio comes


@pytest.mark.parametrize("size", [333, 4_000, 70_000])
def test_events_and_scores_do_not_depend_on_the_block_size(framed: Tagger, size: int) -> None:
    pcm = tones_and_noise(8.0)
    found = []
    for block_size in (1_600, size):
        seen: list[Scores] = []
        detector = Detector(framed, detection(), hop_s=0.25, on_scores=seen.append)
        events = events_of(detector, pcm, block_size)
        found.append((events, [(each.end_sample, each.scores.tobytes()) for each in seen]))
    assert found[0] == found[1]
    assert len(found[0][0]) > 4


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(1, 95_999), min_size=1, max_size=4),
    hop_s=st.sampled_from(HOPS_S),
    start=st.integers(0, 100_000),
)
def test_resumed_after_a_kill_frames_are_those_of_a_run_that_never_stopped(
    framed: Tagger, cuts: list[int], hop_s: float, start: int
) -> None:
    pcm = tones_and_noise(6.0)

    def run(kills: list[int]) -> tuple[list[tuple[str, str, int]], dict[int, bytes]]:
        scores: dict[int, bytes] = {}
        events: list[Event] = []

        def keep(each: Scores) -> None:
            assert each.end_sample not in scores, "a frame is decided once"
            scores[each.end_sample] = each.scores.tobytes()

        build = partial(Detector, framed, detection(), hop_s=hop_s, on_scores=keep)
        detector = build()
        detector.open("mic", EPOCH, start)
        position = start
        for kill in kills:
            detector.push("mic", position, pcm[position - start : kill])
            events += detector.run()
            journalled = detector.export("mic").model_dump_json(exclude_unset=True)
            state = DetectorState.model_validate_json(journalled)
            assert state.is_of(3)
            detector = build()  # only the journal and the ring are left
            position = max(start, detector.context_needed(state))
            detector.resume("mic", EPOCH, position, state)
        detector.push("mic", position, pcm[position - start :])
        events += detector.run() + detector.flush("mic")
        return sorted((e.id, e.type, e.at_sample) for e in events), scores

    assert run(sorted(cuts)) == run([])


def test_streams_together_give_what_each_gives_alone(framed: Tagger) -> None:
    recordings = {f"mic-{n}": tones_and_noise(6.0, seed=n) for n in range(3)}
    offsets = {"mic-0": 0, "mic-1": 5_000, "mic-2": 77_777}
    together: list[Event] = []
    detector = Detector(framed, detection(), hop_s=0.25)
    for stream, offset in offsets.items():
        detector.open(stream, EPOCH, offset)
    for start in range(0, 6 * SAMPLE_RATE, 1600):
        for stream, pcm in recordings.items():
            detector.push(stream, start + offsets[stream], pcm[start : start + 1600])
        together += detector.run()
    for stream in recordings:
        together += detector.flush(stream)
    for stream, pcm in recordings.items():
        detector = Detector(framed, detection(), hop_s=0.25)
        detector.open(stream, EPOCH, offsets[stream])
        detector.push(stream, offsets[stream], pcm)
        alone = detector.run() + detector.flush(stream)
        assert [event for event in together if event.stream == stream] == alone


def test_without_its_frame_head_a_checkpoint_decides_by_windows() -> None:
    pcm = tones_and_noise(6.0)
    with_head = tiny_checkpoint(4, TINY_DIMS, FrameDecisions(onset_thresholds={"Bark": 0.9}))
    plain = Tagger(tiny_checkpoint(4, TINY_DIMS), "cpu", "fp32", "math")
    by_windows = Tagger(with_head, "cpu", "fp32", "math", use_frames=False)
    found = []
    for tagger in (plain, by_windows):
        seen: list[Scores] = []
        events_of(Detector(tagger, hop_s=0.25, on_scores=seen.append), pcm)
        found.append([(each.end_sample, each.scores.tobytes()) for each in seen])
    assert found[0] == found[1]


# -- the averages themselves


def averages(delay: int = 0, grid: PatchGrid = GRID) -> FrameAverages:
    frames = FrameAverages(grid, 1, delay)
    frames.grow(1)
    frames.reset(0)
    return frames


def add(
    frames: FrameAverages,
    end: int,
    patches: npt.NDArray[np.floating],
    audio_end: int = 10**9,
    *,
    is_asked: bool = True,
) -> dict[int, float]:
    """Add a full window that ends at `end`; return the logits of decided frames by their end."""
    asked = np.array([is_asked])
    begin = np.array([end // 160 - GRID.n_patches * GRID.stride])
    logits = patches.astype(np.float32)[None, :, None]
    decided: dict[int, float] = {}
    ends = np.array([end])
    for each in frames.add(np.array([0]), ends, begin, np.array([audio_end]), logits, asked):
        score = float(each.scores[0, 0])
        decided[int(each.ends[0])] = float(np.log(score / (1 - score)))
    return decided


def test_later_windows_weigh_more() -> None:
    frames = averages(delay=2 * STEP)
    hop = STEP
    decided: dict[int, float] = {}
    for number in range(4):  # each window says its number of all frames
        decided |= add(frames, WINDOW + number * hop, np.full(16, float(number)))
    # the last frame of the first window: heard by windows 0, 1 and 2 with weights 1, 2 and 3
    assert decided[WINDOW] == pytest.approx((0 * 1 + 1 * 2 + 2 * 3) / 6, abs=1e-4)


@given(end=st.integers(300, 2_000).map(lambda number: number * 160))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_what_rises_evenly_over_a_window_does_so_over_the_frames_of_the_stream(end: int) -> None:
    middles = end / STEP - 16 + np.arange(16) + 0.5  # of the patches, in frames of the stream
    decided = add(averages(), end, np.asarray(0.01 * (middles - end / STEP), np.float64))
    assert min(decided) - STEP >= end - WINDOW - STEP // 2
    assert end - STEP < max(decided) <= end
    for frame_end, logit in decided.items():
        expected = 0.01 * (frame_end / STEP - 0.5 - end / STEP)
        assert logit == pytest.approx(expected, abs=1e-4)


def test_each_frame_is_decided_once_in_order_and_by_the_first_window_that_may() -> None:
    delay = 4_000
    frames = averages(delay)
    rng = np.random.default_rng(0)
    seen: list[int] = []
    for end in range(WINDOW, WINDOW + 40 * 8_000, 8_000):
        decided = add(frames, end, rng.normal(size=16))
        assert all(end - delay - 8_000 < at <= end - delay for at in decided if at > WINDOW)
        seen += decided
    np.testing.assert_array_equal(np.diff(seen), STEP)


def test_a_window_that_is_not_asked_about_decides_what_no_later_one_can_know_and_no_more() -> None:
    nothing = np.full(16, -MAX_LOGIT)
    frames = averages(delay=STEP)
    assert add(frames, WINDOW, nothing, is_asked=False) == {}
    later = add(frames, WINDOW + 3 * STEP, nothing, is_asked=False)
    assert list(later) == [STEP, 2 * STEP, 3 * STEP]
    assert max(later.values()) < -15
    # one that is asked about says of all its frames what it hears
    heard = add(frames, WINDOW + 5 * STEP, np.arange(16.0))
    assert list(heard) == [number * STEP for number in range(4, 21)]
    assert max(list(heard.values())[:2]) < -15
    np.testing.assert_allclose(list(heard.values())[2:], np.arange(15.0), atol=0.01)
    # and its frames that are not decided yet keep what it said of them
    assert list(add(frames, WINDOW + 6 * STEP, nothing, is_asked=False)) == []
    rest = {int(each.ends[0]): float(each.scores[0, 0]) for each in frames.finish(0)}
    assert list(rest) == [WINDOW + 5 * STEP, WINDOW + 6 * STEP]
    assert rest[WINDOW + 5 * STEP] > 0.99999
    assert rest[WINDOW + 6 * STEP] < 0.001


def test_extreme_logits_are_bounded() -> None:
    decided = add(averages(), WINDOW, np.full(16, 1e9))
    assert max(decided.values()) == pytest.approx(MAX_LOGIT, abs=1.0)
    assert SURE < MAX_LOGIT


def test_a_damaged_state_of_frames_is_refused() -> None:
    frames = averages(STEP)
    add(frames, WINDOW, np.arange(16.0))
    state = frames.export(0)
    assert state is not None
    assert state.is_of(1)
    assert not state.is_of(2)
    whole = state.model_dump()
    for field, value in (
        ("sums", "no base64"),
        ("last", "AAAAA"),
        ("sums", "AADAfw=="),  # not a number
        ("weights", [-1.0]),
    ):
        with pytest.raises(ValidationError):
            FrameState.model_validate(whole | {field: value})
