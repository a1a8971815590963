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

from ast_stream.alerts.actions.base import (
    Delivered,
    Failed,
    Notification,
    Outcome,
    Refused,
    one_line,
)
from ast_stream.settings.alert_schema import CommandAction

TRY_AGAIN = 75
MAX_OUTPUT_BYTES = 64 * 1024
_SHOWN_CHARACTERS = 200
_READ_BYTES = 16 * 1024
_SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandRunner:
    """Runs one program for each notification."""

    def __init__(self, settings: CommandAction) -> None:
        self._settings = settings

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
                return Refused(f"cannot run {self._settings.argv[0]}: {error.strerror}")
        assert process.stdout is not None
        with process.stdout:
            said, is_over = _follow(process, self._settings.timeout_s)
            _kill_group(process.pid)
        code = process.wait()
        if not is_over:
            return Failed(f"ran longer than {self._settings.timeout_s:g} s and was killed")
        return _outcome(code, said)

    def close(self) -> None:
        """Have nothing to let go of."""

    def _environment(self, notification: Notification) -> dict[str, str]:
        passed = {name: os.environ[name] for name in self._settings.pass_env if name in os.environ}
        ours = {
            "AST_STREAM_ALERT_ID": str(notification.alert["id"]),
            "AST_STREAM_KIND": notification.kind,
            "AST_STREAM_RULE": notification.rule,
            "AST_STREAM_SEVERITY": notification.severity,
        }
        return {"PATH": _SAFE_PATH, "LANG": "C.UTF-8"} | passed | ours


def _follow(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bool]:
    """Read what the program says until it ends; return the first of it, and whether it ended.

    Its end, not that of its output, is what counts: a child left behind may hold that open.
    """
    deadline_s = time.monotonic() + timeout_s
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    said = bytearray()
    poll = select.poll()
    ended = os.pidfd_open(process.pid)
    try:
        poll.register(pipe, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(max(1, round(left_s * 1000)))}
            if pipe in ready and not _read_some(pipe, said):
                poll.unregister(pipe)
            if ended in ready:
                _read_some(pipe, said)
                return bytes(said), True
    finally:
        os.close(ended)
    return bytes(said), False


def _read_some(pipe: int, said: bytearray) -> bool:
    """Read what is there, keep it up to the limit, and return False at the end."""
    try:
        data = os.read(pipe, _READ_BYTES)
    except BlockingIOError:
        return True
    said += data[: max(0, MAX_OUTPUT_BYTES - len(said))]
    return bool(data)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _outcome(code: int, said: bytes) -> Outcome:
    if code == 0:
        return Delivered()
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    words = one_line(said.decode(errors="replace"))[:_SHOWN_CHARACTERS]
    reason = f"{how}: {words}" if words else how
    return Failed(reason, is_down=True) if code == TRY_AGAIN else Refused(reason)
