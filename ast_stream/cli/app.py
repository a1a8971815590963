"""The command line: `ast-stream COMMAND`; each command's module is imported only when it runs."""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import typer

from ast_stream.cli import RUN_UNTIL_STOPPED, chosen_command
from ast_stream.cli.standard_streams import (
    OutputError,
    ReaderGoneError,
    drop_output,
    set_up_standard_streams,
)
from ast_stream.errors import (
    AstStreamError,
    CheckpointError,
    ConfigError,
    StartupError,
    UsageError,
)
from ast_stream.labels import printable
from ast_stream.runtime.lifecycle import (
    EXIT_CONFIG,
    EXIT_CRASH,
    EXIT_STARTUP,
    EXIT_USAGE,
    die_with_parent,
    hold_hangups,
    raise_on_signals,
)
from ast_stream.runtime.logging import is_set_up, log_what_nobody_catches
from ast_stream.urls import mask
from ast_stream.version import __version__

PROGRAM = "ast-stream"
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_INTERRUPTED = 130  # as typer and shells have it: 128 + SIGINT


class Command(NamedTuple):
    """One sub-command: where its function (or its Typer app) is, and a line of help."""

    name: str
    target: str
    summary: str


_CLI = "ast_stream.cli"
COMMANDS = (
    Command("demo", f"{_CLI}.demo:demo", "Run a generated scene through the pipeline."),
    Command("run", f"{_CLI}.run:run", "Run all processes of one configuration, supervised."),
    Command(
        "capture",
        "ast_stream.capture.process:capture",
        "Run a capture process, of one stream or many.",
    ),
    Command("worker", f"{_CLI}.worker:worker", "Run the process that scores and decides."),
    Command(
        "alerts",
        "ast_stream.alerts.process:alerts",
        "Run the process that turns events into alerts.",
    ),
    Command(
        "record",
        "ast_stream.recorder.process:record",
        "Run the process that keeps clips of events, and the history.",
    ),
    Command(
        "forward",
        "ast_stream.forward.process:forward",
        "Run the process that sends to the brokers of a fleet.",
    ),
    Command("web", f"{_CLI}.web:web", "Run the process that serves the page for browsers."),
    Command("review", f"{_CLI}.review:app", "Say what events really were, and let that teach."),
    Command("listen", f"{_CLI}.listen:listen", "Show live what the model detects."),
    Command("scan", f"{_CLI}.scan:scan", "Find the events in recordings."),
    Command("subscribe", f"{_CLI}.subscribe:subscribe", "Print the feed as JSON lines."),
    Command("devices", f"{_CLI}.devices:devices", "List input devices with stable names."),
    Command(
        "check-config",
        f"{_CLI}.check_config:check_config",
        "Validate a configuration and say what it means.",
    ),
    Command("schema", f"{_CLI}.check_config:schema", "Print the settings' JSON Schema."),
    Command("rules", f"{_CLI}.rules:app", "Check, test, explain and try alert rules."),
    Command(
        "history",
        f"{_CLI}.history:app",
        "List, export and query what was heard, or decide it anew.",
    ),
    Command("outbox", f"{_CLI}.outbox:app", "List, send, retry or drop deliveries."),
    Command("ack", f"{_CLI}.outbox:ack", "Say that an alert has been seen."),
    Command("snooze", f"{_CLI}.outbox:snooze", "Hold back the alerts of a rule."),
    Command("keys", f"{_CLI}.keys:app", "Make keys for tcp, and say what each may do."),
    Command("users", f"{_CLI}.users:app", "Say who may log in to the page, and do what."),
    Command("status", f"{_CLI}.status:status", "Show how all processes and streams are."),
    Command(
        "privacy",
        f"{_CLI}.privacy:privacy",
        "Show what is kept, and who may have it.",
    ),
    Command("fleet", f"{_CLI}.fleet:app", "Show all boxes of a fleet, and which model they use."),
    Command("coverage", f"{_CLI}.coverage:coverage", "Show what was listened to and what was not."),
    Command(
        "install-units",
        f"{_CLI}.install_units:install_units",
        "Write the systemd units of a configuration.",
    ),
    Command("doctor", f"{_CLI}.doctor:doctor", "Prove that the installation works."),
    Command("bench", f"{_CLI}.bench:app", "Time single stages, and soak-test all processes."),
    Command("model", f"{_CLI}.model:app", "List, fetch, convert or average checkpoints."),
    Command("train", f"{_CLI}.train:train", "Train a checkpoint."),
    Command("evaluate", f"{_CLI}.evaluate:evaluate", "Measure a checkpoint."),
    Command(
        "calibrate", f"{_CLI}.calibrate:calibrate", "Choose thresholds for a false-alarm budget."
    ),
)


def main() -> None:
    """Run the command line and exit with the matching code."""
    log_what_nobody_catches()
    set_up_standard_streams()
    die_with_parent()
    hold_hangups()
    code = run_command_line(sys.argv[1:], _imported)
    try:
        sys.stdout.flush()
    except ReaderGoneError:
        drop_output()
    except OutputError as error:
        code = _refuse_output(error)
    sys.exit(code)


def run_command_line(
    args: Sequence[str], imported: Callable[[str | None], None] = lambda command: None
) -> int:
    """Run one command and return its exit code.

    Args:
        imported: called with the command's name when its module is there.
    """
    try:
        app = typer.main.get_command(build_app(args))
        imported(chosen_command(args))
        app(args=list(args), prog_name=PROGRAM)
    except SystemExit as stop:  # how typer ends: help, usage errors, typer.Exit
        return _after_exit(stop)
    except AstStreamError as error:
        _say(error)
        return exit_code(error)
    except KeyboardInterrupt:  # before typer was there to take it
        return EXIT_INTERRUPTED
    except OutputError as error:
        return _refuse_output(error)
    except OSError as error:
        return _refuse_file(error, chosen_command(args))
    except Exception as error:
        _crash(error)
        return EXIT_CRASH
    return 0


def _imported(command: str | None) -> None:
    gc.freeze()
    gc.enable()
    if command not in RUN_UNTIL_STOPPED:
        raise_on_signals()


def _refuse_output(error: OutputError) -> int:
    """Say that standard output takes no more, and leave nothing for Python to write at exit."""
    drop_output()
    why = "it is closed" if error.errno == errno.EBADF else error.strerror
    _say(AstStreamError(f"cannot write the output: {why}"))
    return EXIT_CRASH


def _refuse_file(error: OSError, command: str | None) -> int:
    """Say what the system refuses of a file that a user named; of a service, how it came there."""
    if error.errno in _DISK_IS_FULL:
        where = error.filename or "a file"
        _say(AstStreamError(f"{where} cannot be written: {error.strerror}"))
    elif error.filename is None or command in RUN_UNTIL_STOPPED:
        _crash(error)
    else:
        _say(AstStreamError(f"{error.filename}: {error.strerror}"))
    return EXIT_CRASH


def exit_code(error: AstStreamError) -> int:
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    if isinstance(error, UsageError):
        return EXIT_USAGE
    return EXIT_STARTUP if isinstance(error, StartupError | CheckpointError) else EXIT_CRASH


def build_app(args: Sequence[str]) -> typer.Typer:
    """Return the command line in which only the command named in `args` is imported.

    The others are there by name and summary alone, so that help is instant, and a process that
    only captures never imports torch.
    """
    app = typer.Typer(
        name=PROGRAM,
        epilog="Example: ast-stream demo",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    chosen = chosen_command(args)
    for command in COMMANDS:
        target = _load(command.target) if command.name == chosen else _placeholder
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=command.name, help=command.summary)
        else:
            summary = command.summary if target is _placeholder else None
            app.command(command.name, help=summary)(target)
    return app


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Detect sounds on microphones and streams, and report them to other programs."""


def _placeholder() -> None:
    raise AssertionError("a command ran that was not imported")


def _load(target: str) -> Callable[..., Any] | typer.Typer:
    module, _, attribute = target.partition(":")
    loaded: Callable[..., Any] | typer.Typer = getattr(importlib.import_module(module), attribute)
    return loaded


def _after_exit(stop: SystemExit) -> int:
    """Return the code of a SystemExit; typer and rich make one of every broken pipe."""
    code = stop.code if isinstance(stop.code, int) else EXIT_CRASH
    match stop.__context__:
        case ReaderGoneError():
            drop_output()  # `ast-stream subscribe | head` has what it wanted
            return 0
        case BrokenPipeError() as error:
            _crash(error)
            return EXIT_CRASH
    return code


def _say(error: AstStreamError) -> None:
    if is_set_up():
        for line in str(error).splitlines():
            logging.getLogger(__name__).error("%s", line)
    else:
        # a problem in a file starts with file:line, where editors look for it
        start = "" if isinstance(error, ConfigError) else f"{PROGRAM}: "
        print(printable(f"{start}{error}", keep="\n"), file=sys.stderr)


def _crash(error: BaseException | None) -> None:
    if is_set_up():
        logging.getLogger(__name__).critical("crashed: %s", error, exc_info=error)
    else:
        text = mask("".join(traceback.format_exception(error)))
        print(printable(text, keep="\n"), file=sys.stderr, end="")


if __name__ == "__main__":
    main()
