"""Calls that may never return, with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class NoAnswerError(Exception):
    """A call did not return in time; its thread is left behind."""


class LimitedCall(Generic[_T]):
    """A call that runs in a helper thread from now on, and can be waited for again and again."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self._results: list[_T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="limited call", daemon=True)
        self._thread.start()

    def result(self, limit_s: float) -> _T:
        """Return what the call returns, or raise what it raises.

        Raises:
            NoAnswerError: it did not end within `limit_s` from now.
        """
        self._thread.join(limit_s)
        if self._errors:
            raise self._errors[0]
        if not self._results:
            raise NoAnswerError(f"no answer in {limit_s:g} s")
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:  # raised again in the thread that waits
            self._errors.append(error)


def within(limit_s: float, call: Callable[[], _T]) -> _T:
    """Return what `call` returns, or raise what it raises, from a helper thread.

    Raises:
        NoAnswerError: it did not end within `limit_s`.
    """
    return LimitedCall(call).result(limit_s)
