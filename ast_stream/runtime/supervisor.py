"""Child processes that are kept running: started, restarted with back-off, ended together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ast_stream.runtime.forward import LineForwarder
from ast_stream.runtime.lifecycle import EXIT_CONFIG, EXIT_CRASH, EXIT_STARTUP
from ast_stream.runtime.watch import WATCHDOG_S, Watch

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 10.0
HEALTHY_S = 30.0  # a child that ran for so long starts again without a penalty
GRACE_S = 5.0  # from SIGTERM to SIGKILL
_POLL_S = 0.1


@dataclass(frozen=True)
class ChildSpec:
    """What to run.

    Attributes:
        can_finish: an exit with 0 means that its work is done.
        is_core: the others are useless without it, and it without them.
        is_optional: the others go on without it, so it is started again whatever it has said.
        takes_stdin: standard input is handed on to it.
        begins_anew: after a crash it would do all its work again, so it is not started again.
        ends_last: at a stop it is told only when the others have ended: it works on what they say.
    """

    name: str
    argv: Sequence[str]
    can_finish: bool = False
    is_core: bool = False
    is_optional: bool = False
    takes_stdin: bool = False
    begins_anew: bool = False
    ends_last: bool = False


class Backoff:
    """How long to wait before the next start: doubling, forgotten after a healthy run."""

    def __init__(self) -> None:
        self._next_s = FIRST_DELAY_S

    def after_run(self, ran_s: float) -> float:
        """Return the seconds to wait after a run of `ran_s` seconds."""
        if ran_s >= HEALTHY_S:
            self._next_s = FIRST_DELAY_S
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, MAX_DELAY_S)
        return delay_s


class _State(Enum):
    WAITING = auto()  # to be started at `due_s`
    RUNNING = auto()
    FINISHED = auto()  # its work is done
    REFUSED = auto()  # its configuration is bad: starting again will not help
    FAILED = auto()  # for whoever started us to see; not tried again


_STATE_WORDS = {
    _State.WAITING: "waits for its next start",
    _State.FINISHED: "has finished",
    _State.REFUSED: "refused its configuration",
    _State.FAILED: "failed",
}


class _Child:
    def __init__(self, spec: ChildSpec, watch: Watch | None, now_s: float) -> None:
        self.spec = spec
        self.watch = watch
        self.state = _State.WAITING
        self.due_s = now_s
        self.process: subprocess.Popen[bytes] | None = None
        self._started_s = now_s
        self._backoff = Backoff()
        self._has_run_before = False

    def start(self, environ: Mapping[str, str], forwarder: LineForwarder, now_s: float) -> None:
        """Start the process, in a session of its own: Ctrl-C is for the supervisor alone."""
        self._started_s = now_s
        watched = {}
        if self.watch is not None:
            self.watch.begin()
            watched = self.watch.environ
        try:
            self.process = subprocess.Popen(
                list(self.spec.argv),
                stdin=None if self.spec.takes_stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**environ, **watched},
                start_new_session=True,
            )
        except OSError as error:  # no memory or no process ids left: may pass
            logger.error("%s cannot be started: %s", self.spec.name, error)
            self.after_exit(EXIT_CRASH, now_s)
            return
        assert self.process.stdout is not None
        forwarder.follow(self.spec.name, self.process.stdout)
        self.state = _State.RUNNING
        logger.info("%s started", self.spec.name, extra={"pid": self.process.pid})

    def after_exit(self, code: int, now_s: float) -> None:
        """Decide what an exit means for this child."""
        if code == EXIT_CONFIG and not self.spec.is_optional:
            self.state = _State.REFUSED
            logger.error("%s refused its configuration and is not restarted", self.spec.name)
        elif code == EXIT_STARTUP and self.spec.is_core and not self._has_run_before:
            self.state = _State.FAILED
            logger.error("%s could not start", self.spec.name)
        elif code == EXIT_CRASH and self.spec.begins_anew:
            self.state = _State.FAILED
            logger.error("%s failed and is not started again", self.spec.name)
        elif code == 0 and self.spec.can_finish:
            self.state = _State.FINISHED
            logger.info("%s has finished", self.spec.name)
        else:
            delay_s = self._backoff.after_run(now_s - self._started_s)
            self.state = _State.WAITING
            self.due_s = now_s + delay_s
            self._has_run_before = True
            logger.warning("%s %s; next try in %g s", self.spec.name, _how(code), delay_s)

    def end_if_stuck(self, now_s: float) -> None:
        """Kill a process that lives and does not work; it is then started again."""
        if self.watch is not None and self.watch.is_stuck(now_s):
            logger.error("%s has stopped working and is killed", self.spec.name)
            self.watch.begin()
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Signal the child; SIGKILL goes to everything it has started, too."""
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)


class Supervisor:
    """Keep children running until told to stop, or until nothing is left to do.

    `run` must be called in a thread that lives as long as the children (see
    `lifecycle.die_with_parent`): the main thread.

    Args:
        watch_folder: where children tell whether they work, and are replaced if not; None: they
            are not asked.
        watchdog_s: how long a child may go without work.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        environ: Mapping[str, str],
        forwarder: LineForwarder,
        watch_folder: Path | None = None,
        watchdog_s: float = WATCHDOG_S,
    ) -> None:
        self._children = [
            _Child(
                spec,
                None if watch_folder is None else Watch(watch_folder / f"watch.{at}", watchdog_s),
                time.monotonic(),
            )
            for at, spec in enumerate(specs)
        ]
        self._environ = environ
        self._forwarder = forwarder

    def run(self, stop: threading.Event, after_turn: Callable[[], None] = lambda: None) -> int:
        """Return the exit code.

        0 after a stop and when all work is done, 78 if a child refused its configuration, 3 if the
        first start of the core failed (later ones are tried again), 1 if work was left undone.

        Args:
            after_turn: called several times a second, in the same thread.
        """
        code: int | None = None
        try:
            while code is None and not stop.is_set():
                self._start_due()
                self._reap()
                after_turn()
                code = self._outcome()
                if code is None:
                    stop.wait(_POLL_S)
            self._end(signal.SIGTERM, [one for one in self._children if not one.spec.ends_last])
            self._end(signal.SIGTERM, [one for one in self._children if one.spec.ends_last])
        finally:
            self._end(signal.SIGKILL, self._children)
            for child in self._children:
                if child.watch is not None:
                    child.watch.close()
        return code or 0

    def reload(self) -> None:
        """Ask every process that runs to read its configuration again."""
        for child in self._children:
            child.signal(signal.SIGHUP)

    def status(self) -> str:
        """Return which processes run, in words."""
        running = [one.spec.name for one in self._children if one.state is _State.RUNNING]
        others = [
            f"{one.spec.name} {_STATE_WORDS[one.state]}"
            for one in self._children
            if one.state is not _State.RUNNING
        ]
        return "; ".join([f"running: {', '.join(running) or 'nothing'}", *others])

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for child in self._children:
            if child.state is _State.WAITING and child.due_s <= now_s:
                child.start(self._environ, self._forwarder, now_s)

    def _reap(self) -> None:
        for child in self._children:
            if child.state is not _State.RUNNING or child.process is None:
                continue
            code = child.process.poll()
            if code is not None:
                child.after_exit(code, time.monotonic())
            else:
                child.end_if_stuck(time.monotonic())

    def _outcome(self) -> int | None:
        """Return the exit code once there is nothing left to do, else None."""
        needed = [child for child in self._children if not child.spec.is_optional]
        core = {child.state for child in needed if child.spec.is_core}
        others = {child.state for child in needed if not child.spec.is_core}
        if _State.REFUSED in core:
            return EXIT_CONFIG
        if _State.FAILED in core:
            return EXIT_STARTUP
        if others & {_State.WAITING, _State.RUNNING}:
            return None
        if _State.REFUSED in others:
            return EXIT_CONFIG
        return EXIT_CRASH if _State.FAILED in others else 0

    def _end(self, number: signal.Signals, children: Sequence[_Child]) -> None:
        """Signal those of the children that still run, and wait for them: at most `GRACE_S`."""
        running = [child.process for child in children if child.process is not None]
        for child in children:
            child.signal(number)
        deadline_s = time.monotonic() + GRACE_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # real-time signals have no names
        return f"was killed by signal {-code}"
