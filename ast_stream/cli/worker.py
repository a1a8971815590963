"""`ast-stream worker`: the process that scores and decides."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.cli import LongImport
from ast_stream.runtime import lifecycle
from ast_stream.runtime.logging import setup_logging
from ast_stream.settings.load import load_file
from ast_stream.settings.workers import loaded_of_worker, process_name


def worker(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration (YAML).")
    ],
    name: Annotated[
        str | None, typer.Option(help="Which worker, if the configuration has several.")
    ] = None,
) -> None:
    """Run the worker: audio of all streams in, events out on the feed.

    Example: ast-stream worker -c /etc/ast-stream/config.yaml
    """
    whole = load_file(config)
    loaded = loaded_of_worker(whole, name)
    logs = loaded.settings.logging
    setup_logging(logs.level, logs.format, process=process_name(name))
    with LongImport():  # torch, for seconds: a mistake in the configuration is told before
        from ast_stream.worker.model_choice import ModelChoice
        from ast_stream.worker.process import run_worker
    reload = threading.Event()
    choice = ModelChoice(whole.settings, whole.configured_checkpoint, name)
    with lifecycle.stop_on_signals(reload) as stop:
        begins_again = run_worker(loaded, stop, reload, name, choice)
        if begins_again and not stop.is_set():
            lifecycle.begin_again()
