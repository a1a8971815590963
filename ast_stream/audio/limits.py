"""Calls that may never return, with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class NoAnswerError(Exception):
    """A call did not return in time; its thread is left behind."""


def within(limit_s: float, call: Callable[[], _T]) -> _T:
    """Return what `call` returns, or raise what it raises, from a helper thread.

    Raises:
        NoAnswerError: it did not end within `limit_s`.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="limited call", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise NoAnswerError(f"no answer in {limit_s:g} s")
    return results[0]
