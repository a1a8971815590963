"""Frames are calibrated and evaluated through the detector that decides by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loud_frames import LoudFrames, loud_frames, noise_bursts
from tiny_model import TINY_DIMS, tiny_checkpoint

from ast_stream.calibration.budgets import Budgets, per_hour
from ast_stream.calibration.platt import platt_scores
from ast_stream.calibration.provenance import with_calibration
from ast_stream.calibration.scores import LogitStream, frame_steps, plain_tagger, score_stream
from ast_stream.calibration.thresholds import Timing, calibrate_classes, timings
from ast_stream.detect import Detector
from ast_stream.detect.parameters import (
    DecisionParameters,
    FrameSteps,
    model_facts,
    resolve_parameters,
)
from ast_stream.detect.stream_events import WindowScores, decide_streams
from ast_stream.evaluation.matching import detections
from ast_stream.evaluation.scoring import detector_of, score_blocks
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Scores
from ast_stream.model.metadata import FrameDecisions, Metadata, PlattScaling
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import DetectionSettings
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import SAMPLE_RATE

HOP_S, FRAME_S = 0.5, 0.16


@pytest.fixture(scope="module")
def bursts() -> tuple[Pcm16, list[ReferenceEvent]]:
    pcm, times = noise_bursts(12)
    return pcm, [
        ReferenceEvent("Bark", "noise", onset, offset, -20.0, 12.0)
        for onset, offset in times.tolist()
    ]


def test_score_maps_before_and_after_the_average_over_windows_are_the_same() -> None:
    pcm, _ = noise_bursts(2)
    maps = {"Bark": PlattScaling(scale=1.7, bias=-0.8)}
    checkpoint = tiny_checkpoint(4, TINY_DIMS, FrameDecisions(score_maps=maps))
    found = []
    for tagger in (plain_tagger(checkpoint), Tagger(checkpoint, "cpu", "fp32", "math")):
        seen: list[Scores] = []
        detector = Detector(tagger, hop_s=HOP_S, on_scores=seen.append)
        detector.open("mic", "ab" * 16)
        detector.push("mic", 0, pcm)
        detector.run()
        found.append(np.stack([each.scores[0] for each in seen]))
    plain, mapped = found
    logits = np.log(plain / (1 - plain))
    np.testing.assert_allclose(mapped, platt_scores(logits, maps["Bark"]), atol=1e-5)
    assert np.abs(mapped - plain).max() > 0.05


def test_calibration_decides_by_frames_and_keeps_what_holds_for_windows(
    bursts: tuple[Pcm16, list[ReferenceEvent]],
) -> None:
    pcm, truth = bursts
    checkpoint = loud_frames().checkpoint
    metadata = checkpoint.metadata.model_copy(
        update={"onset_thresholds": {"Bark": 0.77}, "rise_on_s": {"Bark": 0.9}}
    )
    checkpoint = replace(checkpoint, metadata=metadata)
    tagger = LoudFrames(checkpoint, device="cpu", precision="fp32", attention="math")
    blocks = [pcm[start : start + 16_000] for start in range(0, len(pcm), 16_000)]
    stream = score_stream(tagger, HOP_S, blocks, truth)
    np.testing.assert_allclose(np.diff(stream.times_s), 0.16)
    by_timing = timings(2.56, HOP_S, 1.0, frames=frame_steps(checkpoint))
    assert Timing(0.3, 0.0) in by_timing
    assert {timing.smoothing_s for timing in by_timing} == {0.0}
    quiet = replace(stream, truth=(), logits=np.full_like(stream.logits, -6.0))
    (calibrated,) = calibrate_classes(
        checkpoint.labels, ["Bark"], [stream], [quiet], Budgets(per_hour(0.5)), by_timing
    )
    assert calibrated.choice.n_found == len(truth)
    assert not any("rise times" in remark for remark in calibrated.remarks())
    result = with_calibration(checkpoint, [calibrated], HOP_S, {}).metadata
    assert result.frames is not None
    assert result.frames.onset_thresholds == {"Bark": calibrated.choice.threshold}
    assert result.frames.confirm_s == {"Bark": calibrated.timing.confirm_s}
    assert list(result.frames.score_maps) == ["Bark"]
    assert result.off == []
    silent = replace(stream, logits=np.full_like(stream.logits, -6.0))
    (deaf,) = calibrate_classes(
        checkpoint.labels, ["Bark"], [silent], [quiet], Budgets(per_hour(0.5)), by_timing
    )
    assert with_calibration(checkpoint, [deaf], HOP_S, {}, off_below=0.5).metadata.off == ["Bark"]
    again = replace(checkpoint, metadata=metadata.model_copy(update={"off": ["Bark"]}))
    assert with_calibration(again, [deaf], HOP_S, {}).metadata.off == ["Bark"]
    assert with_calibration(again, [calibrated], HOP_S, {}, off_below=0.5).metadata.off == []
    (unheard,) = calibrate_classes(
        checkpoint.labels, ["Bark"], [], [quiet], Budgets(per_hour(0.5)), by_timing
    )
    assert with_calibration(again, [unheard], HOP_S, {}, off_below=0.5).metadata.off == ["Bark"]
    assert result.onset_thresholds == {"Bark": 0.77}
    assert result.rise_on_s == {"Bark": 0.9}


@pytest.mark.parametrize(("loudest", "expected"), [(0.3, 0.83), (2.5, 0.968)])
def test_without_sounds_of_a_class_its_threshold_is_raised_where_needed_and_never_lowered(
    bursts: tuple[Pcm16, list[ReferenceEvent]], loudest: float, expected: float
) -> None:
    pcm, _ = bursts
    known = FrameDecisions(
        onset_thresholds={"Bark": 0.83},
        confirm_s={"Bark": 0.64},
        score_maps={"Bark": PlattScaling(scale=1.0, bias=0.1)},
    )
    before = loud_frames().checkpoint
    before = replace(before, metadata=before.metadata.model_copy(update={"frames": known}))
    tagger = LoudFrames(before, device="cpu", precision="fp32", attention="math")
    night = score_stream(tagger, HOP_S, [pcm[: 20 * SAMPLE_RATE]])
    logits = np.full_like(night.logits, -6.0)
    logits[30:60] = loudest  # a score of 0.60, or of 0.93: louder ones are to be expected
    by_timing = timings(2.56, HOP_S, 1.0, frames=frame_steps(before))
    (calibrated,) = calibrate_classes(
        before.labels,
        ["Bark"],
        [],
        [replace(night, logits=logits)],
        Budgets(per_hour(0.5)),
        by_timing,
        known=before,
    )
    assert calibrated.choice.threshold == pytest.approx(expected, abs=0.005)
    assert any("no lower than it was" in remark for remark in calibrated.remarks())
    after = with_calibration(before, [calibrated], HOP_S, {}).metadata.frames
    thresholds = {"Bark": calibrated.choice.threshold}
    assert after == known.model_copy(
        update={"onset_thresholds": thresholds, "smoothing_s": {"Bark": 0.0}}
    )


def test_whole_streams_are_decided_as_the_detector_decides_them(
    bursts: tuple[Pcm16, list[ReferenceEvent]],
) -> None:
    pcm, truth = bursts
    blocks = [pcm[start : start + 16_000] for start in range(0, len(pcm), 16_000)]
    scored = score_blocks(detector_of(loud_frames(), HOP_S), blocks, truth)
    parameters = scored.parameters
    assert isinstance(parameters, DecisionParameters)
    ends = np.round(scored.times_s * SAMPLE_RATE).astype(np.int64)
    (found,) = decide_streams(
        parameters, [WindowScores(ends, scored.scores, len(pcm))], np.arange(3)
    )
    begins = {e.id: e for e in scored.events if e.type == "begin"}
    live = [e for e in scored.events if e.type == "end" and e.label == "Bark"]
    bark = found.of_classes(0)
    assert bark.onset.tolist() == [e.onset_sample for e in live]
    assert bark.offset.tolist() == [e.offset_sample for e in live]
    assert bark.known_at.tolist() == [begins[e.id].at_sample for e in live]
    errors = [
        one.onset_s - sound.onset_s
        for one, sound in zip(detections(scored, "Bark"), truth, strict=True)
    ]
    assert np.median(np.abs(errors)) < 0.08


def test_one_checkpoint_can_be_measured_by_frames_and_by_windows() -> None:
    checkpoint = tiny_checkpoint(4, TINY_DIMS, FrameDecisions())
    geometries = []
    for use_frames in (True, False):
        tagger = Tagger(checkpoint, "cpu", "fp32", "math", use_frames=use_frames)
        detector = detector_of(tagger, HOP_S)(lambda scores: None)
        geometries.append(detector.parameters.geometry)
    by_frames, by_windows = geometries
    assert (by_frames.window, by_frames.hop, by_frames.window_hop) == (2_560, 2_560, 8_000)
    assert (by_windows.window, by_windows.hop, by_windows.window_hop) == (16_000, 8_000, 0)


def _with_pauses(n_sounds: int, pause_s: float) -> LogitStream:
    """Frames of sounds of Bark that are two strokes of 0.48 s with a pause between them."""
    n_frames = 100 * n_sounds
    logits = np.full((n_frames, 1), -6.0, np.float32)
    truth, pause = [], round(pause_s / FRAME_S)
    for first in range(20, n_frames, 100):
        logits[first : first + 3] = logits[first + 3 + pause : first + 6 + pause] = 4.0
        truth.append(
            ReferenceEvent(
                "Bark", "noise", first * FRAME_S, (first + 6 + pause) * FRAME_S, -20.0, 12.0
            )
        )
    times_s = (np.arange(n_frames, dtype=np.float64) + 1) * FRAME_S
    return LogitStream(times_s, logits, tuple(truth), n_frames * FRAME_S)


@pytest.mark.parametrize(("pause_s", "expected_s"), [(0.48, None), (1.44, 2.0), (4.8, None)])
def test_a_class_of_sounds_with_pauses_is_held_through_them(
    pause_s: float, expected_s: float | None
) -> None:
    stream = _with_pauses(12, pause_s)
    frames = FrameSteps(FRAME_S, 0.16)
    (one,) = calibrate_classes(
        ["Bark"],
        ["Bark"],
        [stream],
        [],
        Budgets(per_hour(0.5)),
        timings(2.56, HOP_S, frames=frames),
    )
    assert one.hold_s == expected_s
    hold_s = {} if one.hold_s is None else {"Bark": one.hold_s}
    metadata = Metadata(frames=FrameDecisions(hold_s=hold_s, onset_thresholds={"Bark": 0.5}))
    parameters = resolve_parameters(
        DetectionSettings(), model_facts(["Bark"], 2.56, metadata, FRAME_S), HOP_S
    )
    scores = platt_scores(stream.logits, PlattScaling())
    (events,) = decide_streams(
        parameters, [WindowScores(stream.ends, scores, int(stream.ends[-1]))]
    )
    assert len(events.index) == (24 if pause_s > 2 else 12)
