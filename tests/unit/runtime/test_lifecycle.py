from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import pytest

from ast_stream.runtime import lifecycle
from ast_stream.runtime import logging as logging_setup
from ast_stream.runtime.logging import LOG_FORMAT, foreign_line, line_format, setup_logging

LIMIT_S = 60  # of what happens at once


def log_lines(format: str, **extra: object) -> list[str]:
    stream = StringIO()
    setup_logging("info", format, process="worker", stream=stream)  # type: ignore[arg-type]
    logger = logging.getLogger("ast_stream.test")
    logger.debug("not shown")
    logger.warning("lost %d samples", 5, extra=extra)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_sets_the_stop_event(number: signal.Signals) -> None:
    with lifecycle.stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(LIMIT_S)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_hangup_asks_for_a_reload_where_there_is_one_and_does_not_stop(
    handler: signal.Handlers,
) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        reload = threading.Event()
        with lifecycle.stop_on_signals(reload) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert reload.wait(LIMIT_S)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_terminal_that_was_closed_stops_also_a_process_that_reloads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = [True]
    monkeypatch.setattr(lifecycle, "_has_terminal", lambda: terminal[0])
    reload = threading.Event()
    with lifecycle.stop_on_signals(reload) as stop:
        terminal[0] = False
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.wait(LIMIT_S)
        assert not reload.is_set()


def test_hangup_of_a_supervisor_waits_until_the_child_can_take_it() -> None:
    code = (
        "import os, signal, threading; from ast_stream.runtime import lifecycle as l\n"
        "l.hold_hangups(); os.kill(os.getpid(), signal.SIGHUP); reload = threading.Event()\n"
        "with l.stop_on_signals(reload): print(reload.wait(20))"
    )
    environ = lifecycle.child_environment()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        timeout=LIMIT_S,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"True\n")


def test_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with lifecycle.stop_on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_restored_also_after_an_error() -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    with pytest.raises(RuntimeError, match="in the body"), lifecycle.stop_on_signals():
        raise RuntimeError("in the body")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def interrupt_twice(stop: threading.Event) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.wait(LIMIT_S)
    os.kill(os.getpid(), signal.SIGINT)


def test_second_interrupt_forces_and_a_second_term_does_not() -> None:
    with lifecycle.stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(LIMIT_S)
    with lifecycle.stop_on_signals() as stop, pytest.raises(KeyboardInterrupt):
        interrupt_twice(stop)


@pytest.mark.parametrize("is_abstract", [False, True])
def test_service_manager_is_notified(socket_dir: Path, is_abstract: bool) -> None:
    address = f"@ast-stream-test-{os.getpid()}" if is_abstract else f"{socket_dir}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        assert lifecycle.notify("READY=1\nSTATUS=4 streams", {"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"READY=1\nSTATUS=4 streams"


def test_without_a_service_manager_nothing_happens(tmp_path: Path) -> None:
    assert not lifecycle.notify("READY=1", {})
    assert not lifecycle.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_what_is_said_once_waits_for_room_and_what_is_said_again_does_not(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_ROOM_S", LIMIT_S)
    environ = {"NOTIFY_SOCKET": str(socket_dir / "notify")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(environ["NOTIFY_SOCKET"])
        n_waiting = 0
        while lifecycle.notify("WATCHDOG=1", environ):
            n_waiting += 1
        assert not lifecycle.notify("STATUS=listening", environ)
        thread = threading.Thread(target=lifecycle.notify, args=("READY=1", environ))
        thread.start()
        taken = [manager.recv(100) for _ in range(n_waiting + 1)]
        thread.join()
    assert taken[-1] == b"READY=1"


def test_watchdog_is_due_at_half_its_limit_and_only_for_the_process_it_names() -> None:
    own = str(os.getpid())
    assert lifecycle.watchdog_interval_s({"WATCHDOG_USEC": "10000000"}) == 5.0
    assert lifecycle.watchdog_interval_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": own}) == 1.5
    assert lifecycle.watchdog_interval_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}) is None
    assert lifecycle.watchdog_interval_s({}) is None


def test_child_is_supervised_and_does_not_speak_for_its_parent() -> None:
    environ = lifecycle.child_environment({"PATH": "/bin", "NOTIFY_SOCKET": "/x"})
    assert environ == {
        "PATH": "/bin",
        "AST_STREAM_SUPERVISED": "1",
        "AST_STREAM_PARENT": str(os.getpid()),
    }


CHILD = (
    "import sys, time; from ast_stream.runtime.lifecycle import die_with_parent\n"
    "die_with_parent(); print('alive', flush=True); time.sleep(600)"
)
PARENT = (
    "import subprocess, sys, time; from ast_stream.runtime.lifecycle import child_environment\n"
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}], env=child_environment())\n"
    "time.sleep(600)"
)


def test_child_dies_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout as out:
        assert out.readline() == b"alive\n"
        parent.kill()
        parent.wait(LIMIT_S)
        # the child holds the other end of the pipe: end of file means that it is gone
        assert out.read() == b""


def test_child_whose_parent_was_gone_before_it_started_ends_at_once() -> None:
    environ = lifecycle.child_environment() | {lifecycle.PARENT: "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=environ,
        timeout=LIMIT_S,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_text_line_has_time_level_process_message_and_facts() -> None:
    (line,) = log_lines("text", stream="porch", level_dbfs=-45.25, why="no device")
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == ('warning worker: lost 5 samples stream=porch level_dbfs=-45.25 why="no device"')


def test_journal_line_starts_with_its_priority() -> None:
    assert log_lines("journald", stream="porch") == ["<4>worker: lost 5 samples stream=porch"]


def test_json_line_is_one_object_in_which_facts_cannot_forge_the_rest() -> None:
    (line,) = log_lines("json", stream="porch", process_time=3, level="forged", time="forged")
    body = json.loads(line)
    assert body.pop("time").endswith("Z")
    assert body == {
        "stream": "porch",
        "process_time": 3,
        "level": "warning",
        "process": "worker",
        "logger": "ast_stream.test",
        "message": "lost 5 samples",
    }


@pytest.mark.parametrize("format", ["text", "journald", "json"])
def test_hostile_text_stays_on_its_line_and_moves_no_cursor(format: str) -> None:
    (line,) = log_lines(format, device="\x1b[2J\n<0>forged\u2028")
    assert "\x1b" not in line
    assert "forged" in line


def test_every_line_of_a_traceback_has_the_priority_in_the_journal() -> None:
    stream = StringIO()
    setup_logging("info", "journald", process="worker", stream=stream)
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        logging.getLogger("ast_stream.test").exception("crashed")
    lines = stream.getvalue().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


class ClosedStream(StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_closed_stderr_is_no_reason_to_fail_or_to_write_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging(process="worker", stream=ClosedStream())
    logging.getLogger("ast_stream.test").warning("into the void")
    assert capsys.readouterr().err == ""


def test_format_follows_the_journal_only_if_it_is_what_stderr_is_connected_to(
    tmp_path: Path,
) -> None:
    with (tmp_path / "log").open("w") as stream:
        found = os.fstat(stream.fileno())
        journal = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert line_format("auto", stream, journal) == "journald"
        assert line_format("text", stream, journal) == "text"
        assert line_format("auto", stream, {"JOURNAL_STREAM": "1:1"}) == "text"
        assert line_format("auto", stream, {LOG_FORMAT: "terminal"}) == "terminal"
        assert line_format("auto", stream, {LOG_FORMAT: "nonsense"}) == "text"


def test_lines_of_libraries_get_the_name_of_their_process_and_our_own_pass() -> None:
    own = "2026-11-20T10:00:00.000000Z info capture porch: started"
    assert foreign_line("text", "capture porch", own) == own
    assert foreign_line("text", "capture porch", "Expression 'err'\x07") == (
        "capture porch: Expression 'err'\\x07"
    )
    assert foreign_line("terminal", "worker", "10:00:00.000 \x1b[33mwarning\x1b[0m worker: x") == (
        "10:00:00.000 \x1b[33mwarning\x1b[0m worker: x"
    )
    assert foreign_line("journald", "worker", "<4>worker: x") == "<4>worker: x"
    assert foreign_line("journald", "worker", "noise") == "<6>worker: noise"
    assert foreign_line("json", "worker", '{"message":"x"}') == '{"message":"x"}'
    body = json.loads(foreign_line("json", "worker", "noise"))
    assert (body["process"], body["message"], body["level"]) == ("worker", "noise", "info")


def test_setup_is_known_to_have_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert not logging_setup.is_set_up()
    setup_logging(process="worker", stream=StringIO())
    assert logging_setup.is_set_up()


DUMPABLE = """
import ctypes, resource
from ast_stream.runtime.lifecycle import keep_memory_private
PR_GET_DUMPABLE, libc = 3, ctypes.CDLL(None)
print(libc.prctl(PR_GET_DUMPABLE))
keep_memory_private()
print(libc.prctl(PR_GET_DUMPABLE), *resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_private_memory_is_neither_dumped_nor_open_to_processes_of_the_same_user() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DUMPABLE], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["1", "0 0 0"]


TRACED = """
import ctypes, os, sys
from ast_stream.errors import StartupError
from ast_stream.runtime.lifecycle import keep_memory_private
libc = ctypes.CDLL(None)
child = os.fork()
if child == 0:
    if libc.ptrace(0, 0, None, None) != 0:  # PTRACE_TRACEME
        os._exit(2)
    try:
        keep_memory_private()
    except StartupError as error:
        os._exit(int(str(error).startswith(f"process {os.getppid()} traces this one")) + 40)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_memory_that_a_debugger_looks_into_already_is_not_called_private() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, text=True, check=True
    )
    if done.stdout == "2\n":
        pytest.skip("this sandbox allows no ptrace")
    assert done.stdout == "41\n"
