"""The action `command`: a program of this machine with the alert as JSON on its standard input.

No shell, and nothing of an alert gets into the arguments. Exit code 0 is delivered, 75 (EX_TEMPFAIL
of sysexits.h) asks for another try, anything else is refused. It runs in a session of its own:
after its end, or its time limit, everything it has started is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Failed, Outcome, Undeliverable
from ast_stream.alerts.notification import Notification
from ast_stream.labels import one_line
from ast_stream.settings.alerts import CommandAction

TRY_AGAIN = 75
MAX_OUTPUT_BYTES = 64 * 1024
_SHOWN_CHARACTERS = 200
_READ_BYTES = 16 * 1024
_SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandRunner(ActionRunner):
    """Runs one program for each notification."""

    _settings: CommandAction

    @classmethod
    def problems(cls, name: str, settings: CommandAction) -> Iterator[str]:
        """Yield that there is no such program, or that it may not be executed."""
        program = settings.argv[0]
        try:
            is_file = Path(program).is_file()
        except ValueError:
            is_file = False
        if not is_file:
            yield f"argv: there is no program {program}"
        elif not os.access(program, os.X_OK):
            yield f"argv: {program} may not be executed"

    def deliver(self, notification: Notification) -> Outcome:
        """Run the program and wait for its end."""
        with tempfile.TemporaryFile() as stdin:  # a file, so that a program that does not read
            stdin.write(notification.encode())  # can never block us
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    self._settings.argv,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=self._environment(notification),
                    start_new_session=True,
                )
            except OSError as error:
                return Undeliverable(f"cannot run {self._settings.argv[0]}: {error.strerror}")
        assert process.stdout is not None
        with process.stdout:
            output, has_ended = _wait_for(process, self._settings.timeout_s)
            _kill_group(process.pid)
        code = process.wait()
        if not has_ended:
            return Failed(f"ran longer than {self._settings.timeout_s:g} s and was killed")
        return _outcome(code, output)

    def _environment(self, notification: Notification) -> dict[str, str]:
        passed = {name: os.environ[name] for name in self._settings.pass_env if name in os.environ}
        ours = {
            "AST_STREAM_ALERT_ID": notification.alert.id,
            "AST_STREAM_KIND": notification.kind,
            "AST_STREAM_RULE": notification.alert.rule,
            "AST_STREAM_SEVERITY": notification.alert.severity,
        }
        return {"PATH": _SAFE_PATH, "LANG": "C.UTF-8"} | passed | ours


def _wait_for(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bool]:
    """Read the program's output until it exits; return the start of it, and whether it exited.

    Its exit counts, not the end of its output: a child left behind may keep the pipe open.
    """
    deadline_s = time.monotonic() + timeout_s
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    output = bytearray()
    poll = select.poll()
    ended = os.pidfd_open(process.pid)
    try:
        poll.register(pipe, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(max(1, round(left_s * 1000)))}
            if pipe in ready and not _read_some(pipe, output):
                poll.unregister(pipe)
            if ended in ready:
                _read_some(pipe, output)
                return bytes(output), True
    finally:
        os.close(ended)
    return bytes(output), False


def _read_some(pipe: int, output: bytearray) -> bool:
    """Read what is available, keep it up to the limit, and return False at the end of file."""
    try:
        data = os.read(pipe, _READ_BYTES)
    except BlockingIOError:
        return True
    output += data[: max(0, MAX_OUTPUT_BYTES - len(output))]
    return bool(data)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _outcome(code: int, output: bytes) -> Outcome:
    if code == 0:
        return Delivered()
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    words = one_line(output.decode(errors="replace"))[:_SHOWN_CHARACTERS]
    reason = f"{how}: {words}" if words else how
    return Failed(reason, is_down=True) if code == TRY_AGAIN else Undeliverable(reason)


RUNNER = CommandRunner
