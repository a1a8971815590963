"""How each kind of fault is done to a running box, and undone."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from faults import Fault

from ast_stream.units import NS_PER_SECOND

if TYPE_CHECKING:
    from box import Box

NOT_RUNNING = "not running"
# of the zone that the box is in: summer time ends an hour later by UTC than this
DST_ENDS = datetime(2026, 10, 25, 1, 0, 0, tzinfo=UTC)
DST_LEAD_S = 2.0


def inject(box: Box, fault: Fault) -> str:
    """Do a fault for as long as it lasts; return why not if it could not be done."""
    with ExitStack() as undone_after:
        match fault.kind:
            case "kill":
                return box.signal(fault.target, signal.SIGKILL)
            case "stop":
                note = box.signal(fault.target, signal.SIGSTOP)
                undone_after.callback(box.signal, fault.target, signal.SIGCONT)
            case "overload":
                note = ""
                undone_after.enter_context(cpu_load(2 * (os.cpu_count() or 1)))
            case "full disk":
                note = ""
                undone_after.enter_context(full_disk(box.state))
            case "clock":
                note = _set_clocks(box, fault, undone_after)
            case "descriptors" | "memory":
                note = _limit(box, fault, undone_after)
            case "gpu":
                note = _break_gpu(box, fault, undone_after)
            case "sound server":
                note = _disturb_card(box, fault, undone_after)
            case "station":
                note = _disturb_station(box, fault, undone_after)
            case "start order":
                box.start_out_of_order()
                return ""
            case _:
                raise AssertionError(fault)
        if not note:
            time.sleep(fault.duration_s)
    return note


def _set_clocks(box: Box, fault: Fault, undone_after: ExitStack) -> str:
    if box.clocks is None:
        return "no compiler for the library that shifts clocks"
    if fault.target == "all over DST":
        shift_ns = round((DST_ENDS.timestamp() - DST_LEAD_S) * NS_PER_SECOND) - time.time_ns()
        targets = box.clocks.processes
    else:
        shift_ns = round(fault.amount * NS_PER_SECOND)
        targets = [fault.target]
    for target in targets:
        box.clocks.shift(target, shift_ns)
        undone_after.callback(box.clocks.shift, target, 0)
    return ""


def _limit(box: Box, fault: Fault, undone_after: ExitStack) -> str:
    """Let a process have no more descriptors, or no more memory, than it has."""
    pid = box.pid(fault.target)
    if pid is None:
        return NOT_RUNNING
    try:
        if fault.kind == "descriptors":
            taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            unused = next(number for number in range(len(taken) + 1) if number not in taken)
            which, limit = resource.RLIMIT_NOFILE, unused  # the limit is one of numbers
        else:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
            which, limit = resource.RLIMIT_AS, pages * resource.getpagesize()
        before = resource.prlimit(pid, which)
        resource.prlimit(pid, which, (limit, before[1]))
    except (OSError, ProcessLookupError):
        return NOT_RUNNING

    def lift() -> None:
        with suppress(ProcessLookupError):  # it has died of the limit
            resource.prlimit(pid, which, before)

    undone_after.callback(lift)
    return ""


def _break_gpu(box: Box, fault: Fault, undone_after: ExitStack) -> str:
    written = box.broken_gpu.with_suffix(".new")
    written.write_text(fault.target)
    written.replace(box.broken_gpu)
    if "once" not in fault.target:
        undone_after.callback(box.broken_gpu.unlink, missing_ok=True)
    return ""


def _disturb_card(box: Box, fault: Fault, undone_after: ExitStack) -> str:
    assert box.card is not None
    mic = box.card.mic
    match fault.target:
        case "killed":
            mic.kill()
            undone_after.callback(mic.start)
        case "suspended":
            mic.suspend(True)
            undone_after.callback(mic.suspend, False)
        case "hung":
            mic.freeze()
            undone_after.callback(mic.thaw)
        case "unplugged":
            mic.unplug()
            undone_after.callback(mic.plug)
        case _:
            raise AssertionError(fault)
    return ""


def _disturb_station(box: Box, fault: Fault, undone_after: ExitStack) -> str:
    station = box.station
    assert station is not None
    if fault.target == "rate":  # it stays
        station.rate = 1 - station.rate
        return ""
    modes = {"stalled": "stall", "refusing": "refuse", "garbage": "garbage"}
    station.mode = modes[fault.target]
    undone_after.callback(setattr, station, "mode", "play")
    return ""


@contextmanager
def cpu_load(n: int) -> Iterator[None]:
    """Keep the processors busy."""
    busy = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Fill the disk of a folder to the last byte."""
    filler = folder / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        yield
    finally:
        filler.unlink()
