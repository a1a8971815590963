"""Real processes over real sockets: live, killed and scanned audio give the same events."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pipeline import Pipeline, events_of, pipeline, wait_for
from reactive_model import framed_checkpoint, tones_and_noise

from ast_stream.messages.audio import Pcm16
from ast_stream.model.checkpoint import save_checkpoint

FAST = {"type": "file", "pace": "fast"}


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(100.0)


@pytest.fixture(scope="module")
def scanned(checkpoint: Path, pcm: Pcm16) -> list[dict[str, object]]:
    """What `scan --json` finds in the recording."""
    with pipeline(checkpoint, {"a": dict(FAST)}) as run:
        path = run.write_audio(pcm)
        command = [sys.executable, "-m", "ast_stream.cli", "scan", "--json", str(path)]
        done = subprocess.run([*command, "-c", str(run.config)], capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def has_logged_events(run: Pipeline) -> bool:
    logs = (run.folder / "state" / "events").glob("*.jsonl")
    return any(b'"topic":"event/' in path.read_bytes() for path in logs)


def start_and_wait(run: Pipeline) -> None:
    """Start the worker and wait until it is ready, however often it was before."""
    boots = run.log("worker").count("ready:")
    run.start_worker()
    wait_for(lambda: run.log("worker").count("ready:") > boots, "worker ready")


def ended_events(run: Pipeline, stream: str) -> list[tuple[object, ...]]:
    """Finished events as `scan` reports them, in the order of their ends."""
    return [
        (
            body["label"],
            round(body["onset_sample"] / 16_000, 3),
            round(body["offset_sample"] / 16_000, 3),
            body["mean"],
            body["peak"],
        )
        for topic, body in run.published()
        if topic.startswith("event/") and body["type"] == "end" and body["stream"] == stream
    ]


def as_scanned(scanned: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [
        (event["label"], event["onset_s"], event["offset_s"], event["mean"], event["peak"])
        for event in scanned
    ]


def test_live_at_three_block_sizes_gives_the_events_of_the_scan(
    checkpoint: Path, pcm: Pcm16, scanned: list[dict[str, object]]
) -> None:
    sizes = {"small": 0.01, "usual": 0.1, "large": 0.7}
    streams = {name: FAST | {"block_s": block_s} for name, block_s in sizes.items()}
    with pipeline(checkpoint, streams) as run:
        run.write_audio(pcm)
        run.start_worker()
        for name in sizes:
            run.start_capture(name)
        for name in sizes:
            assert run.wait(f"capture-{name}") == 0, run.log(f"capture-{name}")
        assert run.stop("worker") == 0, run.log("worker")
        assert len(scanned) > 10
        for name in sizes:
            assert ended_events(run, name) == as_scanned(scanned)
        messages = run.published()
        assert events_of(messages, "small") == events_of(messages, "usual")
        assert events_of(messages, "large") == events_of(messages, "usual")
        assert not [topic for topic, _ in messages if topic.startswith("gap/")]


@pytest.mark.parametrize("decided_by", ["windows", "frames of a cascade"])
def test_worker_killed_three_times_loses_and_repeats_nothing(
    checkpoint: Path, pcm: Pcm16, tmp_path: Path, decided_by: str
) -> None:
    model: dict[str, object] = {}
    if decided_by != "windows":
        small, checkpoint = checkpoint, tmp_path
        save_checkpoint(checkpoint, framed_checkpoint())
        model = {"cascade": {"checkpoint": str(small), "ask_ratio": 1.0, "change_db": 20.0}}
    with pipeline(checkpoint, {"a": {"type": "file"}}, model=model) as run:
        run.write_audio(pcm[: 25 * 16_000])
        run.start_capture("a")
        rng = np.random.default_rng(3)
        for number in range(3):
            start_and_wait(run)
            if number == 0:
                wait_for(lambda: has_logged_events(run), "an event")
            time.sleep(float(rng.uniform(0.3, 2.0)))
            run.kill("worker")
        start_and_wait(run)
        assert run.wait("capture-a") == 0, run.log("capture-a")
        assert run.stop("worker") == 0
        messages = run.published()
    with pipeline(checkpoint, {"a": dict(FAST)}, model=model) as calm:
        calm.write_audio(pcm[: 25 * 16_000])
        calm.start_worker()
        calm.start_capture("a")
        assert calm.wait("capture-a") == 0
        calm.stop("worker")
        expected = calm.published()
    assert len(events_of(expected, "a")) > 10
    assert events_of(messages, "a") == events_of(expected, "a")
    assert not [topic for topic, _ in messages if topic.startswith("gap/")]
    boots_seen = {body["boot"] for _, body in messages}
    assert len(boots_seen) >= 2
