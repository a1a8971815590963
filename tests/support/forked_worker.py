"""Workers that begin as forks of a process that has imported torch, which takes most of a start.

Each is a process of its own that runs the command line with its own environment and log. Workers
that begin from nothing are those of `run`, of services, and of tests about starting.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ast_stream.cli.app", "ast_stream.worker.process"])
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # read where torch is imported; and forks have one thread


class ForkedWorker(subprocess.Popen[bytes]):
    """A process of `ast-stream worker`, as `Popen` has it.

    Args:
        args: behind the name of the program.
        log: what standard output and standard error are appended to.
    """

    def __init__(self, args: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._child_created = False  # none of Popen's: there is nothing for it to collect
        self.stdin = self.stdout = self.stderr = None
        self.args = list(args)
        given = (self.args, {**env, **_ONE_THREAD}, str(log), os.getcwd())
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


def _run(args: list[str], env: dict[str, str], log: str, folder: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for opened, numbers in (
        (os.open(os.devnull, os.O_RDONLY), (0,)),
        (os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), (1, 2)),
    ):
        for number in numbers:
            os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["ast-stream", *args]
    from ast_stream.cli.app import main

    main()
