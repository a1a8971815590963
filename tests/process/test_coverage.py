"""What `ast-stream coverage` says of real processes that are killed, starved and stopped."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_command import run_command
from pipeline import Body, Pipeline, pipeline, wait_for
from reactive_model import tones_and_noise

from ast_stream.coverage.ledger import read_spans
from ast_stream.coverage.spans import HEARD
from ast_stream.coverage.timeline import Coverage
from ast_stream.messages.audio import Pcm16
from ast_stream.units import SAMPLE_RATE, parse_time

LENGTH_S = 40
GATE_DBFS = -60.0


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    """Sounds with ten seconds of nothing in the middle."""
    audio = tones_and_noise(float(LENGTH_S))
    audio[15 * SAMPLE_RATE : 25 * SAMPLE_RATE] = 0
    return audio


def coverage(run: Pipeline, *args: str) -> subprocess.CompletedProcess[str]:
    return run_command("coverage", "-c", run.config, *args)


def by_stream(run: Pipeline) -> dict[str, Body]:
    done = coverage(run, "--json")
    assert "Traceback" not in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {body["stream"]: body for body in found}


def so_far(run: Pipeline) -> dict[str, Body]:
    """Return the same from this process, which can ask often: each start of another computes."""
    spans = read_spans(run.folder / "state/coverage", run.folder / "run/unwritten-coverage.jsonl")
    return {
        stream: Coverage.of(stream, of_stream, time.time_ns(), is_expected=False).to_json()
        for stream, of_stream in spans.items()
    }


def assert_adds_up(body: Body) -> None:
    """The time from first to last is the sum of the kinds, and no sample is there twice."""
    kinds = {kind: count for kind, count in body["samples"].items() if kind != "total"}
    assert sum(kinds.values()) == body["samples"]["total"]
    wall_ns = parse_time(body["to"]) - parse_time(body["from"])
    assert abs(wall_ns * SAMPLE_RATE / 1e9 - body["samples"]["total"]) <= 1
    position: dict[str, int] = {}
    for span in body["spans"]:
        if "epoch" in span:
            assert span["start"] == position.get(span["epoch"], 0), body
            position[span["epoch"]] = span["start"] + span["samples"]


def samples_of(body: Body, kind: str) -> set[int]:
    """Return the hundredths of a second that the spans of a kind cover."""
    return {
        number
        for span in body["spans"]
        if span["kind"] == kind
        for number in range(span["start"] // 160, (span["start"] + span["samples"]) // 160)
    }


def heard(body: Body | None) -> int:
    return 0 if body is None else sum(body["samples"][kind] for kind in HEARD)


def test_every_sample_of_a_recording_is_accounted_for_though_the_worker_is_killed(
    checkpoint: Path, pcm: Pcm16, tmp_path: Path
) -> None:
    detection = {"gate_dbfs": GATE_DBFS}
    streams: dict[str, Any] = {"fast": {"type": "file", "pace": "fast"}, "live": {"type": "file"}}
    with pipeline(checkpoint, streams, detection=detection) as run:
        run.write_audio(pcm)
        nothing = coverage(run)
        assert nothing.returncode == 1
        assert "has no record of that time" in nothing.stderr
        run.start_worker()
        run.start_capture("fast")
        run.start_capture("live")
        for seconds in (12, 20):  # amid sound and amid silence
            wait_for(
                lambda: heard(so_far(run).get("live")) >= seconds * SAMPLE_RATE,  # noqa: B023
                f"{seconds} s of the live stream",
            )
            run.kill("worker")
            assert_adds_up(by_stream(run)["live"])
            run.start_worker()
        wait_for(lambda: run.log("worker").count("ready:") == 3, "the last worker")
        assert run.wait("capture-live") == 0
        assert run.wait("capture-fast") == 0
        assert run.stop("worker") == 0
        found = by_stream(run)
        for body in found.values():
            assert_adds_up(body)
            assert body["samples"]["total"] == len(pcm)
            assert body["heard"] == 1.0
            spared = body["samples"]["gated"] + body["samples"]["degraded"]
            assert spared > 8 * SAMPLE_RATE
        # on a busy machine the live one may be degraded, and what is has not been asked for silence
        degraded = samples_of(found["live"], "degraded")
        gated = [samples_of(found[name], "gated") - degraded for name in ("fast", "live")]
        assert gated[0] == gated[1]
        table = coverage(run, "live", "--png", str(tmp_path / "t.png"))
        assert table.returncode == 0, table.stderr
        assert "100.00 %" in table.stdout
        assert "fast" not in table.stdout
        assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_lost_audio_is_the_gap_of_its_record_and_downtime_is_missing(checkpoint: Path) -> None:
    pcm = np.concatenate([tones_and_noise(30.0)] * 4)
    with pipeline(checkpoint, {"a": {"type": "file", "loop": True}}) as run:
        text = json.loads(run.config.read_text())
        text["streams"][0]["ring_s"] = 10
        run.config.write_text(json.dumps(text))
        run.write_audio(pcm)
        run.start_worker()
        run.start_capture("a")
        wait_for(lambda: heard(so_far(run).get("a")) >= 3 * SAMPLE_RATE, "audio")
        run.kill("worker")
        wait_for(lambda: _is_past(run, 14.0), "more audio than the ring holds")
        run.start_worker()
        wait_for(lambda: so_far(run)["a"]["samples"]["gap"] > 0, "the gap")
        run.kill("capture-a")
        run.start_capture("a")
        wait_for(lambda: so_far(run)["a"]["samples"]["missing"] > 0, "the missing time")
        wait_for(lambda: so_far(run)["a"]["spans"][-1]["kind"] in HEARD, "audio again")
        assert run.stop("worker") == 0
        run.stop("capture-a")
        body = by_stream(run)["a"]
        assert_adds_up(body)
        gaps = [gap for topic, gap in run.published() if topic == "gap/a/"]
        reasons: dict[str, int] = {}
        for gap in gaps:
            reasons[gap["reason"]] = reasons.get(gap["reason"], 0) + gap["samples"]
        restart = reasons.pop("capture_restart")
        assert body["reasons"]["missing"]["capture_restart"] == restart
        assert body["reasons"]["gap"] == reasons
        assert body["samples"]["gap"] == sum(reasons.values())
        assert 0 < body["heard"] < 1
        lost = [span["kind"] for span in body["spans"] if span["kind"] not in HEARD]
        assert lost[0] == "gap"
        assert set(lost) == {"gap", "missing"}


def _is_past(run: Pipeline, seconds: float) -> bool:
    """Return whether so much time has passed since the last sample that was accounted for."""
    return time.time_ns() - parse_time(so_far(run)["a"]["to"]) > seconds * 1e9
