"""The capture process of one stream: source to ring, ring to worker, ring reads answered."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import numpy as np
import typer

from ast_stream.audio.pcm import ChannelSelector
from ast_stream.capture.intake import Intake, make_source
from ast_stream.capture.readers import RingReaders
from ast_stream.capture.ring import Ring, RingServer
from ast_stream.capture.sources.base import SourceHungError, SourceState
from ast_stream.errors import AudioError, StartupError, UsageError
from ast_stream.labels import did_you_mean
from ast_stream.machine_clock import CLOCK_ID
from ast_stream.privacy.audit import open_audit_log
from ast_stream.runtime import lifecycle
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.logging import LimitedLog, setup_logging
from ast_stream.runtime.metrics import RENEW_EVERY_S, Family, Metrics, figure
from ast_stream.runtime.reload import Parts, Reloader
from ast_stream.settings.load import LoadedSettings, load_settings
from ast_stream.settings.paths import (
    audio_endpoint,
    make_runtime_dir,
    metrics_address,
    ring_endpoint,
)
from ast_stream.settings.schema import Settings, StreamSettings
from ast_stream.settings.workers import capture_settings, of_worker, worker_of
from ast_stream.transport.keys import client_keys
from ast_stream.transport.sockets import AUDIO_HWM_BLOCKS, QUERY_HWM_MESSAGES, Sockets
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, amplitude_to_dbfs, seconds_to_samples

logger = logging.getLogger(__name__)

EXIT_HUNG = 75  # EX_TEMPFAIL of sysexits.h: a new process may do better
_POLL_MS = 100
_LINGER_S = 0.5  # after its end was delivered the ring stays, for readers that ask again
_HUNG_GRACE_S = 5.0  # a process that must end lets the worker read the rest first
_JOIN_S = 1.0
PROGRESS_LIMIT_S = 10.0  # a source that gives nothing for longer, and says nothing, is stuck
_LEVEL_SAMPLES = SAMPLE_RATE // 2


def capture(
    config: Annotated[Path, typer.Option("--config", "-c", help="Configuration file.")],
    stream: Annotated[str, typer.Option("--stream", help="Name of the stream to capture.")],
) -> None:
    """Run the capture process of one stream.

    Example: ast-stream capture -c /etc/ast-stream/config.yaml --stream porch
    """
    settings = load_settings(config)
    setup_logging(settings.logging.level, settings.logging.format, process=f"capture {stream}")
    reload = threading.Event()
    _find_stream(settings, stream)
    own = of_worker(settings, worker_of(settings, stream))
    change = _Change(metrics_address(settings, f"capture {stream}"))
    with lifecycle.stop_on_signals(reload) as stop:
        try:
            reloader = _reloader(reload, config, settings, stream, change)
            run_capture(own, stream, stop, reloader, change)
        except SourceHungError as error:
            is_meant = stop.is_set() or change.is_due
            logger.log(logging.INFO if is_meant else logging.ERROR, "%s", error)
            sys.stderr.flush()
            if stop.is_set() or not change.is_due:
                # the usual way out would wait for the thread that hangs, and hang itself
                os._exit(0 if is_meant else EXIT_HUNG)
        if change.is_due and not stop.is_set():
            _follow(change)


def _follow(change: _Change) -> NoReturn:
    """End, or begin again, at once: a thread may hang."""
    sys.stderr.flush()
    if change.is_removed:
        os._exit(lifecycle.EXIT_REMOVED)
    lifecycle.begin_again()


@dataclass
class _Change:
    """What a new configuration means for a capture process.

    Attributes:
        is_removed: it has no such stream, or one for another unit of systemd.
        is_other_source: source, ring or worker are others: a new process has to begin.
        metrics: where its figures are shown: the port depends on the streams before it.
    """

    metrics: tuple[str, int] | None
    is_removed: bool = False
    is_other_source: bool = False

    @property
    def is_due(self) -> bool:
        """Whether this process has to end."""
        return self.is_removed or self.is_other_source


def _reloader(
    requested: threading.Event, file: Path, settings: Settings, name: str, change: _Change
) -> Reloader:
    in_use = _find_stream(settings, name)

    def apply(new: LoadedSettings) -> None:
        own = next((stream for stream in new.settings.streams if stream.name == name), None)
        if own is None:
            logger.info("the configuration has no stream %s any more", name)
            change.is_removed = True
            return
        if own.unit != in_use.unit and lifecycle.is_unit_of_systemd():
            logger.info("stream %s belongs to %s now", name, own.unit)
            change.is_removed = True
            return
        if _streams_part(new.settings, name) != _streams_part(settings, name):
            if _shared(new.settings) == _shared(settings):
                logger.info("beginning again with the new source")
                change.is_other_source = True
            else:
                logger.warning("the source stays as it was: the processes meet elsewhere now")
        change.metrics = metrics_address(new.settings, f"capture {name}")

    return Reloader(
        requested,
        file,
        settings,
        f"capture {name}",
        parts=lambda new: {
            **_shared(new),
            "streams": _streams_part(new, name),
            "metrics": new.metrics.model_dump(),
        },
        live=frozenset({"streams", "metrics"}),
        apply=apply,
    )


def run_capture(
    settings: Settings,
    stream_name: str,
    stop: threading.Event,
    reloader: Reloader | None = None,
    change: _Change | None = None,
) -> None:
    """Capture until `stop` is set, or until the worker has all of a source that has ended.

    Args:
        reloader: polled between requests; None: the configuration is never read again.
        change: set by `reloader`: this process ends once it has to.

    Raises:
        UsageError: the configuration has no such stream.
        ConfigError: the runtime folder cannot be used.
        StartupError: the ring's endpoint or the port of the metrics is in use, or a library for
            the source is missing.
        AudioError: a recording that is none or is damaged; what it held was captured.
        SourceHungError: a call to the source never returned; only ending the process helps.
    """
    stream = _find_stream(settings, stream_name)
    if settings.privacy != "off":
        lifecycle.keep_memory_private()
    change = change or _Change(metrics_address(settings, f"capture {stream_name}"))
    make_runtime_dir(settings)
    process = _CaptureProcess(settings, stream, change.metrics)
    try:
        process.run(stop, reloader, change)
    finally:
        process.close()
    if process.failure is not None:
        raise process.failure


def _find_stream(settings: Settings, name: str) -> StreamSettings:
    names = [stream.name for stream in settings.streams]
    if name not in names:
        raise UsageError(f"no stream {name!r} in the configuration{did_you_mean(name, names)}")
    return settings.streams[names.index(name)]


def _shared(settings: Settings) -> Parts:
    """Return where the processes meet and who may listen, which none of them can change alone."""
    return settings.model_dump(include={"runtime_dir", "transport", "privacy"})


def _streams_part(settings: Settings, name: str) -> dict[str, Any]:
    """Return what concerns the capture process of a stream."""
    return {
        stream.name: capture_settings(settings, stream)
        for stream in settings.streams
        if stream.name == name
    }


class _CaptureProcess:
    """Source, ring and sockets of one stream, with a thread each for intake and sending."""

    def __init__(
        self, settings: Settings, stream: StreamSettings, metrics: tuple[str, int] | None
    ) -> None:
        self._name = stream.name
        self._stop_threads = threading.Event()
        self._ring = Ring(seconds_to_samples(stream.ring_s))
        source = make_source(stream.source)
        self._intake = Intake(
            source,
            self._ring,
            self._stop_threads,
            channels=ChannelSelector(stream.source.channel),
            warn_lost=LimitedLog(logger).warning,
            warn_back=LimitedLog(logger).warning,
            warn_fault=LimitedLog(logger).warning,
        )
        endpoint = ring_endpoint(settings, stream.name)
        self._sockets = Sockets(client_keys(settings.transport))
        self._router = self._sockets.bind("router", endpoint, QUERY_HWM_MESSAGES)
        audit = open_audit_log(settings, f"capture {stream.name}")
        self._readers = RingReaders(self._router, audio_endpoint(settings), settings.privacy, audit)
        self._server = RingServer(
            stream.name,
            secrets.token_hex(16),
            endpoint,
            self._ring,
            self._intake.status,
            is_paced=source.is_paced,
            is_trusted=self._readers.may_listen,
            note=self._readers.note,
            clock=CLOCK_ID if audio_endpoint(settings).startswith("tcp://") else None,
        )
        push = self._sockets.connect("push", audio_endpoint(settings), AUDIO_HWM_BLOCKS)
        self._intake_thread = threading.Thread(target=self._intake.run, name="intake", daemon=True)
        self._sender_thread = threading.Thread(
            target=self._server.run,
            args=(push.send, self._stop_threads),
            name="sender",
            daemon=True,
        )
        self._report = _Report(stream.name, self._ring, self._intake, self._server)
        self._progress_limit_s = PROGRESS_LIMIT_S + stream.source.longest_step_s
        self._done_since_s: float | None = None
        self._log = LimitedLog(logger)
        self._metrics = Metrics("capture", metrics)
        self._metrics_at = metrics
        self._next_metrics_s = float("-inf")

    @property
    def failure(self) -> Exception | None:
        """What ended the process before its time, or None."""
        if self._intake_thread.is_alive():
            return SourceHungError("stalled", f"the source of {self._name} does not return")
        return self._intake.failure or self._server.failure

    def run(self, stop: threading.Event, reloader: Reloader | None, change: _Change) -> None:
        """Answer ring requests until there is no more reason to."""
        self._intake_thread.start()
        self._sender_thread.start()
        logger.info("capturing")
        notifier = Notifier()
        while not (stop.is_set() or change.is_due or self._is_done(time.monotonic())):
            request = self._router.receive(_POLL_MS)
            if request is not None:
                self._answer(request)
            notifier.turn(self._report.status, is_working=self._is_working)
            if reloader is not None:
                reloader.poll(notifier)
            self._readers.write_repeats()
            self._renew_metrics(time.monotonic(), change.metrics)
        if not change.is_other_source:  # else the same process is ready again soon
            notifier.stopping()

    def close(self) -> None:
        """Stop the threads, as far as they can be stopped, and release the endpoint."""
        self._stop_threads.set()
        for thread in (self._sender_thread, self._intake_thread):
            if thread.is_alive():
                thread.join(_JOIN_S)
        self._sockets.close()
        self._readers.close()
        self._metrics.close()
        logger.info("stopped: %s", self._report.summary())

    @property
    def _is_working(self) -> bool:
        """Whether audio comes, or the source is honestly waited for."""
        return self._intake.has_ended or self._intake.stuck_s < self._progress_limit_s

    def _renew_metrics(self, now_s: float, address: tuple[str, int] | None) -> None:
        if now_s < self._next_metrics_s or not (self._metrics.is_on or address):
            return
        self._next_metrics_s = now_s + RENEW_EVERY_S
        if address != self._metrics_at:
            try:
                self._metrics.move(address)
            except StartupError as error:  # perhaps of a process that moves, or ends, as well
                self._log.warning("%s", error)
                self._metrics_at = None
                return
            self._metrics_at = address
        if self._metrics.is_on:
            self._metrics.renew(self._report.families())

    def _answer(self, request: list[bytes]) -> None:
        identity, *frames = request
        reply = self._server.answer(frames, identity)
        if reply is not None:
            self._router.send([identity, *reply])

    def _is_done(self, now_s: float) -> bool:
        """Return whether the source has come to an end that the worker knows of."""
        if self._server.failure is not None:
            return True
        is_read = self._ring.acked == self._ring.next
        match self._intake.failure:
            case SourceHungError():
                return is_read or self._is_done_for(_HUNG_GRACE_S, now_s)
            case None | AudioError():
                is_delivered = self._server.end_delivered and is_read
                return is_delivered and self._is_done_for(_LINGER_S, now_s)
            case _:
                return True

    def _is_done_for(self, duration_s: float, now_s: float) -> bool:
        if self._done_since_s is None:
            self._done_since_s = now_s
        return now_s - self._done_since_s >= duration_s


class _Report:
    """What a capture process says of itself: a line for people, figures for Prometheus."""

    def __init__(self, name: str, ring: Ring, intake: Intake, server: RingServer) -> None:
        self._name = name
        self._ring = ring
        self._intake = intake
        self._server = server

    def status(self) -> str:
        """Return how the stream is, in words."""
        status = self._intake.status()
        if status.state == "missing":
            return f"waiting for {self._name}: {status.detail}"
        if status.state == "ended":
            return f"{self._name} has ended, the worker reads the rest"
        level = self._level_dbfs()
        text = f"capturing {self._name}" + ("" if level is None else f", {level:.0f} dBFS")
        if status.state == "degraded":
            text += f", {status.detail}"
        return text + (f", lost {self._intake.n_losses} times" if self._intake.n_losses else "")

    def families(self) -> list[Family]:
        """Return the figures of the stream."""
        intake, server = self._intake, self._server
        key = (self._name,)
        state = intake.status().state

        def own(name: str, help: str, value: float | None) -> Family:
            return figure(f"ast_stream_capture_{name}", help, {key: value}, ("stream",))

        return [
            figure(
                "ast_stream_capture_state",
                "1 for the state that the source is in",
                {(self._name, known): float(known == state) for known in get_args(SourceState)},
                ("stream", "state"),
            ),
            own("data_age_seconds", "Since the source gave its last block", intake.data_age_s),
            own("level_dbfs", "Level of the last half second", self._level_dbfs()),
            own("samples_total", "Samples since the start, lost ones too", self._ring.next),
            own("unacknowledged_samples", "Samples the worker has yet to acknowledge", self._held),
            own("losses_total", "Times that the source was lost", intake.n_losses),
            own("overflows_total", "Times that the device lost samples", intake.n_overflows),
            own("clipped_samples_total", "Samples beyond full scale", intake.n_clipped),
            own("blocks_sent_total", "Blocks handed to the worker", server.n_sent),
            own("blocks_refused_total", "Blocks left in the ring", server.n_refused),
            own("malformed_requests_total", "Requests refused", self._server.n_malformed),
        ]

    def summary(self) -> str:
        """Return the figures of the whole run in a line."""
        return (
            f"{self._ring.next} samples, {self._intake.n_losses} losses, "
            f"{self._intake.n_overflows} overflows, {self._intake.n_clipped} clipped, "
            f"{self._server.n_sent} blocks sent, {self._server.n_refused} refused, "
            f"{self._server.n_malformed} malformed requests"
        )

    @property
    def _held(self) -> int:
        return self._ring.next - self._ring.acked

    def _level_dbfs(self) -> float | None:
        stop = self._ring.next
        pcm = self._ring.read(max(0, stop - _LEVEL_SAMPLES), stop, _LEVEL_SAMPLES).pcm
        if len(pcm) == 0 or self._intake.status().state not in ("listening", "degraded"):
            return None
        samples = pcm.astype(np.float32) / FULL_SCALE
        return amplitude_to_dbfs(float(np.sqrt(np.mean(samples * samples))))
