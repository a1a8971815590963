"""Log lines on stderr: one event a line, keyed, in the form that its reader understands.

Modules log with `logging.getLogger(__name__)`; facts go into `extra={"stream": …}` and come out as
`key=value` (text, journald) or as members of the object (json).
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast, get_args

from ast_stream.labels import printable
from ast_stream.units import format_time
from ast_stream.urls import mask

LogFormat = Literal["auto", "text", "json", "journald"]
LineFormat = Literal["terminal", "text", "json", "journald"]  # text as it is for whoever reads it
LOG_FORMAT = "AST_STREAM_LOG_FORMAT"  # the line format a supervisor wants from its children

_NOT_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_JOURNAL_PRIORITY = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}
_STAMPED = re.compile(r"\d{4}-\d\d-\d\dT|\d\d:\d\d:\d\d\.\d{3} ")
LIMIT_S = 60.0  # between two warnings of a `LimitedLog`
RECOVERY_S = 5.0  # without a failure, after which an `Outage` is over
_speaker: contextvars.ContextVar[str | None] = contextvars.ContextVar("speaker", default=None)
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


@contextlib.contextmanager
def speaking_as(name: str) -> Iterator[None]:
    """Log under another name than that of the process, as one of several that it works for."""
    token = _speaker.set(name)
    try:
        yield
    finally:
        _speaker.reset(token)


def log_what_nobody_catches() -> None:
    """Log what threads and destructors raise, so that it is masked as well."""
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
    """Return whether `setup_logging` has been called in this process."""
    return any(isinstance(handler, _QuietHandler) for handler in logging.getLogger().handlers)


def line_format(
    format: LogFormat, stream: TextIO, environ: Mapping[str, str] = os.environ
) -> LineFormat:
    """Return the form of lines that `format` means for `stream`."""
    wanted = environ.get(LOG_FORMAT)  # of the supervisor, which knows where its lines go
    if wanted in get_args(LineFormat):
        return cast(LineFormat, wanted)
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


class LimitedLog:
    """Logs the first warning at once, then at most one every `every_s` seconds, with a count.

    Args:
        now_s: a clock that only goes forward, in seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        now_s: Callable[[], float] = time.monotonic,
        every_s: float = LIMIT_S,
    ) -> None:
        self._logger = logger
        self._now_s = now_s
        self._every_s = every_s
        self._last_s: float | None = None
        self._n_suppressed = 0

    def warning(self, message: str, *args: object) -> None:
        """Log `message` with its `%s` arguments, or only count it."""
        now_s = self._now_s()
        if self._last_s is not None and now_s - self._last_s < self._every_s:
            self._n_suppressed += 1
            return
        self._last_s = now_s
        if self._n_suppressed:
            message += " (and %s more like it since the last such line)"
            args = (*args, self._n_suppressed)
        self._n_suppressed = 0
        self._logger.warning(message, *args)


class Outage:
    """Something that fails for a while: logged when it begins, once a minute, and when it is over.

    It is over when nothing has failed for `RECOVERY_S`: a full disk lets a small write through now
    and then. Several threads may share one.

    Args:
        over: what is logged then, e.g. "the event log is written again".
        now_s: a clock that only goes forward, in seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        over: str,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._over = over
        self._now_s = now_s
        self._lock = threading.Lock()
        self._log = LimitedLog(logger, now_s)
        self._text: str | None = None
        self._began_s = self._failed_s = 0.0
        self._n_failed = 0

    @property
    def text(self) -> str | None:
        """What fails, in words; None while nothing does."""
        return self._text

    def failed(self, message: str, *args: object) -> None:
        """Count a failure, and log it at a limited rate; `message` has `%s` arguments."""
        with self._lock:
            self._failed_s = self._now_s()
            if self._text is None:
                self._began_s, self._n_failed = self._failed_s, 0
                self._log = LimitedLog(self._logger, self._now_s)
            self._n_failed += 1
            self._text = message % args
            self._log.warning(message, *args)

    def worked(self) -> None:
        """Take note of a success."""
        if self._text is None:
            return
        with self._lock:
            now_s = self._now_s()
            if self._text is None or now_s - self._failed_s < RECOVERY_S:
                return
            self._text = None
            lasted_s, n_failed = self._failed_s - self._began_s, self._n_failed
        self._logger.warning("%s after %.0f s and %d failures", self._over, lasted_s, n_failed)


class _QuietHandler(logging.StreamHandler[TextIO]):
    """A stream handler for which a closed stderr is no reason to write tracebacks to it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Report where a call to the log is wrong, without its arguments, which may be secret."""
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
        name = _speaker.get() or self._process
        return f"{time} {level} {name}: {_line(record)}{self._traceback(record)}"

    def _traceback(self, record: logging.LogRecord) -> str:
        return "\n" + mask(self.formatException(record.exc_info)) if record.exc_info else ""


class JournaldFormatter(logging.Formatter):
    """`<4>worker: message key=value`: the journal takes the level from `<N>` and has the time."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; each line of a traceback carries the level too."""
        lines = [f"{_speaker.get() or self._process}: {_line(record)}"]
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
            "process": _speaker.get() or self._process,
            "logger": record.name,
            "message": mask(record.getMessage()),
        }
        if record.exc_info:
            body["traceback"] = mask(self.formatException(record.exc_info))
        text = json.dumps(body, ensure_ascii=False, default=str)
        # what JSON lets stand although some readers take it for the end of a line
        return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _time(record: logging.LogRecord) -> str:
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
