"""Real captures, worker and recorder: clips are the very samples, whatever is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audit_lines import lines
from pipeline import Pipeline, pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.history.database import FILE, History
from ast_stream.history.records import ClipRecord, EventQuery, EventRecord
from ast_stream.messages.audio import Pcm16

QUICK = {"defaults": {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 0.25}}
EVERY = {"clips": [{"pre_s": 1.0, "post_s": 0.5}]}
CLICKS = [300_123, 300_125, 300_130]


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    """Tones over noise, with clicks at known samples."""
    audio = tones_and_noise(40.0)
    audio[CLICKS] = [32_000, -32_000, 31_000]
    return audio


@contextmanager
def reading(run: Pipeline) -> Iterator[History]:
    history = History.open_read_only(run.folder / "state" / "history" / FILE)
    try:
        yield history
    finally:
        history.close()


def clips_of(run: Pipeline) -> list[tuple[ClipRecord, EventRecord]]:
    if not (run.folder / "state" / "history" / FILE).exists():
        return []
    with reading(run) as history:
        return [(clip, event) for clip, event in history.all_clips() if event is not None]


def events_in(run: Pipeline) -> list[EventRecord]:
    if not (run.folder / "state" / "history" / FILE).exists():
        return []
    with reading(run) as history:
        return list(history.all_events(EventQuery(newest_first=False)))


def samples(run: Pipeline, clip: ClipRecord) -> Pcm16:
    found: Pcm16
    found, rate = soundfile.read(run.folder / "state" / "clips" / clip.path, dtype="int16")
    assert rate == 16_000
    return found


def start_recorder(run: Pipeline) -> None:
    ready = run.log("recorder").count("ready:")
    run.start("recorder", "record")
    wait_for(lambda: run.log("recorder").count("ready:") > ready, "the recorder")


def start(run: Pipeline) -> None:
    run.start_worker()
    start_recorder(run)
    wait_for(lambda: "ready:" in run.log("worker"), "the worker")


def is_complete(run: Pipeline, n_events: int = 1) -> bool:
    """Whether so many events are over, and each of them has what it gets."""
    events = [event for event in events_in(run) if not event.is_open]
    known = {clip.event_id for clip, _ in clips_of(run)}
    return len(events) >= n_events and all(event.id in known for event in events)


def test_clips_are_the_very_samples_of_the_source(checkpoint: Path, pcm: Pcm16) -> None:
    streams = {"a": {"type": "file", "pace": "fast"}}
    with pipeline(checkpoint, streams, recorder=EVERY, detection=QUICK) as run:
        run.write_audio(pcm)
        start(run)
        run.start_capture("a")
        run.wait("capture-a")
        wait_for(lambda: is_complete(run, 3), "the clips")
        found = clips_of(run)
        has_click = False
        for clip, event in found:
            assert (event.onset_sample, event.offset_sample) != (None, None)
            assert clip.start_sample == max(0, (event.onset_sample or 0) - 16_000)
            if not clip.note:
                assert clip.stop_sample == (event.offset_sample or 0) + 8_000
            expected = pcm[clip.start_sample : clip.stop_sample]
            np.testing.assert_array_equal(samples(run, clip), expected)
            has_click |= clip.start_sample <= CLICKS[0] < clip.stop_sample
        assert has_click
        assert any(not clip.note for clip, _ in found)
        clip, event = found[0]
        path = run.folder / "state" / "clips" / clip.path
        sheet = json.loads(path.with_suffix(".json").read_text())
        assert (sheet["event"]["id"], sheet["start_sample"]) == (event.id, clip.start_sample)
        with soundfile.SoundFile(path) as file:
            assert (file.title, file.artist) == (event.label, "a")
            assert json.loads(file.comment)["id"] == event.id
        (line,) = [one for one in lines(run.folder / "state" / "audit" / "worker")][:1]
        assert (line.outcome, line.stream) == ("granted", "a")
        assert run.stop("recorder") == 0, run.log("recorder")
