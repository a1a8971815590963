"""Processes and commands: compose the library and run; the only place that exits."""

# nothing is imported here that takes time: a signal to stop may come at any moment of the start
import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

# commands that a signal ends as it is meant; others have been cut short
RELOADED_BY_SIGHUP = ("run", "capture", "worker", "alerts", "record", "forward", "web")
RUN_UNTIL_STOPPED = (*RELOADED_BY_SIGHUP, "listen", "subscribe")


def chosen_command(args: Sequence[str]) -> str | None:
    return next((arg for arg in args if not arg.startswith("-")), None)


def leave_on_signals(args: Sequence[str]) -> None:
    """Have SIGTERM and SIGINT end this process at once, with the code that its command has then.

    For the time of the imports: there a handler that raises would come out as any error, and
    there is nothing to clean up yet. `lifecycle` has what follows.
    """
    command = chosen_command(args)

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(0 if command in RUN_UNTIL_STOPPED else 128 + number)

    if command in RELOADED_BY_SIGHUP and not _has_terminal():
        # a reload asked for now waits until it can be done; a terminal that is closed still ends us
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # SIGINT first: Python has a handler of its own for it, which would raise between the two calls
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


class LongImport:
    """A context for imports that take long, where there is nothing else to do meanwhile.

    What is imported stays: no garbage is looked for in it, now or later.
    """

    def __enter__(self) -> None:
        gc.disable()

    def __exit__(self, *exc_info: object) -> None:
        gc.freeze()
        gc.enable()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


# not where another program, such as one of the tests, imports what is in here
if os.path.basename(sys.argv[0]) in ("ast-stream", "-m"):  # pathlib takes 10 ms
    leave_on_signals(sys.argv[1:])
    # what is imported stays: to look for garbage in it takes a quarter of a worker's start, and as
    # much of its end; `app` has it passed over for good and turns the search on again
    gc.disable()
