"""The accuracy of the wall clock: measured by SNTP (RFC 4330), and as the kernel reports it.

Nothing here sets a clock. A measurement takes one datagram each way, at most once per
`MEASURE_EVERY_S`, in a separate thread, so that a server that does not answer delays nothing.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ast_stream.machine_clock import SET_NS, Moment, read_clocks
from ast_stream.messages.fleet import ClockReport
from ast_stream.units import NS_PER_SECOND

MEASURE_EVERY_S = 64.0
RETRY_S = 16.0  # after a failed attempt
OUTDATED_S = 3600.0  # an older measurement is useless: clocks drift by up to 0.4 s an hour
TIMEOUT_S = 3.0
NTP_PORT = 123
_MAX_STRATUM = 15
_LEAP_UNKNOWN = 3
_STA_UNSYNC = 0x0040
_MICRO = 1_000_000


class _Timex(ctypes.Structure):
    """The fields of `struct timex` of adjtimex(2) that are read, and padding for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


@dataclass(frozen=True)
class KernelClock:
    """The state of the wall clock according to the kernel.

    Attributes:
        is_synchronised: a time service corrects it.
        max_error_s: bound of its error; grows while nothing corrects it.
    """

    is_synchronised: bool
    max_error_s: float


def read_kernel_clock() -> KernelClock | None:
    """Return the kernel's view of the clock; None if it is unavailable or not permitted."""
    with suppress(OSError, AttributeError):  # another system, or a C library without the call
        libc = ctypes.CDLL(None, use_errno=True)
        found = _Timex()  # modes 0: nothing is set
        if libc.adjtimex(ctypes.byref(found)) >= 0:
            return KernelClock(not found.status & _STA_UNSYNC, found.maxerror / _MICRO)
    return None


@dataclass(frozen=True)
class Measurement:
    """One answer of a time server.

    Attributes:
        offset_s: must be added to this machine's wall clock to get the server's time.
        uncertainty_s: half the round trip, plus the server's own uncertainty.
        moment: when it was measured.
    """

    offset_s: float
    uncertainty_s: float
    moment: Moment

    def offset_at(self, now: Moment) -> float:
        """Return the current offset, corrected for steps of the wall clock since then."""
        set_by_ns = now.offset_ns - self.moment.offset_ns
        return self.offset_s - (set_by_ns / NS_PER_SECOND if abs(set_by_ns) > SET_NS else 0.0)


class ClockError(Exception):
    """The time could not be read from a server; the text is a sentence."""


def measure(server: str, timeout_s: float = TIMEOUT_S) -> Measurement:
    """Return the offset between this machine's wall clock and a server's.

    Args:
        server: host or host:port; an IPv6 address with a port must be in brackets.

    Raises:
        ClockError: no answer, or an answer without a usable time.
    """
    try:
        import ntplib
    except ImportError as error:
        raise ClockError("needs ntplib: pip install 'ast-stream[fleet]'") from error
    host, port = split_server(server)
    before_s, before = time.time(), read_clocks()
    try:
        answer = ntplib.NTPClient().request(host, version=4, port=port, timeout=timeout_s)
    except (ntplib.NTPException, OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClockError(f"{server} gives no time: {reason}") from error
    after = read_clocks()
    if abs(after.offset_ns - before.offset_ns) > SET_NS:
        raise ClockError("the clock was set meanwhile")
    # an answer repeats the request's timestamp, which proves that its sender has seen the request
    asked_s = ntplib.ntp_to_system_time(answer.orig_timestamp)
    elapsed_s = (after.monotonic_ns - before.monotonic_ns) / NS_PER_SECOND
    if not -0.001 <= asked_s - before_s <= elapsed_s + 0.001:
        raise ClockError(f"{server} answers what was not asked")
    if answer.leap == _LEAP_UNKNOWN or not 1 <= answer.stratum <= _MAX_STRATUM:
        raise ClockError(f"{server} does not know the time itself")
    uncertainty_s = abs(answer.delay) / 2 + answer.root_delay / 2 + answer.root_dispersion
    return Measurement(float(answer.offset), float(uncertainty_s), after)


def split_server(server: str) -> tuple[str, int]:
    """Return the host and port of a server as written in the configuration."""
    host, colon, port = server.rpartition(":")
    if colon and port.isdecimal() and (":" not in host or host.endswith("]")):
        return host.strip("[]"), int(port)
    return server.strip("[]"), NTP_PORT


class ClockWatch:
    """Tracks the accuracy of this machine's wall clock.

    Args:
        server: to query, see `measure`; None: only the kernel is queried.
        every_s: interval of the queries, seconds.
        measure: queries the server.
        kernel: queries the kernel.
        now: reads both clocks of the machine.
    """

    def __init__(
        self,
        server: str | None,
        every_s: float = MEASURE_EVERY_S,
        *,
        measure: Callable[[str], Measurement] = measure,
        kernel: Callable[[], KernelClock | None] = read_kernel_clock,
        now: Callable[[], Moment] = read_clocks,
    ) -> None:
        self._server = server
        self._every_s = every_s
        self._measure = measure
        self._kernel = kernel
        self._now = now
        self._stop = threading.Event()
        self._newest: Measurement | None = None
        self._error: str | None = None
        self._thread: threading.Thread | None = None

    def start(self, *, measures_at_once: bool = True) -> None:
        """Start measuring, in a thread."""
        if self._server is not None and self._thread is None:
            wait_s = 0.0 if measures_at_once else self._every_s
            self._thread = threading.Thread(
                target=self._run, args=(wait_s,), name="clock", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Stop measuring, without waiting for a pending answer."""
        self._stop.set()

    def measure_once(self) -> None:
        """Measure now; an error appears in the report."""
        if self._server is None:
            return
        try:
            self._newest, self._error = self._measure(self._server), None
        except ClockError as error:
            self._error = str(error)

    def report(self) -> ClockReport:
        """Return the current accuracy of the clock; queries only the kernel."""
        kernel, newest, now = self._kernel(), self._newest, self._now()
        age_s = None
        if newest is not None:
            age_s = (now.monotonic_ns - newest.moment.monotonic_ns) / NS_PER_SECOND
            if age_s > OUTDATED_S:
                newest = age_s = None
        return ClockReport(
            offset_s=None if newest is None else round(newest.offset_at(now), 6),
            uncertainty_s=None if newest is None else round(newest.uncertainty_s, 6),
            server=self._server,
            age_s=None if age_s is None else round(age_s, 1),
            error=self._error,
            is_synchronised=None if kernel is None else kernel.is_synchronised,
            max_error_s=None if kernel is None else round(kernel.max_error_s, 6),
        )

    def _run(self, wait_s: float) -> None:
        self._stop.wait(wait_s)
        while not self._stop.is_set():
            self.measure_once()
            self._stop.wait(self._every_s if self._error is None else min(RETRY_S, self._every_s))
