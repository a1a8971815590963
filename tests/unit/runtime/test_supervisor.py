from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from ast_stream.runtime import supervisor
from ast_stream.runtime.lifecycle import child_environment
from ast_stream.runtime.supervisor import ChildSpec, LineForwarder, Supervisor

LIMIT_S = 60


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(supervisor, "_POLL_S", 0.01)


@pytest.fixture
def shown() -> Iterator[tuple[LineForwarder, StringIO]]:
    stream = StringIO()
    forwarder = LineForwarder(stream, "text")
    yield forwarder, stream
    forwarder.close()


def python(name: str, code: str, **changes: Any) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-c", code), **changes)


WAITS = "import time; time.sleep(600)"


def run(specs: list[ChildSpec], forwarder: LineForwarder) -> int:
    """Run the supervisor to its own end; a stop after the limit keeps a bug from hanging."""
    stop = threading.Event()
    timer = threading.Timer(LIMIT_S, stop.set)
    timer.start()
    code = Supervisor(specs, child_environment(), forwarder).run(stop)
    assert not stop.is_set(), "the supervisor did not end by itself"
    timer.cancel()
    return code


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("healthy_s", "delays"), [(60.0, ["0.02", "0.04", "0.05"]), (0, 3 * ["0.02"])]
)
def test_delay_doubles_up_to_its_limit_and_is_forgotten_after_a_healthy_run(
    healthy_s: float,
    delays: list[str],
    shown: tuple[LineForwarder, StringIO],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "MAX_DELAY_S", 0.05)
    monkeypatch.setattr(supervisor, "HEALTHY_S", healthy_s)
    fails_thrice = (
        "import pathlib, sys\n"
        f"runs = pathlib.Path({str(tmp_path / 'runs')!r})\n"
        "n_runs = len(runs.read_text()) if runs.exists() else 0\n"
        "runs.write_text('x' * (n_runs + 1))\n"
        "sys.exit(1 if n_runs < 3 else 0)\n"
    )
    assert run([python("capture a", fails_thrice, can_finish=True)], shown[0]) == 0
    assert re.findall(r"next try in (\S+) s", caplog.text) == delays


def test_run_ends_with_zero_when_all_finite_sources_have_ended(
    shown: tuple[LineForwarder, StringIO],
) -> None:
    worker = python("worker", WAITS, is_core=True)
    captures = [python(f"capture {n}", "pass", can_finish=True) for n in "ab"]
    assert run([worker, *captures], shown[0]) == 0


def test_worker_gets_time_to_end_in_order(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path
) -> None:
    code = (
        "import signal, sys, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "signal.sigwait([signal.SIGTERM]); print('ended in order')"
    )
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n" + code
    waits = (
        "import pathlib, time\n"
        f"while not pathlib.Path({str(tmp_path / 'up')!r}).exists(): time.sleep(0.01)"
    )
    specs = [
        python("worker", blocked, is_core=True),
        python("capture a", waits, can_finish=True),
    ]
    assert run(specs, shown[0]) == 0
    shown[0].close()
    assert "worker: ended in order" in shown[1].getvalue()


def test_crashed_child_is_started_again(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path
) -> None:
    count = tmp_path / "count"
    code = (
        f"import os, pathlib; p = pathlib.Path({str(count)!r}); n = p.stat().st_size if p.exists() "
        "else 0\np.write_text('x' * (n + 1))\n"
        "if n == 0: os.kill(os.getpid(), 9)\n"
        "if n == 1: raise SystemExit(1)\n"
    )
    specs = [
        python("worker", WAITS, is_core=True),
        python("capture a", code, can_finish=True),
    ]
    assert run(specs, shown[0]) == 0
    assert count.read_text() == "xxx"


def test_recording_that_fails_is_not_played_again_and_the_run_says_so(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path
) -> None:
    path = tmp_path / "count"
    code = f"open({str(path)!r}, 'a').write('x'); raise SystemExit(1)"
    specs = [
        python("worker", WAITS, is_core=True),
        python("capture file", code, can_finish=True, begins_anew=True),
    ]
    assert run(specs, shown[0]) == 1
    assert path.read_text() == "x"


def test_source_without_an_end_is_started_again_even_after_a_clean_exit(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path
) -> None:
    path = tmp_path / "count"
    specs = [
        python("worker", WAITS, is_core=True),
        python("capture mic", f"open({str(path)!r}, 'a').write('x')"),
    ]
    stop = threading.Event()
    watcher = threading.Thread(target=stop_when, args=(stop, lambda: path_size(path) >= 3))
    watcher.start()
    assert Supervisor(specs, child_environment(), shown[0]).run(stop) == 0
    watcher.join()
    assert path_size(path) >= 3


def path_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def stop_when(stop: threading.Event, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()


def test_worker_that_refuses_its_configuration_ends_the_run(
    shown: tuple[LineForwarder, StringIO],
) -> None:
    specs = [
        python("worker", "raise SystemExit(78)", is_core=True),
        python("capture a", WAITS),
    ]
    assert run(specs, shown[0]) == 78


def test_worker_whose_first_start_fails_ends_the_run(
    shown: tuple[LineForwarder, StringIO],
) -> None:
    specs = [python("worker", "raise SystemExit(3)", is_core=True), python("capture a", WAITS)]
    assert run(specs, shown[0]) == 3


def test_worker_that_was_up_once_is_tried_again_whatever_it_ends_with(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path
) -> None:
    count = tmp_path / "count"
    code = (
        f"import os, pathlib, time; p = pathlib.Path({str(count)!r})\n"
        "n = p.stat().st_size if p.exists() else 0\np.write_text('x' * (n + 1))\n"
        "if n == 0: os.kill(os.getpid(), 9)\n"
        "if n < 3: raise SystemExit(3)\n"
        "time.sleep(600)"
    )
    capture = (
        "import pathlib, time\n"
        f"while pathlib.Path({str(count)!r}).read_text() != 'xxxx': time.sleep(0.01)"
    )
    count.write_text("")
    specs = [
        python("worker", code, is_core=True),
        python("capture a", capture, can_finish=True),
    ]
    assert run(specs, shown[0]) == 0


def test_capture_that_refuses_its_configuration_is_left_out_while_others_go_on(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = tmp_path / "refused"
    bad = f"open({str(refused)!r}, 'a').write('x'); raise SystemExit(78)"
    good = (
        "import pathlib, time\n"
        f"while not pathlib.Path({str(refused)!r}).exists(): time.sleep(0.01)\n"
        "time.sleep(0.2)"
    )
    specs = [
        python("worker", WAITS, is_core=True),
        python("capture bad", bad),
        python("capture good", good, can_finish=True),
    ]
    assert run(specs, shown[0]) == 78
    assert refused.read_text() == "x"
    assert "capture bad refused its configuration and is not restarted" in caplog.text


def test_program_that_cannot_be_started_is_tried_again(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "program"

    def make_late() -> None:
        wait_until(lambda: "capture a cannot be started" in caplog.text)
        make_program(program)

    threading.Thread(target=make_late).start()
    specs = [
        python("worker", WAITS, is_core=True),
        ChildSpec("capture a", (str(program),), can_finish=True),
    ]
    assert run(specs, shown[0]) == 0
    assert "capture a cannot be started" in caplog.text


def make_program(path: Path) -> None:
    unfinished = path.with_suffix(".new")
    unfinished.write_text("#!/bin/sh\nexit 0\n")
    unfinished.chmod(0o755)
    unfinished.rename(path)


def test_child_that_ignores_sigterm_is_killed_with_its_own_children(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GRACE_S", 0.2)
    pids = tmp_path / "pids"
    code = (
        "import os, signal, subprocess, time, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{grandchild.pid}}')\n"
        f"os.rename({str(pids)!r} + '.new', {str(pids)!r})\n"
        "time.sleep(600)"
    )
    stop = threading.Event()
    watcher = threading.Thread(target=stop_when, args=(stop, pids.exists))
    watcher.start()
    specs = [python("worker", code, is_core=True), python("capture a", WAITS)]
    assert Supervisor(specs, child_environment(), shown[0]).run(stop) == 0
    watcher.join()
    child, grandchild = map(int, pids.read_text().split())
    assert not is_alive(child)
    wait_until(lambda: is_zombie_or_gone(grandchild))


def is_zombie_or_gone(pid: int) -> bool:
    # without an init that reaps it, a killed grandchild stays in the process table as a zombie
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_interrupt_of_the_supervisor_kills_the_children(
    shown: tuple[LineForwarder, StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    watched = Supervisor(
        [python("worker", WAITS, is_core=True), python("capture a", WAITS)],
        child_environment(),
        shown[0],
    )
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        watched.run(Interrupted())
    pids = [vars(record)["pid"] for record in caplog.records if "started" in record.message]
    assert [is_alive(pid) for pid in pids] == [False, False]


def test_lines_are_forwarded_under_the_name_of_the_child() -> None:
    stream = StringIO()
    forwarder = LineForwarder(stream, "text")
    reader, writer = os.pipe()
    os.write(writer, b"one\r\ncaf\xe9\n" + b"x" * (supervisor.MAX_LINE_BYTES + 5) + b"\nlast")
    os.close(writer)
    forwarder.follow("worker", os.fdopen(reader, "rb"))
    forwarder.close()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["worker: one", "worker: caf\\xe9"]
    assert [len(line) - len("worker: ") for line in lines[2:4]] == [supervisor.MAX_LINE_BYTES, 5]
    assert lines[4:] == ["worker: last"]


class StuckStream(StringIO):
    """A terminal that was stopped: writing returns only when it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(LIMIT_S)
        return super().write(text)


def test_stuck_terminal_does_not_hold_up_a_child_and_the_loss_is_reported() -> None:
    stream = StuckStream()
    forwarder = LineForwarder(stream, "text")
    reader, writer = os.pipe()
    forwarder.follow("worker", os.fdopen(reader, "rb"))
    n_lines = 3 * supervisor.MAX_QUEUED_LINES
    for n in range(n_lines):  # far more than the pipe and the queue hold: it would block for ever
        os.write(writer, f"line {n:06d} {'x' * 100}\n".encode())
    wait_until(lambda: forwarder.n_dropped > 0)
    stream.released.set()
    wait_until(lambda: stream.getvalue().count("\n") >= supervisor.MAX_QUEUED_LINES)
    os.write(writer, b"after\n")
    os.close(writer)
    forwarder.close()
    text = stream.getvalue()
    notes = [line for line in text.splitlines() if "lines dropped" in line]
    n_dropped = sum(int(line.split()[1]) for line in notes)
    assert text.splitlines()[-1] == "worker: after"
    assert n_dropped + text.count("worker: line") == n_lines


def test_child_that_lives_and_does_not_work_is_replaced(
    shown: tuple[LineForwarder, StringIO], socket_dir: Path
) -> None:
    forwarder = shown[0]
    flag = socket_dir / "flag"
    hangs_once = (
        "import os, pathlib, time; from ast_stream.runtime.lifecycle import notify\n"
        f"flag = pathlib.Path({str(flag)!r}); was_here = flag.exists(); flag.touch()\n"
        "notify('READY=1')\n"
        "while not was_here: time.sleep(0.1)\n"
    )
    specs = [python("worker", WAITS, is_core=True), python("a", hangs_once, can_finish=True)]
    stop = threading.Event()
    guard = threading.Timer(LIMIT_S, stop.set)
    guard.start()
    watched = Supervisor(specs, child_environment(), forwarder, socket_dir, watchdog_s=0.5)
    assert watched.run(stop) == 0
    assert not stop.is_set(), "the child was not replaced"
    guard.cancel()
    assert not list(socket_dir.glob("watch.*"))


def test_status_names_what_runs_and_what_does_not(
    shown: tuple[LineForwarder, StringIO],
) -> None:
    specs = [python("worker", WAITS, is_core=True), python("a", "", can_finish=True)]
    specs.append(python("b", WAITS))
    watched = Supervisor(specs, child_environment(), shown[0])
    stop, statuses = threading.Event(), []

    def after_turn() -> None:
        statuses.append(watched.status())
        if "has finished" in statuses[-1]:
            stop.set()

    guard = threading.Timer(LIMIT_S, stop.set)
    guard.start()
    assert watched.run(stop, after_turn) == 0
    guard.cancel()
    assert statuses[-1] == "running: worker, b; a has finished"


def test_child_that_ends_last_is_terminated_when_the_others_have_ended(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path
) -> None:
    slow, last = tmp_path / "slow", tmp_path / "last"
    on_term = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    {}\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path({!r}).touch()\n"
        "time.sleep(600)"
    )
    ends_slowly = on_term.format(
        f"time.sleep(0.3); pathlib.Path({str(slow)!r}).touch()", str(tmp_path / "a")
    )
    checks = on_term.format(
        f"pathlib.Path({str(last)!r}).write_text(str(pathlib.Path({str(slow)!r}).exists()))",
        str(tmp_path / "b"),
    )
    specs = [
        python("alerts", checks, is_core=True, ends_last=True),
        python("worker", ends_slowly, is_core=True),
        python("capture", WAITS),
    ]
    stop = threading.Event()
    guard = threading.Timer(LIMIT_S, stop.set)
    guard.start()

    def stop_when_both_wait() -> None:
        if (tmp_path / "a").exists() and (tmp_path / "b").exists():
            stop.set()

    assert Supervisor(specs, child_environment(), shown[0]).run(stop, stop_when_both_wait) == 0
    guard.cancel()
    assert last.read_text() == "True"


@pytest.mark.parametrize("code", [1, 3, 78])
def test_child_that_the_others_can_do_without_is_tried_again_and_ends_nothing(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path, code: int
) -> None:
    forwarder, _ = shown
    starts = tmp_path / "starts"
    fails = f"open({str(starts)!r}, 'a').write('x'); raise SystemExit({code})"
    waits = (
        "import pathlib, time\n"
        f"while not pathlib.Path({str(starts)!r}).exists() or"
        f" len(pathlib.Path({str(starts)!r}).read_text()) < 3: time.sleep(0.01)"
    )
    specs = [
        python("alerts", fails, is_optional=True),
        python("worker", WAITS, is_core=True),
        python("capture", waits, can_finish=True),
    ]
    assert run(specs, forwarder) == 0


def test_reload_starts_what_is_new_ends_what_is_gone_and_hangs_up_on_the_rest(
    shown: tuple[LineForwarder, StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tells = (
        "import signal\n"
        "for n in (signal.SIGHUP, signal.SIGTERM): signal.signal(n, lambda *_: None)\n"
        "print('up', flush=True)\n"
        "while True: print(signal.sigwait([signal.SIGHUP, signal.SIGTERM]).name, flush=True)"
    )
    waits = f"print('up', flush=True); {WAITS}"
    finished = python("capture done", "pass", can_finish=True, settings="one")
    kept, gone = python("capture kept", tells), python("capture gone", waits)
    stop, done = threading.Event(), threading.Event()
    supervised = Supervisor([kept, gone, finished], child_environment(), shown[0])
    n_turns = 0

    def lines() -> str:
        return shown[1].getvalue()

    def after_turn() -> None:
        nonlocal n_turns
        if n_turns == 0 and lines().count("up") == 2 and "has finished" in caplog.text:
            n_turns = 1
            again = python("capture done", waits, can_finish=True, settings="two")
            supervised.reload([kept, python("capture new", waits), again])
        elif n_turns == 1 and lines().count("up") == 4 and "SIGHUP" in lines():
            done.set()
            stop.set()

    timer = threading.Timer(LIMIT_S, stop.set)
    timer.start()
    assert supervised.run(stop, after_turn) == 0
    timer.cancel()
    assert done.is_set(), lines()
    assert "capture gone has ended" in caplog.text
    names = [spec.name for spec in supervised.specs]
    assert names == ["capture kept", "capture done", "capture new"]
    assert "capture kept: SIGTERM" in lines()  # at the end only
    assert lines().index("SIGHUP") < lines().index("SIGTERM")


def test_child_that_comes_back_before_it_has_ended_is_started_again(
    shown: tuple[LineForwarder, StringIO],
) -> None:
    slow = (
        "import signal, sys, time\n"
        "def end(*_): time.sleep(0.3); print('down', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"print('up', flush=True); {WAITS}"
    )
    other, back = python("capture other", WAITS), python("capture back", slow)
    stop = threading.Event()
    supervised = Supervisor([other, back], child_environment(), shown[0])
    has_reloaded = False

    def after_turn() -> None:
        nonlocal has_reloaded
        if not has_reloaded and "up" in shown[1].getvalue():
            has_reloaded = True
            supervised.reload([other])
            supervised.reload([other, back])
        elif shown[1].getvalue().count("up") == 2:
            stop.set()

    timer = threading.Timer(LIMIT_S, stop.set)
    timer.start()
    supervised.run(stop, after_turn)
    timer.cancel()
    assert re.findall("up|down", shown[1].getvalue())[:3] == ["up", "down", "up"]


def test_child_that_refused_a_file_is_started_again_by_a_reload(
    shown: tuple[LineForwarder, StringIO], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have read a file that was only half saved, and that nobody else has seen."""
    mended = tmp_path / "mended"
    reads = (
        "import pathlib, sys, time\n"
        f"if not pathlib.Path({str(mended)!r}).exists(): sys.exit(78)\n"
        "print('up', flush=True); time.sleep(600)"
    )
    specs = [python("worker", WAITS, is_core=True), python("capture a", reads)]
    specs.append(python("capture b", WAITS))
    stop = threading.Event()
    supervised = Supervisor(specs, child_environment(), shown[0])
    has_reloaded = False

    def after_turn() -> None:
        nonlocal has_reloaded
        if not has_reloaded and "refused its configuration" in caplog.text:
            has_reloaded = True
            mended.touch()
            supervised.reload(specs)
        elif "up" in shown[1].getvalue():
            stop.set()

    timer = threading.Timer(LIMIT_S, stop.set)
    timer.start()
    supervised.run(stop, after_turn)
    timer.cancel()
    assert "capture a: up" in shown[1].getvalue()
