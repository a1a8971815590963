"""Real captures, worker and recorder: clips are the very samples, whatever is killed."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audit_lines import lines
from forked_command import run_command
from pipeline import Pipeline, pipeline, wait_for
from reactive_model import tones_and_noise
from test_full_disk import needs_mount, small_disk

from ast_stream.cli.privacy_checks import check_privacy
from ast_stream.history.database import FILE, History
from ast_stream.history.records import AlertQuery, ClipRecord, EventQuery, EventRecord
from ast_stream.messages.audio import Pcm16
from ast_stream.settings.load import load_settings

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
    """Whether all that workers have ended, so many events, are over and have what they get."""
    ended = run.ended_events()
    events = {event.id for event in events_in(run) if not event.is_open}
    known = {clip.event_id for clip, _ in clips_of(run)}
    return len(ended) >= n_events and ended <= events <= known


def test_clips_are_the_very_samples_of_the_source(checkpoint: Path, pcm: Pcm16) -> None:
    streams = {"a": {"type": "file", "pace": "fast"}}
    with pipeline(checkpoint, streams, recorder=EVERY, detection=QUICK) as run:
        run.write_audio(pcm)
        start(run)
        run.start_capture("a")
        run.wait("capture-a")
        wait_for(lambda: is_complete(run, 20), "the clips")
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


def check_whole(run: Pipeline, pcm: Pcm16, pre: int, post: int) -> int:
    """Check that each event has all of its sound, to the sample; return how many have."""
    parts: dict[str, list[ClipRecord]] = {}
    events: dict[str, EventRecord] = {}
    for clip, event in clips_of(run):
        parts.setdefault(event.id, []).append(clip)
        events[event.id] = event
    n_whole = 0
    for event_id, event in events.items():
        own = sorted(parts[event_id], key=lambda clip: clip.part)
        notes = [clip.note for clip in own if clip.note]
        assert [clip.part for clip in own] == list(range(len(own)))
        assert own[0].start_sample == max(0, (event.onset_sample or 0) - pre)
        for before, after in itertools.pairwise(own):
            assert before.stop_sample == after.start_sample
        if not notes:
            assert own[-1].stop_sample == (event.offset_sample or 0) + post
            n_whole += 1
        assert all("source has ended" in note for note in notes), notes
        for clip in own:
            expected = pcm[clip.start_sample : clip.stop_sample]
            np.testing.assert_array_equal(samples(run, clip), expected)
    return n_whole


@pytest.mark.slow
def test_clips_are_whole_whatever_is_killed_in_the_middle_of_an_event(checkpoint: Path) -> None:
    pcm = tones_and_noise(24.0)
    detection = {"defaults": {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 1.5}}
    recorder = {"clips": [{"pre_s": 1.0, "post_s": 0.5}], "max_clip_s": 5}
    streams = {"a": {"type": "file"}}
    with pipeline(checkpoint, streams, recorder=recorder, detection=detection) as run:
        run.write_audio(pcm)
        start(run)
        run.start_capture("a")
        wait_for(lambda: any(event.is_open for event in events_in(run)), "an event")
        run.processes["recorder"].send_signal(signal.SIGSTOP)
        # nobody waits for the recorder; a busy machine may be late for a while
        wait_for(lambda: status_of(run)["streams"][0]["lag_s"] < 2, "the worker to be in time")
        run.processes["recorder"].send_signal(signal.SIGCONT)
        wait_for(lambda: any(event.is_open for event in events_in(run)), "an event")
        n_known = len(events_in(run))  # before the next one reads what came meanwhile
        run.kill("recorder")
        start_recorder(run)
        wait_for(lambda: len(events_in(run)) > n_known, "another event")
        time.sleep(3)  # an event is under way, and what is heard of it fetched
        run.kill("worker")
        run.start_worker()
        run.wait("capture-a")
        wait_for(lambda: is_complete(run, 3), "the clips")
        assert check_whole(run, pcm, 16_000, 8_000) >= 2
        assert any(clip.part > 0 for clip, _ in clips_of(run))


def status_of(run: Pipeline) -> Any:
    done = run_command("status", "--json", "-c", run.config)
    return json.loads(done.stdout)


RULES = """version: 1
groups:
  - name: g
    rules: [{alert: any, match: {any_of: [Bark]}, group_by: [stream], cooldown: 0s, actions: [say]}]
"""


def test_with_when_alert_only_the_sound_of_events_that_an_alert_names_is_kept(
    checkpoint: Path, pcm: Pcm16
) -> None:
    sections = {
        "recorder": {"clips": [{"when": "alert", "pre_s": 1.0, "post_s": 0.5}]},
        "alerts": {"rules": ["rules.yaml"], "actions": {"say": {"type": "log"}}},
        "detection": QUICK,
    }
    with pipeline(checkpoint, {"a": {"type": "file", "pace": "fast"}}, **sections) as run:
        run.write_audio(pcm)
        (run.folder / "rules.yaml").write_text(RULES)
        alerts = run.start("alerts", "alerts")
        wait_for(lambda: "ready:" in run.log("alerts"), "the alerts process")
        alerts.send_signal(signal.SIGSTOP)  # what it says comes later than the clips are cut
        start(run)
        run.start_capture("a")
        run.wait("capture-a")
        waiting = run.folder / "state" / "clips" / ".waiting"
        wait_for(lambda: len(list(waiting.rglob("*_bark_*.flac"))) > 3, "clips that wait")
        assert clips_of(run) == []
        alerts.send_signal(signal.SIGCONT)

        def alerted() -> set[str]:
            with reading(run) as history:
                return {one for alert in history.alerts(AlertQuery()) for one in alert.events}

        barks = {event.id for event in events_in(run) if event.label == "Bark"}
        wait_for(lambda: alerted() == barks, "alerts of all barks in the history")
        wait_for(lambda: {event.id for _, event in clips_of(run)} == barks, "their clips")
        assert {event.label for _, event in clips_of(run)} == {"Bark"}
        names = {path.name for path in waiting.rglob("*.flac")}
        assert not any(event_id in name for name in names for event_id in alerted())
        assert any("siren" in name for name in names)
        for clip, _ in clips_of(run):
            expected = pcm[clip.start_sample : clip.stop_sample]
            np.testing.assert_array_equal(samples(run, clip), expected)


def test_what_may_be_speech_is_silent_in_clips_and_said(checkpoint: Path, pcm: Pcm16) -> None:
    sections = {"recorder": EVERY, "detection": QUICK, "privacy": "speech"}
    with pipeline(checkpoint, {"a": {"type": "file", "pace": "fast"}}, **sections) as run:
        run.write_audio(pcm)
        start(run)
        run.start_capture("a")
        run.wait("capture-a")
        wait_for(lambda: is_complete(run, 3), "the clips")
        found = [clip for clip, _ in clips_of(run) if clip.path]
        n_withheld = 0
        for clip in found:
            path = run.folder / "state" / "clips" / clip.path
            sheet = json.loads(path.with_suffix(".json").read_text())
            expected = pcm[clip.start_sample : clip.stop_sample].copy()
            for first, stop in sheet["withheld"]:
                expected[first - clip.start_sample : stop - clip.start_sample] = 0
                n_withheld += stop - first
            np.testing.assert_array_equal(samples(run, clip), expected)
            assert ("somebody may talk" in clip.note) == bool(sheet["withheld"])
        checks = check_privacy(load_settings(run.config))
        check = next(one for one in checks if "clips of events" in one.text)
        assert (check.status, check.facts) == ("ok", {"clips": len(found)})
        assert n_withheld > 0


@needs_mount
def test_a_disk_that_is_nearly_full_takes_no_clip_and_the_history_says_why(
    checkpoint: Path, pcm: Pcm16
) -> None:
    sections = {"recorder": EVERY, "detection": QUICK, "retention": {"clips": {"min_free_mib": 16}}}
    streams = {name: {"type": "file", "pace": "fast"} for name in ("a", "b")}
    with pipeline(checkpoint, streams, **sections) as run:
        run.write_audio(pcm)
        with small_disk(run.folder / "state", 20_000_000):
            filler = run.folder / "state" / "filler"
            filler.write_bytes(b"x" * 4_000_000)
            try:
                start(run)
                run.start_capture("a")
                run.wait("capture-a")
                wait_for(lambda: is_complete(run, 3), "the notes")
                assert {clip.path for clip, _ in clips_of(run)} == {""}
                assert all("min_free_mib" in clip.note for clip, _ in clips_of(run))
                assert not any(event.has_clip for event in events_in(run))
                problems = status_of(run)["problems"]
                assert any(one.startswith("the recorder: clips are not kept") for one in problems)
                assert run.log("recorder").count("clips are not kept") == 1
                filler.unlink()
                run.start_capture("b")
                run.wait("capture-b")
                wait_for(lambda: any(clip.path for clip, _ in clips_of(run)), "a clip")
            finally:
                for name in list(run.processes):
                    run.kill(name)


def test_a_run_of_recordings_ends_with_all_their_clips(checkpoint: Path, pcm: Pcm16) -> None:
    opus = EVERY | {"format": "opus", "history": {"scores": False}}
    with pipeline(checkpoint, {"a": {"type": "file"}}, recorder=opus, detection=QUICK) as run:
        run.write_audio(pcm[: 10 * 16_000])
        run.start("run", "run")
        assert run.wait("run") == 0, run.log("run")
        found = clips_of(run)
        events = events_in(run)
        assert len(events) > 1
        assert {event.id for event in events} == {event.id for _, event in found}
        for clip, _ in found:
            assert clip.path.endswith(".opus"), clip
            sound = samples(run, clip).astype(float)
            source = pcm[clip.start_sample : clip.stop_sample].astype(float)
            assert len(sound) == len(source)
            likeness = [np.dot(np.roll(sound, lag), source) for lag in range(-50, 51)]
            assert np.argmax(likeness) == 50  # in its place, to the sample
