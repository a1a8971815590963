"""The report of a box says in one bounded body what its processes, ledger and clock say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline import Pipeline, pipeline, wait_for
from reactive_model import save_reactive
from sample_messages import box_report, health

from ast_stream.box_status import BoxStatus, WorkersStatus
from ast_stream.errors import WireError
from ast_stream.fleet.clock import ClockWatch, KernelClock
from ast_stream.fleet.report import BoxReporter, clock_families, file_hash, shortened
from ast_stream.messages.fleet import (
    MAX_REPORT_BYTES,
    MAX_REPORT_PROBLEMS,
    BoxReport,
    OutputReport,
    RolloutReport,
    StreamReport,
)
from ast_stream.messages.status import RecentLoss
from ast_stream.runtime.metrics import Metrics
from ast_stream.settings.load import load_settings

SCENE = {"type": "scene", "duration_s": 3600}
OUTPUT = OutputReport(name="centre", is_connected=True, waiting=0)


def right_clock() -> ClockWatch:
    return ClockWatch(None, kernel=lambda: KernelClock(True, 0.01))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Pipeline]:
    fleet = {"site": "farm", "box": "barn"}
    save_reactive(tmp_path / "model")
    with pipeline(tmp_path / "model", {"porch": SCENE}, fleet=fleet) as found:
        yield found


@pytest.mark.slow
def test_a_box_reports_what_it_is(box: Pipeline) -> None:
    box.start_worker()
    box.start_capture("porch")
    settings = load_settings(box.config)
    reports: list[BoxReport] = []
    with BoxReporter(
        settings, box.config, outputs=lambda: [OUTPUT], clock=right_clock()
    ) as reporter:

        def is_heard() -> bool:
            reporter._renewed_s = float("-inf")  # the coverage, too, as it is now
            reports.append(reporter.report())
            [stream] = reports[-1].streams  # its state is of another message than what was heard
            is_listening = stream.state == "listening"
            return is_listening and bool(stream.heard) and not reports[-1].problems

        wait_for(is_heard, "a report of a stream that is heard")
        box.kill("worker")
        gone = reporter.report()
    report = BoxReport.decode(reports[-1].encode())
    assert report.encode() == reports[-1].encode()
    assert (report.site, report.box) == ("farm", "barn")
    assert report.configuration == file_hash(box.config)
    assert report.checkpoint == settings.model.checkpoint
    assert report.outputs == [OUTPUT]
    [worker] = report.workers
    assert worker.model is not None
    assert worker.model.startswith("sha256:")
    assert (worker.device, worker.precision) == ("cpu", "fp32")
    assert worker.boot is not None
    assert report.models == [worker.model]
    [stream] = report.streams
    assert (stream.stream, stream.state) == ("porch", "listening")
    assert stream.heard == report.heard == 1.0
    assert gone.workers[0].model is None
    assert any("the worker does not answer" in problem for problem in gone.problems)
    assert (gone.configuration, gone.boot) == (report.configuration, report.boot)


def test_what_outputs_and_a_roll_out_lack_is_a_problem(box: Pipeline) -> None:
    outputs = [
        OUTPUT,
        OutputReport(name="hub", is_connected=False, error="no route"),
        OutputReport(name="spare", is_connected=True, lag_s=90.0),
    ]
    rollout = RolloutReport(wanted="sha256:aa", state="refused", detail="no such class")
    with BoxReporter(
        load_settings(box.config),
        box.config,
        outputs=lambda: outputs,
        rollout=lambda: rollout,
        clock=ClockWatch(None, kernel=lambda: KernelClock(False, 16.0)),
    ) as reporter:
        report = reporter.report()
    assert report.problems[-4:] == [
        "the clock of this box is not synchronised: nothing corrects it",
        "forward hub: no route",
        "forward spare is 90 s behind",
        "the model sha256:aa is not in use: no such class",
    ]
    assert [(stream.stream, stream.state) for stream in report.streams] == [("porch", None)]


def test_a_loss_that_is_over_is_a_detail_of_its_stream_and_no_problem_that_ends_a_roll_out(
    box: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = RecentLoss(seconds=3.2, ago_s=12.0, reasons=["overflow"])
    found = BoxStatus(streams={"porch": health("porch", recent_loss=loss)})
    found.problems = [*found.losses, "the page does not answer"]
    with BoxReporter(load_settings(box.config), box.config, clock=right_clock()) as reporter:
        monkeypatch.setattr(reporter._client, "ask", lambda: WorkersStatus({None: found}))
        report = reporter.report()
    assert report.problems == ["the page does not answer"]
    assert report.streams[0].detail == loss.text


def test_problems_leave_the_box_bounded_printable_and_without_secrets() -> None:
    found = shortened(
        ["rtsp://me:secret@cam/live fails", "a\x1b[31mb", "x" * 9_000, *map(str, range(100))]
    )
    assert found[0] == "rtsp://***@cam/live fails"
    assert found[1] == "a\\x1b[31mb"
    assert len(found) == MAX_REPORT_PROBLEMS
    assert found[-1] == f"and {103 - MAX_REPORT_PROBLEMS + 1} more problems"
    assert all(len(problem) <= 400 for problem in found)


def test_the_hash_of_a_configuration_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"streams: []\n")
    digest = hashlib.sha256(b"streams: []\n").hexdigest()
    assert file_hash(tmp_path / "a.yaml") == f"sha256:{digest}"
    assert file_hash(tmp_path / "b.yaml") is None


def test_coverage_of_streams_counts_by_their_time() -> None:
    report = box_report(
        streams=[
            StreamReport(stream="a", heard=1.0, accounted_s=300.0),
            StreamReport(stream="b", heard=0.0, accounted_s=100.0),
            StreamReport(stream="c"),
        ]
    )
    assert report.heard == 0.75
    assert report.unheard_s == 50.0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"v":1}',
        b"\xff",
        b'{"v":2}' + b" " * MAX_REPORT_BYTES,
        json.dumps(box_report().to_json() | {"clock": {"offset_s": "one"}}).encode(),
        json.dumps(box_report().to_json() | {"time": "yesterday"}).encode(),
    ],
)
def test_what_is_no_report_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match=r"^box report"):
        BoxReport.decode(body)


def test_clocks_have_figures() -> None:
    metrics = Metrics("forward")
    metrics.renew(clock_families(right_clock()))
    names = {family.name: family.samples for family in clock_families(right_clock())}
    assert [sample.value for sample in names["ast_stream_clock_synchronised"]] == [1.0]
    assert names["ast_stream_clock_offset_seconds"] == []  # not measured
