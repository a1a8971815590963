"""Calls that may never return, in threads that may be left behind."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


def in_background(call: Callable[[], _T]) -> Future[_T]:
    """Run `call` in a daemon thread, and return its future.

    An executor would wait for its threads at the end of the process, and hang with them.
    """
    future: Future[_T] = Future()
    context = contextvars.copy_context()  # the name under which it logs

    def run() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:  # raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name="background call", daemon=True).start()
    return future
