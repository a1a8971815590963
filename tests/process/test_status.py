"""What `ast-stream status` says and when it calls things healthy, on real processes and answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_command import run_command
from pipeline import Pipeline, pipeline, wait_for
from reactive_model import save_reactive
from rich.console import Console
from sample_messages import (
    FAILING,
    alerts_status,
    event_message,
    recorder_status,
    worker_status,
)

from ast_stream.box_status import BoxStatus, problems
from ast_stream.cli.status import view, worker_text
from ast_stream.cli.terminal import console
from ast_stream.machine_clock import Moment, read_clocks
from ast_stream.messages.audio import AudioBlock, RingReply
from ast_stream.messages.pool import Placement
from ast_stream.messages.status import ForwardStatus, Health, StreamState
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE

ENDLESS = {"type": "scene", "duration_s": 3600}
RULES = "version: 1\ngroups: [{name: g, rules: [{alert: bark, match: {class: Bark}}]}]\n"


def streams(*sources: dict[str, Any]) -> list[StreamSettings]:
    named = [{"name": f"s{number}", "source": source} for number, source in enumerate(sources)]
    return Settings.model_validate({"streams": named}).streams


def health(name: str, state: StreamState = "listening", detail: str | None = None) -> Health:
    return Health(
        stream=name,
        state=state,
        detail=detail,
        level_dbfs=None if state == "missing" else -41.7,
        lag_s=None if state == "missing" else 0.31,
        gaps=2,
        lost_samples=8_000,
    )


def capture(state: str = "listening", detail: str | None = None) -> RingReply:
    """Return the answer of a ring that has ten minutes of audio, half a second not decided."""
    block = AudioBlock("s0", "ab" * 8, 0, Moment(0, 0), np.zeros(0, np.int16))
    newest = 600 * SAMPLE_RATE
    return RingReply(block, 0, newest, newest - 8_000, state, detail)


def report(*healths: Health, **fields: Any) -> BoxStatus:
    found = BoxStatus(
        worker=worker_status(lag_s=0.3, windows_per_s=2.0, uptime_s=90_000.0),
        streams={health.stream: health for health in healths},
        captures={health.stream: capture() for health in healths},
    )
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def test_the_share_of_windows_that_a_large_model_was_asked_about_is_shown() -> None:
    asked = worker_status(counters={"windows": 400, "windows_asked": 60})
    assert " windows/s (15% asked), " in worker_text(asked)
    assert "asked" not in worker_text(worker_status(counters={"windows": 400}))


LIVE = streams({"type": "microphone"})
FILE = streams({"type": "file", "path": "a.wav"})


@pytest.mark.parametrize("state", ["listening", "warming", "gated"])
def test_streams_that_are_heard_are_well(state: StreamState) -> None:
    assert problems(report(health("s0", state)), LIVE) == []


@pytest.mark.parametrize(
    ("found", "configured", "expected"),
    [
        (report(worker=None), [], "the worker does not answer"),
        (report(), LIVE, "stream s0 is not known to the worker"),
        (
            report(health("s0", "missing", "no such device")),
            LIVE,
            "stream s0 is missing: no such device",
        ),
        (report(health("s0", "degraded", "overload")), LIVE, "stream s0 is degraded: overload"),
        (
            report(health("s0"), captures={"s0": None}),
            LIVE,
            "the capture process of s0 does not answer",
        ),
        (
            report(health("s0"), captures={"s0": capture("missing", "unplugged")}),
            LIVE,
            "the capture process of s0 has no audio: unplugged",
        ),
        (
            report(health("s0"), captures={"s0": capture("degraded", "zeros")}),
            LIVE,
            "the capture process of s0 has no sound: zeros",
        ),
        (
            report(health("s0", "missing", "the source has ended")),
            LIVE,
            "stream s0 is missing: the source has ended",
        ),
        (report(has_alerts=True), [], "the alerts process sends no status"),
        (
            report(has_alerts=True, alerts=alerts_status(hears_worker=False)),
            [],
            "the alerts process receives nothing from the worker",
        ),
        (report(has_recorder=True), [], "the recorder sends no status"),
        (
            report(has_recorder=True, recorder=recorder_status(hears_workers=False)),
            [],
            "the recorder receives nothing from the worker",
        ),
        (
            report(has_recorder=True, recorder=recorder_status(disk="the disk is full")),
            [],
            "the recorder: the disk is full",
        ),
        (
            report(has_alerts=True, alerts=alerts_status(failing=[FAILING])),
            [],
            "alerts are not delivered by p: 1 alert waits after up to 3 attempts: no route",
        ),
    ],
)
def test_what_is_not_well_is_named(
    found: BoxStatus, configured: list[StreamSettings], expected: str
) -> None:
    assert problems(found, configured) == [expected]


FOLLOWERS: dict[str, Any] = {
    "has_alerts": True,
    "alerts": alerts_status(hears_worker=False),
    "has_recorder": True,
    "recorder": recorder_status(hears_workers=False),
    "has_forward": True,
    "forward": ForwardStatus(hears_workers=False, outputs=[], disk=None),
}


def test_a_worker_that_is_gone_is_the_only_problem_of_those_who_read_its_feed() -> None:
    killed = report(worker=None, **FOLLOWERS)
    assert problems(killed, []) == ["the worker does not answer"]
    # where there are several, the readers of all of them are shown with the first
    first = report(**FOLLOWERS)
    assert problems(first, [], workers=[first, report(worker=None)]) == []


def test_readers_of_a_worker_that_has_just_started_name_it_as_the_cause() -> None:
    started = report(
        worker=worker_status(uptime_s=2.2),
        has_recorder=True,
        recorder=recorder_status(hears_workers=False),
    )
    expected = ["the worker started 2 s ago: the recorder waits for its feed"]
    assert problems(started, []) == expected


@pytest.mark.parametrize(
    "found",
    [
        report(has_alerts=True, alerts=alerts_status(hears_worker=False, disk="full")),
        report(has_recorder=True, recorder=recorder_status(hears_workers=False, disk="full")),
        report(
            has_forward=True, forward=ForwardStatus(hears_workers=False, outputs=[], disk="full")
        ),
    ],
    ids=["alerts", "recorder", "forward"],
)
def test_a_process_that_cannot_write_is_not_shown_as_without_a_worker(
    found: BoxStatus, capsys: pytest.CaptureFixture[str]
) -> None:
    console(stderr=False).print(view(found))
    shown = capsys.readouterr().out
    assert "cannot write" in shown
    assert "no worker" not in shown


def test_recording_that_was_read_to_its_end_is_well() -> None:
    ended = report(health("s0", "missing", "the source has ended"), captures={"s0": None})
    assert problems(ended, FILE) == []


def in_pool(placement: Placement) -> BoxStatus:
    """Return what a capture box of a pool answers: its worker is elsewhere."""
    reply = replace(capture(), placement=placement)
    return BoxStatus(has_worker=False, captures={"s0": reply})


def test_a_capture_box_of_a_pool_is_well_without_a_worker_and_says_where_its_streams_are() -> None:
    since_ns = read_clocks().wall_ns - 185 * NS_PER_SECOND
    found = in_pool(Placement(worker="gpu-1", since_ns=since_ns, takeovers=2, handover_s=6.21))
    assert problems(found, LIVE) == []
    (table,) = [found.as_json()["captures"]["s0"]["placement"]]
    assert (table["worker"], table["takeovers"], table["handover_s"]) == ("gpu-1", 2, 6.21)
    console = Console(width=160, record=True)
    with console.capture() as shown:
        console.print(view(found))
    text = " ".join(shown.get().split())
    assert "at gpu-1 for 3 min, 2 take-overs, the last change took 6.2 s" in text
    assert "worker elsewhere" in text
    nobody = in_pool(Placement(takeovers=2))
    assert problems(nobody, LIVE) == ["stream s0: no worker of the pool has it"]


def test_a_worker_of_a_pool_says_since_when_it_has_a_stream() -> None:
    since_ns = read_clocks().wall_ns // 1000 * 1000 - 30 * NS_PER_SECOND  # as it is written
    placed = health("s0").model_copy(
        update={"placement": Placement(worker="gpu-1", since_ns=since_ns, changes=1)}
    )
    console = Console(width=160, record=True)
    with console.capture() as shown:
        console.print(view(report(placed)))
    assert "at gpu-1 for 30 s" in " ".join(shown.get().split())
    assert "placement" not in health("s0").to_json()
    assert Health.from_json(placed.to_json(), "health").placement == placed.placement


def test_tables_fit_a_terminal_and_name_every_process_and_stream() -> None:
    found = report(
        health("s0"),
        health("s1", "missing", "no such device"),
        has_alerts=True,
        alerts=alerts_status(n_rules=3, pending=2),
        events=[event_message(stream="s0")],
        problems=["stream s1 is missing: no such device"],
    )
    console = Console(width=80, record=True)
    with console.capture() as capture:
        console.print(view(found))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join(capture.get().split())
    assert "worker scoring cpu fp32 math, 2 windows/s, lag 0.3 s, up 1.0 d" in shown
    assert "capture s0 listening 10 min of audio, 0.5 s not yet decided" in shown
    assert "alerts listening 3 rules, 2 to deliver" in shown
    assert "s0 listening -41.7 dBFS 0.3 s Bark 2 0.5 s" in shown
    assert shown.endswith("stream s1 is missing: no such device")


def test_what_comes_from_outside_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(
        health("s0", "missing", "[/nothing] \x1b[2J"),
        events=[event_message(stream="s0", label="[red]Bark")],
        problems=["stream s0 is missing: [/nothing] \x1b[2J"],
    )
    console(stderr=False, piped_width=200).print(view(found))
    printed = capsys.readouterr().out
    assert "[red]Bark" in printed
    assert r"stream s0 is missing: [/nothing] \x1b[2J" in printed
    assert "\x1b" not in printed


def test_a_process_that_does_not_answer_is_reported_with_its_socket() -> None:
    places = {"worker": "ipc:///run/a/query.sock", "capture s0": "ipc:///run/a/ring.s0.sock"}
    found = report(worker=None, captures={"s0": None}, has_alerts=True)
    assert problems(found, LIVE, places) == [
        "the worker does not answer at ipc:///run/a/query.sock",
        "the capture process of s0 does not answer at ipc:///run/a/ring.s0.sock",
        "the alerts process sends no status",
    ]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    checkpoint = save_reactive(tmp_path_factory.mktemp("reactive"))
    alerts = {"rules": ["rules.yaml"]}
    with pipeline(checkpoint, {"porch": dict(ENDLESS)}, alerts=alerts) as run:
        (run.folder / "rules.yaml").write_text(RULES)
        run.start_worker()
        run.start_capture("porch")
        run.start("alerts", "alerts")
        wait_for(lambda: "ready:" in run.log("alerts"), "alerts")
        wait_for(lambda: "epoch" in run.log("worker"), "audio")
        yield run


def ask(run: Pipeline, *args: str) -> subprocess.CompletedProcess[str]:
    return run_command("status", "-c", run.config, *args)


def test_everything_is_healthy_when_it_is_and_not_when_a_process_is_gone(
    running: Pipeline,
) -> None:
    last: list[dict[str, Any]] = []

    def is_healthy() -> bool:
        done = ask(running, "--json")
        last[:] = [json.loads(done.stdout)]
        assert (done.returncode == 0) is last[0]["healthy"]
        return done.returncode == 0 and bool(last[0]["worker"]["counters"]["windows"])

    wait_for(is_healthy, "everything healthy, and a window scored")
    (found,) = last
    assert found["problems"] == []
    assert found["streams"][0]["stream"] == "porch"
    assert found["captures"]["porch"]["state"] == "listening"
    assert found["alerts"]["rules"] == 1

    tables = []

    def is_shown() -> bool:
        tables.append(ask(running))
        return tables[-1].returncode == 0

    wait_for(is_shown, "everything healthy again")
    assert "everything is healthy" in tables[-1].stdout
    assert "\x1b" not in tables[-1].stdout

    running.kill("alerts")
    running.kill("capture-porch")
    done = ask(running, "--timeout", "0.5")
    assert done.returncode == 1
    assert "the capture process of porch does not answer" in done.stdout
    assert "the alerts process sends no status" in done.stdout


def test_a_live_source_without_any_sound_is_not_healthy(tmp_path: Path) -> None:
    left = np.random.default_rng(0).integers(-9_000, 9_000, 30 * SAMPLE_RATE).astype(np.int16)
    source = {"type": "file", "path": "opposite.wav", "loop": True}
    checkpoint = save_reactive(tmp_path)
    with pipeline(checkpoint, {"porch": source}) as run:
        run.write_audio(np.stack([left, -left], axis=1), "opposite.wav")
        run.start_worker()
        run.start_capture("porch")
        wait_for(lambda: "channels 0 and 1 cancel each other" in run.log("capture-porch"), "a word")
        wait_for(lambda: "stream porch is degraded: channels 0 and 1" in ask(run).stdout, "status")
        done = ask(run, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["healthy"] is False
    assert found["streams"][0]["state"] == found["captures"]["porch"]["state"] == "degraded"


def test_a_missing_worker_is_reported_with_exit_code_1(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        f"runtime_dir: {tmp_path}\nstreams: [{{name: porch, source: {{type: microphone}}}}]\n"
    )
    command = [sys.executable, "-m", "ast_stream.cli", "status", "-c", str(config)]
    done = subprocess.run(
        [*command, "--timeout", "0.2"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "the worker does not answer" in done.stdout
    assert "the capture process of porch does not answer" in done.stdout
