"""Streams added, removed and changed while others run, with all processes of `ast-stream run`."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from pipeline import Body, Pipeline, events_of, pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.coverage.ledger import read_spans
from ast_stream.coverage.spans import KINDS
from ast_stream.coverage.timeline import Coverage
from ast_stream.messages.audio import Pcm16

N_CHANGES = 20
DURATION_S = 60.0
TO_FINISH_S = 15.0  # before the recording is over
UNDISTURBED = ("a", "b")


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(DURATION_S)


def reload(run: Pipeline, streams: list[Body], **sections: object) -> None:
    """Write another configuration, and have `run` follow it."""
    settings = json.loads(run.config.read_text()) | sections | {"streams": streams}
    run.config.write_text(json.dumps(settings))
    n_before = run.log("run").count("worker: settings ")
    run.processes["run"].send_signal(signal.SIGHUP)
    wait_for(lambda: run.log("run").count("worker: settings ") > n_before, "the worker's reload")


def kinds_of(run: Pipeline, stream: str) -> Counter[str]:
    spans = read_spans(run.folder / "state/coverage", run.folder / "run/unwritten-coverage.jsonl")
    found = Coverage.of(stream, spans[stream], time.time_ns(), is_expected=False)
    return Counter({kind: found.samples[kind] for kind in KINDS if found.samples[kind]})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_others_go_on_as_if_nothing_had_been_added_changed_and_removed(
    checkpoint: Path, pcm: Pcm16
) -> None:
    with pipeline(checkpoint, {name: {"type": "file", "pace": "fast"} for name in "ab"}) as run:
        run.write_audio(pcm)
        run.start("run", "run")
        assert run.wait("run") == 0
        messages = run.published()
        undisturbed = {name: events_of(messages, name) for name in UNDISTURBED}
        assert all(len(events) > 10 for events in undisturbed.values())
    with pipeline(checkpoint, {name: {"type": "file"} for name in "ab"}) as run:
        run.write_audio(pcm)
        run.start("run", "run")
        wait_for(lambda: "stream a: epoch" in run.log("run"), "the first audio")
        kept = json.loads(run.config.read_text())["streams"]
        end_s = time.monotonic() + DURATION_S - TO_FINISH_S
        for change in range(N_CHANGES):
            if time.monotonic() > end_s:
                break  # on a busy machine fewer find room in the recording
            again = {"type": "file", "path": str(run.folder / "audio.wav"), "loop": True}
            ring_s = 60 + change // 4  # another ring: the capture process begins again
            others = [
                {"name": f"c{number}", "source": again, "ring_s": ring_s}
                for number in range(3)
                if (change + 3 * number) % 8 < 5
            ]
            reload(run, [*others[:1], *kept, *others[1:]])
            time.sleep(1.0)
        assert "a has finished" not in run.log("run"), "there was too little audio for this machine"
        reload(run, kept)
        wait_for(lambda: "stream c0: removed" in run.log("run"), "the last one to leave")
        assert run.wait("run") == 0
        messages = [(topic, body) for topic, body in run.published() if "stream" in body]
        for name in UNDISTURBED:
            assert events_of(messages, name) == undisturbed[name]
            assert kinds_of(run, name).keys() == {"listened"}
            assert kinds_of(run, name)["listened"] == len(pcm)
        types = Counter(
            (body["id"], body["type"]) for topic, body in messages if topic.startswith("event/")
        )
        begun = [event_id for event_id, kind in types if kind == "begin"]
        assert all(types[event_id, "end"] == 1 for event_id in begun)
        assert {body["stream"] for _, body in messages} > set(UNDISTURBED)
        reasons = {body["reason"] for topic, body in messages if not topic.startswith("event/")}
        assert reasons <= {"capture_restart"}
        assert "Traceback" not in run.log("run")
