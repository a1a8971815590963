"""Commands that begin as forks of a process that has imported what takes most of a start.

Each is a process of its own that runs the command line with its own environment, folder and
outputs. Commands that begin from nothing are the children of `run`, those of services, and those
of tests about starting.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing import reduction
from pathlib import Path
from typing import Any
from unittest import mock

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "ast_stream.cli.app",
        "ast_stream.worker.process",
        "ast_stream.capture.process",
        "ast_stream.alerts.process",
        "ast_stream.recorder.process",
        "ast_stream.forward.process",
        "ast_stream.web.process",
        "ast_stream.cli.status",
    ]
)
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # read where torch is imported; and forks have one thread
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
LIMIT_S = 120.0

Output = Path | int


class _Descriptor:
    """A file descriptor that another process gets as its own."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self._number),)


def _received(given: Any) -> int:
    number: int = given.detach()
    return number


class ForkedCommand(subprocess.Popen[Any]):
    """A process of `ast-stream`, as `Popen` has it.

    Args:
        args: behind the name of the program.
        stdout: what standard output is appended to, a descriptor, or `subprocess.PIPE`.
        stderr: the same of standard error; None: where standard output goes.
        env: None: that of this process.
        cwd: None: that of this process.
        text: pipes give text.
    """

    def __init__(
        self,
        args: Sequence[str | Path],
        stdout: Output,
        stderr: Output | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        text: bool = False,
    ) -> None:
        self._child_created = False  # none of Popen's: there is nothing for it to collect
        self._communication_started = False
        self._input = None  # as `communicate` has it before it begins
        self.text_mode = text
        self.stdin = self.stdout = self.stderr = None
        self.args = list(map(str, args))
        with ExitStack() as of_child:

            def opened(output: Output) -> tuple[int, Any]:
                """Return a descriptor for the child, and what this process reads from."""
                if isinstance(output, Path):
                    number, reader = os.open(output, _APPEND, 0o644), None
                elif output == subprocess.PIPE:
                    ours, number = os.pipe()
                    reader = os.fdopen(ours, "r" if text else "rb")
                else:
                    return output, None
                of_child.callback(os.close, number)
                return number, reader

            out, self.stdout = opened(stdout)
            err, self.stderr = (out, None) if stderr is None else opened(stderr)
            environment = {**(os.environ if env is None else env), **_ONE_THREAD}
            given = self.args, environment, (_Descriptor(out), _Descriptor(err)), cwd or Path.cwd()
            self._process = _CONTEXT.Process(target=_run, args=given, daemon=True)
            with mock.patch.dict(os.environ, _ONE_THREAD):
                self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.returncode = None

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while it runs."""
        self.returncode = self._process.exitcode
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it runs after `timeout` seconds.
        """
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


def run_command(
    *args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return what it said, as `subprocess.run` does."""
    with tempfile.TemporaryDirectory(prefix="forked-") as name:
        out, err = Path(name, "out"), Path(name, "err")
        command = ForkedCommand(args, out, err, env=env, cwd=cwd)
        try:
            code = command.wait(LIMIT_S)
        finally:
            command.kill()
            command.wait()
        return subprocess.CompletedProcess(command.args, code, out.read_text(), err.read_text())


def _run(args: list[str], env: dict[str, str], outputs: tuple[int, int], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    numbers = [os.open(os.devnull, os.O_RDONLY), *outputs]
    for standard, number in enumerate(numbers):
        os.dup2(number, standard)
    for number in set(numbers) - {0, 1, 2}:
        os.close(number)
    # those of the process that this is a fork of may lead to what can be sought in
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = ["ast-stream", *args]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from ast_stream.cli import leave_on_signals
    from ast_stream.cli.app import main

    leave_on_signals(sys.argv[1:])
    main()
