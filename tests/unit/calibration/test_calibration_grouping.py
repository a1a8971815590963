"""Grouping scores into events over whole arrays equals stepping through the decision stage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.calibration.grouping import (
    GroupingRule,
    group_events,
    grouping_rule,
    rule_of,
)
from ast_stream.detect.boundaries import WindowGeometry
from ast_stream.detect.decision import Decision, smooth
from ast_stream.detect.parameters import DecisionParameters, ModelFacts, resolve_parameters
from ast_stream.detect.state import SlotNames
from ast_stream.settings.schema import DetectionDefaults, DetectionSettings
from ast_stream.units import seconds_to_samples

WINDOW_S = 2.56

Event = tuple[int, int, int | None, int | None]  # onset, known at, offset, ended at; in samples


def _parameters(
    threshold: float, hop_s: float, max_duration_s: float, smoothing_s: float
) -> DecisionParameters:
    facts = ModelFacts(["Bark"], WINDOW_S, [threshold], [0.5], [0.5], [0.1], [0.75])
    defaults = DetectionDefaults(max_duration_s=max_duration_s, smoothing_s=smoothing_s)
    return resolve_parameters(DetectionSettings(defaults=defaults), facts, hop_s)


def _decided(scores: np.ndarray, ends: np.ndarray, parameters: DecisionParameters) -> list[Event]:
    """Return the events of the real decision stage."""
    names = SlotNames(1)
    slot = names.add("strip", "epoch")
    decision = Decision(parameters, names)
    begun: dict[str, tuple[int, int]] = {}
    events: list[Event] = []
    for end, score in zip(ends, scores, strict=True):
        averages = decision.average(
            np.array([slot]), np.array([[score]], np.float32), np.array([end == ends[0]])
        )
        for event in decision.step(
            np.array([slot]),
            np.array([end]),
            averages,
            context_starts=np.array([0]),
            first_scored=ends[:1],
            audio_ends=np.array([end]),
        ):
            if event.type == "begin":
                begun[event.id] = (event.onset_sample, event.at_sample)
            elif event.type == "end":
                events.append((*begun.pop(event.id), event.offset_sample, event.at_sample))
    return [*events, *((*one, None, None) for one in begun.values())]


def _grouped(
    scores: np.ndarray, ends: np.ndarray, threshold: float, rule: GroupingRule
) -> list[Event]:
    events: list[Event] = []
    for span in group_events(scores, ends, threshold, rule):
        is_over = span.ended < len(ends)
        events.append(
            (
                span.onset,
                int(ends[span.confirmed]),
                rule.offset(span, ends) if is_over else None,
                int(ends[span.ended]) if is_over else None,
            )
        )
    return events


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    threshold=st.sampled_from([0.2, 0.5, 0.77, 0.95]),
    hop_s=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    max_duration_s=st.sampled_from([2.0, 7.0, 600.0]),
    smoothness=st.integers(1, 8),
    smoothing_s=st.sampled_from([0.0, 0.5]),
)
def test_grouping_equals_the_decision_stage(
    seed: int,
    threshold: float,
    hop_s: float,
    max_duration_s: float,
    smoothness: int,
    smoothing_s: float,
) -> None:
    rng = np.random.default_rng(seed)
    rough = rng.uniform(-0.3, 1.3, 120 // smoothness + 2)
    at = np.arange(120) / smoothness
    scores = np.clip(np.interp(at, np.arange(len(rough)), rough), 0, 1).astype(np.float32)
    ends = (np.arange(120) + 2) * seconds_to_samples(hop_s)
    parameters = _parameters(threshold, hop_s, max_duration_s, smoothing_s)
    expected = _decided(scores, ends, parameters)
    rule = rule_of(parameters)
    averages = smooth(scores[:, None], parameters.ema_alpha)[:, 0]
    assert _grouped(averages, ends, threshold, rule) == expected


def test_a_sound_that_never_ends_is_an_event_every_ten_minutes() -> None:
    hop_s = 0.5
    rule = grouping_rule(WINDOW_S, hop_s)
    ends = (np.arange(4000) + 1) * seconds_to_samples(hop_s)
    spans = group_events(np.full(4000, 0.9, np.float32), ends, 0.5, rule)
    assert len(spans) == 4  # 2000 s in pieces of 600 s
    assert spans[-1].ended == len(ends)


def test_windows_after_an_event_do_not_count_hits_before_its_end() -> None:
    rule = GroupingRule(
        WindowGeometry(40_960, 8000),
        2,
        4,
        hold=0,
        max_duration=10**9,
        rise_on=8000,
        rise_off=8000,
        share_of_newest=np.float32(1),
    )
    scores = np.array([0.9, 0.9, 0.1, 0.9, 0.1, 0.9], np.float32)
    ends = (np.arange(6) + 6) * 8000
    spans = group_events(scores, ends, 0.5, rule)
    assert [(span.first, span.confirmed, span.ended) for span in spans] == [(0, 1, 2), (3, 5, 6)]


@pytest.mark.parametrize("scores", [[], [0.1, 0.2], [0.1, 0.9, 0.1, 0.1, 0.9]])
def test_scores_that_confirm_nothing_make_no_events(scores: list[float]) -> None:
    ends = (np.arange(len(scores)) + 1) * 8000
    found = group_events(np.array(scores, np.float32), ends, 0.5, grouping_rule(WINDOW_S, 0.5))
    assert found == []
