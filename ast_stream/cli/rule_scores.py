"""Scores of rule tests through the decision stage that decides live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ast_stream.alerts.rule_tests.schema import DetectorSettings, RuleTest, TestScores
from ast_stream.detect.decision import Decision
from ast_stream.detect.facts import model_facts
from ast_stream.detect.parameters import resolve_parameters
from ast_stream.detect.slots import SlotNames
from ast_stream.errors import UsageError
from ast_stream.labels import slug
from ast_stream.messages.event import event_body
from ast_stream.model.metadata import Metadata
from ast_stream.sample_clock import SampleClock
from ast_stream.settings.schema import DetectionDefaults, DetectionSettings
from ast_stream.units import NS_PER_SECOND, parse_time, seconds_to_samples, whole_frames

EPOCH = "0" * 32
MODEL = "rule-test"


def decide(
    test: RuleTest, detector: DetectorSettings, labels: Sequence[str]
) -> list[tuple[int, dict[str, Any]]]:
    """Return stream time and body of every event message that the test's scores bring about.

    The first window ends one hop after the test's start.

    Raises:
        UsageError: a hop or window that is no multiple of 10 ms.
    """
    window_s, hop_s = detector.window / NS_PER_SECOND, detector.hop / NS_PER_SECOND
    try:
        whole_frames(hop_s, "detector.hop")
        whole_frames(window_s, "detector.window")
    except ValueError as error:
        raise UsageError(f"rules test: {error}") from error
    found: list[tuple[int, dict[str, Any]]] = []
    for stream in sorted({track.stream for track in test.scores}):
        tracks = [track for track in test.scores if track.stream == stream]
        found += _decide_stream(test, stream, tracks, detector, labels)
    return found


def _decide_stream(
    test: RuleTest,
    stream: str,
    tracks: list[TestScores],
    detector: DetectorSettings,
    labels: Sequence[str],
) -> list[tuple[int, dict[str, Any]]]:
    hop = seconds_to_samples(detector.hop / NS_PER_SECOND)
    names = SlotNames(1)
    slot = names.add(stream, EPOCH)
    decision = _new_decision(detector, labels, names)
    clock = SampleClock()
    clock.observe(0, parse_time(test.start))
    found = []
    for number, row in enumerate(_rows(tracks, labels)):
        if row is None:
            continue
        end = (number + 1) * hop
        at_ns = clock.time_ns(end)
        events = decision.step(
            np.array([slot]),
            np.array([end]),
            np.array([row], np.float32),
            context_starts=np.array([0]),
            first_scored=np.array([hop]),
            audio_ends=np.array([end]),
        )
        for event in events:
            body = event_body(
                event,
                clock,
                labels=test.streams[stream],
                audio_end=end,
                scored_ns=at_ns,
                model=MODEL,
            )
            found.append((at_ns, body))
    return found


def _new_decision(detector: DetectorSettings, labels: Sequence[str], names: SlotNames) -> Decision:
    window_s = detector.window / NS_PER_SECOND
    unmeasured = Metadata(default_onset_threshold=detector.onset_threshold)
    facts = model_facts(labels, window_s, unmeasured)
    defaults = DetectionDefaults(
        confirm_s=detector.confirm / NS_PER_SECOND, hold_s=detector.hold / NS_PER_SECOND
    )
    settings = DetectionSettings(defaults=defaults)
    return Decision(resolve_parameters(settings, facts, detector.hop / NS_PER_SECOND), names)


def _rows(tracks: list[TestScores], labels: Sequence[str]) -> list[list[float] | None]:
    """Return the scores of all classes for each hop; None where no window is scored."""
    by_name = {slug(label): index for index, label in enumerate(labels)}
    rows: list[list[float] | None] = []
    for number in range(max(len(track.values) for track in tracks)):
        row: list[float] | None = [0.0] * len(labels)
        for track in tracks:
            value = track.values[number] if number < len(track.values) else 0.0
            if value is None:
                row = None
            elif row is not None:
                row[by_name[slug(track.class_)]] = value
        rows.append(row)
    return rows
