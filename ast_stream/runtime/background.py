"""Calls that may never return, in threads that can be abandoned; and reading ahead."""

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
    """Yield the items of an iterator that runs ahead in a thread; see `ReadAhead`.

    The thread begins with the first item that is asked for.
    """
    with ReadAhead(read, n_items) as items:
        yield from items


class ReadAhead(Iterator[_T]):
    """The items of an iterator that runs ahead in a thread, by at most `n_items`.

    What it raises is raised here after the items before it. Closing this iterator ends the other
    one as well, which is waited for unless it hangs.

    Args:
        read: returns the iterator; called, like this, in the thread.
    """

    def __init__(self, read: Callable[[], Iterator[_T]], n_items: int) -> None:
        self._items: queue.Queue[_T | _End] = queue.Queue(n_items)
        self._is_left = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(
            target=self._run, args=(read,), name="reading ahead", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> ReadAhead[_T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> _T:
        """Return the next item, waiting for it."""
        if self._is_over:
            raise StopIteration
        item = self._items.get()
        if not isinstance(item, _End):
            return item
        self._is_over = True
        raise StopIteration if item.error is None else item.error

    def close(self) -> None:
        """End the thread, and the iterator in it."""
        self._is_over = True
        self._is_left.set()
        with suppress(queue.Empty):  # so that there is room for the one that it waits with
            while True:
                self._items.get_nowait()
        self._thread.join(_LEAVE_S)

    def _run(self, read: Callable[[], Iterator[_T]]) -> None:
        error: BaseException | None = None
        try:
            for item in read():
                self._items.put(item)
                if self._is_left.is_set():
                    return
        except BaseException as raised:  # raised again in the thread that waits
            error = raised
        self._items.put(_End(error))


class _End:
    """Marks the end of the items, with the error that ended them, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
