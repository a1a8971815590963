"""Planted against detected: matching, errors, and where the time went."""

import pytest
from sample_messages import T0_NS, event_message

from ast_stream.cli.demo import DetectedEvent, compare
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import SAMPLE_RATE


def planted(label: str, onset_s: float, offset_s: float) -> ReferenceEvent:
    return ReferenceEvent(label, "kind", onset_s, offset_s, -20.0, 20.0)


def detected(label: str, onset_s: float, offset_s: float) -> DetectedEvent:
    begin = event_message(
        f"{label}{onset_s}",
        label=label,
        onset_sample=round(onset_s * SAMPLE_RATE),
        peak=0.5,
        at_sample=round((onset_s + 1) * SAMPLE_RATE),
        captured_ns=T0_NS,
        scored_ns=T0_NS + 50_000_000,
        published_ns=T0_NS + 51_000_000,
    )
    end = {"type": "end", "peak": 0.9, "offset_sample": round(offset_s * SAMPLE_RATE)}
    return DetectedEvent(begin, begin.model_copy(update=end))


def test_each_planted_sound_is_matched_once_by_class_and_time() -> None:
    sounds = [planted("Siren", 2, 5), planted("Siren", 20, 24), planted("Alarm", 10, 12)]
    events = [detected("Siren", 20.2, 24), detected("Siren", 2.1, 5), detected("Siren", 10, 12)]
    report = compare(sounds, events)
    assert [row.detected.onset_s if row.detected else None for row in report.rows] == [
        2.1,
        20.2,
        None,
    ]
    assert [extra.onset_s for extra in report.extra] == [10.0]
    assert report.n_found == 2
    assert not report.is_complete


def test_second_event_of_one_planted_sound_was_planted_too() -> None:
    report = compare([planted("Siren", 2, 8)], [detected("Siren", 2, 4), detected("Siren", 6, 8)])
    assert report.n_found == 1
    assert report.extra == []


def test_onset_error_and_latency_are_measured_from_the_planted_onset() -> None:
    row = compare([planted("Siren", 2.0, 5.0)], [detected("Siren", 2.1, 5.0)]).rows[0]
    assert row.onset_error_s == pytest.approx(0.1, abs=1e-6)
    assert row.latency is not None
    assert row.latency == pytest.approx(
        {"onset_to_published": 1.151, "decided": 1.1, "scored": 0.05, "published": 0.001}, abs=1e-6
    )


def test_nothing_heard_is_reported_as_missed_without_figures() -> None:
    report = compare([planted("Siren", 2, 5)], [])
    assert report.latency_summary() == {}
    assert report.to_json()["sounds"][0]["detected_onset_s"] is None


def test_event_long_before_the_sound_does_not_count() -> None:
    assert compare([planted("Siren", 20, 24)], [detected("Siren", 2, 5)]).n_found == 0
