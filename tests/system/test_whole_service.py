"""Every process of a box under a real systemd: hung, replaced, out of room, without power or time.

These take minutes and are no part of `make test`: `make machines`, see CONTRIBUTING.md. They share
one machine and are in the order of its life.
"""

from __future__ import annotations

import json

import booted
import pytest
from service_box import (
    ALL_UNITS,
    CONFIG,
    MICROPHONE,
    PAGE,
    PROGRAM,
    STATE,
    WORKER,
    Box,
    everything,
    settings,
)
from virtual_machine import VirtualMachine

pytestmark = [pytest.mark.system, booted.when_asked, booted.limit_s(1800)]

box = booted.box
BUNDLED = "/root/ast-stream/ast_stream/model/bundled"


def test_hung_process_of_every_unit_is_replaced_by_the_watchdog(box: Box) -> None:
    box.start_centre()
    box.make_tape()
    box.configure(everything())
    box.wait_until_healthy()
    before = box.main_pids(ALL_UNITS)
    box.run(f"systemctl kill -s STOP {' '.join(ALL_UNITS)}")
    box.wait_until(lambda: all(n > 0 for n in box.n_restarts(ALL_UNITS).values()), "the watchdogs")
    box.wait_until_healthy()
    assert not set(box.main_pids(ALL_UNITS).values()) & set(before.values())


def test_log_has_lines_of_text_with_their_levels(box: Box) -> None:
    lines = box.journal("ast-stream*", "-o json").splitlines()
    entries = [json.loads(line) for line in lines]
    ours = [entry for entry in entries if entry["SYSLOG_IDENTIFIER"].startswith("ast-stream")]
    assert ours
    assert all(isinstance(entry["MESSAGE"], str) for entry in ours)  # a list: not plain text
    assert not [entry for entry in ours if "\x1b" in entry["MESSAGE"]]
    assert {entry["PRIORITY"] for entry in ours} <= {"2", "3", "4", "6"}


def test_rollout_gives_a_running_worker_another_model(box: Box) -> None:
    change = (
        "import json; path = '/srv/other/ast_stream.json'; facts = json.load(open(path)); "
        "facts['default_onset_threshold'] += 0.001; json.dump(facts, open(path, 'w'))"
    )
    box.run(f'cp -r {BUNDLED} /srv/other && python3 -c "{change}"')
    before, n_before = box.main_pids([WORKER]), box.n_restarts([WORKER])
    centre = "--nats nats://127.0.0.1"
    rollout = f"{PROGRAM} fleet rollout"
    box.run(f"{rollout} start /srv/other --canary home/attic --after 1h --no-wait {centre}")
    box.machine.start("tests-rollout", f"{rollout} run --forever {centre}")
    try:
        box.wait_until(lambda: box.exists(f"{STATE}/models/current"), "the model")
        box.wait_until(lambda: "beginning again" in box.journal(WORKER), "the worker")
        box.wait_until_healthy()
        assert (box.main_pids([WORKER]), box.n_restarts([WORKER])) == (before, n_before)
        box.run(f"systemctl kill -s STOP {WORKER}")  # the watchdog is as strict as before
        box.wait_until(lambda: box.n_restarts([WORKER]) != n_before, "the watchdog")
        box.wait_until_healthy()
    finally:
        box.machine.stop("tests-rollout")


def test_several_workers_share_one_page(box: Box) -> None:
    workers = {"front": {"streams": ["porch", "tape"]}, "back": {"streams": ["scene"]}}
    box.configure(everything(workers=workers))
    box.wait_until_healthy()
    state = box.show("ast-stream-worker@back.service", "ActiveState", "NRestarts")
    assert state == {"ActiveState": "active", "NRestarts": "0"}
    assert box.show(WORKER, "ActiveState")["ActiveState"] == "inactive"
    assert box.show(PAGE, "ActiveState")["ActiveState"] == "active"


def test_what_stops_too_slowly_stays_down_with_its_target(box: Box) -> None:
    box.configure(settings())
    box.wait_until_healthy()
    quick = {"ast-stream-failed@": "Environment=RETRY_S=3", "ast-stream-worker": "TimeoutStopSec=1"}
    for unit, line in quick.items():
        box.write(f"/etc/systemd/system/{unit}.service.d/test.conf", f"[Service]\n{line}\n")
    box.run("systemctl daemon-reload")
    box.run(f"systemctl kill -s STOP {WORKER}")
    box.run("systemctl stop ast-stream.target")
    box.wait_until(lambda: box.show(WORKER, "Result")["Result"] == "timeout", "the late stop")
    reporter = f"ast-stream-failed@{WORKER}.service"
    box.wait_until(lambda: "Finished" in box.journal(reporter), "the report of it")
    assert box.show(WORKER, "ActiveState")["ActiveState"] == "failed"
    box.run("rm /etc/systemd/system/ast-stream-*.d/test.conf; systemctl daemon-reload")


def test_state_is_whole_after_a_power_cut(box: Box) -> None:
    box.configure(everything())
    box.start_centre()
    box.wait_until_healthy()
    box.wait_until(lambda: box.exists(f"{STATE}/clips/scene/*/*.flac"), "a clip")
    box.machine.cut_power()
    box.machine.boot()
    box.start_centre()
    box.wait_until_healthy()
    assert not box.run(f"find {STATE} -name '*damaged*'").stdout
    assert "damaged" not in box.run("journalctl -b -q --no-pager -o cat -u 'ast-stream*'").stdout


def test_box_listens_without_a_network_and_with_a_clock_of_1970(box: Box) -> None:
    machine = box.machine
    if not isinstance(machine, VirtualMachine):
        pytest.skip("a container has neither a clock nor a network card of its own: MACHINE=vm")
    box.configure(settings())
    machine.cut_power()
    machine.has_network, machine.clock = False, "1970-01-01T00:00:30"
    machine.boot()
    box.wait_until_healthy()
    box.run("date -s 2030-01-01")
    box.wait_until_healthy()
    assert box.n_restarts([MICROPHONE, WORKER]) == {MICROPHONE: 0, WORKER: 0}
    assert box.run(f"{PROGRAM} status -c {CONFIG}").returncode == 0
