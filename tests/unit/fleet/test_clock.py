"""Clocks are measured against real servers, and what is wrong with them is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sntp_server import SntpServer
from wall_clocks import WallClocks

from ast_stream.cli.app import run_command_line
from ast_stream.cli.doctor_checks import check_clock
from ast_stream.fleet.clock import (
    ClockError,
    ClockWatch,
    KernelClock,
    Measurement,
    measure,
    read_kernel_clock,
    split_server,
)
from ast_stream.machine_clock import Moment
from ast_stream.messages.fleet import ClockReport
from ast_stream.settings.load import load_settings

PATIENCE_S = 60.0
HOUR_NS = 3600 * 10**9


def test_the_offset_is_what_has_to_be_added_to_the_clock_of_the_box() -> None:
    with SntpServer(shift_s=-90.0) as server:
        found = measure(server.address)
    assert abs(found.offset_s + 90.0) <= found.uncertainty_s
    assert found.uncertainty_s >= 0.005  # what the server says of itself


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"leap": 3}, "does not know the time itself"),
        ({"stratum": 16}, "does not know the time itself"),
        ({"stratum": 0}, "does not know the time itself"),  # a kiss of death
        ({"forges": True}, "answers what was not asked"),
        ({"reply": b"no time"}, "gives no time: Invalid NTP packet."),
        ({"is_silent": True}, "gives no time: No response received from 127.0.0.1."),
    ],
)
def test_answers_that_say_nothing_are_refused(fault: dict[str, object], sentence: str) -> None:
    with SntpServer() as server:
        for name, value in fault.items():
            setattr(server, name, value)
        with pytest.raises(ClockError, match=sentence):
            measure(server.address, timeout_s=0.2)


def test_a_server_that_has_no_address_is_named() -> None:
    with pytest.raises(ClockError, match=r"^no-such-host\.invalid gives no time: "):
        measure("no-such-host.invalid", timeout_s=1.0)


def test_servers_may_have_ports_and_be_addresses() -> None:
    assert split_server("ntp.example") == ("ntp.example", 123)
    assert split_server("ntp.example:1123") == ("ntp.example", 1123)
    assert split_server("[::1]:1123") == ("::1", 1123)
    assert split_server("fe80::1") == ("fe80::1", 123)


def test_a_watch_asks_in_a_thread_and_not_more_often_than_it_may() -> None:
    with SntpServer(shift_s=2.5) as server:
        watch = ClockWatch(server.address, kernel=lambda: KernelClock(False, 16.0))
        watch.start()
        end_s = time.monotonic() + PATIENCE_S
        while (found := watch.report()).offset_s is None and time.monotonic() < end_s:
            time.sleep(0.01)
        watch.close()
        assert server.asked == 1
    assert found.offset_s == pytest.approx(2.5, abs=0.1)
    assert found.server == server.address
    assert (found.is_synchronised, found.max_error_s, found.error) == (False, 16.0, None)
    assert (found.problem or "").endswith(f" s behind {server.address}")


def test_a_clock_that_is_set_after_a_measurement_is_known_to_be_wrong_at_once() -> None:
    now = Moment(10 * HOUR_NS, HOUR_NS)
    watch = ClockWatch(
        "ntp.example",
        measure=lambda server: Measurement(0.25, 0.01, now),
        kernel=lambda: KernelClock(True, 0.1),
        now=lambda: now,
    )
    watch.measure_once()
    assert watch.report().offset_s == 0.25
    now = Moment(11 * HOUR_NS + 10**9, HOUR_NS + 10**9)  # an hour ahead, a second later
    assert watch.report().offset_s == -3599.75
    assert watch.report().problem == ("the clock of this box is 3599.750 s ahead of ntp.example")


def test_an_old_measurement_says_nothing() -> None:
    now = Moment(10 * HOUR_NS, HOUR_NS)
    watch = ClockWatch(
        "ntp.example",
        measure=lambda server: Measurement(0.25, 0.01, now),
        kernel=lambda: None,
        now=lambda: now,
    )
    watch.measure_once()
    now = now.after(2 * HOUR_NS)
    assert (watch.report().offset_s, watch.report().age_s) == (None, None)


def test_the_kernel_is_asked_and_not_told() -> None:
    found = read_kernel_clock()
    if found is None:
        pytest.skip("the kernel does not answer adjtimex")
    assert found.max_error_s >= 0


@pytest.mark.parametrize(
    ("clock", "problem", "text"),
    [
        (ClockReport(), None, "kernel does not say"),
        (ClockReport(is_synchronised=True), None, "synchronised"),
        (
            ClockReport(is_synchronised=False),
            "the clock of this box is not synchronised: nothing corrects it",
            "not synchronised",
        ),
        (  # a virtual machine, whose clock its host corrects
            ClockReport(is_synchronised=False, offset_s=0.2, uncertainty_s=0.02, server="ntp"),
            None,
            "+0.200 s ± 0.020 s to ntp, not synchronised",
        ),
        (
            ClockReport(is_synchronised=True, offset_s=-3600.0, uncertainty_s=0.02, server="ntp"),
            "the clock of this box is 3600.000 s ahead of ntp",
            "-3600.000 s ± 0.020 s to ntp, synchronised",
        ),
        (  # measured over a link that is too slow to say
            ClockReport(is_synchronised=True, offset_s=1.5, uncertainty_s=0.9, server="ntp"),
            None,
            "+1.500 s ± 0.900 s to ntp, synchronised",
        ),
        (
            ClockReport(is_synchronised=False, server="ntp", error="ntp gives no time: refused"),
            "the clock of this box is not synchronised: nothing corrects it "
            "(ntp gives no time: refused)",
            "ntp gives no time: refused, not synchronised",
        ),
    ],
)
def test_what_is_wrong_with_a_clock_is_a_sentence(
    clock: ClockReport, problem: str | None, text: str
) -> None:
    assert clock.problem == problem
    assert clock.text == text


def test_status_and_doctor_show_the_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SntpServer(shift_s=-7200.0) as server:
        settings = {
            "runtime_dir": str(tmp_path),
            "streams": [{"name": "a", "source": {"type": "scene"}}],
            "fleet": {"ntp": server.address},
        }
        (tmp_path / "config.yaml").write_text(json.dumps(settings))
        arguments = ["status", "-c", str(tmp_path / "config.yaml"), "--timeout", "0.1"]
        assert run_command_line(arguments) == 1
        assert f" s ahead of {server.address}" in capsys.readouterr().out
        assert run_command_line([*arguments, "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        [check] = check_clock(load_settings(tmp_path / "config.yaml"))
    assert found["clock"]["offset_s"] == pytest.approx(-7200.0, abs=1.0)
    assert found["problems"][-1].endswith(f" s ahead of {server.address}")
    assert check.status == "warning"
    assert check.text.endswith(f" s ahead of {server.address}")


SHIFTED = """
import json, sys
from ast_stream.fleet.clock import ClockWatch
watch = ClockWatch(sys.argv[2])
watch.measure_once()
print(json.dumps([watch.report().offset_s, watch.report().problem]))
"""


@pytest.mark.skipif(not WallClocks.can_be_set(), reason="needs gcc to shift a clock")
def test_a_process_whose_clock_is_wrong_by_an_hour_says_so(tmp_path: Path) -> None:
    clocks = WallClocks(tmp_path / "clocks", ["forward"])
    clocks.shift("forward", HOUR_NS)
    with SntpServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", SHIFTED, "forward", server.address],
            env=os.environ | clocks.environment,
            capture_output=True,
            check=True,
        )
    offset_s, problem = json.loads(done.stdout)
    assert offset_s == pytest.approx(-3600.0, abs=1.0)
    assert problem.startswith("the clock of this box is ")
    assert problem.endswith(f" s ahead of {server.address}")
