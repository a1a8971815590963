"""A real capture, worker and recorder: the history is what was published, and so is a trial."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pipeline import pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.alerts.trials import Trials
from ast_stream.history.database import FILE, History
from ast_stream.history.records import EventQuery
from ast_stream.history.score_log import ScoreReader
from ast_stream.messages.event import EventMessage
from ast_stream.settings.load import load_settings
from ast_stream.units import NS_PER_SECOND

QUICK = {"defaults": {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 0.25}}


@pytest.mark.slow
def test_history_and_a_trial_on_its_scores_are_what_the_worker_published(checkpoint: Path) -> None:
    streams = {"a": {"type": "file", "pace": "realtime"}}
    with pipeline(checkpoint, streams, recorder={"clips": []}, detection=QUICK) as run:
        run.write_audio(tones_and_noise(14.0))
        run.start_worker()
        run.start("recorder", "record")
        wait_for(lambda: "ready:" in run.log("worker"), "the worker")
        wait_for(lambda: "ready:" in run.log("recorder"), "the recorder")
        run.start_capture("a")
        run.wait("capture-a")
        path = run.folder / "state" / "history" / FILE

        ended = run.ended_events()  # all of them: the worker has acknowledged the end
        assert len(ended) > 2

        def has_heard_all() -> bool:
            with History.open_read_only(path) as history:
                events = history.events(EventQuery(limit=1000))
            return {event.id for event in events if not event.is_open} == ended

        wait_for(has_heard_all, "the events")
        assert run.stop("worker") == 0
        assert run.stop("recorder") == 0, run.log("recorder")
        published = [
            EventMessage.from_json(body) for topic, body in run.published() if topic[:6] == "event/"
        ]
        settings = load_settings(run.config)
        with History.open_read_only(path) as history:
            kept = {event.id: event for event in history.all_events(EventQuery())}
            later_ns = time.time_ns() + 3600 * NS_PER_SECOND  # the ledger counts on no more then
            trials = Trials(settings, history, lambda: later_ns)
            assert trials.reader.streams() == ["a"]
            (found,) = trials.run(trials.parameters, 0, later_ns)
        reader = ScoreReader(trials.reader.folder)
        (span,) = reader.read("a", 0, later_ns)
        assert span.labels == ("Bark", "Siren", "Background")
    begins = {message.id: message for message in published if message.type == "begin"}
    ends = {message.id: message for message in published if message.type == "end"}
    assert kept.keys() == begins.keys() == ends.keys()
    tried = {event.id: event for event in found.events}
    assert tried.keys() == kept.keys()
    for id, end in ends.items():
        for event in (kept[id], tried[id]):
            assert (event.onset_sample, event.offset_sample, event.reason) == (
                end.onset_sample, end.offset_sample, end.reason,
            )  # fmt: skip
            assert abs(event.onset_ns - end.onset_ns) < NS_PER_SECOND // 100
            assert event.peak == pytest.approx(end.peak, abs=1e-3)
        assert kept[id].score == begins[id].score
        assert kept[id].captured_ns == begins[id].captured_ns
    assert (found.holes, found.n_foreign) == ([], 0)
