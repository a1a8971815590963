"""A state folder that is removed under running processes: none goes on as if it were there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pipeline import Pipeline, pipeline, wait_for
from reactive_model import save_reactive, tones_and_noise

from ast_stream.box_status import WorkersStatusClient
from ast_stream.runtime.lifecycle import EXIT_CRASH
from ast_stream.settings.load import load_settings

QUICK = {"defaults": {"onset_threshold": 0.5, "confirm_s": 0.25, "hold_s": 0.25}}
RULES = {
    "version": 1,
    "groups": [{"name": "test", "rules": [{"alert": "dog", "match": {"class": "Bark"}}]}],
}
REMOVED = "was removed or replaced while it was in use"


def start_beside(run: Pipeline) -> None:
    """Start the processes that have a database, and wait until they are ready."""
    for name, command in (("recorder", "record"), ("alerts", "alerts")):
        n_ready = run.log(name).count("ready:")
        run.start(name, command)
        wait_for(lambda name=name, n=n_ready: run.log(name).count("ready:") > n, name)  # type: ignore[misc]


@pytest.mark.slow
def test_listening_goes_on_in_a_new_folder_and_who_has_a_database_begins_anew(
    tmp_path: Path,
) -> None:
    save_reactive(tmp_path / "model")
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    sections = {
        "detection": QUICK,
        "recorder": {"clips": [{"pre_s": 0.5, "post_s": 0.5}], "history": {"scores": True}},
        "alerts": {"rules": [str(tmp_path / "rules.yaml")]},
    }
    source = {"type": "file", "loop": True}
    with pipeline(tmp_path / "model", {"porch": source}, **sections) as run:
        run.write_audio(tones_and_noise(20.0))
        state = run.folder / "state"
        run.start_worker()
        start_beside(run)
        run.start_capture("porch")

        def n_lines() -> int:
            return sum(file.read_bytes().count(b"\n") for file in state.glob("events/*.jsonl"))

        wait_for(lambda: n_lines() > 2, "events")
        # in one step: whoever writes into it while its files are removed keeps the folder itself
        shutil.rmtree(state.rename(run.folder / "removed-state"))
        problems: set[str] = set()
        # the worker alone: the others end, and are waited for longer than it shows this
        with WorkersStatusClient(load_settings(run.config), is_complete=False) as client:

            def is_said() -> bool:
                problems.update(client.ask().problems)
                return any(f"event log {state}/events {REMOVED}" in text for text in problems)

            wait_for(is_said, "a status that says so")
        for name, what in (("recorder", "the history"), ("alerts", "the alert database")):
            assert run.wait(name) == EXIT_CRASH
            said = [line for line in run.log(name).splitlines() if f"{what} {state}/" in line]
            assert [REMOVED in line for line in said] == [True], run.log(name)
        assert f"event log {state}/events {REMOVED}: it is begun anew" in run.log("worker")
        wait_for(lambda: n_lines() > 2, "events in the new folder")
        start_beside(run)
        assert {path.name for path in state.iterdir()} >= {"format.json", "events", "history"}
        assert run.stop("capture-porch") == 0
        assert run.stop("worker") == 0
        ended = [body["id"] for topic, body in run.published() if body.get("type") == "end"]
        assert ended
        assert len(set(ended)) == len(ended)
