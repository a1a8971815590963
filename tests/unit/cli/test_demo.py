"""Planted against detected: matching, errors, and where the time went."""

from typing import Any

import pytest

from ast_stream.cli.demo import DetectedEvent, compare
from ast_stream.soundscape.mixing import ReferenceEvent


def planted(label: str, onset_s: float, offset_s: float) -> ReferenceEvent:
    return ReferenceEvent(label, "kind", onset_s, offset_s, -20.0, 20.0)


def heard(label: str, onset_s: float, offset_s: float, **times: Any) -> DetectedEvent:
    body = {
        "id": f"{label}{onset_s}",
        "label": label,
        "onset_sample": round(onset_s * 16_000),
        "offset_sample": None,
        "peak": 0.5,
        "at_sample": round((onset_s + 1) * 16_000),
        "captured": "2026-11-20T10:00:10.000000Z",
        "scored": "2026-11-20T10:00:10.050000Z",
        "published": "2026-11-20T10:00:10.051000Z",
    }
    one = DetectedEvent.from_begin(body | times)
    one.update({"peak": 0.9, "offset_sample": round(offset_s * 16_000)})
    return one


def test_each_planted_sound_is_matched_once_by_class_and_time() -> None:
    sounds = [planted("Siren", 2, 5), planted("Siren", 20, 24), planted("Alarm", 10, 12)]
    events = [heard("Siren", 20.2, 24), heard("Siren", 2.1, 5), heard("Siren", 10, 12)]
    report = compare(sounds, events)
    assert [row.detected.onset_s if row.detected else None for row in report.rows] == [
        2.1,
        20.2,
        None,
    ]
    assert [extra.onset_s for extra in report.extra] == [10.0]
    assert report.n_found == 2
    assert not report.is_complete


def test_onset_error_and_latency_are_measured_from_the_planted_onset() -> None:
    row = compare([planted("Siren", 2.0, 5.0)], [heard("Siren", 2.1, 5.0)]).rows[0]
    assert row.onset_error_s == pytest.approx(0.1, abs=1e-6)
    assert row.latency is not None
    assert row.latency.decided_s == pytest.approx(1.1, abs=1e-6)
    assert row.latency.scored_s == pytest.approx(0.05, abs=1e-6)
    assert row.latency.published_s == pytest.approx(0.001, abs=1e-6)
    assert row.latency.total_s == pytest.approx(1.151, abs=1e-6)


def test_nothing_heard_is_reported_as_missed_without_figures() -> None:
    report = compare([planted("Siren", 2, 5)], [])
    assert report.latency_summary() == {}
    assert report.to_json()["sounds"][0]["detected_onset_s"] is None


def test_event_long_before_the_sound_does_not_count() -> None:
    assert compare([planted("Siren", 20, 24)], [heard("Siren", 2, 5)]).n_found == 0
