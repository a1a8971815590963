"""Whole streams at many thresholds are decided as one stream is that steps window by window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import (
    DecisionParameters,
    FrameSteps,
    ModelFacts,
    resolve_parameters,
)
from ast_stream.detect.stream_events import StreamEvents, WindowScores, decide_streams, smooth
from ast_stream.model.metadata import StoredOnsetFit
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.units import seconds_to_samples

WINDOW_S = 2.56
FIT = StoredOnsetFit(
    rise_s=0.4, before_s=0.02, first_s=0.1, lowest_s=0.1, highest_s=0.9, within_s=0.25
)

Event = tuple[int, int, int, float]  # onset, known at, offset in samples; peak


def _parameters(
    threshold: float = 0.5,
    hop_s: float = 0.5,
    fit: StoredOnsetFit | None = None,
    frames: FrameSteps | None = None,
    **defaults: float,
) -> DecisionParameters:
    facts = ModelFacts(
        ["Bark"], WINDOW_S, [threshold], [0.5], [0.5], [0.1], [0.75],
        onset_fits=[fit], fitted_hop_s=hop_s, frames=frames,
    )  # fmt: skip
    chosen = DetectionDefaults(**defaults)
    return resolve_parameters(DetectionSettings(defaults=chosen), facts, hop_s)


def _stepped(scores: np.ndarray, ends: np.ndarray, parameters: DecisionParameters) -> list[Event]:
    """Return the events of one class of a stream, step by step, as the worker takes them."""
    names = SlotNames(1)
    slots = np.array([names.add("mic", "epoch")])
    decision = Decision(parameters, names)
    begun: dict[str, int] = {}
    found: list[Event] = []
    for end, score in zip(ends, scores, strict=True):
        averages = decision.average(
            slots, np.array([[score]], np.float32), np.array([end == ends[0]])
        )
        events = decision.step(
            slots,
            np.array([end]),
            averages,
            context_starts=np.array([0]),
            first_scored=ends[:1],
            audio_ends=np.array([end]),
        )
        if end == ends[-1]:
            events += decision.close(int(slots[0]), "quiet", int(end), int(end))
        for event in events:
            if event.type == "begin":
                begun[event.id] = event.at_sample
            elif event.type == "end":
                assert event.offset_sample is not None
                known_at = begun.pop(event.id)
                found.append((event.onset_sample, known_at, event.offset_sample, event.peak))
    assert not begun
    return found


def _rows(events: StreamEvents) -> list[Event]:
    columns = (events.onset, events.known_at, events.offset, events.peak)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _stream(scores: list[float] | np.ndarray, hop_s: float = 0.5, first: int = 0) -> WindowScores:
    ends = (np.arange(len(scores)) + 1 + first) * seconds_to_samples(hop_s)
    n_samples = int(ends[-1]) if len(ends) else 0
    return WindowScores(ends, np.array(scores, np.float32).reshape(-1, 1), n_samples)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    hop_s=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    max_duration_s=st.sampled_from([2.0, 7.0, 600.0]),
    refractory_s=st.sampled_from([0.0, 1.0]),
    smoothness=st.integers(1, 8),
    smoothing_s=st.sampled_from([0.0, 0.5]),
    fit=st.sampled_from([None, FIT]),
    are_frames=st.booleans(),
)
def test_streams_at_many_thresholds_are_decided_as_each_alone(
    seed: int,
    hop_s: float,
    max_duration_s: float,
    refractory_s: float,
    smoothness: int,
    smoothing_s: float,
    fit: StoredOnsetFit | None,
    are_frames: bool,
) -> None:
    rng = np.random.default_rng(seed)
    frames = FrameSteps(hop_s, 0.0) if are_frames else None
    thresholds = np.array([0.2, 0.5, 0.77, 0.95])
    chosen = {
        "max_duration_s": max_duration_s, "refractory_s": refractory_s, "smoothing_s": smoothing_s,
    }  # fmt: skip
    parameters = _parameters(hop_s=hop_s, fit=fit, frames=frames, **chosen)
    raw, streams = [], []
    for n_windows in (120, 70):
        rough = rng.uniform(-0.6, 1.3, n_windows // smoothness + 2)
        curve = np.interp(np.arange(n_windows) / smoothness, np.arange(len(rough)), rough)
        raw.append(np.clip(curve, 0, 1).astype(np.float32))
        stream = _stream(raw[-1], hop_s, first=1)
        streams.append(replace(stream, scores=smooth(stream.scores, parameters.ema_alpha)))
    decided = decide_streams(parameters.at_thresholds(0, thresholds), streams)
    for scores, stream, events in zip(raw, streams, decided, strict=True):
        for number, threshold in enumerate(thresholds):
            alone = _parameters(threshold, hop_s, fit, frames, **chosen)
            assert _rows(events.of_classes(number)) == _stepped(scores, stream.ends, alone)


def test_a_sound_that_never_ends_is_an_event_every_ten_minutes() -> None:
    (events,) = decide_streams(_parameters(), [_stream([0.9] * 4000)])
    assert len(events.index) == 4  # 2000 s in pieces of 600 s
    assert events.last_seen[-1] == 4000 * seconds_to_samples(0.5)


def test_windows_after_an_event_do_not_count_hits_before_its_end() -> None:
    parameters = _parameters(hold_s=0.0, confirm_s=1.5)
    (events,) = decide_streams(parameters, [_stream([0.9, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1])])
    hop = seconds_to_samples(0.5)
    assert (events.t_up // hop).tolist() == [1, 4]
    assert (events.known_at // hop).tolist() == [2, 6]
    assert (events.t_down // hop).tolist() == [3, 7]


@pytest.mark.parametrize("scores", [[], [0.1, 0.2], [0.1, 0.9, 0.1, 0.1, 0.9]])
def test_scores_that_confirm_nothing_make_no_events(scores: list[float]) -> None:
    (events,) = decide_streams(_parameters(), [_stream(scores)])
    assert not len(events.index)


def test_classes_are_decided_by_the_column_that_is_theirs() -> None:
    loud, quiet = [0.0, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0], [0.1] * 8
    stream = _stream(loud)
    both = replace(stream, scores=np.array([quiet, loud], np.float32).T)
    parameters = _parameters().at_thresholds(0, np.array([0.5, 0.5]))
    (events,) = decide_streams(parameters, [both], column=[0, 1])
    assert events.index.tolist() == [1]
