"""Two workers of one configuration: apart in everything, and one to those who read and alert."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked_command import run_command
from http_receiver import HttpReceiver, http_receiver
from pipeline import Body, Pipeline, events_of, pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.messages.audio import Pcm16
from ast_stream.messages.query import ReplayPage
from ast_stream.transport.event_log import EventLog

RULES = {
    "version": 1,
    "groups": [
        {"name": "g", "rules": [{"alert": "heard", "match": {}, "actions": ["hook"]}]},
    ],
}


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(20.0)


def command(run: Pipeline, *args: str) -> Any:
    """Return what a command prints as JSON."""
    done = run_command(*args, "-c", run.config, "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


def replayed(run: Pipeline, streams: set[str]) -> list[Body]:
    """Return events that `subscribe` prints, until there is one of each of these streams.

    Of two workers nobody knows whose comes first, nor how many do before one of the other.
    """
    words = [sys.executable, "-m", "ast_stream.cli", "subscribe", "--replay", "event", "--json"]
    found: list[Body] = []
    with subprocess.Popen([*words, "-c", run.config], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        for line in reader.stdout:
            found.append(json.loads(line))
            if {message["stream"] for message in found} == streams:
                break
        reader.kill()
    return found


def logged(run: Pipeline, worker: str) -> list[tuple[str, Body]]:
    """Return what a worker has logged; it must have ended."""
    log = EventLog(run.folder / "state" / worker / "events")
    page = log.replay(None)
    assert isinstance(page, ReplayPage)
    log.close()
    return [(message.topic, message.body) for message in page.messages]


@pytest.mark.slow
def test_two_workers_share_the_streams_and_readers_and_rules_see_both(
    checkpoint: Path, pcm: Pcm16
) -> None:
    workers = {"one": {"streams": ["a"]}, "two": {"streams": ["b"]}}
    again = {"type": "file", "loop": True}
    alerts: Body = {"rules": ["rules.yaml"], "actions": {}}
    with (
        http_receiver() as hook,
        pipeline(
            checkpoint, {"a": dict(again), "b": dict(again)}, workers=workers, alerts=alerts
        ) as run,
    ):
        action = {"type": "webhook", "url": hook.url, "allow_private": True}
        written = json.loads(run.config.read_text())
        written["alerts"]["actions"] = {"hook": action}
        run.config.write_text(json.dumps(written))
        run.write_audio(pcm)
        (run.folder / "rules.yaml").write_text(json.dumps(RULES))
        process = run.start("run", "run")
        wait_for(lambda: _streams_of(hook) == {"a", "b"}, "alerts of both streams")
        status: dict[str, Any] = {}

        def is_healthy() -> bool:
            status.update(command(run, "status")[0])
            return bool(status["healthy"])

        wait_for(is_healthy, f"everything healthy: {status}")
        assert {name: box["worker"]["streams"] for name, box in status["workers"].items()} == {
            "one": ["a"],
            "two": ["b"],
        }
        found = replayed(run, {"a", "b"})
        assert len({message["boot"] for message in found}) == 2

        # a stream moves from one worker to the other, and the third is new to both
        settings = json.loads(run.config.read_text())
        settings["streams"].append({**settings["streams"][0], "name": "c"})
        settings["workers"] = {"one": {"streams": ["c"]}, "two": {"streams": ["b", "a"]}}
        run.config.write_text(json.dumps(settings))
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: _streams_of(hook) == {"a", "b", "c"}, "an alert of the new stream")
        wait_for(lambda: run.log("run").count("stream a: epoch") == 2, "the stream that moved")
        assert run.stop("run") == 0

        one, two = logged(run, "one"), logged(run, "two")
        assert {body["stream"] for topic, body in one if topic.startswith("event/")} == {"a", "c"}
        assert events_of(two, "b")
        coverage = {part["stream"]: part for part in command(run, "coverage")}
        assert coverage.keys() == {"a", "b", "c"}
        assert coverage["b"]["reasons"] == {}
        assert coverage["a"]["samples"]["off"] > 0
        assert "Traceback" not in run.log("run")


def _streams_of(hook: HttpReceiver) -> set[str]:
    return {request.body["data"]["alert"]["group"]["stream"] for request in hook.got}
