"""From the command line of a process to its loop: the configuration, the log, signals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ast_stream.runtime.lifecycle import stop_on_signals
from ast_stream.runtime.logging import setup_logging
from ast_stream.settings.load import LoadedSettings, load_file

Run = Callable[[LoadedSettings, threading.Event, threading.Event], None]
"""Runs until the first event is set; the second one asks for a reload."""


def run_service(config: Path, process: str, run: Run) -> None:
    """Run a process of a configuration until a signal stops it.

    Args:
        process: its name in the log.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    loaded = load_file(config)
    logs = loaded.settings.logging
    setup_logging(logs.level, logs.format, process=process)
    reload = threading.Event()
    with stop_on_signals(reload) as stop:
        run(loaded, stop, reload)
