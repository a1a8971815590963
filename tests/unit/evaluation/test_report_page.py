"""The figures of `evaluate` as sentences: figures without data are left out."""

from __future__ import annotations

from soundscape_cases import LABELS, begin_and_end, ideal_soundscape, reference

from ast_stream.evaluation.figures import Evaluation
from ast_stream.evaluation.report_page import details, remarks_on, summary
from ast_stream.evaluation.scoring import MeasureSettings
from ast_stream.evaluation.stream_figures import measure_streams
from ast_stream.messages.event import Event
from ast_stream.soundscape.mixing import ReferenceEvent


def _evaluation(truth: list[ReferenceEvent], events: list[Event]) -> Evaluation:
    measured = measure_streams([ideal_soundscape(truth, events=events)], LABELS)
    return Evaluation(tuple(LABELS), (), None, measured, None, None, {}, {})


BARKS = [reference("Bark", 10.0, 11.0), reference("Bark", 30.0, 31.0)]


def test_times_of_nothing_are_left_out() -> None:
    text = "\n".join(summary(_evaluation(BARKS, []), MeasureSettings()))
    assert "0 of 2 sounds found" in text
    assert "time to detect: median never" in text
    for left_out in ("nan", "onset ", "uncorrected", "events per found sound", "time to end"):
        assert left_out not in text.split("F1")[0]


def test_a_share_of_few_recordings_has_no_interval() -> None:
    evaluation = _evaluation(BARKS, [])
    assert "0.0%, too few recordings for an interval" in summary(evaluation, MeasureSettings())[0]
    ranges = {row[0]: row[2] for row in details(evaluation)[1]}
    assert ranges["streams: recall"] == ranges["streams: PSDS1, from events"] == "too few"


def test_an_event_over_all_sounds_is_said_to_prove_little() -> None:
    merged = begin_and_end("Bark", 5.0, 40.0, 6.0, 41.0)
    (remark,) = remarks_on(_evaluation(BARKS, merged))
    assert "runs on over 2.0 sounds" in remark
    apart = [
        *begin_and_end("Bark", 10.0, 11.0, 11.0, 12.0),
        *begin_and_end("Bark", 30.0, 31.0, 31.0, 32.0),
    ]
    assert remarks_on(_evaluation(BARKS, apart)) == []
    assert remarks_on(_evaluation(BARKS, [])) == []
