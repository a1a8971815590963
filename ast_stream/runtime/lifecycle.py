"""How a process lives and ends: signals, reports to the service manager, end with the parent.

The service manager learns of start-up, ready, reloading and stopping at once; of the status at most
once a second and only if it is new; its watchdog is fed by whoever did work, never by a timer.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from ast_stream.errors import StartupError

EXIT_CRASH = 1
EXIT_USAGE = 2
EXIT_STARTUP = 3
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: restarting will not help
EXIT_REMOVED = 79  # of a capture process whose stream is no longer in the configuration

SUPERVISED = "AST_STREAM_SUPERVISED"  # "1": this process ends when its parent does
PARENT = "AST_STREAM_PARENT"  # pid of that parent, to notice that it is gone already
_BEGAN_AGAIN = "AST_STREAM_BEGAN_AGAIN"  # "1": the watchdog was told to be patient
_OF_THE_PARENT_ALONE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# in this order: whoever sees that SIGTERM is handled knows that the others are
_STOPPING = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
STATUS_EVERY_S = 1.0
_ROOM_S = 2.0  # for a service manager to take what it has been sent before


def raise_on_signals() -> None:
    """Make SIGTERM and SIGINT unwind a command that does one thing; a second SIGTERM ends it."""

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
        raise SystemExit(128 + number)

    for number, handler in (
        (signal.SIGTERM, terminate),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def leaving_when_stopped(stop: threading.Event) -> Iterator[None]:
    """Raise SystemExit(0) in the body if a signal to stop comes or has come.

    For long steps of a start, within `stop_on_signals`; in threads other than the main one nothing
    is raised.
    """
    if stop.is_set():
        raise SystemExit(0)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        _set_soon(stop)
        raise SystemExit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_on_signals(reload: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGINT sets; the handlers before are restored afterwards.

    SIGHUP sets `reload` if one is given, and otherwise stops. A terminal that is closed sends it
    as well: that always stops, unless it is ignored (nohup). A second SIGINT raises
    KeyboardInterrupt, a third ends the process at once: for a shutdown that hangs. Only for the
    main thread.
    """
    stop = threading.Event()
    had_terminal = _has_terminal()
    before = {number: signal.getsignal(number) for number in _STOPPING}
    is_nohup = before[signal.SIGHUP] is signal.SIG_IGN

    def request_stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, force_stop)
        _set_soon(stop)

    def force_stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    def hang_up(number: int, frame: FrameType | None) -> None:
        is_closed = had_terminal and not _has_terminal()
        if reload is not None and not is_closed:
            _set_soon(reload)
        elif not is_nohup:
            _set_soon(stop)

    if is_nohup and reload is None:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, hang_up if number == signal.SIGHUP else request_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hold_hangups(environ: Mapping[str, str] = os.environ) -> None:
    """Let a SIGHUP of our supervisor wait for `stop_on_signals`; until then it would kill."""
    if environ.get(SUPERVISED) == "1":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def _set_soon(event: threading.Event) -> None:
    # not event.set() itself: the handler may interrupt code that holds the event's own lock
    _thread.start_new_thread(event.set, ())


def _has_terminal() -> bool:
    """Whether there is a controlling terminal; a closed one is gone before its SIGHUP comes."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def notify(message: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send `message`, e.g. "READY=1", to the service manager; return False if none listens.

    See sd_notify(3); several assignments are joined by newlines. `Notifier` knows when which of
    them is due. What is said again and again is left out while the socket is full; for what is
    said once, such as "READY=1", room is waited for: a manager that is busy holds few messages.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # an abstract socket has no file
        address = "\0" + address[1:]
    is_said_again = message.startswith(("WATCHDOG=1", "STATUS="))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(0.0 if is_said_again else _ROOM_S)
            sender.connect(address)
            sender.send(message.encode())
    except OSError:
        return False
    return True


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how often WATCHDOG=1 is due (half the limit), or None without a watchdog."""
    limit_us, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not limit_us.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 2e6


class Notifier:
    """Reports on one process; without a service manager it does nothing and costs nothing.

    Args:
        send: passes a message to the service manager; returns False if there is none.
        watchdog_s: how often the watchdog is fed; None: as the service manager requires.
        now_s: a clock that only goes forward.
    """

    def __init__(
        self,
        send: Callable[[str], bool] = notify,
        watchdog_s: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._now_s = now_s
        self._watchdog_s = watchdog_interval_s() if watchdog_s is None else watchdog_s
        self._is_ready = False
        self._shown: str | None = None
        self._next_status_s = self._next_watchdog_s = float("-inf")

    def starting(self, status: str, timeout_s: float) -> None:
        """Report what start-up is busy with, and that it may take `timeout_s` from now."""
        fed = "\nWATCHDOG=1" if _BEGAN_AGAIN in os.environ else ""
        self._send(f"EXTEND_TIMEOUT_USEC={round(timeout_s * 1e6)}\nSTATUS={_line(status)}{fed}")

    def turn(self, status: Callable[[], str], *, is_working: bool) -> None:
        """Report what is due after one turn of the loop; the first turn makes the process ready.

        Args:
            status: how the process is, in words; called only when a line may be sent.
            is_working: this turn, or one since the last call, did work or had none to do.
        """
        now_s = self._now_s()
        if not self._is_ready:
            self._is_ready = True
            self._send_status(status(), now_s, "READY=1\n")
            if os.environ.pop(_BEGAN_AGAIN, None) and self._watchdog_s is not None:
                self._send(f"WATCHDOG_USEC={round(2e6 * self._watchdog_s)}\nWATCHDOG=1")
        elif now_s >= self._next_status_s:
            self._send_status(status(), now_s)
        if is_working and self._watchdog_s is not None and now_s >= self._next_watchdog_s:
            self._next_watchdog_s = now_s + self._watchdog_s
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Report that the settings are being read again; `reloaded` must follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, status: str) -> None:
        """Report that the process continues after a reload, with new settings or the old ones."""
        self._send_status(status, self._now_s(), "READY=1\n")

    def beginning_again(self, status: str, timeout_s: float) -> None:
        """Report that this process replaces itself by a new one, which may take `timeout_s`.

        The watchdog waits for so long; once the new one is ready it is as strict as before.
        """
        if self._watchdog_s is not None:
            os.environ[_BEGAN_AGAIN] = "1"
            self._send(f"WATCHDOG_USEC={round(timeout_s * 1e6)}\nWATCHDOG=1")
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS={_line(status)}"
        )

    def stopping(self, status: str = "stopping") -> None:
        """Report that the process shuts down."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def _send_status(self, text: str, now_s: float, before: str = "") -> None:
        self._next_status_s = now_s + STATUS_EVERY_S
        line = _line(text)
        if before or line != self._shown:
            self._shown = line
            self._send(f"{before}STATUS={line}")


def _line(text: str) -> str:
    """Return `text` on one line, since a line break would begin another assignment."""
    return " ".join(text.split())


def child_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a child that is to end when this process does."""
    inherited = {key: value for key, value in environ.items() if key not in _OF_THE_PARENT_ALONE}
    return inherited | {SUPERVISED: "1", PARENT: str(os.getpid())}


def start_command(
    args: Sequence[str], *, stdout: IO[bytes] | int, stderr: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start a command of `ast-stream` that ends when this process does, however it ends.

    Only from a thread that lives as long as the child, see `die_with_parent`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "ast_stream.cli", *args],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=child_environment(),
    )


def is_unit_of_systemd(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the main one of a unit, and not supervised by `run`."""
    return "NOTIFY_SOCKET" in environ and environ.get(SUPERVISED) != "1"


def begin_again() -> NoReturn:
    """Replace this process by a new one with the same command, id and standard streams.

    A SIGHUP meanwhile waits for the handler of the new one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def die_with_parent(environ: Mapping[str, str] = os.environ) -> None:
    """Have the kernel kill this process when its parent ends, if the parent asked for it.

    The kill is SIGKILL: a process that hangs would sit out anything milder, and every process of
    ours is built to be killed at any moment. The kernel watches the parent's *thread*: children
    must be started from a thread that lives as long as they do.
    """
    if environ.get(SUPERVISED) != "1" or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # the parent may have died before the kernel began to watch it
    if environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)


def keep_memory_private() -> None:
    """Disable core dumps, and keep other processes of this user from reading this one's memory.

    Root still can, and so can a process that opened its memory before this call. Memory may still
    be swapped to a disk, which the systemd unit forbids.

    Raises:
        OSError: the kernel refuses.
        StartupError: another process traces this one already.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
        # whoever had begun before may go on
        status = Path("/proc/self/status").read_text()
        tracer = re.search(r"^TracerPid:\s*([1-9]\d*)", status, re.MULTILINE)
        if tracer is not None:
            raise StartupError(
                f"process {tracer[1]} traces this one, and could hear what privacy keeps from it"
            )
