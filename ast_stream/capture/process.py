"""The capture process of one or several streams: its command, and its reload."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ast_stream.capture.host import CaptureHost, Change
from ast_stream.capture.sources.base import SourceHungError
from ast_stream.errors import UsageError
from ast_stream.labels import did_you_mean
from ast_stream.runtime import lifecycle
from ast_stream.runtime.logging import setup_logging
from ast_stream.runtime.reload import Parts, Reloader
from ast_stream.settings.load import LoadedSettings, load_settings
from ast_stream.settings.paths import make_runtime_dir, metrics_address
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.workers import capture_settings

logger = logging.getLogger(__name__)

EXIT_HUNG = 75  # EX_TEMPFAIL of sysexits.h: a new process may do better


def capture(
    config: Annotated[Path, typer.Option("--config", "-c", help="Configuration file.")],
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            help="Name of a stream to capture; may be repeated. "
            "(default: all but microphones and stdin)",
        ),
    ] = None,
) -> None:
    """Run one capture process, of all network streams, recordings and scenes, or of those named.

    A source that ends, fails or hangs does not disturb the others. A microphone, or standard
    input, has a process of its own.

    Example: ast-stream capture -c /etc/ast-stream/config.yaml --stream porch
    """
    settings = load_settings(config)
    names = tuple(dict.fromkeys(stream or ()))
    process = f"capture {names[0]}" if len(names) == 1 else "capture"
    setup_logging(settings.logging.level, settings.logging.format, process=process)
    reload = threading.Event()
    change = Change(_metrics_of(settings, _chosen(settings, names)))

    def reloader(host: CaptureHost) -> Reloader:
        return _reloader(reload, config, process, settings, names, change, host)

    with lifecycle.stop_on_signals(reload) as stop:
        try:
            has_hung = run_capture(settings, names, stop, change, reloader)
        except SourceHungError as error:
            is_meant = stop.is_set() or change.is_due
            logger.log(logging.INFO if is_meant else logging.ERROR, "%s", error)
            sys.stderr.flush()
            if stop.is_set() or not change.is_due:
                # the usual way out would wait for the thread that hangs, and hang itself
                os._exit(0 if is_meant else EXIT_HUNG)
            has_hung = True
        if change.is_due and not stop.is_set():
            _leave(change)
        if has_hung:
            sys.stderr.flush()
            os._exit(0)


def run_capture(
    settings: Settings,
    names: Sequence[str],
    stop: threading.Event,
    change: Change | None = None,
    reloader: Callable[[CaptureHost], Reloader] | None = None,
) -> bool:
    """Capture until `stop` is set, or all sources have ended and the worker has their audio.

    Args:
        names: of the streams; none: all whose sources share a process.
        change: set by the reloader: this process ends once it has to.
        reloader: makes what is polled between requests; None: the configuration is never read
            again.

    Returns:
        Whether a call to a source has not returned.

    Raises:
        UsageError: the configuration has no such stream, or they need a process each.
        ConfigError: the runtime folder cannot be used.
        StartupError: the ring's endpoint or the port of the metrics is in use, or a library for
            the source is missing.
        AudioError: a recording that is none or is damaged; what it held was captured.
        SourceHungError: a call to a device never returned; only ending the process helps.
    """
    streams = _chosen(settings, names)
    if settings.privacy != "off":
        lifecycle.keep_memory_private()
    change = change or Change(_metrics_of(settings, streams))
    make_runtime_dir(settings)
    host = CaptureHost(settings, streams, change.metrics)
    try:
        host.run(stop, None if reloader is None else reloader(host), change)
    finally:
        host.close()
    if host.failure is not None:
        raise host.failure
    return host.has_hung


def _leave(change: Change) -> NoReturn:
    """Exit, or restart, without waiting for threads that may hang."""
    sys.stderr.flush()
    if change.is_removed:
        os._exit(lifecycle.EXIT_REMOVED)
    lifecycle.begin_again()


def _chosen(settings: Settings, names: Sequence[str]) -> list[StreamSettings]:
    """Return the streams that a process is started for.

    Raises:
        UsageError: there are none, or they cannot be in one process.
    """
    there = [stream.name for stream in settings.streams]
    for name in names:
        if name not in there:
            raise UsageError(f"no stream {name!r} in the configuration{did_you_mean(name, there)}")
    chosen = _present(settings, names)
    if len(chosen) < len(names):
        alone = next(name for name in names if name not in [stream.name for stream in chosen])
        raise UsageError(f"expected --stream {alone} alone: its source has a process of its own")
    if not chosen:
        raise UsageError("expected --stream: each source of the configuration has its own process")
    return chosen


def _present(settings: Settings, names: Sequence[str]) -> list[StreamSettings]:
    """Return the streams of a process that are in a configuration and may stay in it."""
    if len(names) == 1:
        return [stream for stream in settings.streams if stream.name in names]
    return [
        stream
        for stream in settings.streams
        if stream.source.shares_process and (not names or stream.name in names)
    ]


def _metrics_of(settings: Settings, streams: Sequence[StreamSettings]) -> tuple[str, int] | None:
    return metrics_address(settings, f"capture {streams[0].name}")


def _reloader(
    requested: threading.Event,
    file: Path,
    process: str,
    settings: Settings,
    names: Sequence[str],
    change: Change,
    host: CaptureHost,
) -> Reloader:
    (in_use, *_) = _present(settings, names)

    def apply(loaded: LoadedSettings) -> None:
        new = loaded.settings
        streams = _present(new, names)
        if not streams:
            what = f"no stream {names[0]}" if len(names) == 1 else "no stream of this process"
            logger.info("the configuration has %s any more", what)
            change.is_removed = True
            return
        (first, *_) = streams
        if len(names) == 1 and first.unit != in_use.unit and lifecycle.is_unit_of_systemd():
            logger.info("stream %s belongs to %s now", first.name, first.unit)
            change.is_removed = True
            return
        is_same_place = _shared(new) == _shared(settings)
        if _streams_part(new, names) != _streams_part(settings, names) and not is_same_place:
            logger.warning("the source is unchanged: the processes now meet elsewhere")
        if not is_same_place:
            host.keep_only([stream.name for stream in streams])
        elif first.source.shares_process and in_use.source.shares_process:
            host.follow(new, streams)
        elif _streams_part(new, names) != _streams_part(settings, names):
            logger.info("restarting with the new source")
            change.is_other_source = True
        change.metrics = _metrics_of(new, streams)

    return Reloader(
        requested,
        file,
        settings,
        process,
        parts=lambda new: {
            **_shared(new),
            "streams": _streams_part(new, names),
            "metrics": new.metrics.model_dump(),
        },
        live=frozenset({"streams", "metrics"}),
        apply=apply,
    )


def _shared(settings: Settings) -> Parts:
    """Return the endpoints and access rights, which no process can change alone."""
    return settings.model_dump(include={"runtime_dir", "transport", "privacy"})


def _streams_part(settings: Settings, names: Sequence[str]) -> Parts:
    """Return what concerns the streams of a capture process."""
    return {stream.name: capture_settings(settings, stream) for stream in _present(settings, names)}
