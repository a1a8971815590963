"""Log lines on stderr: one event a line, keyed, in the form that its reader understands.

Modules log with `logging.getLogger(__name__)`; facts go into `extra={"stream": …}` and come out as
`key=value` (text, journald) or as members of the object (json).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast, get_args

from ast_stream.labels import printable
from ast_stream.urls import mask

LogFormat = Literal["auto", "text", "json", "journald"]
LineFormat = Literal["terminal", "text", "json", "journald"]  # text as it is for whoever reads it
LOG_FORMAT = "AST_STREAM_LOG_FORMAT"  # the line format a supervisor wants from its children

_NOT_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_JOURNAL_PRIORITY = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}
_STAMPED = re.compile(r"\d{4}-\d\d-\d\dT|\d\d:\d\d:\d\d\.\d{3} ")
_COLOURS = {"CRITICAL": "1;31", "ERROR": "31", "WARNING": "33", "DEBUG": "2"}


def setup_logging(
    level: str = "info", format: LogFormat = "auto", *, process: str, stream: TextIO | None = None
) -> None:
    """Send all log records of this process to `stream` (stderr); call once, from a service.

    Args:
        level: debug, info, warning or error.
        format: `auto` means journald where stderr is the journal, else text.
        process: who is speaking, e.g. "worker" or "capture porch".
    """
    stream = stream or sys.stderr
    handler = _QuietHandler(stream)
    handler.setFormatter(_formatter(line_format(format, stream), process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)


def log_what_nobody_catches() -> None:
    """Send what threads and destructors raise through the log, too, and so through `mask`."""
    threading.excepthook, sys.unraisablehook = _on_thread, _on_lost


def _on_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None and not isinstance(found.exc_value, SystemExit):
        name = "a thread" if found.thread is None else f"the thread {found.thread.name}"
        text = "%s crashed: %s"
        logging.getLogger(__name__).critical(text, name, found.exc_value, exc_info=found.exc_value)


def _on_lost(found: sys.UnraisableHookArgs) -> None:
    if found.exc_value is not None:
        text = "ignored in %s: %s"
        logging.getLogger(__name__).error(text, type(found.object).__name__, found.exc_value)


def is_set_up() -> bool:
    """Tell whether `setup_logging` has been called in this process."""
    return any(isinstance(handler, _QuietHandler) for handler in logging.getLogger().handlers)


def line_format(
    format: LogFormat, stream: TextIO, environ: Mapping[str, str] = os.environ
) -> LineFormat:
    """Return the form of lines that `format` means for `stream`."""
    for known in get_args(LineFormat):
        if (
            environ.get(LOG_FORMAT) == known
        ):  # our stderr is a pipe; the supervisor knows the reader
            return cast(LineFormat, known)
    if format == "auto" and _is_journal(stream, environ):
        return "journald"
    if format in ("auto", "text"):
        return "terminal" if stream.isatty() else "text"
    return cast(LineFormat, format)


def foreign_line(format: LineFormat, process: str, line: str) -> str:
    """Return a line that `process` wrote on stderr as a log line of its own.

    Lines from our own logging pass as they are; what libraries print is given the name.
    """
    if format == "json" and line.startswith("{"):  # masked where it was written
        return line
    line = mask(line)
    if format == "json":
        record = logging.makeLogRecord({"msg": line, "levelname": "INFO", "name": "stderr"})
        return JsonFormatter(process).format(record)
    if format == "journald":
        return line if re.match(r"<[0-7]>", line) else f"<6>{process}: {printable(line)}"
    return line if _STAMPED.match(line) else f"{process}: {printable(line)}"


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    # systemd sets device:inode of the stream it connected; a redirected stderr is another file
    with contextlib.suppress(OSError, ValueError):
        found = os.fstat(stream.fileno())
        return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


class _QuietHandler(logging.StreamHandler[TextIO]):
    """A stream handler for which a closed stderr is no reason to write tracebacks to it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say where a call to the log is wrong; its arguments may hold secrets."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | ValueError) and sys.stderr is not None:
            where = f"{record.pathname}:{record.lineno}"
            print(f"{where}: cannot be logged: {type(error).__name__}", file=sys.stderr)


def _formatter(format: LineFormat, process: str) -> logging.Formatter:
    if format == "json":
        return JsonFormatter(process)
    if format == "journald":
        return JournaldFormatter(process)
    return TextFormatter(process, is_terminal=format == "terminal")


class TextFormatter(logging.Formatter):
    """`12:30:01.250 warning worker: message key=value`, with date and zone off a terminal."""

    def __init__(self, process: str, *, is_terminal: bool) -> None:
        super().__init__()
        self._process = process
        self._is_terminal = is_terminal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and below it the traceback if there is one."""
        level = record.levelname.lower()
        if self._is_terminal:
            local = datetime.fromtimestamp(record.created, UTC).astimezone()
            time = local.strftime("%H:%M:%S.%f")[:-3]
            colour = _COLOURS.get(record.levelname)
            level = f"\x1b[{colour}m{level}\x1b[0m" if colour else level
        else:
            time = _time(record)
        return f"{time} {level} {self._process}: {_line(record)}{self._traceback(record)}"

    def _traceback(self, record: logging.LogRecord) -> str:
        return "\n" + mask(self.formatException(record.exc_info)) if record.exc_info else ""


class JournaldFormatter(logging.Formatter):
    """`<4>worker: message key=value`: the journal takes the level from `<N>` and has the time."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; each line of a traceback carries the level too."""
        lines = [f"{self._process}: {_line(record)}"]
        if record.exc_info:
            lines += mask(self.formatException(record.exc_info)).splitlines()
        priority = _JOURNAL_PRIORITY.get(record.levelname, 6)
        return "\n".join(f"<{priority}>{line}" for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, process, logger, message, and the facts."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        body = _facts(record) | {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": mask(record.getMessage()),
        }
        if record.exc_info:
            body["traceback"] = mask(self.formatException(record.exc_info))
        text = json.dumps(body, ensure_ascii=False, default=str)
        # what JSON lets stand although some readers take it for the end of a line
        return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _time(record: logging.LogRecord) -> str:
    from ast_stream.messages.event import (
        format_time,  # brings numpy, which `--help` need not wait for
    )

    return format_time(int(record.created * 1e9))


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: mask(value) if isinstance(value, str) else value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }


def _line(record: logging.LogRecord) -> str:
    """Return message and facts on one line, without characters that could forge another."""
    facts = "".join(f" {key}={_word(value)}" for key, value in _facts(record).items())
    return printable(mask(record.getMessage()) + facts)


def _word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else mask(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search(r'[\s"=]', text) or not text else text
