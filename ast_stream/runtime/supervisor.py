"""Child processes: started, watched, restarted with back-off, and ended together.

A watchdog per child does what systemd's does, without systemd. The lines that children print are
passed on without ever making a child wait.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import IO, TextIO

from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.files import is_in_place, make_way
from ast_stream.runtime.lifecycle import EXIT_CONFIG, EXIT_CRASH, EXIT_STARTUP
from ast_stream.runtime.logging import LimitedLog, LineFormat, foreign_line

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 3.0  # a cause that has gone is noticed within seconds, by what then has to start
HEALTHY_S = 30.0  # a child that ran for so long starts again without a penalty
GRACE_S = 5.0  # from SIGTERM to SIGKILL
_POLL_S = 0.1
WATCHDOG_S = 30.0  # a child that was ready and has not worked for longer is stuck
_MAX_MESSAGE_BYTES = 4096
_PAUSE_S = 5.0  # between two checks: then we were not running, and the child perhaps neither
MAX_LINE_BYTES = 8192  # longer lines are cut into pieces
MAX_QUEUED_LINES = 2000
_FLUSH_S = 1.0
_LIMIT = re.compile(r"WATCHDOG_USEC=(\d{1,12})\Z")


@dataclass(frozen=True)
class ChildSpec:
    """What to run.

    Attributes:
        can_finish: an exit with 0 means that its work is done.
        is_core: the others are useless without it, and it without them.
        is_optional: the others work without it, so it is restarted whatever its exit code.
        takes_stdin: standard input is passed on to it.
        begins_anew: after a crash it would repeat all its work, so it is not restarted.
        ends_last: it is stopped only after the others have ended: it works on what they publish.
        settings: what it works by. It follows a change while it runs, at a SIGHUP; what has ended
            begins again, and so does what refused its configuration, changed here or not.
    """

    name: str
    argv: Sequence[str]
    can_finish: bool = False
    is_core: bool = False
    is_optional: bool = False
    takes_stdin: bool = False
    begins_anew: bool = False
    ends_last: bool = False
    settings: str = ""


class _State(Enum):
    WAITING = auto()  # to be started at `due_s`
    RUNNING = auto()
    FINISHED = auto()  # its work is done
    REFUSED = auto()  # its configuration is bad: starting again will not help
    FAILED = auto()  # for whoever started us to see; not tried again
    LEAVING = auto()  # no longer wanted, and not yet at its end


_STATE_WORDS = {
    _State.WAITING: "waits for its next start",
    _State.FINISHED: "has finished",
    _State.REFUSED: "refused its configuration",
    _State.FAILED: "failed",
    _State.LEAVING: "ends",
}


class _Child:
    def __init__(
        self, spec: ChildSpec, watchdog: Watchdog | None, now_s: float, *, is_late: bool
    ) -> None:
        self.spec = spec
        self.watchdog = watchdog
        self.state = _State.WAITING
        self.due_s = now_s
        self.process: subprocess.Popen[bytes] | None = None
        self._started_s = self._end_by_s = now_s
        self._successor: ChildSpec | None = None  # to be started when this one has ended
        self._backoff = Backoff(FIRST_DELAY_S, MAX_DELAY_S, HEALTHY_S)
        self._has_run_before = is_late

    def start(self, environ: Mapping[str, str], forwarder: LineForwarder, now_s: float) -> None:
        """Start the process, in a session of its own: Ctrl-C is for the supervisor alone."""
        self._started_s = now_s
        watched = {}
        if self.watchdog is not None:
            self.watchdog.begin()
            watched = self.watchdog.environ
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
        if self.state is _State.LEAVING:
            self._end_leaving(now_s)
        elif code == EXIT_CONFIG and not self.spec.is_optional:
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

    @property
    def has_left(self) -> bool:
        """Whether it is no longer wanted, and has ended."""
        is_over = self.process is None or self.process.returncode is not None
        return self.state is _State.LEAVING and self._successor is None and is_over

    def follow(self, spec: ChildSpec, now_s: float) -> None:
        """Work by another specification from now on."""
        is_changed, needs_stdin = spec != self.spec, spec.takes_stdin and not self.spec.takes_stdin
        if self.state is _State.LEAVING:
            self._successor = spec
        elif self.state is _State.RUNNING and needs_stdin:
            self.leave(now_s)
            self._successor = spec
        elif self.state is _State.RUNNING:
            self.spec = spec
            self.signal(signal.SIGHUP)
        else:
            self.spec = spec
            if is_changed or self.state is _State.REFUSED:  # what it refused may be mended
                self._begin_anew(now_s)

    def leave(self, now_s: float) -> None:
        """End, for good; killed after `GRACE_S`."""
        self._successor = None
        if self.state is not _State.LEAVING:
            self.state, self._end_by_s = _State.LEAVING, now_s + GRACE_S
            self.signal(signal.SIGTERM)

    def _end_leaving(self, now_s: float) -> None:
        logger.info("%s has ended", self.spec.name)
        if self._successor is not None:
            self.spec, self._successor = self._successor, None
            self._begin_anew(now_s)

    def _begin_anew(self, now_s: float) -> None:
        self.state, self.due_s = _State.WAITING, now_s
        self._backoff.reset()

    def end_if_stuck(self, now_s: float) -> None:
        """Kill a process that lives and does not work, or that does not end when it has to."""
        if self.state is _State.LEAVING:
            if now_s > self._end_by_s:
                self.signal(signal.SIGKILL)
            return
        if self.watchdog is None:
            return
        is_stuck = self.watchdog.is_stuck(now_s)
        self._has_run_before |= self.watchdog.was_ready  # it may begin again without an exit
        if is_stuck:
            logger.error("%s has stopped working and is killed", self.spec.name)
            self.watchdog.begin()
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
    """Keeps children running until it is stopped, or until nothing is left to do.

    `run` must be called in a thread that lives as long as the children (see
    `lifecycle.die_with_parent`): the main thread.

    Args:
        watch_folder: for the sockets on which children report that they work; one that does not
            is replaced. None: they are not watched.
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
        self._watch_folder = watch_folder
        self._watchdog_s = watchdog_s
        self._numbers = itertools.count()
        self._environ = environ
        self._forwarder = forwarder
        self._children = [self._child(spec, time.monotonic()) for spec in specs]

    def run(self, stop: threading.Event, after_turn: Callable[[], None] = lambda: None) -> int:
        """Return the exit code.

        0 after a stop and when all work is done, 78 if a child refused its configuration, 3 if the
        first start of the core failed (later ones, and those of children that a reload has added,
        are tried again), 1 if work was left undone.

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
            for ends_last in (False, True):
                children = [child for child in self._children if child.spec.ends_last is ends_last]
                self._end(signal.SIGTERM, children)
        finally:
            self._end(signal.SIGKILL, self._children)
            for child in self._children:
                if child.watchdog is not None:
                    child.watchdog.close()
        return code or 0

    def reload(self, specs: Sequence[ChildSpec]) -> None:
        """Keep exactly these children running from now on, each known by its name.

        Those that are not among them any more end, new ones are started, and the others are asked
        to read their configuration again.
        """
        now_s = time.monotonic()
        wanted = {spec.name: spec for spec in specs}
        for child in self._children:
            spec = wanted.pop(child.spec.name, None)
            if spec is None:
                child.leave(now_s)
            else:
                child.follow(spec, now_s)
        self._children += [self._child(spec, now_s, is_late=True) for spec in wanted.values()]
        self._drop_those_that_left()

    @property
    def specs(self) -> list[ChildSpec]:
        """What is kept running."""
        return [child.spec for child in self._children if child.state is not _State.LEAVING]

    def status(self) -> str:
        """Return which processes run, in words."""
        running = [child.spec.name for child in self._children if child.state is _State.RUNNING]
        others = [
            f"{child.spec.name} {_STATE_WORDS[child.state]}"
            for child in self._children
            if child.state is not _State.RUNNING
        ]
        return "; ".join([f"running: {', '.join(running) or 'nothing'}", *others])

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for child in self._children:
            if child.state is _State.WAITING and child.due_s <= now_s:
                child.start(self._environ, self._forwarder, now_s)

    def _child(self, spec: ChildSpec, now_s: float, *, is_late: bool = False) -> _Child:
        watchdog = None
        if self._watch_folder is not None:
            path = self._watch_folder / f"watch.{next(self._numbers)}"
            watchdog = Watchdog(path, self._watchdog_s)
        return _Child(spec, watchdog, now_s, is_late=is_late)

    def _drop_those_that_left(self) -> None:
        for child in [child for child in self._children if child.has_left]:
            self._children.remove(child)
            if child.watchdog is not None:
                child.watchdog.close()

    def _reap(self) -> None:
        self._drop_those_that_left()
        for child in self._children:
            if child.state not in (_State.RUNNING, _State.LEAVING) or child.process is None:
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
        if core and core <= {_State.REFUSED, _State.FAILED}:  # of several, the others go on
            return EXIT_CONFIG if _State.REFUSED in core else EXIT_STARTUP
        if others & {_State.WAITING, _State.RUNNING, _State.LEAVING}:
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


class Watchdog:
    """Receives the reports of one child, and knows from them whether it works.

    Args:
        path: of the socket; what an earlier run left there is replaced.
        limit_s: how long a child may go without work.

    Attributes:
        was_ready: whether the present process has been.
    """

    def __init__(self, path: Path, limit_s: float = WATCHDOG_S) -> None:
        self._path = path
        self._limit_s = limit_s
        self._given_s = limit_s
        self.was_ready = False
        self._fed_s: float | None = None  # None: not ready yet, or stopping
        self._checked_s: float | None = None
        self._log = LimitedLog(logger)
        self._bind()

    @property
    def environ(self) -> dict[str, str]:
        """What the child needs in its environment to report here."""
        return {
            "NOTIFY_SOCKET": str(self._path),
            "WATCHDOG_USEC": str(round(self._limit_s * 1e6)),
        }

    def begin(self) -> None:
        """Forget the previous process: a new one is started."""
        self._drain()
        self._limit_s, self.was_ready = self._given_s, False
        self._fed_s = self._checked_s = None

    def is_stuck(self, now_s: float) -> bool:
        """Return whether the child was ready and has not worked for too long; call it often.

        Args:
            now_s: a clock that only goes forward.
        """
        was_away = self._checked_s is not None and now_s - self._checked_s > _PAUSE_S
        self._checked_s = now_s
        for line in self._drain():
            if line in ("READY=1", "WATCHDOG=1"):
                self._fed_s = now_s
                self.was_ready |= line == "READY=1"
            elif line == "STOPPING=1":
                self._fed_s = None
            elif found := _LIMIT.match(line):  # as with systemd, a process may ask for patience
                self._limit_s = int(found[1]) / 1e6
        if not is_in_place(self._path, self._file):
            self._bind_again()
            was_away = True  # what the child has sent meanwhile is lost
        if was_away and self._fed_s is not None:
            self._fed_s = now_s
        return self._fed_s is not None and now_s - self._fed_s > self._limit_s

    def close(self) -> None:
        """Stop listening, and remove the socket."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _bind(self) -> None:
        make_way(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
        self._file = self._path.lstat()

    def _bind_again(self) -> None:
        """Put back a socket file that was removed from outside: the child would look stuck."""
        self._socket.close()
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._bind()
        except OSError as error:
            self._log.warning("%s was removed and cannot be bound again: %s", self._path, error)
        else:
            self._log.warning("%s was removed: bound again", self._path)

    def _drain(self) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(OSError):  # nothing is there, or the file was removed
            while True:
                lines += self._socket.recv(_MAX_MESSAGE_BYTES).decode(errors="replace").splitlines()
        return lines


class LineForwarder:
    """Writes the lines of several children to one stream.

    Reading and writing are apart: a stopped terminal or a full pipe holds up the writer only, and
    what does not fit the queue meanwhile is dropped and counted.
    """

    def __init__(self, stream: TextIO, format: LineFormat) -> None:
        self._stream = stream
        self._format = format
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_LINES)
        self._lock = threading.Lock()
        self._dropped = 0
        self._readers: list[threading.Thread] = []
        self._writer = threading.Thread(target=self._write, daemon=True, name="forward")
        self._writer.start()

    @property
    def n_dropped(self) -> int:
        """Lines dropped so far that no line has reported yet."""
        return self._dropped

    def follow(self, name: str, pipe: IO[bytes]) -> None:
        """Forward the lines of `pipe` under `name` until its end, then close it."""
        reader = threading.Thread(target=self._read, args=(name, pipe), daemon=True, name=name)
        self._readers = [thread for thread in self._readers if thread.is_alive()] + [reader]
        reader.start()

    def close(self) -> None:
        """Write the last lines of children that have ended, for at most a second each way."""
        deadline_s = time.monotonic() + _FLUSH_S
        for reader in self._readers:
            reader.join(max(0.0, deadline_s - time.monotonic()))
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_FLUSH_S)
        self._writer.join(_FLUSH_S)

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        with pipe:
            while raw := pipe.readline(MAX_LINE_BYTES):
                line = raw.decode(errors="backslashreplace").rstrip("\r\n")
                self._put(foreign_line(self._format, name, line))

    def _put(self, line: str) -> None:
        with self._lock:
            try:
                if self._dropped:
                    text = f"{self._dropped} lines dropped: they came faster than they can be shown"
                    self._lines.put_nowait(foreign_line(self._format, "run", text))
                    self._dropped = 0
                self._lines.put_nowait(line)
            except queue.Full:
                self._dropped += 1

    def _write(self) -> None:
        # a closed stderr is no reason to stop reading from the children
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()
