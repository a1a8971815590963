"""The recorder of several workers, and of one over tcp with keys: real processes, killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pipeline import Body, Pipeline, pipeline, wait_for
from ports import free_ports
from reactive_model import tones_and_noise
from test_keys_over_tcp import command
from test_recorder import EVERY, QUICK, clips_of, events_in, is_complete, samples, start_recorder

from ast_stream.history.database import FILE, History
from ast_stream.history.score_log import ScoreReader
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.query import ReplayPage
from ast_stream.transport.event_log import EventLog

SECONDS = 12.0


def check_clips(run: Pipeline, sounds: dict[str, Pcm16]) -> set[str]:
    """Check that clips are the very samples of their sources; return the streams they are of."""
    found = clips_of(run)
    for clip, _ in found:
        if clip.path and not clip.note:
            expected = sounds[clip.stream][clip.start_sample : clip.stop_sample]
            np.testing.assert_array_equal(samples(run, clip), expected)
    return {clip.stream for clip, _ in found if clip.path}


def ended_events(run: Pipeline, worker: str) -> set[str]:
    """Return the ids of the events that a worker, which may run, has logged the ends of."""
    copy = run.folder / f"copy-{worker}"
    shutil.copytree(run.folder / "state" / worker / "events", copy)
    log = EventLog(copy)
    page = log.replay(None)
    log.close()
    assert isinstance(page, ReplayPage)
    return {one.body["id"] for one in page.messages if one.body.get("type") == "end"}


@pytest.mark.slow
def test_two_workers_have_one_history_also_after_a_kill_of_the_recorder(checkpoint: Path) -> None:
    sounds = {"a": tones_and_noise(SECONDS, 5), "b": tones_and_noise(SECONDS, 6)}
    sources: dict[str, Body] = {
        name: {"type": "file", "pace": "fast", "path": f"{name}.wav"} for name in sounds
    }
    workers = {"one": {"streams": ["a"]}, "two": {"streams": ["b"]}}
    with pipeline(checkpoint, sources, recorder=EVERY, detection=QUICK, workers=workers) as run:
        for name, pcm in sounds.items():
            run.write_audio(pcm, f"{name}.wav")

        for name in workers:
            run.start(name, "worker", "--name", name)
        start_recorder(run)
        for name in workers:
            wait_for(lambda name=name: "ready:" in run.log(name), f"the worker {name}")  # type: ignore[misc]
        for name in sounds:
            run.start_capture(name)
        wait_for(lambda: check_clips(run, sounds) == {"a", "b"}, "clips of both")
        run.kill("recorder")
        start_recorder(run)
        for name, worker in (("a", "one"), ("b", "two")):
            run.wait(f"capture-{name}")
            wait_for(lambda worker=worker: "source has ended" in run.log(worker), "its end")  # type: ignore[misc]
        ended = {event_id for name in workers for event_id in ended_events(run, name)}
        assert len(ended) >= 4
        wait_for(
            lambda: {one.id for one in events_in(run) if not one.is_open} == ended, "all events"
        )
        wait_for(lambda: is_complete(run, len(ended)), "the clips")
        assert run.stop("recorder") == 0
        assert check_clips(run, sounds) == {"a", "b"}
        with History.open_read_only(run.folder / "state" / "history" / FILE) as history:
            assert history.positions().keys() == {"one", "two"}


@pytest.mark.slow
def test_a_recorder_with_a_key_has_what_its_rights_allow(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("worker", "box"):
        command("keys", "create", name, "--dir", tmp_path)
    port = free_ports(3)
    transport = {
        name: f"tcp://127.0.0.1:{port + n}" for n, name in enumerate(("audio", "feed", "query"))
    }
    curve = {
        "server_secret": str(tmp_path / "worker.key_secret"),
        "client_secret": str(tmp_path / "box.key_secret"),
        "allow_list": str(tmp_path / "allowed.json"),
    }

    def authorise(*rights: str) -> None:
        allowed = ("--allow-list", tmp_path / "allowed.json")
        command("keys", "authorise", tmp_path / "box.key", *rights, *allowed)

    pcm = tones_and_noise(SECONDS)
    sources: dict[str, Body] = {"a": {"type": "file", "pace": "fast"}}
    with pipeline(
        checkpoint,
        sources,
        recorder=EVERY,
        detection=QUICK,
        transport=transport | {"curve": curve},
    ) as run:
        run.write_audio(pcm)
        authorise("feed", "push:a")
        run.start_worker()
        start_recorder(run)
        wait_for(lambda: "ready:" in run.log("worker"), "the worker")
        run.start_capture("a")
        run.wait("capture-a")
        wait_for(lambda: is_complete(run, 3), "events")
        notes = {clip.note for clip, _ in clips_of(run)}
        assert notes == {
            "the query was refused: audio: not allowed: the client lacks the right 'audio'"
        }

        authorise("feed", "push:a", "audio", "scores")  # a running worker follows the list
        scores = ScoreReader(run.folder / "state" / "history" / "scores")

        def has_scores() -> bool:
            run.start_capture("a")  # again, if the worker followed the list too late for the last
            run.wait("capture-a")
            return scores.streams() == ["a"]

        n_events = len(events_in(run))
        wait_for(has_scores, "scores")
        wait_for(lambda: is_complete(run, n_events + 3), "more events")
        wait_for(lambda: check_clips(run, {"a": pcm}) == {"a"}, "clips")
        assert run.stop("recorder") == 0
        assert run.stop("worker") == 0
