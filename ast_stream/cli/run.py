"""`ast-stream run`: all processes of one configuration on one box, supervised."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ast_stream.capture.ended_marks import forget_ended
from ast_stream.cli.options import config_option
from ast_stream.errors import ConfigError
from ast_stream.runtime.files import lock_file, make_writable_folder
from ast_stream.runtime.lifecycle import Notifier, child_environment, stop_on_signals
from ast_stream.runtime.logging import LOG_FORMAT, line_format, setup_logging
from ast_stream.runtime.reload import Reloader
from ast_stream.runtime.state_format import check_state_dir
from ast_stream.runtime.supervisor import ChildSpec, LineForwarder, Supervisor
from ast_stream.settings.load import LoadedSettings, load_file
from ast_stream.settings.paths import make_runtime_dir
from ast_stream.settings.schema import Settings
from ast_stream.settings.streams import StreamSettings
from ast_stream.settings.workers import (
    capture_processes,
    capture_settings,
    of_worker,
    process_name,
    worker_names,
)

logger = logging.getLogger(__name__)


def run(
    config: Annotated[Path, config_option()],
) -> None:
    """Run all processes of one configuration: captures, worker or workers, alerts, recorder.

    One process captures all network streams, recordings and scenes; each microphone has its own.
    The alerts process is started if the configuration names rules, the recorder if it has a section
    `recorder`, the forwarder if `forward` names brokers, the page if it says where to listen
    (`web.listen`). Processes that fail are restarted; Ctrl-C or SIGTERM stops all of them. SIGHUP
    reloads the configuration: streams are added, removed and changed while the others keep running.
    If every source ends, as recordings do, the run ends with them.

    Example: ast-stream run -c configs/examples/microphone.yaml
    """
    loaded = load_file(config)
    settings = loaded.settings
    setup_logging(settings.logging.level, settings.logging.format, process="run")
    reload = threading.Event()
    with stop_on_signals(reload) as stop:
        code = _supervise(loaded, config, stop, reload)
    raise typer.Exit(code)


def _supervise(
    loaded: LoadedSettings, config: Path, stop: threading.Event, reload: threading.Event
) -> int:
    """Return the exit code; as `Supervisor.run`."""
    settings = loaded.settings
    if settings.alerts.rules:
        _check_rules(loaded)  # report mistakes before anything starts
    folder = make_runtime_dir(settings)
    make_writable_folder(Path(settings.state_dir), "state_dir", 0o750)
    workers = [of_worker(settings, name) for name in worker_names(settings)]
    for state_dir in {settings.state_dir, *(own.state_dir for own in workers)}:
        check_state_dir(Path(state_dir), str(config))  # here, so that not each process says it
    lock_fd = lock_file(folder / "run.lock", f"the runtime folder {folder}")
    forget_ended(settings)
    format = line_format(settings.logging.format, sys.stderr)
    environ = child_environment() | {LOG_FORMAT: format}
    forwarder = LineForwarder(sys.stderr, format)
    supervisor = Supervisor(child_specs(settings, config), environ, forwarder, folder)
    notifier = Notifier()
    reloader = Reloader(
        reload,
        config,
        settings,
        "run",
        parts=lambda new: {
            "streams": {stream.name: capture_settings(new, stream) for stream in new.streams},
            "workers": [*new.workers],
            "alerts": bool(new.alerts.rules),
            "recorder": new.recorder is not None,
            "web": new.web.listen is not None,
            "forward": bool(new.forward),
        },
        live=frozenset({"streams", "alerts", "recorder", "workers", "web", "forward"}),
        apply=lambda new: _follow(new, settings, config, supervisor),
    )

    def after_turn() -> None:
        notifier.turn(supervisor.status, is_working=True)
        reloader.poll(notifier)

    try:
        return supervisor.run(stop, after_turn)
    finally:
        notifier.stopping()
        forwarder.close()
        forget_ended(settings)
        os.close(lock_fd)


def _check_rules(loaded: LoadedSettings) -> None:
    from ast_stream.alerts.rule_files import RuleFiles  # the compiler of rules, which few need

    RuleFiles(loaded).load()


def _follow(new: LoadedSettings, in_use: Settings, config: Path, supervisor: Supervisor) -> None:
    """Have all processes follow new settings, unless one of them would refuse these.

    Raises:
        AstStreamError: one would, and the others would not: nothing has changed.
    """
    kept = new.settings.model_copy(update={"model": in_use.model})  # another one needs a restart
    _check_room(new, in_use)
    from ast_stream.alerts.rule_files import configured_timing

    configured_timing(LoadedSettings(kept, new.lines, new.file))
    if new.settings.alerts.rules:
        _check_rules(new)
    specs = child_specs(new.settings, config)
    if _meeting_place(new.settings) != _meeting_place(in_use):
        # what is started now would look for the others elsewhere
        logger.warning("until a restart no process is started or begins anew")
        running = {spec.name: spec for spec in supervisor.specs}
        specs = [running[spec.name] for spec in specs if spec.name in running]
    supervisor.reload(specs)


def _check_room(new: LoadedSettings, in_use: Settings) -> None:
    """Refuse more streams than a worker that runs has room for, as that worker does."""
    max_streams = in_use.model.max_streams
    for name in worker_names(new.settings):
        n_streams = len(of_worker(new.settings, name).streams)
        if name in worker_names(in_use) and n_streams > max_streams:
            text = f"expected at most {max_streams} until the next restart (model.max_streams), "
            raise ConfigError([new.problem(("streams",), f"{text}got {n_streams}")])


def _meeting_place(settings: Settings) -> object:
    return settings.runtime_dir, settings.transport, settings.privacy


def child_specs(settings: Settings, config: Path) -> list[ChildSpec]:
    command = (sys.executable, "-m", "ast_stream.cli")
    captures = []
    for name, streams in capture_processes(settings).items():
        alone = () if streams[0].source.shares_process else ("--stream", streams[0].name)
        argv = (*command, "capture", "-c", str(config), *alone)
        captures.append(_capture(name, argv, settings, streams))
    workers = [
        ChildSpec(
            process_name(name),
            (*command, "worker", "-c", str(config), *([] if name is None else ["--name", name])),
            is_core=True,
        )
        for name in worker_names(settings)
    ]
    alerts = ChildSpec(
        "alerts", (*command, "alerts", "-c", str(config)), is_optional=True, ends_last=True
    )
    recorder = ChildSpec(
        "recorder", (*command, "record", "-c", str(config)), is_optional=True, ends_last=True
    )
    forward = ChildSpec(
        "forward", (*command, "forward", "-c", str(config)), is_optional=True, ends_last=True
    )
    web = ChildSpec("web", (*command, "web", "-c", str(config)), is_optional=True)
    readers = [*([alerts] if settings.alerts.rules else [])]
    readers += [recorder] if settings.recorder is not None else []
    readers += [forward] if settings.forward else []
    # readers first: they receive everything from a worker that is started after them
    return [*readers, *workers, *captures, *([web] if settings.web.listen is not None else [])]


def _capture(
    name: str, argv: tuple[str, ...], settings: Settings, streams: Sequence[StreamSettings]
) -> ChildSpec:
    """Return one capture process; it has done its work once that of all its streams is done."""
    sources = [stream.source for stream in streams]
    return ChildSpec(
        name=name,
        argv=argv,
        can_finish=all(source.can_end for source in sources),
        takes_stdin=any(source.type == "stdin" for source in sources),
        begins_anew=all(source.can_end and not source.can_resume for source in sources),
        settings=json.dumps(
            {stream.name: capture_settings(settings, stream) for stream in streams}
        ),
    )
