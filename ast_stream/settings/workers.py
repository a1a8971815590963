"""Several workers in one configuration: each has streams and folders of its own.

A process works by the settings `of_worker`, which read as if that worker were the only one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ast_stream.errors import UsageError
from ast_stream.labels import did_you_mean
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.paths import metrics_address, runtime_dir
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StreamSettings


def worker_names(settings: Settings) -> list[str | None]:
    """Return the workers of a configuration; None is the only one of a configuration without."""
    return [*settings.workers] or [None]


def worker_of(settings: Settings, stream: str) -> str | None:
    """Return the worker that a stream belongs to."""
    named = (name for name, worker in settings.workers.items() if stream in worker.streams)
    return next(named, None)


def capture_settings(settings: Settings, stream: StreamSettings) -> dict[str, Any]:
    """Return the settings that capturing a stream depends on; a change restarts its source."""
    own = stream.model_dump(include={"source", "ring_s", "wire"})
    return own | {"worker": worker_of(settings, stream.name)}


def capture_processes(settings: Settings) -> dict[str, list[StreamSettings]]:
    """Return the streams of each capture process, by its name: one has all that can share it."""
    found: dict[str, list[StreamSettings]] = {}
    for stream in settings.streams:
        name = "capture" if stream.source.shares_process else f"capture {stream.name}"
        found.setdefault(name, []).append(stream)
    return found


def process_name(worker: str | None) -> str:
    """Return the name of a worker process, in the log and where metrics are shown."""
    return "worker" if worker is None else f"worker {worker}"


def of_worker(settings: Settings, worker: str | None) -> Settings:
    """Return the settings of one worker: its streams, its device, its folders.

    Raises:
        UsageError: there is no such worker, or there are several and none is named.
    """
    names = [*settings.workers]
    if worker is None and not names:
        return settings
    if worker is None:
        raise UsageError(f"expected the name of a worker ({', '.join(names)}): --name")
    if worker not in settings.workers:
        raise UsageError(f"no worker {worker!r} in the configuration{did_you_mean(worker, names)}")
    own, metrics = settings.workers[worker], settings.metrics
    if (address := metrics_address(settings, process_name(worker))) is not None:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        metrics = metrics.model_copy(update={"listen": f"{host}:{address[1]}"})
    device = settings.model.device if own.device is None else own.device
    return settings.model_copy(
        update={
            "streams": [stream for stream in settings.streams if stream.name in own.streams],
            "model": settings.model.model_copy(update={"device": device}),
            "runtime_dir": str(runtime_dir(settings) / worker),
            "state_dir": str(Path(settings.state_dir) / worker),
            "metrics": metrics,
            "workers": {},
        }
    )


def loaded_of_worker(loaded: LoadedSettings, worker: str | None) -> LoadedSettings:
    """Return loaded settings as `of_worker`."""
    return replace(loaded, settings=of_worker(loaded.settings, worker))
