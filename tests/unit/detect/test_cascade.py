"""A cascade: the large model is asked where there is a reason, and the events are its own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from detector_events import EPOCH, events_of
from hypothesis import given, settings
from hypothesis import strategies as st
from loud_frames import LoudFrames, loud_frames, noise_bursts
from reactive_model import framed_checkpoint, tones_and_noise
from tiny_model import TINY_DIMS, tiny_checkpoint
from torch import Tensor

from ast_stream.detect import Detector
from ast_stream.detect.cascade import BandMeter, Cascade
from ast_stream.detect.state import DetectorState
from ast_stream.errors import UsageError
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Event, Gap, Scores
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import ClassSettings, DetectionDefaults, DetectionSettings
from ast_stream.settings.model import CascadeSettings
from ast_stream.units import SAMPLE_RATE

HOP_S = 0.25
N_FIRST = 3  # windows of 2.56 s asked about at a start: at 1, 1.5 and 2 s


class Listener(Tagger):
    """A small model that gives "Bark" a score by how loud the newest part of its window is."""

    hears = True

    def window_scores(self, windows: Tensor) -> npt.NDArray[np.float32]:
        is_loud = windows[:, -30:-5].mean(dim=(1, 2)) > 0.2  # the last two are padding
        scores = np.zeros((len(windows), len(self.labels)), np.float32)
        scores[:, 0] = np.where(is_loud.numpy() & self.hears, np.float32(0.75), np.float32(0.125))
        return scores


class LoudWindows(Tagger):
    """Scores windows by how much of them is loud; all classes alike."""

    def window_scores(self, windows: Tensor) -> npt.NDArray[np.float32]:
        ratio = (windows.numpy().mean(axis=2) > 0.2).mean(axis=1)
        return np.repeat(ratio[:, None], len(self.labels), axis=1).astype(np.float32)


def listener(window_s: float = 1.28, **metadata: object) -> Listener:
    dims = replace(TINY_DIMS, max_frames=round(window_s * 100))
    checkpoint = tiny_checkpoint(5, dims, window_s=window_s, **metadata)  # type: ignore[arg-type]
    return Listener(checkpoint, "cpu", "fp32", "math")


def deaf() -> Listener:
    tagger = listener()
    tagger.hears = False
    return tagger


def cascade_of(tagger: Tagger, **chosen: object) -> Cascade:
    given: dict[str, object] = {"checkpoint": "small", "change_db": None, "every_s": None} | chosen
    return Cascade(tagger, CascadeSettings(**given))  # type: ignore[arg-type]


def detection(**defaults: float) -> DetectionSettings:
    chosen = {"onset_threshold": 0.5, "confirm_s": 0.3, "hold_s": 0.5} | defaults
    return DetectionSettings(defaults=DetectionDefaults(**chosen))


@pytest.fixture(scope="module")
def perfect() -> LoudFrames:
    return loud_frames()


@pytest.fixture(scope="module")
def by_windows() -> LoudWindows:
    dims = replace(TINY_DIMS, max_frames=256)
    return LoudWindows(tiny_checkpoint(0, dims, window_s=2.56), "cpu", "fp32", "math")


@pytest.fixture(scope="module")
def small() -> Listener:
    return listener()


def recording(seed: int) -> Pcm16:
    """Return ten seconds of near silence with two sounds in it."""
    return noise_bursts(2, seed, pause_s=(3.0, 4.5))[0][: 10 * SAMPLE_RATE]


def without_small(events: list[Event]) -> list[Event]:
    return [replace(event, watcher_score=None) for event in events]


def share_asked(detector: Detector) -> float:
    assert detector.n_asked is not None
    return detector.n_asked / detector.n_scored


# -- the events are those of the large model


@pytest.mark.parametrize("decides_by_frames", [True, False])
def test_asked_about_everything_the_large_model_makes_its_own_events(
    tagger: Tagger, decides_by_frames: bool
) -> None:
    pcm = tones_and_noise(8.0)
    large = Tagger(framed_checkpoint(), "cpu", "fp32", "math") if decides_by_frames else tagger
    eager = Tagger(tiny_checkpoint(7, default_onset_threshold=1e-6), "cpu", "fp32", "math")
    detector = Detector(large, detection(), hop_s=HOP_S, cascade=cascade_of(eager))
    events = events_of(detector, pcm)
    assert without_small(events) == events_of(Detector(large, detection(), hop_s=HOP_S), pcm)
    assert share_asked(detector) == 1
    by_windows = [event.watcher_score for event in events if event.type != "end"]
    assert len(by_windows) > 3
    assert all(score is not None and 0 < score < 1 for score in by_windows)


@pytest.mark.parametrize("reason", ["the small model", "a change", "both"])
def test_sounds_are_found_as_by_the_large_model_alone_at_a_part_of_its_windows(
    perfect: LoudFrames, reason: str
) -> None:
    pcm, truth = noise_bursts(8, pause_s=(6.0, 12.0))
    alone = Detector(perfect, detection(), hop_s=0.5)
    cascade = cascade_of(
        deaf() if reason == "a change" else listener(),
        change_db=None if reason == "the small model" else 3.0,
    )
    detector = Detector(perfect, detection(), hop_s=0.5, cascade=cascade)
    expected, found = events_of(alone, pcm), events_of(detector, pcm)
    assert sum(event.type == "begin" for event in found) == 2 * len(truth)  # of two classes
    assert without_small(found) == expected
    assert share_asked(detector) < 0.6
    assert detector.n_scored == alone.n_scored
    begins = [event for event in found if event.type == "begin"]
    assert {event.watcher_score for event in begins if event.label == "Bark"} <= {0.125, 0.75}


def test_without_a_reason_nothing_begins_and_only_the_first_windows_are_asked(
    perfect: LoudFrames,
) -> None:
    pcm, _ = noise_bursts(4, pause_s=(6.0, 8.0))
    seen: list[Scores] = []
    detector = Detector(
        perfect, detection(), hop_s=0.5, cascade=cascade_of(deaf()), on_scores=seen.append
    )
    assert events_of(detector, pcm) == []
    assert detector.n_asked == N_FIRST
    assert max(each.scores.max() for each in seen) < 0.01
    np.testing.assert_array_equal(np.diff([each.end_sample for each in seen]), 2_560)


def test_what_nobody_else_notices_is_found_when_it_is_time_to_ask_again(
    perfect: LoudFrames,
) -> None:
    rng = np.random.default_rng(0)
    pcm = rng.normal(0, 5, 40 * SAMPLE_RATE)
    pcm[10 * SAMPLE_RATE : 26 * SAMPLE_RATE] = rng.normal(0, 9_000, 16 * SAMPLE_RATE)
    cascade = cascade_of(deaf(), every_s=15.0)
    detector = Detector(perfect, detection(), hop_s=0.5, cascade=cascade)
    events = events_of(detector, pcm.astype(np.int16))
    (begin,) = (event for event in events if event.type == "begin" and event.label == "Bark")
    (end,) = (event for event in events if event.type == "end" and event.label == "Bark")
    assert begin.at_sample == 15 * SAMPLE_RATE
    assert begin.onset_sample / SAMPLE_RATE == pytest.approx(15 - perfect.window_s, abs=0.2)
    assert (end.offset_sample or 0) / SAMPLE_RATE == pytest.approx(26, abs=0.16)


def test_classes_that_are_off_or_that_only_the_small_model_knows_are_no_reason(
    perfect: LoudFrames,
) -> None:
    pcm, _ = noise_bursts(4, pause_s=(6.0, 8.0))
    off = detection().model_copy(update={"classes": {"Bark": ClassSettings(enabled=False)}})
    detector = Detector(perfect, off, hop_s=0.5, cascade=cascade_of(listener()))
    events_of(detector, pcm)
    assert detector.n_asked == N_FIRST
    detector.use(detection())
    events_of(detector, pcm)
    assert (detector.n_asked or 0) > 3 * N_FIRST
    strange = listener()
    strange.labels = ["Fog horn", "Siren", "Background"]
    detector = Detector(perfect, detection(), hop_s=0.5, cascade=cascade_of(strange))
    events_of(detector, pcm)
    assert detector.n_asked == N_FIRST


def test_small_models_that_cannot_serve_are_refused(perfect: LoudFrames) -> None:
    strange = listener()
    strange.labels = ["Fog horn", "Whale", "Rain"]
    with pytest.raises(UsageError, match="expected a checkpoint with classes of model"):
        Detector(perfect, hop_s=0.5, cascade=cascade_of(strange))
    with pytest.raises(
        UsageError, match=r"expected windows of a hop, 0\.5 s, or more, got 0\.32 s"
    ):
        Detector(perfect, hop_s=0.5, cascade=cascade_of(listener(0.32)))


def test_gated_windows_are_neither_heard_nor_asked(perfect: LoudFrames) -> None:
    pcm, truth = noise_bursts(4, pause_s=(6.0, 8.0))
    gated = detection().model_copy(update={"gate_dbfs": -50.0})
    cascade = cascade_of(deaf(), change_db=3.0, every_s=1.0)
    detector = Detector(perfect, gated, hop_s=0.5, cascade=cascade)
    alone = Detector(perfect, gated, hop_s=0.5)
    assert without_small(events_of(detector, pcm)) == events_of(alone, pcm)
    assert detector.n_gated == alone.n_gated > 10
    assert detector.n_scored == alone.n_scored
    assert len(truth) == 4


def test_under_overload_both_models_leave_windows_out(perfect: LoudFrames) -> None:
    pcm, truth = noise_bursts(6, pause_s=(6.0, 8.0))
    detector = Detector(perfect, detection(), hop_s=0.5, cascade=cascade_of(deaf(), change_db=3.0))
    detector.open("mic", EPOCH)
    detector.set_stride("mic", 3)
    detector.push("mic", 0, pcm)
    events = detector.run() + detector.flush("mic")
    assert detector.n_scored <= len(pcm) / SAMPLE_RATE / 1.5 + 2
    assert share_asked(detector) < 0.7
    assert sum(event.type == "begin" and event.label == "Bark" for event in events) == len(truth)


@pytest.mark.parametrize("decides_by_frames", [True, False])
def test_of_a_steady_sound_one_window_in_some_is_enough(
    perfect: LoudFrames, by_windows: LoudWindows, decides_by_frames: bool
) -> None:
    rng = np.random.default_rng(0)
    pcm = rng.normal(0, 5, 60 * SAMPLE_RATE)
    pcm[10 * SAMPLE_RATE : 50 * SAMPLE_RATE] = rng.normal(0, 9_000, 40 * SAMPLE_RATE)
    large = perfect if decides_by_frames else by_windows
    found, n_asked = {}, {}
    for hops in (1, 3):
        cascade = cascade_of(listener(), change_db=12.0, steady_hops=hops)
        detector = Detector(large, detection(), hop_s=0.5, cascade=cascade)
        events = events_of(detector, pcm.astype(np.int16))
        begins = [(one.label, one.onset_sample) for one in events if one.type == "begin"]
        ends = [one.offset_sample or 0 for one in events if one.type == "end"]
        found[hops] = begins, np.array(ends)
        n_asked[hops] = detector.n_asked or 0
    assert found[3][0] == found[1][0]
    assert len(found[1][0]) >= 2
    # of frames the end is known from the windows after it; else the one that misses it may be late
    late_s = np.abs(found[3][1] - found[1][1]) / SAMPLE_RATE
    assert late_s.max() <= (0 if decides_by_frames else 2 * 0.5)
    assert n_asked[3] < n_asked[1] - 40


class LoudBarks(LoudFrames):
    """Knows barks alone."""

    def frame_logits(self, windows: Tensor) -> npt.NDArray[np.float32]:
        logits = super().frame_logits(windows)
        logits[..., 1:] = -6
        return logits


class HearsSirens(Listener):
    """Hears a siren all the time."""

    def window_scores(self, windows: Tensor) -> npt.NDArray[np.float32]:
        scores = super().window_scores(windows)
        scores[:, 1] = 0.75
        return scores


def test_another_sound_than_the_steady_one_is_a_reason(perfect: LoudFrames) -> None:
    pcm = np.random.default_rng(0).normal(0, 9_000, 30 * SAMPLE_RATE).astype(np.int16)
    large = LoudBarks(perfect.checkpoint, "cpu", "fp32", "math")
    steady = listener()
    other = HearsSirens(steady.checkpoint, "cpu", "fp32", "math")
    asked = []
    for small_one in (steady, other):
        cascade = cascade_of(small_one, steady_hops=4)
        detector = Detector(large, detection(), hop_s=0.5, cascade=cascade)
        assert [one.label for one in events_of(detector, pcm) if one.type == "begin"] == ["Bark"]
        asked.append(detector.n_asked or 0)
    assert asked[1] > 2 * asked[0]
    assert asked[1] >= 30 / 0.5 - 1


# -- the same however the audio comes


@pytest.mark.parametrize("decides_by_frames", [True, False])
def test_events_and_scores_do_not_depend_on_blocks_other_streams_or_hops_at_once(
    perfect: LoudFrames, by_windows: Tagger, small: Tagger, decides_by_frames: bool
) -> None:
    large = perfect if decides_by_frames else by_windows
    recordings = {f"mic-{n}": recording(n) for n in range(3)}

    def run(
        streams: list[str], size: int, hops_at_once: int
    ) -> tuple[list[Event], list[tuple[str, int, bytes]], int]:
        seen: list[Scores] = []
        detector = Detector(
            large, detection(), hop_s=HOP_S, hops_at_once=hops_at_once, on_scores=seen.append,
            cascade=cascade_of(small, change_db=9.0, every_s=3.0, steady_hops=2),
        )  # fmt: skip
        events: list[Event] = []
        for stream in streams:
            detector.open(stream, EPOCH)
        for start in range(0, 10 * SAMPLE_RATE, size):
            for stream in streams:
                detector.push(stream, start, recordings[stream][start : start + size])
            events += detector.run()
        for stream in streams:
            events += detector.flush(stream)
        scores = [(each.stream, each.end_sample, each.scores.tobytes()) for each in seen]
        assert 0.2 < share_asked(detector) < 1
        key = partial(sorted, key=lambda event: (event.stream, event.at_sample, event.id))
        return key(events), sorted(scores), detector.n_asked or 0

    together = run(list(recordings), 4_000, 1)
    assert run(list(recordings), 30_011, 1) == together
    assert run(list(recordings), 70_000, 4) == together
    alone = [run([stream], 16_000, 1) for stream in recordings]
    assert [event for part in alone for event in part[0]] == together[0]
    assert [scores for part in alone for scores in part[1]] == together[1]
    assert sum(part[2] for part in alone) == together[2]
    assert sum(event.type == "begin" for event in together[0]) >= 10


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(1, 159_999), min_size=1, max_size=4),
    start=st.integers(0, 100_000),
    decides_by_frames=st.booleans(),
)
def test_resumed_after_a_kill_all_is_as_in_a_run_that_never_stopped(
    perfect: LoudFrames,
    by_windows: LoudWindows,
    small: Listener,
    cuts: list[int],
    start: int,
    decides_by_frames: bool,
) -> None:
    pcm, large = recording(0), perfect if decides_by_frames else by_windows
    cascade = cascade_of(small, change_db=9.0, every_s=3.0, steady_hops=2)

    def run(kills: list[int]) -> tuple[list[Event], dict[int, bytes]]:
        scores: dict[int, bytes] = {}
        events: list[Event] = []

        def keep(each: Scores) -> None:
            assert each.end_sample not in scores, "decided twice"
            scores[each.end_sample] = each.scores.tobytes()

        build = partial(Detector, large, detection(), hop_s=HOP_S, on_scores=keep, cascade=cascade)
        detector = build()
        detector.open("mic", EPOCH, start)
        position = start
        for kill in kills:
            detector.push("mic", position, pcm[position - start : kill])
            events += detector.run()
            journalled = detector.export("mic").model_dump_json(exclude_unset=True)
            state = DetectorState.model_validate_json(journalled)
            detector = build()  # only the journal and the ring are left
            position = max(start, detector.context_needed(state))
            detector.resume("mic", EPOCH, position, state)
        detector.push("mic", position, pcm[position - start :])
        events += detector.run() + detector.flush("mic")
        return sorted(events, key=lambda event: (event.at_sample, event.id)), scores

    assert run(sorted(cuts)) == run([])


def test_behind_a_gap_a_stream_begins_anew(perfect: LoudFrames) -> None:
    loud = np.random.default_rng(0).normal(0, 9_000, 2 * SAMPLE_RATE).astype(np.int16)
    detector = Detector(perfect, detection(), hop_s=0.5, cascade=cascade_of(deaf()))
    detector.open("mic", EPOCH)
    detector.push("mic", 0, loud)
    behind = 5 * SAMPLE_RATE + 123
    events = detector.run()
    events += detector.gap(Gap("mic", EPOCH, len(loud), behind - len(loud), "lost"))
    detector.push("mic", behind, loud)
    events += detector.run() + detector.flush("mic")
    begins = [event for event in events if event.type == "begin" and event.label == "Bark"]
    ends = [event for event in events if event.type == "end" and event.label == "Bark"]
    assert len(begins) == 2
    assert [end.reason for end in ends] == ["gap", "stream_lost"]
    assert [end.watcher_score for end in ends] == [None, None]  # no window decided


# -- changes in the sound


def frames_of(db: list[float], hop_frames: int = 25) -> Tensor:
    """Return log-mel frames of hops with these levels."""
    return torch.tensor(np.repeat(db, hop_frames) * np.log(10) / 10).float()[:, None].repeat(1, 128)


def test_a_rise_is_how_much_louder_three_bands_are_than_in_all_hops_of_the_window_before() -> None:
    meter = BandMeter(window=16_000, hop=4_000)
    meter.grow(1)
    frames = frames_of([-60, -50, -40, -45, -20])
    frames[100:, 24:] -= (
        30 * np.log(10) / 10
    )  # of the last hop only the three lowest bands are loud
    meter.measure(np.array([0]), frames[None])
    ends = np.arange(1, 6)[:, None] * 4_000
    rises = meter.rises(ends, np.array([0]))[:, 0]
    expected = [-np.inf, 10, 10, -5, 20]
    np.testing.assert_allclose(rises, expected, atol=1e-3)
    # hops that began before the stream did do not count
    behind = meter.rises(ends, np.array([8_000]))[:, 0]
    np.testing.assert_allclose(behind, [-np.inf] * 3 + [-5, 20], atol=1e-3)
    frames[100:, 16:] -= 30 * np.log(10) / 10  # two bands are too few
    meter.measure(np.array([0]), frames[None])
    assert meter.rises(ends, np.array([0]))[-1, 0] == pytest.approx(-10, abs=1e-3)


def test_rises_do_not_depend_on_how_many_hops_and_streams_are_measured_at_once() -> None:
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.normal(-8, 3, (64, 8 * 25, 128))).float()
    ends = np.arange(1, 9)[:, None] * 4_000 + np.zeros(64, np.int64)

    def measured(n_slots: int, hops_at_once: int) -> npt.NDArray[np.float64]:
        meter = BandMeter(window=16_000, hop=4_000)
        meter.grow(64)
        rows = []
        for hop in range(0, 8, hops_at_once):
            part = slice(hop * 25, (hop + hops_at_once) * 25)
            found = []
            for first in range(0, 64, n_slots):
                slots = np.arange(first, first + n_slots)
                meter.measure(slots, frames[first : first + n_slots, part])
                its = ends[hop : hop + hops_at_once, slots]
                found.append(meter.rises(its, np.zeros(n_slots, np.int64)))
            rows.append(np.concatenate(found, axis=1))
        return np.concatenate(rows)

    expected = measured(64, 8)
    for n_slots, hops_at_once in ((1, 1), (1, 8), (4, 2), (64, 1)):
        np.testing.assert_array_equal(measured(n_slots, hops_at_once), expected)


def test_a_small_model_needs_no_frame_head_and_one_that_has_it_decides_by_windows_here() -> None:
    framed_small = tiny_checkpoint(3, TINY_DIMS, FrameDecisions())
    small = Tagger(framed_small, "cpu", "fp32", "math", use_frames=False)
    large = Tagger(tiny_checkpoint(4), "cpu", "fp32", "math")
    detector = Detector(large, hop_s=0.5, cascade=cascade_of(small))
    events_of(detector, tones_and_noise(4.0))
    assert detector.n_scored >= 7
