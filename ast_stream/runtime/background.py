"""Calls that may never return, in threads that may be left behind, and reading ahead."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

_T = TypeVar("_T")
_LEAVE_S = 5.0  # for a thread that reads ahead to notice that nothing more is wanted


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


def read_ahead(read: Callable[[], Iterator[_T]], n_items: int) -> Iterator[_T]:
    """Yield what an iterator yields, which goes on in a thread meanwhile, `n_items` ahead at most.

    What it raises is raised here after the items before it. Closing this iterator ends the other
    one as well, which is waited for unless it hangs.

    Args:
        read: returns the iterator; called, like this, in the thread.
    """
    items: queue.Queue[_T | _End] = queue.Queue(n_items)
    is_left = threading.Event()

    def run() -> None:
        error: BaseException | None = None
        try:
            for item in read():
                items.put(item)
                if is_left.is_set():
                    return
        except BaseException as raised:  # raised again in the thread that waits
            error = raised
        items.put(_End(error))

    thread = threading.Thread(target=run, name="reading ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _End):
            yield item
    finally:
        is_left.set()
        with suppress(queue.Empty):  # so that there is room for the one that it waits with
            while True:
                items.get_nowait()
        thread.join(_LEAVE_S)
    if item.error is not None:
        raise item.error


class _End:
    """Marks the end of the items, with the error that ended them, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
